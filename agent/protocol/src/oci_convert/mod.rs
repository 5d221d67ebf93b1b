//! The OCI configuration to and from the contract's messages.
//!
//! Both ways go through the configuration's JSON form, whose names the OCI specification fixes; that
//! also checks every enumeration (capabilities, rlimits, seccomp actions, ...) on the receiving side.
//!
//! An absent list, map or string and an empty one are the same on the wire; reading yields "absent".
//! Not carried, because they concern only the host or other platforms: `vm`, `windows`, `solaris`,
//! `zos`, `linux.netDevices`, `linux.memoryPolicy`, and of `linux.intelRdt` all but the L3 schema.

mod from_proto;
mod json;
#[cfg(test)]
mod tests;
mod to_proto;

use oci_spec::runtime as oci_runtime;
use serde_json::Value;

use crate::oci;

/// A configuration that cannot be carried to the other side.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A number does not fit into the message's field.
    #[error("{field}: the number does not fit")]
    Range {
        /// Path of the field inside the converted object.
        field: String,
    },
    /// The message does not form a valid OCI object.
    #[error("the {what} is not a valid OCI configuration")]
    Invalid {
        /// Which object was being read.
        what: &'static str,
        /// What the OCI types did not accept.
        #[source]
        source: serde_json::Error,
    },
    /// The OCI object could not be taken apart.
    #[error("the {what} has no JSON form")]
    Serialize {
        /// Which object was being written.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// The message for a whole configuration.
pub fn spec_to_proto(spec: &oci_runtime::Spec) -> Result<oci::Spec, ConvertError> {
    to_proto::spec(&to_json("configuration", spec)?)
}

/// The configuration that a message carries.
pub fn spec_from_proto(message: &oci::Spec) -> Result<oci_runtime::Spec, ConvertError> {
    from_json("configuration", from_proto::spec(message))
}

/// The message for one process.
pub fn process_to_proto(process: &oci_runtime::Process) -> Result<oci::Process, ConvertError> {
    to_proto::process(&to_json("process", process)?)
}

/// The process that a message carries.
pub fn process_from_proto(message: &oci::Process) -> Result<oci_runtime::Process, ConvertError> {
    from_json("process", from_proto::process(message))
}

/// The message for resource limits.
pub fn resources_to_proto(resources: &oci_runtime::LinuxResources) -> Result<oci::LinuxResources, ConvertError> {
    to_proto::resources(&to_json("resources", resources)?)
}

/// The resource limits that a message carries.
pub fn resources_from_proto(message: &oci::LinuxResources) -> Result<oci_runtime::LinuxResources, ConvertError> {
    from_json("resources", from_proto::resources(message))
}

fn to_json<T: serde::Serialize>(what: &'static str, object: &T) -> Result<Value, ConvertError> {
    serde_json::to_value(object).map_err(|source| ConvertError::Serialize { what, source })
}

fn from_json<T: serde::de::DeserializeOwned>(what: &'static str, value: Value) -> Result<T, ConvertError> {
    serde_json::from_value(value).map_err(|source| ConvertError::Invalid { what, source })
}
