//! The agent's program: checked to be one that the guest can run, and stripped of what it does not need to run.

use std::path::Path;

use object::build::elf::{Builder, SectionData};
use object::elf;

use crate::GuestError;

/// The agent without symbol tables and debugging information. The same input gives the same bytes.
///
/// # Errors
/// When it is not an ELF program for x86-64, or needs a dynamic loader (an initrd has none). `path` is only named.
pub(crate) fn strip(program: &[u8], path: &Path) -> Result<Vec<u8>, GuestError> {
    let refuse = |reason: String| GuestError::AgentFormat { path: path.to_owned(), reason };
    let mut builder = Builder::read(program).map_err(|error| refuse(error.to_string()))?;
    if builder.header.e_machine != elf::EM_X86_64 {
        return Err(refuse("it is for another processor".to_owned()));
    }
    if builder.segments.iter().any(|segment| segment.p_type == elf::PT_INTERP) {
        return Err(refuse("it is linked dynamically".to_owned()));
    }
    for section in &mut builder.sections {
        let loaded = section.sh_flags.contains(elf::SHF_ALLOC);
        // The table of section names is written anew; all else that is not loaded is for linkers and debuggers.
        if !loaded && !matches!(section.data, SectionData::SectionString) {
            section.delete = true;
        }
    }
    for symbol in &mut builder.symbols {
        symbol.delete = true;
    }
    builder.delete_orphans();
    builder.set_section_sizes();
    let mut stripped = Vec::new();
    builder.write(&mut stripped).map_err(|error| refuse(error.to_string()))?;
    Ok(stripped)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_text_file_is_refused() {
        let error = strip(b"#!/bin/sh\n", Path::new("agent")).unwrap_err();
        assert!(error.to_string().starts_with("the agent agent is not"), "{error}");
    }

    #[test]
    fn a_stripped_program_is_smaller_and_still_runs() {
        // This test's own program is static, as every program of the workspace is.
        let path = std::env::current_exe().unwrap();
        let program = std::fs::read(&path).unwrap();
        let stripped = strip(&program, &path).unwrap();
        assert!(stripped.len() < program.len());
        assert_eq!(stripped, strip(&program, &path).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("program");
        std::fs::write(&copy, stripped).unwrap();
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
        let output = Command::new(&copy).arg("--list").output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("a_stripped_program_is_smaller"));
    }
}
