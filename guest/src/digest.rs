//! SHA-256 sums of files, and files that appear whole or not at all.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::GuestError;

/// The sum of a file, in lower-case hexadecimal.
pub(crate) fn sha256_file(path: &Path) -> Result<String, GuestError> {
    let mut file = File::open(path).map_err(GuestError::file("open", path))?;
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut hasher).map_err(GuestError::file("read", path))?;
    Ok(hex(&hasher.finalize()))
}

/// The sum of bytes, in lower-case hexadecimal.
pub(crate) fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file under a temporary name and renames it, so that no reader ever sees half of it.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), GuestError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".partial-{}", std::process::id()));
    let partial = path.with_file_name(name);
    fs::write(&partial, bytes).map_err(GuestError::file("write", &partial))?;
    fs::rename(&partial, path).map_err(GuestError::file("rename", &partial))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_the_known_one() {
        assert_eq!(sha256_bytes(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_written_file_leaves_no_temporary_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_whole(&path, b"abc").unwrap();
        assert_eq!(sha256_file(&path).unwrap(), sha256_bytes(b"abc"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
