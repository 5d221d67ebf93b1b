//! Debian's own tools, run with captured output and in a fixed environment.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::GuestError;

/// The most of a failed tool's stderr that an error carries, in bytes.
const STDERR_KEPT: usize = 2000;

/// One invocation of a tool.
#[derive(Debug)]
pub(crate) struct Tool {
    command: Command,
    program: &'static str,
    package: &'static str,
}

impl Tool {
    /// `package` is the Debian package to name when the program is not there.
    pub(crate) fn new(program: &'static str, package: &'static str) -> Self {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        Self { command, program, package }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: &str) -> Self {
        self.command.env(key, value);
        self
    }

    pub(crate) fn current_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs it to its end and returns its stdout.
    ///
    /// # Errors
    /// When the program is missing or its exit status is not 0.
    pub(crate) fn run(mut self) -> Result<String, GuestError> {
        let output = self.command.output().map_err(|source| GuestError::ToolMissing {
            program: self.program.to_owned(),
            package: self.package,
            source,
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let tail: String = {
            let skip = stderr.chars().count().saturating_sub(STDERR_KEPT);
            stderr.chars().skip(skip).collect()
        };
        Err(GuestError::ToolFailed {
            command: self.line(),
            status: output.status.to_string(),
            message: tail.trim().replace('\n', "; "),
        })
    }

    fn line(&self) -> String {
        std::iter::once(self.command.get_program())
            .chain(self.command.get_args())
            .map(OsStr::to_string_lossy)
            .collect::<Vec<_>>()
            .join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_names_the_package_that_brings_it() {
        let error = Tool::new("no-such-tool-of-stockade", "some-package").run().unwrap_err();
        assert!(error.to_string().contains("some-package"), "{error}");
    }

    #[test]
    fn a_failed_tool_gives_its_command_line_and_stderr() {
        let error = Tool::new("sh", "dash").arg("-c").arg("echo broken >&2; exit 3").run().unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        assert!(error.to_string().contains("broken"), "{error}");
    }
}
