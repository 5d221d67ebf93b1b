//! `manifest.json`: what a guest was made from, and the sum of each of its files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::GuestError;

/// The version of this file and of the recipe: a guest made by another one is made anew.
pub(crate) const FORMAT: u32 = 1;

/// The name of the manifest's file in a guest's folder.
pub(crate) const FILE_NAME: &str = "manifest.json";

/// What a guest was made from, and what it consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of this record and of the recipe, 1 at present.
    pub format: u32,
    /// The kernel.
    pub kernel: KernelRecord,
    /// SHA-256 of the agent's program before it was stripped, in lower-case hexadecimal.
    pub agent_sha256: String,
    /// The modules in the order in which the guest loads them.
    pub modules: Vec<String>,
    /// The guest's files by name.
    pub files: BTreeMap<String, FileRecord>,
}

/// Where the kernel came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelRecord {
    /// Debian package, for example "linux-image-6.1.0-56-cloud-amd64".
    pub package: String,
    /// The package's version.
    pub version: String,
    /// What `uname -r` prints in the guest.
    pub release: String,
}

/// One file of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// In lower-case hexadecimal.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
}

impl Manifest {
    /// Reads the manifest of the guest in `dir`.
    ///
    /// # Errors
    /// When there is none, or it is not a manifest.
    pub fn read(dir: &Path) -> Result<Self, GuestError> {
        let path = dir.join(FILE_NAME);
        let text = fs::read_to_string(&path).map_err(GuestError::file("read", &path))?;
        serde_json::from_str(&text).map_err(|source| GuestError::Manifest { path, source })
    }

    /// The file's text. The same manifest gives the same text.
    pub(crate) fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}
