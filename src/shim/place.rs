//! Where the state of containerd's containers is.
//!
//! ```text
//! <STOCKADE_ROOT, or /run/stockade>/containerd/<namespace>/     a state root, as the command line's --root
//! <STOCKADE_ROOT, or /run/stockade>/s/<32 hex digits>           a short name for a supervisor's socket
//! ```
//! containerd connects by a path that must fit into 107 bytes, and a pod's id alone has 64; hence the second line, a
//! symlink.

use crate::ids::SandboxId;
use crate::state::Store;
use anyhow::{Context as _, bail};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::PathBuf;

const DEFAULT_ROOT: &str = "/run/stockade";
/// containerd's own limit for a namespace's name.
const LONGEST_NAMESPACE: usize = 76;

/// The place of one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    base: PathBuf,
    namespace: String,
}

impl Place {
    /// Of the namespace, by this process' environment.
    ///
    /// # Errors
    /// A name that is no file name.
    pub fn of(namespace: &str) -> anyhow::Result<Self> {
        let base = std::env::var_os("STOCKADE_ROOT").filter(|root| !root.is_empty());
        let base = std::path::absolute(base.map_or_else(|| PathBuf::from(DEFAULT_ROOT), PathBuf::from));
        Self::below(base.context("STOCKADE_ROOT cannot be made absolute")?, namespace)
    }

    fn below(base: PathBuf, namespace: &str) -> anyhow::Result<Self> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let long = namespace.len() > LONGEST_NAMESPACE;
        if namespace.is_empty() || long || namespace.starts_with('.') || !namespace.chars().all(allowed) {
            bail!("the namespace {namespace:?} is not one of containerd's: letters, digits and _ - . only, 76 at most");
        }
        Ok(Self { base, namespace: namespace.to_owned() })
    }

    /// The records.
    pub fn store(&self) -> Store {
        Store::new(self.base.join("containerd").join(&self.namespace))
    }

    /// The short name of a supervisor's socket.
    pub fn socket_link(&self, sandbox: &SandboxId) -> PathBuf {
        let digest = Sha256::digest(format!("{}/{sandbox}", self.namespace));
        let mut name = String::with_capacity(32);
        for byte in digest.iter().take(16) {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        self.base.join("s").join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandboxes_of_two_namespaces_do_not_meet_and_their_sockets_names_are_short() {
        let [one, two] = ["k8s.io", "moby"].map(|name| Place::below(DEFAULT_ROOT.into(), name).unwrap());
        assert_eq!(one.store().root(), std::path::Path::new("/run/stockade/containerd/k8s.io"));
        let id: SandboxId = "f".repeat(64).parse().unwrap();
        assert_ne!(one.socket_link(&id), two.socket_link(&id));
        assert!(one.socket_link(&id).as_os_str().len() < 64);
    }

    #[test]
    fn a_namespace_that_could_leave_the_directory_is_refused() {
        for name in ["", "..", ".hidden", "a/b", "a b", &"n".repeat(77)] {
            assert!(Place::below(DEFAULT_ROOT.into(), name).is_err(), "{name:?}");
        }
    }
}
