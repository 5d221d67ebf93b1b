//! The options of a task, which travel as an `Any`: our own, those that containerd has for a runtime without a type of its
//! own (a runtime class names a configuration file with them), and runc's, as far as they make sense here.

use super::generated::runtime_options;
use super::{CREATE_OPTIONS_URL, CreateOptions};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci as runc;
use std::path::PathBuf;

const RUNTIME_OPTIONS: &str = "runtimeoptions.v1.Options";
const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";

/// Why options are refused.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// Another runtime's.
    #[error("options of the type {0:?} are not known: use {RUNTIME_OPTIONS} with a config_path, or leave them out")]
    Type(String),
    /// Not a message of that type.
    #[error("options of the type {kind} cannot be read")]
    Decode {
        /// The type.
        kind: &'static str,
        /// What is wrong.
        #[source]
        source: containerd_shim_protos::protobuf::Error,
    },
    /// A configuration file is found by its whole path only.
    #[error("the option config_path {0:?} is not an absolute path")]
    NotAbsolute(String),
    /// A configuration that is no file.
    #[error("the option config_body is not supported: write it to a file, and name that as config_path ({0:?} ...)")]
    Body(String),
    /// An option of runc's that says something this runtime cannot do.
    #[error("the option {option} of {RUNC_OPTIONS} means nothing to this runtime: remove it")]
    Runc {
        /// As containerd's configuration names it.
        option: &'static str,
    },
}

/// What options say.
#[derive(Debug, Default, PartialEq)]
pub struct TaskOptions {
    /// Ours, from our own command line; defaults otherwise.
    pub own: CreateOptions,
    /// The configuration file that the runtime class names.
    pub config: Option<PathBuf>,
}

impl TaskOptions {
    /// Reads them; none are the default ones.
    ///
    /// # Errors
    /// Options that would be ignored, or cannot be read.
    pub fn parse(any: Option<&Any>) -> Result<Self, OptionsError> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty()) else { return Ok(Self::default()) };
        // A type may have a host before its name.
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            CREATE_OPTIONS_URL => {
                let own = decode::<CreateOptions>(CREATE_OPTIONS_URL, &any.value)?;
                Ok(Self { own, config: None })
            }
            RUNTIME_OPTIONS => runtime(&decode(RUNTIME_OPTIONS, &any.value)?),
            RUNC_OPTIONS => of_runc(&decode(RUNC_OPTIONS, &any.value)?),
            _ => Err(OptionsError::Type(any.type_url.clone())),
        }
    }
}

fn decode<M: Message>(kind: &'static str, bytes: &[u8]) -> Result<M, OptionsError> {
    M::parse_from_bytes(bytes).map_err(|source| OptionsError::Decode { kind, source })
}

fn runtime(options: &runtime_options::Options) -> Result<TaskOptions, OptionsError> {
    if options.config_path.is_empty() {
        if !options.config_body.is_empty() {
            let begin = String::from_utf8_lossy(&options.config_body).trim().chars().take(60).collect();
            return Err(OptionsError::Body(begin));
        }
        return Ok(TaskOptions::default());
    }
    let config = PathBuf::from(&options.config_path);
    if !config.is_absolute() {
        return Err(OptionsError::NotAbsolute(options.config_path.clone()));
    }
    Ok(TaskOptions { config: Some(config), ..TaskOptions::default() })
}

/// What runc needs and a virtual machine has anyway is passed over; what somebody relies on is not.
fn of_runc(options: &runc::Options) -> Result<TaskOptions, OptionsError> {
    let unusable = [
        ("BinaryName", !options.binary_name.is_empty()),
        ("Root", !options.root.is_empty()),
        ("ShimCgroup", !options.shim_cgroup.is_empty()),
        ("TaskApiAddress", !options.task_api_address.is_empty()),
    ];
    if let Some((option, _)) = unusable.into_iter().find(|(_, given)| *given) {
        return Err(OptionsError::Runc { option });
    }
    let own = CreateOptions { systemd_cgroup: options.systemd_cgroup, ..CreateOptions::default() };
    Ok(TaskOptions { own, config: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(url: &str, message: &impl Message) -> Any {
        Any { type_url: url.to_owned(), value: message.write_to_bytes().unwrap(), ..Any::default() }
    }

    #[test]
    fn a_runtime_class_names_its_configuration_by_a_whole_path() {
        let mut options = runtime_options::Options { config_path: "/etc/a.toml".into(), ..Default::default() };
        let parsed = TaskOptions::parse(Some(&any(RUNTIME_OPTIONS, &options))).unwrap();
        assert_eq!(parsed.config, Some("/etc/a.toml".into()));
        options.config_path = "a.toml".into();
        assert!(matches!(
            TaskOptions::parse(Some(&any(RUNTIME_OPTIONS, &options))),
            Err(OptionsError::NotAbsolute(path)) if path == "a.toml"
        ));
        options.config_path.clear();
        assert_eq!(TaskOptions::parse(Some(&any(RUNTIME_OPTIONS, &options))).unwrap(), TaskOptions::default());
        options.config_body = b"SystemdCgroup = true\n".to_vec();
        let error = TaskOptions::parse(Some(&any(RUNTIME_OPTIONS, &options))).unwrap_err().to_string();
        assert!(error.contains("SystemdCgroup = true"), "{error}");
    }

    #[test]
    fn runcs_options_are_taken_where_they_mean_something_and_refused_where_somebody_relies_on_them() {
        let options = runc::Options { systemd_cgroup: true, no_pivot_root: true, io_uid: 7, ..Default::default() };
        assert!(TaskOptions::parse(Some(&any(RUNC_OPTIONS, &options))).unwrap().own.systemd_cgroup);
        let options = runc::Options { binary_name: "crun".into(), ..Default::default() };
        let error = TaskOptions::parse(Some(&any(RUNC_OPTIONS, &options))).unwrap_err();
        assert!(error.to_string().contains("BinaryName"), "{error}");
    }

    #[test]
    fn options_that_nobody_knows_and_those_that_are_none_are_refused() {
        let unknown = any("windows.Options", &runc::Options::new());
        assert!(matches!(TaskOptions::parse(Some(&unknown)), Err(OptionsError::Type(_))));
        let broken = Any { type_url: RUNTIME_OPTIONS.into(), value: vec![0xff], ..Any::default() };
        assert!(matches!(TaskOptions::parse(Some(&broken)), Err(OptionsError::Decode { .. })));
        assert_eq!(TaskOptions::parse(None).unwrap(), TaskOptions::default());
    }
}
