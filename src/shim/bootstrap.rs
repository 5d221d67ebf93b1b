//! What containerd says on `start`'s standard input, and what it wants to hear.
//!
//! | containerd | standard input | answer |
//! |---|---|---|
//! | 1.6 | options as an `Any`, or nothing | the address |
//! | 1.7 to 2.2 | the same; MAX_SHIM_VERSION in the environment | JSON with version, address, protocol |
//! | from 2.3 | `BootstrapParams`, the options in it | the same |

use super::Arguments;
use crate::api::{OptionsError, TaskOptions};
use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use std::path::{Path, PathBuf};

/// The largest input that is read, in bytes: containerd's own shims' limit.
pub(super) const MAX_INPUT: u64 = 10 << 20;
/// The newest version of the shim protocol: Task service v3.
const NEWEST_VERSION: u32 = 3;

/// Why the input is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum BootstrapError {
    /// Neither of the two messages.
    #[error("containerd's input for the shim cannot be read")]
    Decode(#[source] containerd_shim_protos::protobuf::Error),
    /// The options in it.
    #[error("cannot use the runtime's options")]
    Options(#[source] OptionsError),
}

/// What containerd says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Bootstrap {
    /// The options.
    pub(super) options: TaskOptions,
    /// Its ttrpc socket.
    pub(super) ttrpc_address: Option<String>,
}

impl Bootstrap {
    /// Reads it.
    pub(super) fn parse(input: &[u8], arguments: &Arguments) -> Result<Self, BootstrapError> {
        let params = BootstrapParams::parse_from_bytes(input).ok();
        // Both messages begin with a string: which one it is, its content says.
        let params = params.filter(|params| params.instance_id == arguments.id && !params.instance_id.is_empty());
        let Some(params) = params else {
            let any = Any::parse_from_bytes(input).map_err(BootstrapError::Decode)?;
            let options = TaskOptions::parse(Some(&any)).map_err(BootstrapError::Options)?;
            return Ok(Self { options, ttrpc_address: None });
        };
        let mut options = TaskOptions::default();
        for extension in &params.extensions {
            match TaskOptions::parse(extension.value.as_ref()) {
                Ok(found) => options = found,
                // Extensions are of any kind; only options are ours to judge.
                Err(OptionsError::Type(kind)) if !kind.ends_with("Options") => {
                    tracing::debug!(kind, "an extension without meaning here");
                }
                Err(error) => return Err(BootstrapError::Options(error)),
            }
        }
        Ok(Self { options, ttrpc_address: Some(params.containerd_ttrpc_address).filter(|path| !path.is_empty()) })
    }
}

/// A Unix socket's path out of an address with or without a scheme.
pub(super) fn socket_path(address: &str) -> Option<PathBuf> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// The answer; `newest` is MAX_SHIM_VERSION.
pub(super) fn answer(link: &Path, newest: Option<&str>) -> String {
    let address = format!("unix://{}", link.display());
    let Some(newest) = newest.and_then(|text| text.trim().parse::<u32>().ok()).filter(|newest| *newest >= 2) else {
        return address;
    };
    let version = newest.min(NEWEST_VERSION);
    serde_json::json!({"version": version, "address": address, "protocol": "ttrpc"}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::Extension;
    use containerd_shim_protos::protobuf::MessageField;
    use std::ffi::OsString;

    fn arguments() -> Arguments {
        Arguments::parse("-namespace n -id c start".split(' ').map(OsString::from)).unwrap()
    }

    fn options() -> Any {
        // Field 2 of runtimeoptions.v1.Options: config_path.
        Any { type_url: "runtimeoptions.v1.Options".into(), value: b"\x12\x02/a".to_vec(), ..Any::default() }
    }

    #[test]
    fn options_are_found_in_each_of_the_two_messages() {
        let bytes = options().write_to_bytes().unwrap();
        let old = Bootstrap::parse(&bytes, &arguments()).unwrap();
        assert_eq!((old.options.config, old.ttrpc_address), (Some("/a".into()), None));
        let other = Any { type_url: "containerd.io/cri.v1.PodSandboxConfig".into(), ..Any::default() };
        let extension = |any: Any| Extension { value: MessageField::some(any), ..Extension::default() };
        let params = BootstrapParams {
            instance_id: "c".into(),
            namespace: "n".into(),
            containerd_ttrpc_address: "unix:///run/t".into(),
            extensions: vec![extension(options()), extension(other)],
            ..BootstrapParams::default()
        };
        let new = Bootstrap::parse(&params.write_to_bytes().unwrap(), &arguments()).unwrap();
        assert_eq!((new.options.config, new.ttrpc_address), (Some("/a".into()), Some("unix:///run/t".into())));
        assert_eq!(Bootstrap::parse(b"", &arguments()).unwrap(), Bootstrap::default());
        assert!(matches!(Bootstrap::parse(b"\xff", &arguments()), Err(BootstrapError::Decode(_))));
    }

    #[test]
    fn the_answer_is_what_each_containerd_reads() {
        let link = Path::new("/run/s/1");
        assert_eq!(answer(link, None), "unix:///run/s/1");
        assert_eq!(answer(link, Some("1")), "unix:///run/s/1");
        for (newest, version) in [("2", 2), ("3", 3), ("9", 3)] {
            let answer: serde_json::Value = serde_json::from_str(&answer(link, Some(newest))).unwrap();
            assert_eq!(
                answer,
                serde_json::json!({"version": version, "address": "unix:///run/s/1", "protocol": "ttrpc"})
            );
        }
    }

    #[test]
    fn an_address_may_have_a_scheme() {
        assert_eq!(socket_path("/run/t"), Some("/run/t".into()));
        assert_eq!(socket_path("unix:///run/t"), Some("/run/t".into()));
        assert_eq!(socket_path("vsock://2:1"), None);
    }
}
