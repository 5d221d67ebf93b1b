//! Runs the user's program: the last thing that happens before it takes over the process.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use libcontainer::capabilities::drop_privileges;
use libcontainer::container::{ContainerStatus, State};
use libcontainer::hooks::run_hooks;
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use oci_spec::runtime::{Process, Spec};

use super::protocol::Execution;
use super::report::Reporter;
use super::spec::HOME_TO_BE_FOUND;

/// Most of a passwd file that is read to find a home directory.
const MAX_PASSWD: u64 = 1 << 20;

/// What libcontainer calls inside the container.
///
/// It differs from libcontainer's own executor in this: the environment is passed as it is (order,
/// duplicates, entries without "="), the error texts are runc's, signals have their default actions, and
/// the system call filter also holds for processes that are added to a container later.
#[derive(Clone)]
pub(super) struct ContainerExecutor {
    pub(super) reporter: Reporter,
    pub(super) execution: Execution,
    /// The container's id.
    pub(super) id: String,
    /// Its bundle in the guest; empty for a process that is added.
    pub(super) bundle: PathBuf,
}

impl Executor for ContainerExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let checked = process(spec).and_then(|process| find_program(process).map(drop));
        checked.map_err(|text| {
            self.reporter.reason(&text);
            ExecutorValidationError::ArgValidationError(text)
        })
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The map has lost the order and duplicates; the program gets the list of the specification.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let text = match self.run(spec) {
            Ok(never) => match never {},
            Err(text) => text,
        };
        self.reporter.reason(&text);
        Err(ExecutorError::Other(text))
    }
}

impl ContainerExecutor {
    fn run(&self, spec: &Spec) -> Result<std::convert::Infallible, String> {
        let process = process(spec)?;
        let program = find_program(process)?;
        let args = strings(process.args().iter().flatten())?;
        let env = environment(process)?;
        if let Some((rows, columns)) = self.execution.console_size {
            // Best effort, as anywhere: the size can be set again at any time.
            let _ = crate::sys::set_window_size(io::stdin().as_fd(), rows, columns);
        }
        crate::sys::reset_signals();
        self.run_start_hooks(spec, process)?;
        self.reporter.running();
        if let Some(seccomp) = &self.execution.seccomp {
            initialize_seccomp(seccomp)
                .map_err(|e| format!("cannot load the system call filter: {}", crate::log::Causes(&e)))?;
        }
        if let Some(capabilities) = &self.execution.capabilities {
            drop_privileges(capabilities, create_syscall().as_ref())
                .map_err(|e| format!("cannot give up capabilities: {}", crate::log::Causes(&e)))?;
        }
        let name = process.args().iter().flatten().next().map_or("", String::as_str);
        Err(describe(name, crate::sys::execute(&program, &args, &env)))
    }
}

impl ContainerExecutor {
    fn run_start_hooks(&self, spec: &Spec, process: &Process) -> Result<(), String> {
        let hooks = &self.execution.start_hooks;
        if hooks.is_empty() {
            return Ok(());
        }
        let own = i32::try_from(std::process::id()).ok();
        let mut state = State::new(&self.id, ContainerStatus::Created, own, self.bundle.clone());
        state.annotations = spec.annotations().clone();
        // What a hook without an environment gets, as with runc.
        let given = process.env().iter().flatten().filter(|entry| *entry != HOME_TO_BE_FOUND);
        let entries = given.filter_map(|entry| entry.split_once('='));
        let env = entries.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        run_hooks(Some(hooks), Some(&state), None, None, Some(&env))
            .map_err(|e| format!("a startContainer hook failed: {}", crate::log::Causes(&e)))
    }
}

fn process(spec: &Spec) -> Result<&Process, String> {
    spec.process().as_ref().ok_or_else(|| "the specification has no process".to_owned())
}

fn strings<'a>(list: impl Iterator<Item = &'a String>) -> Result<Vec<CString>, String> {
    list.map(|text| CString::new(text.as_str()))
        .collect::<Result<_, _>>()
        .map_err(|_| "an argument or environment string holds a zero byte".to_owned())
}

