//! Which kernel modules the guest gets, and in which order they are loaded.
//!
//! A module says in its `.modinfo` section which others it needs; so no `depmod` is run and no `modules.dep` is read
//! (a kernel package has none before it is installed).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use object::{Object as _, ObjectSection as _};

use crate::GuestError;
use crate::decompress::{decompress, is_compressed};
use crate::kernel::KernelTree;

/// A module that the guest wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    name: &'static str,
    required: bool,
}

pub(crate) const fn required(name: &'static str) -> Wanted {
    Wanted { name, required: true }
}

const fn optional(name: &'static str) -> Wanted {
    Wanted { name, required: false }
}

/// What every guest loads, in this order but for dependencies, which come first.
pub(crate) const GUEST_MODULES: &[Wanted] = &[
    // Transports of virtio devices: PCI (q35, pc) and memory-mapped (microvm, the built-in monitor).
    required("virtio_pci"),
    required("virtio_mmio"),
    // The agent's connection to the supervisor.
    required("vmw_vsock_virtio_transport"),
    // The directory that is shared with the host, and container root file systems made of layers.
    required("virtiofs"),
    required("overlay"),
    required("virtio_net"),
    required("virtio_blk"),
    // Some kernels have these built in, others lack them; the guest works without.
    optional("virtio_rng"),
    optional("virtio_console"),
    optional("virtio_balloon"),
    optional("virtio_mem"),
];

/// What the disk image's initrd needs beside [`GUEST_MODULES`].
pub(crate) const IMAGE_MODULES: &[Wanted] = &[required("erofs")];

/// A module with its code.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) data: Vec<u8>,
}

/// The modules of one kernel, by name.
#[derive(Debug)]
pub(crate) struct ModuleIndex {
    release: String,
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl ModuleIndex {
    /// Lists a kernel's modules and what is built into it.
    pub(crate) fn scan(tree: &KernelTree) -> Result<Self, GuestError> {
        let mut files = BTreeMap::new();
        let mut pending = vec![tree.modules.join("kernel")];
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(&folder).map_err(GuestError::file("list", &folder))? {
                let path = entry.map_err(GuestError::file("list", &folder))?.path();
                if path.is_dir() {
                    pending.push(path);
                } else if let Some(name) = module_name(&path) {
                    files.insert(name, path);
                }
            }
        }
        let list = tree.modules.join("modules.builtin");
        let built_in = fs::read_to_string(&list).map_err(GuestError::file("read", &list))?;
        Ok(Self {
            release: tree.release.clone(),
            files,
            built_in: built_in.lines().filter_map(|line| module_name(Path::new(line))).collect(),
        })
    }

    /// The wanted modules and all that they depend on, each after what it needs. What is built in is left out.
    ///
    /// # Errors
    /// When a required module, or one that another needs, does not exist.
    pub(crate) fn load_order<'a>(
        &self,
        wanted: impl IntoIterator<Item = &'a Wanted>,
    ) -> Result<Vec<Module>, GuestError> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for module in wanted {
            self.visit(module.name, module.required, &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit(
        &self,
        name: &str,
        required: bool,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<Module>,
    ) -> Result<(), GuestError> {
        let name = normal(name);
        if self.built_in.contains(&name) || !seen.insert(name.clone()) {
            return Ok(());
        }
        let Some(path) = self.files.get(&name) else {
            if required {
                return Err(GuestError::ModuleMissing { release: self.release.clone(), module: name });
            }
            return Ok(());
        };
        let mut data = fs::read(path).map_err(GuestError::file("read", path))?;
        if is_compressed(&data) {
            data = decompress(&data, path)?;
        }
        drop_signature(&mut data);
        let needs = Needs::read(&data).map_err(|source| GuestError::ModuleFormat { path: path.clone(), source })?;
        for soft in &needs.soft {
            self.visit(soft, false, seen, order)?;
        }
        for hard in &needs.hard {
            self.visit(hard, true, seen, order)?;
        }
        order.push(Module { name, data });
        Ok(())
    }
}

/// Ends every signed module; before it lie the signature and a record whose last four bytes are the signature's length.
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";
const SIGNATURE_RECORD: usize = 12;

/// Takes the signature off a module. Checking those of all modules is four fifths of the time that loading them takes
/// (290 of 360 ms of guest time under emulation) and protects nothing: whoever could change a module in the initrd
/// could change the agent beside it, which nobody signs.
fn drop_signature(module: &mut Vec<u8>) {
    let Some(body) = module.strip_suffix(SIGNATURE_MAGIC) else {
        return;
    };
    let Some(length) = body.last_chunk::<4>() else {
        return;
    };
    let length = u32::from_be_bytes(*length) as usize;
    if let Some(end) = body.len().checked_sub(SIGNATURE_RECORD + length) {
        module.truncate(end);
    }
}

/// What a module wants loaded before it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    hard: Vec<String>,
    soft: Vec<String>,
}

