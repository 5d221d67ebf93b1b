//! Initrds: a program as init, and the modules that it loads.

use crate::GuestError;
use crate::cpio::Archive;
use crate::modules::Module;

/// Folders that an init mounts something on or writes to.
const FOLDERS: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("modules", 0o755),
    ("proc", 0o755),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
];

/// The archive's bytes; not compressed: unpacking costs the guest more time than a larger file costs the host.
///
/// # Errors
/// When a file is too large for the format.
pub(crate) fn program_initrd(program: Vec<u8>, modules: Vec<Module>) -> Result<Vec<u8>, GuestError> {
    let mut archive = base(modules);
    archive.file("init", 0o755, program);
    archive.finish()
}

/// An initrd that mounts the disk that `root=` names and starts its `/sbin/init`.
///
/// # Errors
/// When a file is too large for the format.
pub(crate) fn image_initrd(busybox: Vec<u8>, modules: Vec<Module>) -> Result<Vec<u8>, GuestError> {
    let mut archive = base(modules);
    archive.directory("bin", 0o755);
    archive.directory("root", 0o755);
    archive.file("bin/busybox", 0o755, busybox);
    archive.file("init", 0o755, IMAGE_INIT.as_bytes().to_vec());
    archive.finish()
}

/// `root=` and `rootfstype=` are the kernel's own parameters; the disk may take a moment to appear.
const IMAGE_INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
fail() { echo "image initrd: $*" >&2; $b sleep 1; $b poweroff -f; }
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do $b insmod "$module" || fail "cannot load $module"; done
root=/dev/vda type=erofs access=ro
for word in $($b cat /proc/cmdline); do
  case "$word" in
    root=*) root=${word#root=} ;;
    rootfstype=*) type=${word#rootfstype=} ;;
    ro) access=ro ;;
    rw) access=rw ;;
  esac
done
tries=0
while [ ! -b "$root" ]; do
  tries=$((tries + 1))
  [ $tries -le 500 ] || fail "no block device $root"
  $b usleep 10000
done
$b mount -t "$type" -o "$access" "$root" /root || fail "cannot mount $root as $type"
for folder in proc sys dev; do $b mount --move /$folder /root/$folder; done
exec $b switch_root /root /sbin/init
"#;

fn base(modules: Vec<Module>) -> Archive {
    let mut archive = Archive::default();
    for (name, permissions) in FOLDERS {
        archive.directory(name, *permissions);
    }
    // The kernel opens /dev/console for init before anything can be mounted on /dev.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.character_device("dev/null", 0o666, 1, 3);
    for (number, module) in modules.into_iter().enumerate() {
        archive.file(&format!("modules/{number:03}-{}.ko", module.name), 0o644, module.data);
    }
    archive
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Vec<Module> {
        ["virtio_ring", "virtio"].map(|name| Module { name: name.into(), data: name.as_bytes().to_vec() }).into()
    }

    #[test]
    fn module_files_sort_in_load_order() {
        let bytes = program_initrd(b"agent".to_vec(), modules()).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let first = text.find("modules/000-virtio_ring.ko").unwrap();
        assert!(first < text.find("modules/001-virtio.ko").unwrap());
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes() {
        let make = || program_initrd(b"agent".to_vec(), modules()).unwrap();
        assert_eq!(make(), make());
    }
}
