//! Names that are safe to be file names.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The longest id, in bytes: a file name of 255 less the longest suffix in use.
const MAX_LENGTH: usize = 240;

/// Why an id is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing there.
    #[error("container id is empty")]
    Empty,
    /// Too long for a file name.
    #[error("container id has {0} bytes; at most {MAX_LENGTH} are allowed")]
    TooLong(usize),
    /// A character that could leave a directory or confuse a reader.
    #[error("container id {0:?} is not allowed: letters, digits and _ + - . only, and not \".\" or \"..\"")]
    Character(String),
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                check(text).map(|()| Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                check(&text).map(|()| Self(text))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id_type! {
    /// The id of a container: what the caller of `create` gave.
    ContainerId
}
id_type! {
    /// The id of a sandbox: that of its first container.
    SandboxId
}
id_type! {
    /// The id of a further process in a container.
    ExecId
}

impl From<ContainerId> for SandboxId {
    fn from(id: ContainerId) -> Self {
        Self(id.0)
    }
}

impl From<SandboxId> for ContainerId {
    fn from(id: SandboxId) -> Self {
        Self(id.0)
    }
}

fn check(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > MAX_LENGTH {
        return Err(IdError::TooLong(text.len()));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    if text == "." || text == ".." || !text.chars().all(allowed) {
        return Err(IdError::Character(text.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_runc_takes_are_taken() {
        for id in ["a", "demo-1", "A_b+c.d", &"f".repeat(64)] {
            assert_eq!(id.parse::<ContainerId>().map(String::from), Ok(id.to_owned()));
        }
    }

    #[test]
    fn ids_that_could_leave_a_directory_are_refused() {
        for id in ["", ".", "..", "a/b", "../x", "a b", "ä", "a\n", "\0", &"x".repeat(241)] {
            assert!(id.parse::<ContainerId>().is_err(), "{id:?}");
        }
    }

    #[test]
    fn an_illegal_id_in_json_is_an_error() {
        assert!(serde_json::from_str::<SandboxId>("\"../etc\"").is_err());
    }
}