fn environment(process: &Process) -> Result<Vec<CString>, String> {
    let list = process.env().as_deref().unwrap_or_default();
    let mut env = strings(list.iter())?;
    let to_be_found = HOME_TO_BE_FOUND.as_bytes();
    if let Some(entry) = env.iter_mut().find(|entry| entry.as_bytes() == to_be_found)
        && let Ok(home) = CString::new(format!("HOME={}", home_of(process.user().uid())))
    {
        *entry = home;
    }
    Ok(env)
}

/// The user's home directory as the container's passwd file has it, or the root directory.
fn home_of(uid: u32) -> String {
    let mut text = String::new();
    let read = File::open("/etc/passwd").and_then(|file| file.take(MAX_PASSWD).read_to_string(&mut text));
    let uid = uid.to_string();
    let home = read.ok().and_then(|_| {
        text.lines().find_map(|line| {
            let mut fields = line.split(':').skip(2);
            (fields.next() == Some(uid.as_str())).then(|| fields.nth(2)).flatten()
        })
    });
    home.filter(|home| !home.is_empty()).unwrap_or("/").to_owned()
}

/// Finds the program that the first argument names.
fn find_program(process: &Process) -> Result<PathBuf, String> {
    let name = process.args().iter().flatten().next().map_or("", String::as_str);
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match check_program(&path) {
            Ok(()) => Ok(path),
            Err(errno) => Err(describe(name, errno)),
        };
    }
    let env = process.env().as_deref().unwrap_or_default();
    // The last one counts, as it does for a shell that was given duplicates.
    let search = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    search
        .split(':')
        .filter(|_| !name.is_empty())
        .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name))
        .find(|path| check_program(path).is_ok())
        .ok_or_else(|| format!("exec: \"{name}\": executable file not found in $PATH"))
}

fn check_program(path: &Path) -> Result<(), Errno> {
    let errno = |e: io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    if std::fs::metadata(path).map_err(errno)?.is_dir() {
        return Err(Errno::EISDIR);
    }
    crate::sys::may_execute(path).map_err(errno)
}

fn describe(name: &str, errno: Errno) -> String {
    match errno {
        Errno::ENOENT => format!("exec: \"{name}\": stat {name}: no such file or directory"),
        Errno::EACCES => format!("exec: \"{name}\": permission denied"),
        Errno::EISDIR => format!("exec: \"{name}\": is a directory: permission denied"),
        Errno::ENOEXEC => format!("exec: \"{name}\": exec format error"),
        other => format!("exec: \"{name}\": {}", other.desc()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(args: &[&str], env: &[&str]) -> Process {
        serde_json::from_value(serde_json::json!({
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args, "env": env,
        }))
        .expect("a process")
    }

    #[test]
    fn a_program_is_searched_in_the_path_of_its_own_environment() {
        let found = find_program(&process(&["sh"], &["PATH=/nowhere:/bin"]));
        assert_eq!(found, Ok(PathBuf::from("/bin/sh")));
        let missing = find_program(&process(&["sh"], &["PATH=/nowhere"]));
        assert_eq!(missing, Err("exec: \"sh\": executable file not found in $PATH".to_owned()));
        assert!(find_program(&process(&["sh"], &[])).is_err());
    }

    #[test]
    fn each_reason_has_its_own_text() {
        let missing = find_program(&process(&["/no/such"], &[])).expect_err("missing");
        assert!(missing.contains("no such file or directory"), "{missing}");
        let directory = find_program(&process(&["/etc/"], &[])).expect_err("a directory");
        assert!(directory.contains("permission denied"), "{directory}");
    }

    #[test]
    fn the_environment_is_verbatim_except_for_a_home_to_be_found() {
        let odd = ["A=1", "A=2", "odd", "", "HOME=/h"];
        let env = environment(&process(&["x"], &odd)).expect("an environment");
        let text: Vec<_> = env.iter().map(|e| e.to_str().expect("text")).collect();
        assert_eq!(text, odd);
        let env = environment(&process(&["x"], &["A=1", HOME_TO_BE_FOUND])).expect("an environment");
        assert_eq!(env.len(), 2);
        assert_eq!(env.last().map(|e| e.to_bytes()), Some(&b"HOME=/root"[..]));
    }
}
