//! What the name of a stream means.

use crate::api::parse_descriptor_of_process;
use std::path::PathBuf;

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TargetError {
    /// A URI of another kind.
    #[error("the scheme {0:?} is not known: a path, file:// or binary://")]
    Scheme(String),
    /// A path that would be looked up from nowhere.
    #[error("the path {0:?} is not absolute")]
    NotAbsolute(String),
    /// A percent sign without two hexadecimal digits after it, or a text that is none.
    #[error("the percent-encoding of {0:?} is broken")]
    Encoding(String),
}

/// Where a stream comes from or goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A descriptor of a living process.
    Descriptor(i32, i32),
    /// A FIFO or file that is there.
    Path(PathBuf),
    /// A file that is made where there is none, and appended to.
    File(PathBuf),
    /// A program that takes the output of a process.
    Logger(LoggerCommand),
}

/// A program that takes the output of a process (containerd's `binary://`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LoggerCommand {
    pub(super) program: PathBuf,
    pub(super) args: Vec<String>,
}

impl Target {
    /// Reads a name; an empty one is none.
    pub(super) fn parse(name: &str) -> Result<Option<Self>, TargetError> {
        if name.is_empty() {
            return Ok(None);
        }
        if let Some((pid, descriptor)) = parse_descriptor_of_process(name) {
            return Ok(Some(Self::Descriptor(pid, descriptor)));
        }
        let Some((scheme, rest)) = name.split_once("://") else {
            return Ok(Some(Self::Path(PathBuf::from(name))));
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = decode(path, false)?;
        if !path.starts_with('/') {
            return Err(TargetError::NotAbsolute(path));
        }
        match scheme {
            "fifo" => Ok(Some(Self::Path(path.into()))),
            "file" => Ok(Some(Self::File(path.into()))),
            "binary" => Ok(Some(Self::Logger(LoggerCommand { program: path.into(), args: arguments(query)? }))),
            _ => Err(TargetError::Scheme(scheme.to_owned())),
        }
    }
}

/// A logger's arguments: each key of the query, and its value where it has one.
fn arguments(query: &str) -> Result<Vec<String>, TargetError> {
    let mut words = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some((key, value)) => words.extend([decode(key, true)?, decode(value, true)?]),
            None => words.push(decode(pair, true)?),
        }
    }
    Ok(words)
}

/// Percent-encoding; in a query a plus sign is a space.
fn decode(text: &str, query: bool) -> Result<String, TargetError> {
    let broken = || TargetError::Encoding(text.to_owned());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16)).ok_or_else(broken);
                let value = digit()? * 16 + digit()?;
                u8::try_from(value).map_err(|_| broken())?
            }
            b'+' if query => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| broken())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_a_name_is_understood() {
        let logger = |program: &str, args: &[&str]| {
            let args = args.iter().map(|arg| (*arg).to_owned()).collect();
            Target::Logger(LoggerCommand { program: program.into(), args })
        };
        for (name, wanted) in [
            ("", None),
            ("pidfd://7/1", Some(Target::Descriptor(7, 1))),
            ("/run/fifo", Some(Target::Path("/run/fifo".into()))),
            ("fifo:///run/fifo", Some(Target::Path("/run/fifo".into()))),
            ("file:///var/log/a%20b", Some(Target::File("/var/log/a b".into()))),
            ("binary:///bin/log", Some(logger("/bin/log", &[]))),
            ("binary:///bin/log?id=a%2fb&flag&x=y+z", Some(logger("/bin/log", &["id", "a/b", "flag", "x", "y z"]))),
        ] {
            assert_eq!(Target::parse(name), Ok(wanted), "{name}");
        }
    }

    #[test]
    fn a_name_that_means_nothing_is_refused() {
        for (name, error) in [
            ("http:///x", TargetError::Scheme("http".into())),
            ("binary://bin/log", TargetError::NotAbsolute("bin/log".into())),
            ("file://", TargetError::NotAbsolute(String::new())),
            ("file:///a%2", TargetError::Encoding("/a%2".into())),
            ("file:///a%ff", TargetError::Encoding("/a%ff".into())),
        ] {
            assert_eq!(Target::parse(name), Err(error), "{name}");
        }
    }
}
