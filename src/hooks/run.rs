//! Running a phase's hooks.

use super::output::Tail;
use super::sys::{Descriptors, Program, keep};
use super::tree::kill_descendants;
use super::{HookError, Phase};
use crate::oci::OciState;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use oci_spec::runtime::Hook;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::process::Child;
use tokio_util::sync::CancellationToken;

/// How much a hook's descendants may still print while their output is taken after its end, in bytes.
const LAST_BYTES: usize = 1 << 20;

/// Runs `hooks` in order, until one fails. Each gets `state` on its standard input, exactly its own environment, the
/// bundle as its directory, a process group of its own, and `netns` as its network namespace. What it prints is read
/// but not waited for once it has ended.
///
/// A hook without a timeout has no limit but `cancel`. One that fails, is late or is cancelled is killed with all its
/// descendants. When the future is dropped, the hook's process group is killed.
///
/// # Errors
/// The first hook that did not succeed. Whether that ends anything is [`Phase::is_fatal`]'s to say.
pub async fn run_hooks(
    phase: Phase,
    hooks: &[Hook],
    state: &OciState,
    netns: Option<BorrowedFd<'_>>,
    cancel: CancellationToken,
) -> Result<(), HookError> {
    for hook in hooks {
        tracing::debug!(%phase, path = ?hook.path(), "hook begins");
        run_one(phase, hook, state, netns, &cancel).await?;
        tracing::debug!(%phase, path = ?hook.path(), "hook is done");
    }
    Ok(())
}

/// Runs poststop hooks for a supervisor that is gone, each one whatever became of the others. Blocks.
///
/// # Errors
/// They could not be run at all. A hook that fails is logged, as the OCI asks.
pub fn run_poststop_blocking(hooks: &[Hook], state: &OciState) -> io::Result<()> {
    // The caller may be inside a runtime, where no other can be entered.
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        for hook in hooks {
            let hook = std::slice::from_ref(hook);
            let running = run_hooks(Phase::Poststop, hook, state, None, CancellationToken::new());
            if let Err(error) = runtime.block_on(running) {
                tracing::warn!(%error, cause = std::error::Error::source(&error), "poststop hook failed");
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("poststop".to_owned()).spawn_scoped(scope, run)?;
        thread.join().map_err(|_| io::Error::other("the thread that runs poststop hooks panicked"))?
    })
}

/// How watching a hook ended.
enum End {
    Exited(ExitStatus),
    Lost,
    TimedOut(u64),
    Cancelled,
}

async fn run_one(
    phase: Phase,
    hook: &Hook,
    state: &OciState,
    netns: Option<BorrowedFd<'_>>,
    cancel: &CancellationToken,
) -> Result<(), HookError> {
    let path = hook.path();
    if cancel.is_cancelled() {
        return Err(HookError::Cancelled { phase, path: path.clone() });
    }
    check_executable(phase, path)?;
    let program = program(hook).ok_or_else(|| HookError::ZeroByte { phase, path: path.clone() })?;
    let failed = |step| move |source| HookError::Start { phase, path: path.clone(), step, source };

    let document = serde_json::to_vec(state).map_err(|error| failed("write its state")(error.into()))?;
    let mut running = start(program, &state.bundle, netns).map_err(failed("start it"))?;
    let mut output = Tail::default();
    let seconds = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    let limit = async {
        match seconds {
            Some(seconds) => {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                seconds
            }
            None => std::future::pending().await,
        }
    };
    let end = tokio::select! {
        // A hook that has ended in time has, whatever else is true by now.
        biased;
        end = running.watch(document, &mut output) => end.map_err(failed("watch it"))?,
        () = cancel.cancelled() => End::Cancelled,
        seconds = limit => End::TimedOut(seconds),
    };
    // Before the killing, which shells comment on.
    running.drain(&mut output);
    let good = matches!(end, End::Exited(status) if status.success());
    if !good
        && let Some(keeper) = running.keeper_id()
        && !kill_descendants(keeper).await
    {
        tracing::warn!(%phase, ?path, "processes that a hook started do not end");
    }
    running.leave().await.map_err(failed("wait for it"))?;
    let path = path.clone();
    match end {
        End::Exited(status) if status.success() => {
            let output = output.kept();
            if !output.is_empty() {
                tracing::debug!(%phase, ?path, output, "hook printed");
            }
            Ok(())
        }
        End::Exited(status) => Err(match status.signal() {
            Some(signal) => HookError::Signalled { phase, path, signal, output: output.line() },
            None => HookError::Failed { phase, path, status: status.code().unwrap_or(-1), output: output.line() },
        }),
        End::Lost => Err(HookError::Lost { phase, path }),
        End::TimedOut(seconds) => Err(HookError::TimedOut { phase, path, seconds, output: output.line() }),
        End::Cancelled => Err(HookError::Cancelled { phase, path }),
    }
}

