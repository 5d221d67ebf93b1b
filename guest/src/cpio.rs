//! A writer for "newc" cpio archives, the format of an initrd. Every field that could differ between two runs is fixed:
//! entries are sorted by name, times are 0, owners are root, and inode numbers count up.

use std::collections::BTreeMap;

use crate::GuestError;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const TRAILER: &str = "TRAILER!!!";
/// Name and data start at multiples of this many bytes.
const ALIGNMENT: usize = 4;

#[derive(Debug)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

/// An archive in the making. Names are relative ("dev/null"), without a leading slash.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    // Sorted by name, a folder comes before what is in it, as the kernel needs it.
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    pub(crate) fn directory(&mut self, name: &str, permissions: u32) {
        self.insert(name, DIRECTORY | permissions, (0, 0), Vec::new());
    }

    pub(crate) fn file(&mut self, name: &str, permissions: u32, data: Vec<u8>) {
        self.insert(name, REGULAR | permissions, (0, 0), data);
    }

    /// A character device with its major and minor number.
    pub(crate) fn character_device(&mut self, name: &str, permissions: u32, major: u32, minor: u32) {
        self.insert(name, CHARACTER_DEVICE | permissions, (major, minor), Vec::new());
    }

    fn insert(&mut self, name: &str, mode: u32, device: (u32, u32), data: Vec<u8>) {
        self.entries.insert(name.to_owned(), Entry { mode, device, data });
    }

    /// The archive's bytes.
    ///
    /// # Errors
    /// When a file is 4 GiB or larger.
    pub(crate) fn finish(self) -> Result<Vec<u8>, GuestError> {
        let mut output = Vec::new();
        for (inode, (name, entry)) in (1u32..).zip(&self.entries) {
            append(&mut output, inode, name, entry)?;
        }
        append(&mut output, 0, TRAILER, &Entry { mode: 0, device: (0, 0), data: Vec::new() })?;
        Ok(output)
    }
}

fn append(output: &mut Vec<u8>, inode: u32, name: &str, entry: &Entry) -> Result<(), GuestError> {
    let too_large = |_| GuestError::ArchiveEntry { name: name.to_owned() };
    let size = u32::try_from(entry.data.len()).map_err(too_large)?;
    let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
    let links = if entry.mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
    let fields = [inode, entry.mode, 0, 0, links, 0, size, 0, 0, entry.device.0, entry.device.1, name_size, 0];
    output.extend_from_slice(b"070701");
    for field in fields {
        output.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    output.extend_from_slice(name.as_bytes());
    output.push(0);
    pad(output);
    output.extend_from_slice(&entry.data);
    pad(output);
    Ok(())
}

fn pad(output: &mut Vec<u8>) {
    output.resize(output.len().next_multiple_of(ALIGNMENT), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(order: &[&str]) -> Vec<u8> {
        let mut archive = Archive::default();
        for name in order {
            match *name {
                "dev" => archive.directory("dev", 0o755),
                "dev/null" => archive.character_device("dev/null", 0o666, 1, 3),
                _ => archive.file("init", 0o755, b"#!".to_vec()),
            }
        }
        archive.finish().unwrap()
    }

    #[test]
    fn the_order_of_additions_does_not_change_the_archive() {
        assert_eq!(sample(&["init", "dev/null", "dev"]), sample(&["dev", "dev/null", "init"]));
    }

    #[test]
    fn headers_hold_mode_size_and_device_numbers() {
        let bytes = sample(&["dev/null"]);
        let text = String::from_utf8_lossy(&bytes[..110]).into_owned();
        assert_eq!(&text[..22], "07070100000001000021b6");
        assert_eq!(&text[78..94], "0000000100000003");
    }

    #[test]
    fn every_part_is_aligned_and_the_trailer_ends_it() {
        let bytes = sample(&["init"]);
        assert_eq!(bytes.len() % ALIGNMENT, 0);
        assert!(String::from_utf8_lossy(&bytes).contains(TRAILER));
    }
}
