//! OCI bundles: a specification is loaded, checked, and turned into the one that the guest gets. Nothing here changes
//! the host; what must be looked up on it (mount sources) goes through [`HostFiles`], so that tests need no host.
//!
//! ```text
//! config.json --load_spec--> Spec --validate--> same Spec --guest_spec--> GuestSpec { spec, mounts, shared pid ns, warnings }
//! ```

mod annotations;
mod default_spec;
mod dns;
mod error;
mod features;
mod guest;
mod host_files;
mod load;
mod mounts;
mod namespaces;
mod resources;
mod seccomp;
mod state;
mod validate;

pub use annotations::{ContainerType, container_type};
pub use default_spec::default_spec;
pub use dns::sandbox_dns;
pub use error::OciError;
pub use features::features;
pub use guest::{GuestSpec, GuestSpecOptions, guest_spec};
pub use host_files::{FileKind, FilesystemInfo, HostFiles, RealHostFiles, SourceInfo};
pub use load::{MAX_CONFIG_BYTES, load_process, load_spec, parse_spec};
pub use mounts::{BindPropagation, BindShare, DEFAULT_SHM_BYTES, MountKind, MountPlan, VolumePlan, sandbox_shm_bytes};
pub use namespaces::{NetworkRequest, network_request};
pub use oci_spec::runtime::{Hook, Mount, Process, Spec};
pub use resources::guest_resources;
pub use state::{OciState, ParseStatusError, Status};
pub use validate::{resolve_root, validate, validate_process};

/// The version of the OCI runtime specification that our state documents and default specification follow.
pub const OCI_VERSION: &str = "1.2.1";
/// The oldest version of the specification whose bundles are taken.
pub const OCI_VERSION_MIN: &str = "1.0.0";
/// The newest one: what 1.3 added is refused where it is used, so its other bundles work.
pub const OCI_VERSION_MAX: &str = "1.3.0";
