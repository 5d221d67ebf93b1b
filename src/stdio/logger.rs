//! A program that takes a process's output: containerd's `binary://` loggers.
//!
//! It gets the output as descriptor 3 and the error output as descriptor 4, and closes descriptor 5 when it is ready; the
//! names of the container and of its namespace are in CONTAINER_ID and CONTAINER_NAMESPACE. It ends by itself when both
//! outputs have ended; one that does not is told by SIGTERM, then by SIGKILL.

use super::StdioOwner;
use super::stream::sys::with_descriptors;
use super::target::LoggerCommand;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

/// How long it may take until it is ready.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to end by itself.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How long it may take to end after SIGTERM: as long as with containerd's own shims.
const TERM_LIMIT: Duration = Duration::from_secs(12);

/// A logger that runs. Dropped, it is made to end, and waited for by a task of its own.
#[derive(Debug)]
pub(super) struct Logger {
    /// Only its end is noticed.
    _in_use: oneshot::Sender<()>,
}

/// Starts it, and returns when it is ready: its handle, and where the output and the error output go.
pub(super) async fn start(command: &LoggerCommand, owner: &StdioOwner) -> io::Result<(Logger, OwnedFd, OwnedFd)> {
    let (output_reader, output) = io::pipe()?;
    let (error_reader, error) = io::pipe()?;
    let (ready_reader, ready) = io::pipe()?;
    let mut process = Command::new(&command.program);
    process
        .args(&command.args)
        .env("CONTAINER_ID", &owner.container)
        .env("CONTAINER_NAMESPACE", &owner.namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let descriptors = [output_reader.into(), error_reader.into(), ready.into()];
    with_descriptors(process.as_std_mut(), descriptors);
    let child = process.spawn()?;
    // With the command go this process's copies of the logger's ends.
    drop(process);
    let (in_use, unused) = oneshot::channel();
    tokio::spawn(attend(child, unused));
    let logger = Logger { _in_use: in_use };
    let mut ready = pipe::Receiver::from_owned_fd(ready_reader.into())?;
    match tokio::time::timeout(READY_LIMIT, ready.read(&mut [0])).await {
        // A byte means the same as the end.
        Ok(read) => drop(read?),
        Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, format!("not ready within {READY_LIMIT:?}"))),
    }
    Ok((logger, output.into(), error.into()))
}

/// Waits for its end, which nobody must miss: it is this process's child.
async fn attend(mut child: Child, unused: oneshot::Receiver<()>) {
    tokio::select! {
        ended = child.wait() => {
            tracing::warn!(status = ?ended.ok(), "the logger has ended before its container");
            return;
        }
        _ = unused => {}
    }
    for (limit, signal) in [(END_LIMIT, Signal::SIGTERM), (TERM_LIMIT, Signal::SIGKILL)] {
        if tokio::time::timeout(limit, child.wait()).await.is_ok() {
            return;
        }
        tracing::warn!(%signal, "the logger does not end");
        if let Some(pid) = child.id() {
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        }
    }
    let _ = child.wait().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn owner() -> StdioOwner {
        StdioOwner { container: "c1".into(), namespace: "ns1".into() }
    }

    fn shell(script: &str) -> LoggerCommand {
        LoggerCommand { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()] }
    }

    #[tokio::test]
    async fn a_logger_gets_both_outputs_and_the_names_and_ends_with_them() {
        let directory = tempfile::tempdir().unwrap();
        let noted = directory.path().join("noted");
        let script = format!(
            "exec 5>&-; {{ echo $CONTAINER_ID $CONTAINER_NAMESPACE; cat <&3; cat <&4; echo end; }} >{}",
            noted.display()
        );
        let (logger, output, error) = start(&shell(&script), &owner()).await.unwrap();
        fs::File::from(output).write_all(b"out\n").unwrap();
        fs::File::from(error).write_all(b"err\n").unwrap();
        drop(logger);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !fs::read_to_string(&noted).is_ok_and(|text| text == "c1 ns1\nout\nerr\nend\n") {
            assert!(std::time::Instant::now() < deadline, "{:?}", fs::read_to_string(&noted));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_logger_that_ends_at_once_counts_as_ready_and_one_that_is_not_there_is_an_error() {
        assert!(start(&shell("exit 1"), &owner()).await.is_ok());
        let missing = LoggerCommand { program: "/no/such/logger".into(), args: Vec::new() };
        assert_eq!(start(&missing, &owner()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
