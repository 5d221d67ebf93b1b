use super::super::host_files::SourceInfo;
use super::*;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;

/// A host of a few paths.
struct Table(HashMap<&'static str, (FileKind, u32, FilesystemInfo)>);

impl HostFiles for Table {
    fn source(&self, path: &Path) -> io::Result<SourceInfo> {
        if path == Path::new("/link-to-proc") {
            return Ok(SourceInfo { real: "/proc/sys".into(), kind: FileKind::Directory, gid: 0 });
        }
        let (kind, gid, _) = self.0.get(path.to_str().expect("text")).ok_or(io::ErrorKind::NotFound)?;
        Ok(SourceInfo { real: path.to_owned(), kind: *kind, gid: *gid })
    }

    fn filesystem(&self, path: &Path) -> io::Result<FilesystemInfo> {
        Ok(self.0.get(path.to_str().expect("text")).ok_or(io::ErrorKind::NotFound)?.2)
    }
}

const DISK: FilesystemInfo = FilesystemInfo { is_tmpfs: false, bytes: 1 << 40 };
const MEMORY: FilesystemInfo = FilesystemInfo { is_tmpfs: true, bytes: 32 << 20 };
const VOLUMES: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir";

fn host() -> Table {
    Table(HashMap::from([
        ("/data", (FileKind::Directory, 0, DISK)),
        ("/etc/hosts", (FileKind::File, 0, DISK)),
        ("/bundle/local", (FileKind::File, 0, DISK)),
        ("/", (FileKind::Directory, 0, DISK)),
        ("/run/s.sock", (FileKind::Socket, 0, DISK)),
        ("/dev/sda", (FileKind::Device, 0, DISK)),
        ("/dev/hugepages", (FileKind::Directory, 0, DISK)),
        ("/run/pod/shm", (FileKind::Directory, 0, MEMORY)),
        ("/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/mem", (FileKind::Directory, 2000, MEMORY)),
        ("/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/disk", (FileKind::Directory, 0, DISK)),
    ]))
}

fn planned(mount: Value) -> Result<(Mount, MountPlan, Vec<String>), String> {
    let settings = GuestSpecOptions::new("c1", "/bundle");
    let mount: Mount = serde_json::from_value(mount).expect("a mount");
    let mut warnings = Vec::new();
    plan(3, &mount, &settings, &host(), &mut warnings)
        .map(|(guest, plan)| (guest, plan, warnings))
        .map_err(|error| error.to_string())
}

fn source(mount: &Mount) -> &str {
    mount.source().as_ref().and_then(|source| source.to_str()).expect("a source")
}

#[test]
fn file_systems_of_the_kernel_stay_as_they_are() {
    for kind in ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"] {
        let given = json!({"destination": "/m", "type": kind, "source": kind, "options": ["nosuid", "size=1k"]});
        let (guest, plan, warnings) = planned(given.clone()).expect(kind);
        assert_eq!(serde_json::to_value(guest).expect("serialises"), given);
        assert_eq!(plan.kind, MountKind::GuestFilesystem);
        assert!(warnings.is_empty());
    }
}

#[test]
fn directories_and_files_of_the_host_go_through_the_share() {
    let cases = [
        (json!(["rbind", "ro"]), true, true, BindPropagation::Private, 0),
        (json!(["bind", "ro", "rw"]), false, false, BindPropagation::Private, 0),
        (json!(["rbind", "rslave"]), false, true, BindPropagation::Slave, 0),
        (json!(["rbind", "rshared", "noexec"]), false, true, BindPropagation::Slave, 1),
    ];
    for (given, read_only, recursive, propagation, warned) in cases {
        let (guest, plan, warnings) =
            planned(json!({"destination": "/m", "type": "none", "source": "/data", "options": given}))
                .expect("planned");
        let wanted = BindShare {
            source: "/data".into(),
            kind: FileKind::Directory,
            share_name: "c1-3-data".to_owned(),
            guest_path: "/run/kata-containers/shared/containers/c1-3-data".into(),
            read_only,
            recursive,
            propagation,
        };
        assert_eq!(plan.kind, MountKind::Bind(wanted));
        assert_eq!(source(&guest), "/run/kata-containers/shared/containers/c1-3-data");
        assert_eq!(guest.typ().as_deref(), Some("bind"));
        assert_eq!(serde_json::to_value(guest.options()).expect("options"), given, "options are the guest's");
        assert_eq!(warnings.len(), warned);
    }
}

#[test]
fn a_bind_without_the_option_gets_it_and_a_relative_source_is_the_bundles() {
    let (guest, plan, _) = planned(json!({"destination": "/m", "type": "bind", "source": "local"})).expect("planned");
    let MountKind::Bind(share) = plan.kind else { panic!("{plan:?}") };
    assert_eq!((share.source.as_path(), share.kind), (Path::new("/bundle/local"), FileKind::File));
    assert_eq!(guest.options().as_deref(), Some(&["bind".to_owned()][..]));
}

