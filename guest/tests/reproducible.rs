//! A guest is made from Debian's current kernel, twice, and both times it is the same.

use std::path::Path;

use stockade_guest::{BuildOptions, GuestAssets, build, is_current};

/// The project's limit for an initrd is 12 MiB, of which 8 MiB are the agent's.
const MODULES_LIMIT: u64 = 4 << 20;

#[test]
fn two_guests_from_the_same_inputs_are_byte_for_byte_the_same() {
    // Any static program will do as the agent; this one is.
    let agent = std::env::current_exe().unwrap();
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../build/cache");
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        let options = BuildOptions::new(dir.path(), &agent, &cache);
        assert!(!is_current(&options));
        let guest = build(&options).unwrap();
        assert!(is_current(&options));
        (dir, options, guest)
    };
    let (first, options, guest) = make();
    let (second, _, again) = make();
    assert_eq!(guest.manifest, again.manifest);
    for name in ["vmlinuz", "vmlinux", "initrd.img", "manifest.json"] {
        let read = |dir: &Path| std::fs::read(dir.join(name)).unwrap();
        assert!(read(first.path()) == read(second.path()), "{name} differs");
    }

    for module in ["virtio_pci", "virtio_mmio", "vmw_vsock_virtio_transport", "virtiofs", "overlay", "virtio_net"] {
        assert!(guest.manifest.modules.iter().any(|name| name == module), "{module} is missing");
    }
    let initrd = std::fs::metadata(guest.initrd.as_ref().unwrap()).unwrap().len();
    let program = std::fs::metadata(&agent).unwrap().len();
    assert!(initrd < program + MODULES_LIMIT, "the initrd has {initrd} bytes");
    assert_eq!(GuestAssets::open(first.path()).unwrap(), guest);

    std::fs::write(first.path().join("initrd.img"), b"damaged").unwrap();
    assert!(!is_current(&options), "a damaged file was not noticed");
}
