//! --pid-file.

use anyhow::Context as _;
use std::fs;
use std::path::Path;

/// Writes `pid` to `path`, whole: who waits for the file sees it only with its number. No newline, as runc.
pub(super) fn write(path: &Path, pid: i32) -> anyhow::Result<()> {
    let name = path.file_name().with_context(|| format!("--pid-file {} names no file", path.display()))?;
    let temporary = path.with_file_name(format!(".{}", name.to_string_lossy()));
    let written = fs::write(&temporary, pid.to_string()).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // It may not even exist.
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(|| format!("cannot write the pid file {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_the_number_and_nothing_else_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        write(&path, 42).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "42");
        assert!(write(&directory.path().join("no/pid"), 42).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