#[test]
fn the_kernels_own_paths_and_common_devices_are_the_guests() {
    for path in ["/proc", "/proc/sys", "/sys/fs/cgroup", "/dev", "/dev/null", "/dev/urandom"] {
        let (guest, plan, _) = planned(json!({"destination": "/m", "type": "bind", "source": path})).expect(path);
        assert_eq!(plan.kind, MountKind::GuestPath, "{path}");
        assert_eq!(source(&guest), path);
    }
    let linked = planned(json!({"destination": "/m", "type": "bind", "source": "/link-to-proc"})).expect("planned");
    assert_eq!(linked.1.kind, MountKind::GuestPath);
}

#[test]
fn a_pods_shared_memory_is_the_sandboxs_but_a_disk_directory_there_is_shared() {
    let shm = |source: &str| json!({"destination": "/dev/shm", "type": "bind", "source": source, "options": ["rbind"]});
    let (guest, plan, _) = planned(shm("/run/pod/shm")).expect("planned");
    assert_eq!(plan.kind, MountKind::SandboxShm { bytes: 32 << 20 });
    assert_eq!(source(&guest), "/run/kata-containers/sandbox/shm");
    assert!(matches!(planned(shm("/data")).expect("planned").1.kind, MountKind::Bind(_)));
}

#[test]
fn kubernetes_empty_dirs_become_volumes_of_the_guest() {
    let volume = |name: &str| {
        planned(json!({"destination": "/v", "type": "bind", "source": format!("{VOLUMES}/{name}"), "options": ["rbind", "ro"]}))
            .expect("planned")
    };
    let (guest, plan, _) = volume("mem");
    let wanted = VolumePlan {
        name: "mem".to_owned(),
        source: format!("{VOLUMES}/mem").into(),
        guest_path: "/run/kata-containers/sandbox/ephemeral/mem".into(),
        bytes: 32 << 20,
        gid: Some(2000),
    };
    assert_eq!(plan.kind, MountKind::Ephemeral(wanted));
    assert_eq!(source(&guest), "/run/kata-containers/sandbox/ephemeral/mem");
    let (guest, plan, _) = volume("disk");
    assert!(matches!(plan.kind, MountKind::Local(VolumePlan { gid: None, .. })), "{plan:?}");
    assert_eq!(source(&guest), "/run/kata-containers/sandbox/local/disk");
}

#[test]
fn what_cannot_be_mounted_is_refused_with_its_path() {
    let cases = [
        (
            json!({"destination": "/m", "type": "bind", "source": "/no"}),
            "source \"/no\" of the mount at \"/m\" cannot be opened",
        ),
        (json!({"destination": "/m", "type": "bind"}), "the bind mount at \"/m\" has no source"),
        (
            json!({"destination": "/m", "type": "bind", "source": "/dev/sda"}),
            "source \"/dev/sda\" of the mount at \"/m\" is a device of the host",
        ),
        (json!({"destination": "/m", "type": "ext4", "source": "/dev/sda"}), "type \"ext4\" of the mount at \"/m\""),
        (json!({"destination": "/m"}), "type \"\" of the mount at \"/m\""),
    ];
    for (mount, wanted) in cases {
        let error = planned(mount).expect_err(wanted);
        assert!(error.starts_with(wanted), "{error}");
    }
}

#[test]
fn a_relative_destination_and_a_socket_are_warned_about() {
    let (guest, plan, warnings) =
        planned(json!({"destination": "m", "type": "bind", "source": "/run/s.sock"})).expect("planned");
    assert_eq!(plan.destination, Path::new("/m"));
    assert_eq!(guest.destination(), Path::new("/m"));
    assert_eq!(warnings.len(), 2, "{warnings:?}");
}

#[test]
fn a_name_in_the_share_is_never_too_long_for_a_file() {
    assert_eq!(share_name("c", 0, Path::new("/")), "c-0-root");
    let long = share_name(&"c".repeat(240), 12, Path::new(&format!("/{}", "ü".repeat(120))));
    assert!(long.len() <= 255 && long.starts_with("ccc") && long.contains("-12-ü"), "{long}");
}

#[test]
fn the_sandboxs_shared_memory_has_the_size_that_its_own_mount_says() {
    let size = |mounts: Value| {
        let spec = serde_json::from_value(json!({"ociVersion": "1.0.2", "mounts": mounts})).expect("a specification");
        sandbox_shm_bytes(&spec, Path::new("/bundle"), &host())
    };
    let tmpfs = |option: &str| json!([{"destination": "/dev/shm", "type": "tmpfs", "options": [option]}]);
    let bound = |source: &str| json!([{"destination": "/dev/shm", "type": "bind", "source": source}]);
    let cases = [
        (json!([]), DEFAULT_SHM_BYTES),
        (tmpfs("mode=1777"), DEFAULT_SHM_BYTES),
        (tmpfs("size=65536k"), 64 << 20),
        (tmpfs("size=1g"), 1 << 30),
        (tmpfs("size=4096"), 4096),
        (tmpfs("size=50%"), DEFAULT_SHM_BYTES),
        (tmpfs("size=99999999999999999g"), DEFAULT_SHM_BYTES),
        (bound("/run/pod/shm"), 32 << 20),
        (bound("/data"), DEFAULT_SHM_BYTES),
        (bound("/no"), DEFAULT_SHM_BYTES),
    ];
    for (mounts, wanted) in cases {
        assert_eq!(size(mounts.clone()), wanted, "{mounts}");
    }
}