fn check_executable(phase: Phase, path: &Path) -> Result<(), HookError> {
    let metadata =
        std::fs::metadata(path).map_err(|source| HookError::Missing { phase, path: path.to_owned(), source })?;
    if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        Ok(())
    } else {
        Err(HookError::NotExecutable { phase, path: path.to_owned() })
    }
}

/// `None` for a zero byte.
fn program(hook: &Hook) -> Option<Program> {
    let path = CString::new(hook.path().as_os_str().as_bytes()).ok()?;
    let strings = |list: &Option<Vec<String>>| -> Option<Vec<CString>> {
        list.iter().flatten().map(|text| CString::new(text.as_bytes()).ok()).collect()
    };
    let mut args = strings(hook.args())?;
    if args.is_empty() {
        args.push(path.clone());
    }
    Some(Program { args, env: strings(hook.env())?, path })
}

/// A hook that runs, with its keeper.
struct Running {
    keeper: Child,
    /// Dropped, it lets the keeper exit; while the hook runs, with its process group.
    lifeline: Option<OwnedFd>,
    status: pipe::Receiver,
    output: pipe::Receiver,
    input: Option<pipe::Sender>,
}

fn start(program: Program, bundle: &Path, netns: Option<BorrowedFd<'_>>) -> io::Result<Running> {
    let (lifeline_read, lifeline) = pipe2(OFlag::O_CLOEXEC)?;
    let (status, status_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (output, output_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (input_read, input) = pipe2(OFlag::O_CLOEXEC)?;
    let mut command = Command::new("hook");
    command
        .current_dir(if bundle.is_dir() { bundle } else { Path::new("/") })
        .stdin(Stdio::from(input_read))
        .stdout(Stdio::from(output_write.try_clone()?))
        .stderr(Stdio::from(output_write));
    let descriptors = Descriptors {
        netns: netns.map(|netns| netns.as_raw_fd()),
        lifeline: lifeline_read.as_raw_fd(),
        status: status_write.as_raw_fd(),
    };
    keep(&mut command, program, descriptors);
    let mut command = tokio::process::Command::from(command);
    let keeper = command.spawn()?;
    Ok(Running {
        keeper,
        lifeline: Some(lifeline),
        status: pipe::Receiver::from_owned_fd(status)?,
        output: pipe::Receiver::from_owned_fd(output)?,
        input: Some(pipe::Sender::from_owned_fd(input)?),
    })
}

impl Running {
    fn keeper_id(&self) -> Option<i32> {
        self.keeper.id().map(u32::cast_signed)
    }

    /// Feeds the hook and reads what it prints until it has ended.
    async fn watch(&mut self, document: Vec<u8>, output: &mut Tail) -> io::Result<End> {
        let input = self.input.take();
        let feed = async move {
            if let Some(mut input) = input {
                // A hook that does not read its input may do so.
                _ = input.write_all(&document).await;
            }
        };
        tokio::pin!(feed);
        let mut status = [0; 4];
        let mut chunk = vec![0; 16 << 10];
        let (mut fed, mut printed) = (false, false);
        let ended = self.status.read_exact(&mut status);
        tokio::pin!(ended);
        loop {
            tokio::select! {
                ended = &mut ended => return match ended {
                    Ok(_) => Ok(End::Exited(ExitStatus::from_raw(i32::from_ne_bytes(status)))),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(End::Lost),
                    Err(error) => Err(error),
                },
                () = &mut feed, if !fed => fed = true,
                read = self.output.read(&mut chunk), if !printed => match read? {
                    0 => printed = true,
                    count => output.push(&chunk[..count]),
                },
            }
        }
    }

    /// Takes what is in the pipe, without waiting for the descendants that may hold it open.
    fn drain(&mut self, output: &mut Tail) {
        let mut chunk = vec![0; 16 << 10];
        let mut taken = 0;
        while taken < LAST_BYTES {
            match self.output.try_read(&mut chunk) {
                Ok(count) if count > 0 => {
                    output.push(&chunk[..count]);
                    taken += count;
                }
                _ => break,
            }
        }
    }

    /// Lets the keeper go and reaps it.
    async fn leave(mut self) -> io::Result<()> {
        drop(self.lifeline.take());
        self.keeper.wait().await.map(|_| ())
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
