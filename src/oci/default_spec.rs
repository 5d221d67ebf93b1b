//! What `spec` writes: a specification to begin with, of a shell on a terminal.

use oci_spec::runtime::Spec;
use serde_json::json;

/// The default specification: root read-only, few capabilities, namespaces of its own.
///
/// # Panics
/// Never: the document is fixed, and a test reads it.
pub fn default_spec() -> Spec {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let document = json!({
        "ociVersion": super::OCI_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "stockade",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "cgroup"}],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    serde_json::from_value(document).expect("the default specification is one")
}

#[cfg(test)]
mod tests {
    use super::super::{GuestSpecOptions, RealHostFiles, guest_spec, load_spec, validate};
    use super::*;

    #[test]
    fn the_default_specification_is_valid_once_written_to_a_bundle_and_fits_a_guest() {
        let bundle = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(bundle.path().join("rootfs")).expect("rootfs");
        let text = serde_json::to_vec_pretty(&default_spec()).expect("serialises");
        std::fs::write(bundle.path().join("config.json"), text).expect("written");
        let spec = load_spec(bundle.path()).expect("loads");
        assert_eq!(spec, default_spec());
        validate(&spec, bundle.path()).expect("valid");
        let guest = guest_spec(&spec, &GuestSpecOptions::new("c", bundle.path()), &RealHostFiles).expect("converted");
        assert!(guest.warnings.is_empty(), "{:?}", guest.warnings);
    }
}
