//! Any of Debian's kernels with any program as its init, for whoever needs another machine than a sandbox's guest.

use std::path::{Path, PathBuf};

use crate::GuestError;
use crate::initrd::program_initrd;
use crate::kernel::KernelTree;
use crate::modules::{ModuleIndex, Wanted, required};
use crate::package::kernel_package;

/// A kernel package, unpacked in a cache.
#[derive(Debug)]
pub struct BootableKernel {
    tree: KernelTree,
    modules: ModuleIndex,
}

impl BootableKernel {
    /// The kernel that `package` is or depends on, fetched into `cache` unless it is there.
    ///
    /// # Errors
    /// When apt does not know the package or cannot fetch it, or when it has another shape than a kernel's.
    pub fn fetch(package: &str, cache: &Path) -> Result<Self, GuestError> {
        let tree = KernelTree::find(&kernel_package(package)?.unpacked(cache)?)?;
        let modules = ModuleIndex::scan(&tree)?;
        Ok(Self { tree, modules })
    }

    /// The bzImage.
    #[must_use]
    pub fn vmlinuz(&self) -> PathBuf {
        self.tree.vmlinuz.clone()
    }

    /// An initrd with `program`, a static one, as `/init`; with the folders of a root file system, empty; and with
    /// `modules` and what they need as `/modules/NNN-name.ko`, in load order. What is built in is left out.
    ///
    /// # Errors
    /// When the kernel lacks a module, or a file is too large for the format.
    pub fn initrd(&self, program: Vec<u8>, modules: &[&'static str]) -> Result<Vec<u8>, GuestError> {
        let wanted: Vec<Wanted> = modules.iter().copied().map(required).collect();
        program_initrd(program, self.modules.load_order(&wanted)?)
    }
}
