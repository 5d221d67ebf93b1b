//! A container's namespaces: which network the host must provide, and what the guest gets.

use super::OciError;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Spec};
use std::path::{Path, PathBuf};

/// Which network namespace a sandbox needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkRequest {
    /// The one at this path.
    Join(PathBuf),
    /// A new one.
    Create,
    /// None is listed: by the OCI, the runtime's own. A virtual machine has no part in the host's network.
    Host,
}

/// Reads the sandbox's network from its specification. An empty path, and `/proc/0/ns/...`, which engines write for a
/// process that does not exist yet, count as no path.
pub fn network_request(spec: &Spec) -> NetworkRequest {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    match namespaces.into_iter().flatten().find(|entry| entry.typ() == LinuxNamespaceType::Network) {
        None => NetworkRequest::Host,
        Some(entry) => match path_of(entry) {
            Some(path) if !path.starts_with("/proc/0") => NetworkRequest::Join(path.to_owned()),
            _ => NetworkRequest::Create,
        },
    }
}

/// A namespace's path; `None` for none and for an empty one.
pub(super) fn path_of(entry: &LinuxNamespace) -> Option<&Path> {
    entry.path().as_deref().filter(|path| !path.as_os_str().is_empty())
}

pub(super) fn check(linux: &Linux) -> Result<(), OciError> {
    let empty = Vec::new();
    let namespaces = linux.namespaces().as_ref().unwrap_or(&empty);
    for (index, entry) in namespaces.iter().enumerate() {
        if namespaces[..index].iter().any(|earlier| earlier.typ() == entry.typ()) {
            return Err(OciError::Duplicate { field: "linux.namespaces", value: word(entry.typ()).to_owned() });
        }
        if let Some(path) = path_of(entry).filter(|path| !path.is_absolute()) {
            return Err(OciError::NotAbsolute {
                field: format!("path of the {} namespace", word(entry.typ())),
                path: path.to_owned(),
            });
        }
    }
    let user = namespaces.iter().any(|entry| entry.typ() == LinuxNamespaceType::User);
    for (field, mappings) in [("linux.uidMappings", linux.uid_mappings()), ("linux.gidMappings", linux.gid_mappings())]
    {
        let mapped = mappings.as_ref().is_some_and(|mappings| !mappings.is_empty());
        if user && !mapped {
            // Also when the namespace is one to join: the guest makes a like one, and must know how.
            return Err(OciError::Missing { field });
        }
        if mapped && !user {
            return Err(OciError::Unsupported {
                field: field.to_owned(),
                reason: "linux.namespaces lists no user namespace",
            });
        }
    }
    Ok(())
}

/// The guest's namespaces, and whether the container shares its pod's process namespace.
///
/// - network: left out, because the whole guest is in the sandbox's;
/// - pid with a path: left out, the agent puts the container into the sandbox's;
/// - mount: always there, because the container's root is not the guest's;
/// - user: kept with its mappings, so that files keep the owners that the engine gave them on the host; one that is to
///   be joined becomes a new one with the same mappings;
/// - cgroup, ipc, uts, time: new ones; their paths mean nothing in the guest.
pub(super) fn for_guest(namespaces: &[LinuxNamespace]) -> (Vec<LinuxNamespace>, bool) {
    let mut shared_pid = false;
    let mut kept: Vec<LinuxNamespaceType> = Vec::new();
    for entry in namespaces {
        match entry.typ() {
            LinuxNamespaceType::Network => {}
            LinuxNamespaceType::Pid if path_of(entry).is_some() => shared_pid = true,
            other => kept.push(other),
        }
    }
    if !kept.contains(&LinuxNamespaceType::Mount) {
        kept.push(LinuxNamespaceType::Mount);
    }
    let built = kept.into_iter().filter_map(|kind| LinuxNamespaceBuilder::default().typ(kind).build().ok()).collect();
    (built, shared_pid)
}

fn word(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux(json: serde_json::Value) -> Linux {
        serde_json::from_value(json).expect("a linux section")
    }

    fn spec(namespaces: serde_json::Value) -> Spec {
        serde_json::from_value(serde_json::json!({"ociVersion": "1.0.2", "linux": {"namespaces": namespaces}}))
            .expect("a specification")
    }

    #[test]
    fn the_network_is_joined_created_or_the_hosts() {
        let cases = [
            (serde_json::json!([]), NetworkRequest::Host),
            (serde_json::json!([{"type": "pid"}]), NetworkRequest::Host),
            (serde_json::json!([{"type": "network"}]), NetworkRequest::Create),
            (serde_json::json!([{"type": "network", "path": ""}]), NetworkRequest::Create),
            (serde_json::json!([{"type": "network", "path": "/proc/0/ns/net"}]), NetworkRequest::Create),
            (
                serde_json::json!([{"type": "network", "path": "/run/netns/a"}]),
                NetworkRequest::Join("/run/netns/a".into()),
            ),
        ];
        for (namespaces, wanted) in cases {
            assert_eq!(network_request(&spec(namespaces.clone())), wanted, "{namespaces}");
        }
    }

    #[test]
    fn duplicates_relative_paths_and_half_described_user_namespaces_are_refused() {
        let map = serde_json::json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        let cases = [
            (
                serde_json::json!({"namespaces": [{"type": "pid"}, {"type": "pid"}]}),
                "linux.namespaces lists \"pid\" twice",
            ),
            (
                serde_json::json!({"namespaces": [{"type": "ipc", "path": "x"}]}),
                "path of the ipc namespace \"x\" is not an absolute path",
            ),
            (serde_json::json!({"namespaces": [{"type": "user"}]}), "linux.uidMappings is missing in config.json"),
            (
                serde_json::json!({"namespaces": [{"type": "user"}], "uidMappings": map}),
                "linux.gidMappings is missing in config.json",
            ),
            (
                serde_json::json!({"namespaces": [], "uidMappings": map}),
                "linux.uidMappings is not supported: linux.namespaces lists no user namespace",
            ),
        ];
        for (json, wanted) in cases {
            assert_eq!(check(&linux(json.clone())).expect_err("refused").to_string(), wanted, "{json}");
        }
        let good = serde_json::json!({"namespaces": [{"type": "user"}], "uidMappings": map, "gidMappings": map});
        assert!(check(&linux(good)).is_ok());
    }

    #[test]
    fn the_guest_gets_no_paths_no_network_and_always_a_mount_namespace() {
        let given = linux(serde_json::json!({"namespaces": [
            {"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "network", "path": "/run/netns/a"},
            {"type": "ipc", "path": "/proc/1/ns/ipc"}, {"type": "cgroup"}]}));
        let (guest, shared_pid) = for_guest(given.namespaces().as_ref().expect("namespaces"));
        assert!(shared_pid);
        assert!(guest.iter().all(|entry| entry.path().is_none()));
        let kinds: Vec<_> = guest.iter().map(|entry| word(entry.typ())).collect();
        assert_eq!(kinds, ["ipc", "cgroup", "mount"]);
        let own = linux(serde_json::json!({"namespaces": [{"type": "pid"}, {"type": "mount"}]}));
        let (guest, shared_pid) = for_guest(own.namespaces().as_ref().expect("namespaces"));
        assert!(!shared_pid);
        assert_eq!(guest.len(), 2);
    }
}
