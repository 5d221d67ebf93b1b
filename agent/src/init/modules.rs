//! The kernel modules that the initrd brings.

use std::ffi::CStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

const DIR: &str = "/modules";
const NO_PARAMETERS: &CStr = c"";

/// Loads all, in the order of their names, and frees the memory that their files take. Returns what failed.
pub(super) fn load_all() -> Vec<String> {
    let mut problems = Vec::new();
    for path in listed(Path::new(DIR)) {
        if let Err(problem) = load(&path) {
            problems.push(format!("module {path:?}: {problem}"));
        }
    }
    // They live in memory, and were needed once.
    let _ = fs::remove_dir_all(DIR);
    problems
}

fn listed(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ko"))
        .collect();
    paths.sort_unstable();
    paths
}

fn load(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    match finit_module(&file, NO_PARAMETERS, ModuleInitFlags::empty()) {
        // Built in, or loaded before.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_taken_in_the_order_of_their_names() {
        let dir = std::env::temp_dir().join(format!("stockade-agent-modules-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("made");
        for name in ["010-b.ko", "002-a.ko", "readme", "100-c.ko"] {
            fs::write(dir.join(name), "").expect("written");
        }
        let names: Vec<_> = listed(&dir).iter().filter_map(|p| Some(p.file_name()?.to_owned())).collect();
        assert_eq!(names, ["002-a.ko", "010-b.ko", "100-c.ko"]);
        fs::remove_dir_all(&dir).expect("removed");
    }
}
