//! The shim's command line, as containerd writes it: flags in Go's manner (one dash or two, the value after a space or an
//! equals sign), then the action.

use std::ffi::OsString;
use std::path::PathBuf;

/// Why the command line is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentsError {
    /// Not text.
    #[error("the argument {0:?} is not UTF-8")]
    NotText(OsString),
    /// A flag that containerd does not give to shims.
    #[error("the flag {0} is not known: this program is containerd's shim, and containerd calls it")]
    Flag(String),
    /// A flag at the end.
    #[error("the flag -{0} needs a value")]
    Value(&'static str),
    /// A flag that every call has.
    #[error("the flag -{0} is missing: this program is containerd's shim, and containerd calls it")]
    Missing(&'static str),
    /// Neither start nor delete.
    #[error("the action {0:?} is not known: start or delete")]
    Action(String),
}

/// What containerd wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A supervisor for the container of the bundle in the working directory.
    Start,
    /// Nothing left of the container.
    Delete,
    /// The version, for a person.
    Version,
}

/// The command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// What to do.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// The container.
    pub id: String,
    /// containerd's gRPC address.
    pub address: String,
    /// The program that publishes events, where there is no better way.
    pub publish_binary: Option<PathBuf>,
    /// The bundle; for `start`, the working directory.
    pub bundle: Option<PathBuf>,
    /// Whether to log what a developer wants to know.
    pub debug: bool,
}

impl Arguments {
    /// Reads them, the program's name left out.
    ///
    /// # Errors
    /// What is wrong first.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ArgumentsError> {
        let mut words = arguments.into_iter();
        let mut parsed = Self {
            action: Action::Version,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            publish_binary: None,
            bundle: None,
            debug: false,
        };
        while let Some(word) = words.next() {
            let word = word.into_string().map_err(ArgumentsError::NotText)?;
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
                parsed.action = match word.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    _ => return Err(ArgumentsError::Action(word)),
                };
                return parsed.complete();
            };
            let (name, given) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let mut value = |name: &'static str| match given.clone() {
                Some(value) => Ok(value),
                None => match words.next() {
                    Some(value) => value.into_string().map_err(ArgumentsError::NotText),
                    None => Err(ArgumentsError::Value(name)),
                },
            };
            match name {
                "namespace" => parsed.namespace = value("namespace")?,
                "id" => parsed.id = value("id")?,
                "address" => parsed.address = value("address")?,
                "publish-binary" => parsed.publish_binary = Some(value("publish-binary")?.into()),
                "bundle" => parsed.bundle = Some(value("bundle")?.into()),
                // Where a Go shim serves; ours says where, in its answer.
                "socket" => _ = value("socket")?,
                "debug-socket" => _ = value("debug-socket")?,
                "debug" => parsed.debug = given.as_deref() != Some("false"),
                "v" | "version" => return Ok(parsed),
                _ => return Err(ArgumentsError::Flag(word)),
            }
        }
        Err(ArgumentsError::Action(String::new()))
    }

    fn complete(self) -> Result<Self, ArgumentsError> {
        match (&*self.namespace, &*self.id) {
            ("", _) => Err(ArgumentsError::Missing("namespace")),
            (_, "") => Err(ArgumentsError::Missing("id")),
            _ => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Arguments, ArgumentsError> {
        Arguments::parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn what_containerd_calls_is_understood() {
        let start =
            parsed("-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id a -debug start");
        let start = start.unwrap();
        assert_eq!((start.action, start.debug, start.bundle), (Action::Start, true, None));
        assert_eq!(
            (start.namespace.as_str(), start.id.as_str(), start.address.as_str()),
            ("k8s.io", "a", "/run/c.sock")
        );
        assert_eq!(start.publish_binary, Some("/usr/bin/containerd".into()));
        let delete = parsed("--namespace=n --address=/c -publish-binary /b --id=a -bundle /run/b delete").unwrap();
        assert_eq!((delete.action, delete.debug, delete.bundle), (Action::Delete, false, Some("/run/b".into())));
        assert_eq!(parsed("-v").unwrap().action, Action::Version);
    }

    #[test]
    fn what_containerd_would_not_call_is_refused() {
        assert_eq!(parsed("-namespace n -id a restart"), Err(ArgumentsError::Action("restart".into())));
        assert_eq!(parsed("-namespace n -id a"), Err(ArgumentsError::Action(String::new())));
        assert_eq!(parsed("-id a start"), Err(ArgumentsError::Missing("namespace")));
        assert_eq!(parsed("-namespace n start"), Err(ArgumentsError::Missing("id")));
        assert_eq!(parsed("-namespace n -id"), Err(ArgumentsError::Value("id")));
        assert_eq!(parsed("-rm start"), Err(ArgumentsError::Flag("-rm".into())));
    }
}