impl Needs {
    fn read(module: &[u8]) -> Result<Self, object::read::Error> {
        let file = object::File::parse(module)?;
        let section = file.section_by_name(".modinfo");
        Ok(section.map(|section| section.data()).transpose()?.map(Self::parse).unwrap_or_default())
    }

    /// `.modinfo` holds "key=value" strings, each ended by a zero byte.
    fn parse(modinfo: &[u8]) -> Self {
        let mut needs = Self::default();
        for entry in modinfo.split(|byte| *byte == 0) {
            let entry = String::from_utf8_lossy(entry);
            if let Some(list) = entry.strip_prefix("depends=") {
                needs.hard.extend(list.split(',').filter(|name| !name.is_empty()).map(str::to_owned));
            } else if let Some(list) = entry.strip_prefix("softdep=") {
                let before = list.split("post:").next().unwrap_or_default();
                needs.soft.extend(before.split_whitespace().filter(|word| *word != "pre:").map(str::to_owned));
            }
        }
        needs
    }
}

/// The name of the module in a file, or none when the file is not a module.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, compression) = file.split_once(".ko")?;
    ["", ".xz", ".gz", ".zst"].contains(&compression).then(|| normal(name))
}

/// The kernel takes '-' and '_' in module names as the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_file_names_whatever_the_compression() {
        assert_eq!(module_name(Path::new("kernel/drivers/virtio-rng.ko")).as_deref(), Some("virtio_rng"));
        assert_eq!(module_name(Path::new("a/fuse.ko.xz")).as_deref(), Some("fuse"));
        assert_eq!(module_name(Path::new("modules.order")), None);
        assert_eq!(module_name(Path::new("fuse.koala")), None);
    }

    #[test]
    fn needs_are_read_from_modinfo() {
        let needs = Needs::parse(b"license=GPL\0depends=virtio,virtio_ring\0softdep=pre: crc32c post: after\0");
        assert_eq!(needs.hard, ["virtio", "virtio_ring"]);
        assert_eq!(needs.soft, ["crc32c"]);
        assert_eq!(Needs::parse(b"depends=\0"), Needs::default());
    }

    #[test]
    fn a_signature_is_taken_off_and_a_broken_one_is_left_alone() {
        let signed = |length: u32| {
            let mut module = b"module".to_vec();
            module.extend_from_slice(b"sign");
            module.extend_from_slice(&[0; 8]);
            module.extend_from_slice(&length.to_be_bytes());
            module.extend_from_slice(SIGNATURE_MAGIC);
            module
        };
        let mut module = signed(4);
        drop_signature(&mut module);
        assert_eq!(module, b"module");
        let mut broken = signed(u32::MAX);
        drop_signature(&mut broken);
        assert_eq!(broken, signed(u32::MAX));
        let mut magic_only = SIGNATURE_MAGIC.to_vec();
        drop_signature(&mut magic_only);
        assert_eq!(magic_only, SIGNATURE_MAGIC);
    }

    fn index(files: &[&str], built_in: &[&str], dir: &Path) -> ModuleIndex {
        let modules = dir.join("lib/modules/9.9-test");
        fs::create_dir_all(modules.join("kernel/a")).unwrap();
        for file in files {
            // An ELF object without a .modinfo section: a module that needs nothing.
            fs::write(modules.join("kernel/a").join(file), empty_elf()).unwrap();
        }
        let lines: String = built_in.iter().map(|name| format!("kernel/b/{name}.ko\n")).collect();
        fs::write(modules.join("modules.builtin"), lines).unwrap();
        ModuleIndex::scan(&KernelTree { release: "9.9-test".into(), vmlinuz: dir.join("boot/vmlinuz"), modules })
            .unwrap()
    }

    fn empty_elf() -> Vec<u8> {
        let mut header = vec![0u8; 64];
        header[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        header[16] = 1;
        header[18] = 62;
        header[20] = 1;
        header[52] = 64;
        header
    }

    #[test]
    fn a_built_in_module_is_left_out_and_an_absent_optional_one_too() {
        let dir = tempfile::tempdir().unwrap();
        let index = index(&["fuse.ko"], &["rng-core"], dir.path());
        let order = index.load_order(&[optional("nothing"), required("rng_core"), required("fuse")]).unwrap();
        assert_eq!(order.iter().map(|module| module.name.as_str()).collect::<Vec<_>>(), ["fuse"]);
    }

    #[test]
    fn an_absent_required_module_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = index(&[], &[], dir.path()).load_order(&[required("virtiofs")]).unwrap_err();
        assert_eq!(error.to_string(), "kernel 9.9-test has no module 'virtiofs', nor is it built in");
    }
}
