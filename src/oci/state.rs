//! The OCI state document: what `state` prints and what hooks get on their standard input.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a container is in its life. The words are the OCI's; `paused` is runc's addition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` is under way.
    Creating,
    /// Made, its process not started.
    Created,
    /// Its process runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its process has ended.
    Stopped,
}

impl Status {
    /// Each status, in the order of a life.
    pub const ALL: [Self; 5] = [Self::Creating, Self::Created, Self::Running, Self::Paused, Self::Stopped];

    /// The OCI's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that is no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no container status: creating, created, running, paused or stopped")]
pub struct ParseStatusError(String);

impl FromStr for Status {
    type Err = ParseStatusError;
    fn from_str(text: &str) -> Result<Self, ParseStatusError> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| ParseStatusError(text.to_owned()))
    }
}

/// The OCI state document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OciState {
    /// The specification's version that this document follows: [`super::OCI_VERSION`].
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Where it is in its life.
    pub status: Status,
    /// The host process that stands for the container; required by the OCI when created or running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The bundle's absolute path.
    pub bundle: PathBuf,
    /// The specification's annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_document_has_the_names_that_the_oci_gives() {
        let state = OciState {
            oci_version: super::super::OCI_VERSION.to_owned(),
            id: "c1".to_owned(),
            status: Status::Creating,
            pid: Some(7),
            bundle: PathBuf::from("/b"),
            annotations: BTreeMap::from([("a".to_owned(), "1".to_owned())]),
        };
        let json = serde_json::to_value(&state).expect("serialises");
        let wanted = serde_json::json!({"ociVersion": super::super::OCI_VERSION, "id": "c1", "status": "creating", "pid": 7,
            "bundle": "/b", "annotations": {"a": "1"}});
        assert_eq!(json, wanted);
        assert_eq!(serde_json::from_value::<OciState>(json).expect("reads back"), state);
    }

    #[test]
    fn every_status_is_written_and_read_as_the_same_word() {
        for status in Status::ALL {
            assert_eq!(status.to_string().parse::<Status>(), Ok(status));
            assert_eq!(serde_json::to_value(status).expect("serialises"), status.as_str());
        }
        assert!("alive".parse::<Status>().is_err());
    }
}
