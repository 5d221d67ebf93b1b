//! Makes the guest: a kernel and an initrd, and on request a disk image, from Debian's packages and the agent.
//!
//! The kernel is the one that a package such as `linux-image-cloud-amd64` depends on, so that it follows Debian's
//! security updates; its version is fixed nowhere. The same kernel package and the same agent give the same files,
//! byte for byte (the disk image holds what is current in Debian's archive: the same packages give the same image).
//!
//! | file | what it is |
//! |---|---|
//! | `vmlinuz` | the kernel as a bzImage |
//! | `vmlinux` | the same kernel as an ELF file: no unpacking at boot, and an entry for PVH |
//! | `initrd.img` | the agent as `/init`, and `/modules/NNN-name.ko` in load order |
//! | `image.erofs` | a Debian with systemd that starts the agent |
//! | `image-initrd.img` | what mounts that image: Debian's kernel has virtio disks as modules |
//! | `manifest.json` | what they were made from, and their sums |

mod agent;
mod bootable;
mod cpio;
mod decompress;
mod digest;
mod error;
mod image;
mod initrd;
mod kernel;
mod manifest;
mod modules;
mod package;
mod tool;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use bootable::BootableKernel;
pub use error::GuestError;
pub use manifest::{FileRecord, KernelRecord, Manifest};

use digest::{sha256_bytes, sha256_file, write_whole};
use kernel::KernelTree;
use modules::{GUEST_MODULES, ModuleIndex};
use package::{Package, kernel_package};

/// The package whose dependency is Debian's current kernel for virtual machines.
pub const DEFAULT_KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// Where an installed guest lies.
pub const DEFAULT_GUEST_DIR: &str = "/usr/share/stockade/guest";

/// Which root file system the guest gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuestKind {
    /// An initrd with the agent as init: what starts fastest.
    #[default]
    Initrd,
    /// A disk image with systemd; needs root, mmdebstrap and erofs-utils.
    Image,
    /// Both.
    Both,
}

impl GuestKind {
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Initrd => &["vmlinuz", "vmlinux", "initrd.img"],
            Self::Image => &["vmlinuz", "vmlinux", "image.erofs", "image-initrd.img"],
            Self::Both => &["vmlinuz", "vmlinux", "initrd.img", "image.erofs", "image-initrd.img"],
        }
    }

    fn has_initrd(self) -> bool {
        self != Self::Image
    }

    fn has_image(self) -> bool {
        self != Self::Initrd
    }
}

/// Called with one line of text at the start of each step.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// What to make, and from what.
#[derive(Clone)]
pub struct BuildOptions {
    /// The folder that the guest's files are written to; made when it does not exist.
    pub out_dir: PathBuf,
    /// The agent's program: static, for x86-64.
    pub agent: PathBuf,
    /// The kernel's package, or one that depends on it.
    pub kernel_package: String,
    /// Which root file systems to make.
    pub kind: GuestKind,
    /// Keeps downloaded packages between runs; made when it does not exist.
    pub cache_dir: PathBuf,
    /// Hears of each step.
    pub progress: Option<Progress>,
}

impl BuildOptions {
    /// An initrd guest with the default kernel, and no progress reports.
    pub fn new(out_dir: impl Into<PathBuf>, agent: impl Into<PathBuf>, cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            out_dir: out_dir.into(),
            agent: agent.into(),
            kernel_package: DEFAULT_KERNEL_PACKAGE.to_owned(),
            kind: GuestKind::default(),
            cache_dir: cache_dir.into(),
            progress: None,
        }
    }

    fn say(&self, step: &str) {
        if let Some(progress) = &self.progress {
            progress(step);
        }
    }
}

impl fmt::Debug for BuildOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("BuildOptions")
            .field("out_dir", &self.out_dir)
            .field("agent", &self.agent)
            .field("kernel_package", &self.kernel_package)
            .field("kind", &self.kind)
            .field("cache_dir", &self.cache_dir)
            .finish_non_exhaustive()
    }
}

/// A guest that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestAssets {
    /// The kernel as a bzImage.
    pub vmlinuz: PathBuf,
    /// The kernel as an ELF file.
    pub vmlinux: PathBuf,
    /// The initrd with the agent, when it was asked for.
    pub initrd: Option<PathBuf>,
    /// The disk image and the initrd that mounts it, when they were asked for.
    pub image: Option<ImageAssets>,
    /// What the guest was made from.
    pub manifest: Manifest,
}

/// The files that boot from a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageAssets {
    /// A read-only EROFS file system without a partition table: any number of guests may share it.
    pub image: PathBuf,
    /// To be given to the kernel together with the image.
    pub initrd: PathBuf,
}

