//! The files that a lab host boots from: Debian's kernel, and an initrd of its modules and this crate's init.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use stockade_guest::BootableKernel;

/// Debian's generic kernel: the one for clouds has neither 9p nor KVM's modules for AMD.
const KERNEL: &str = "linux-image-amd64";

/// What a host of virtual machines and containers has.
const MODULES: &[&str] = &[
    // Others ask for its algorithm by name, not for the module.
    "crc32c_generic",
    // The lab's own: its root, and the port to the other end.
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "virtio_console",
    // Machines.
    "kvm-amd",
    "vhost_vsock",
    "vhost_net",
    "tun",
    // Networks.
    "veth",
    "bridge",
    "macvtap",
    "ipvlan",
    "8021q",
    "sch_tbf",
    "act_mirred",
    "cls_u32",
    "cls_flower",
    "sch_ingress",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nft_compat",
    "xt_MASQUERADE",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_multiport",
    "xt_nat",
    "xt_tcpudp",
    "ip_tables",
    "iptable_nat",
    "iptable_filter",
    "br_netfilter",
    // File systems and block devices.
    "loop",
    "fuse",
    "virtiofs",
    "ext4",
    "erofs",
];

/// Kernel and initrd of a lab host.
#[derive(Clone, Debug)]
pub struct Assets {
    /// The bzImage.
    pub kernel: PathBuf,
    /// Modules, and `stockade-lab-init` as init.
    pub initrd: PathBuf,
}

impl Assets {
    /// Makes them in `folder`, with downloaded packages in `cache`. `init` is the program `stockade-lab-init`.
    ///
    /// # Errors
    /// When apt does not know or cannot fetch the kernel, or a file cannot be written.
    pub fn make(folder: &Path, cache: &Path, init: &Path) -> Result<Self> {
        let kernel = BootableKernel::fetch(KERNEL, cache).with_context(|| format!("cannot get {KERNEL}"))?;
        let program = fs::read(init).with_context(|| format!("cannot read {}", init.display()))?;
        let archive = kernel.initrd(program, MODULES).context("cannot make the initrd")?;
        let initrd = folder.join("initrd.img");
        let partial = folder.join(format!("initrd.partial-{}", std::process::id()));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&partial, archive))
            .and_then(|()| fs::rename(&partial, &initrd))
            .with_context(|| format!("cannot write {}", initrd.display()))?;
        Ok(Self { kernel: kernel.vmlinuz(), initrd })
    }
}
