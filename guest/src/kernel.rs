//! The kernel: a package's bzImage, and the ELF file inside it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::GuestError;
use crate::decompress::decompress;

// Offsets and values of the x86 boot protocol's setup header.
const SETUP_SECTORS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const PROTOCOL_VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first protocol version whose header says where the payload is.
const PROTOCOL_WITH_PAYLOAD: u16 = 0x0208;
const SECTOR: usize = 512;
/// A header that gives 0 set-up sectors means this many.
const DEFAULT_SETUP_SECTORS: usize = 4;

/// Where an unpacked kernel package has what the guest is made from.
#[derive(Clone, Debug)]
pub(crate) struct KernelTree {
    /// The release, as `uname -r` prints it.
    pub(crate) release: String,
    /// The bzImage.
    pub(crate) vmlinuz: PathBuf,
    /// The folder with `kernel/` and `modules.builtin`.
    pub(crate) modules: PathBuf,
}

impl KernelTree {
    /// Looks into the folder that a kernel package was unpacked to.
    ///
    /// # Errors
    /// When it has no modules or no kernel image.
    pub(crate) fn find(tree: &Path) -> Result<Self, GuestError> {
        let missing = |what| GuestError::PackageContent { path: tree.to_owned(), what };
        // Newer Debian releases have everything under /usr.
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .filter_map(|folder| fs::read_dir(tree.join(folder)).ok())
            .flatten()
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.join("kernel").is_dir())
            .ok_or_else(|| missing("modules"))?;
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let vmlinuz = tree.join(format!("boot/vmlinuz-{release}"));
        if !vmlinuz.is_file() {
            return Err(missing("kernel image"));
        }
        Ok(Self { release, vmlinuz, modules })
    }
}

/// Unpacks the ELF kernel from a bzImage. `path` is only named in errors.
///
/// # Errors
/// When the image has another shape or its compression is unknown.
pub(crate) fn extract_vmlinux(image: &[u8], path: &Path) -> Result<Vec<u8>, GuestError> {
    let malformed = |reason| GuestError::KernelFormat { path: path.to_owned(), reason };
    let short = || malformed("it is too short");
    if image.get(BOOT_FLAG..BOOT_FLAG + 2) != Some(&[0x55, 0xaa])
        || image.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS")
    {
        return Err(malformed("the boot signature is missing"));
    }
    let version = image.get(PROTOCOL_VERSION..).and_then(<[u8]>::first_chunk).ok_or_else(short)?;
    if u16::from_le_bytes(*version) < PROTOCOL_WITH_PAYLOAD {
        return Err(malformed("its boot protocol is older than 2.08"));
    }
    let word =
        |at: usize| image.get(at..).and_then(<[u8]>::first_chunk).map(|bytes| u32::from_le_bytes(*bytes) as usize);
    let sectors = match image.get(SETUP_SECTORS).copied().ok_or_else(short)? {
        0 => DEFAULT_SETUP_SECTORS,
        sectors => usize::from(sectors),
    };
    let start = word(PAYLOAD_OFFSET).ok_or_else(short)? + (sectors + 1) * SECTOR;
    let end = start + word(PAYLOAD_LENGTH).ok_or_else(short)?;
    let payload = image.get(start..end).ok_or_else(|| malformed("its payload lies outside the file"))?;
    let kernel = decompress(payload, path)?;
    if !kernel.starts_with(b"\x7fELF") {
        return Err(malformed("its payload is not an ELF file"));
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0u8; 2 * SECTOR];
        image[SETUP_SECTORS] = 1;
        image[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&[0x55, 0xaa]);
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[PROTOCOL_VERSION..PROTOCOL_VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(&[0xee; 16]);
        image.extend_from_slice(payload);
        image.extend_from_slice(b"after");
        image
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_payload_is_found_by_the_header() {
        let kernel = extract_vmlinux(&image(&gzip(b"\x7fELF kernel")), Path::new("vmlinuz")).unwrap();
        assert_eq!(kernel, b"\x7fELF kernel");
    }

    #[test]
    fn a_payload_that_is_no_elf_file_is_refused() {
        let error = extract_vmlinux(&image(&gzip(b"text")), Path::new("vmlinuz")).unwrap_err();
        assert!(error.to_string().contains("not an ELF file"), "{error}");
    }

    #[test]
    fn every_shortened_image_is_an_error_and_not_a_panic() {
        let whole = image(&gzip(b"\x7fELF kernel"));
        for length in 0..whole.len() - b"after".len() {
            extract_vmlinux(&whole[..length], Path::new("vmlinuz")).unwrap_err();
        }
    }

    #[test]
    fn a_payload_outside_the_file_is_refused() {
        let mut image = image(b"");
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = extract_vmlinux(&image, Path::new("vmlinuz")).unwrap_err();
        assert!(error.to_string().contains("outside the file"), "{error}");
    }
}