impl GuestAssets {
    /// The guest in `dir`, if its files are all there. Their sums are not looked at.
    ///
    /// # Errors
    /// When `dir` has no manifest, or lacks a file that the manifest lists.
    pub fn open(dir: &Path) -> Result<Self, GuestError> {
        let manifest = Manifest::read(dir)?;
        for name in manifest.files.keys() {
            let path = dir.join(name);
            fs::metadata(&path).map_err(GuestError::file("find", &path))?;
        }
        let named = |name: &str| manifest.files.contains_key(name).then(|| dir.join(name));
        Ok(Self {
            vmlinuz: dir.join("vmlinuz"),
            vmlinux: dir.join("vmlinux"),
            initrd: named("initrd.img"),
            image: named("image.erofs")
                .zip(named("image-initrd.img"))
                .map(|(image, initrd)| ImageAssets { image, initrd }),
            manifest,
        })
    }
}

/// Makes a guest. What was in `out_dir` is replaced file by file, the manifest last.
///
/// # Errors
/// When a package cannot be had or lacks what the guest needs, when the agent is no static program, or when a file
/// cannot be written. Files already written stay; without their manifest they are no guest.
pub fn build(options: &BuildOptions) -> Result<GuestAssets, GuestError> {
    let out = options.out_dir.as_path();
    fs::create_dir_all(out).map_err(GuestError::file("create", out))?;
    let old = out.join(manifest::FILE_NAME);
    if old.exists() {
        fs::remove_file(&old).map_err(GuestError::file("remove", &old))?;
    }

    options.say("finding the kernel package");
    let package = kernel_package(&options.kernel_package)?;
    options.say(&format!("fetching {} {}", package.name, package.version));
    let tree = KernelTree::find(&package.unpacked(&options.cache_dir)?)?;

    options.say(&format!("unpacking the kernel {}", tree.release));
    let bzimage = fs::read(&tree.vmlinuz).map_err(GuestError::file("read", &tree.vmlinuz))?;
    let mut files = BTreeMap::new();
    let mut add = |name: &str, bytes: &[u8]| -> Result<(), GuestError> {
        write_whole(&out.join(name), bytes)?;
        files.insert(name.to_owned(), FileRecord { sha256: sha256_bytes(bytes), size: bytes.len() as u64 });
        Ok(())
    };
    add("vmlinux", &kernel::extract_vmlinux(&bzimage, &tree.vmlinuz)?)?;
    add("vmlinuz", &bzimage)?;
    drop(bzimage);

    let index = ModuleIndex::scan(&tree)?;
    let program = fs::read(&options.agent).map_err(GuestError::file("read", &options.agent))?;
    let agent_sha256 = sha256_bytes(&program);
    let agent = agent::strip(&program, &options.agent)?;
    let modules = index.load_order(GUEST_MODULES)?;
    let names = modules.iter().map(|module| module.name.clone()).collect();
    if options.kind.has_initrd() {
        options.say("packing the initrd");
        add("initrd.img", &initrd::program_initrd(agent.clone(), modules)?)?;
    }
    if options.kind.has_image() {
        options.say("packing the initrd of the disk image");
        add("image-initrd.img", &image::initrd(&options.cache_dir, &index)?)?;
        options.say("making the disk image");
        let path = out.join("image.erofs");
        image::build(&path, &agent, &options.cache_dir)?;
        let size = fs::metadata(&path).map_err(GuestError::file("find", &path))?.len();
        files.insert("image.erofs".to_owned(), FileRecord { sha256: sha256_file(&path)?, size });
    }

    let manifest =
        Manifest { format: manifest::FORMAT, kernel: record(&package, &tree), agent_sha256, modules: names, files };
    write_whole(&out.join(manifest::FILE_NAME), manifest.to_json().as_bytes())?;
    GuestAssets::open(out)
}

/// Whether `out_dir` already holds, unchanged, what [`build`] would make.
pub fn is_current(options: &BuildOptions) -> bool {
    current(options).unwrap_or(false)
}

fn current(options: &BuildOptions) -> Result<bool, GuestError> {
    let manifest = Manifest::read(&options.out_dir)?;
    let package = kernel_package(&options.kernel_package)?;
    if manifest.format != manifest::FORMAT
        || manifest.kernel.package != package.name
        || manifest.kernel.version != package.version
        || manifest.agent_sha256 != sha256_file(&options.agent)?
    {
        return Ok(false);
    }
    for name in options.kind.files() {
        let Some(record) = manifest.files.get(*name) else {
            return Ok(false);
        };
        if sha256_file(&options.out_dir.join(name))? != record.sha256 {
            return Ok(false);
        }
    }
    Ok(true)
}

fn record(package: &Package, tree: &KernelTree) -> KernelRecord {
    KernelRecord { package: package.name.clone(), version: package.version.clone(), release: tree.release.clone() }
}
