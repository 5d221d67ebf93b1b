//! A job as a child process: in a process group of its own, with a time limit, its output passed on as it comes.

use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::wire::{End, Job};

/// From one look at the child to the next.
const PAUSE: Duration = Duration::from_millis(20);
/// How long output is read that others than the child may still write: its own is in the pipe when it has ended.
const DRAIN: Duration = Duration::from_millis(100);

/// Runs a job to its end. `output` gets what it writes to standard output and error, in order.
pub fn run(job: &Job, mut output: impl FnMut(&[u8])) -> End {
    match try_run(job, &mut output) {
        Ok(end) => end,
        Err(error) => End::NotStarted(format!("{}: {error}", job.command.join(" "))),
    }
}

fn try_run(job: &Job, output: &mut dyn FnMut(&[u8])) -> std::io::Result<End> {
    let Some((program, arguments)) = job.command.split_first() else {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "there is no command"));
    };
    let (reader, writer) = std::io::pipe()?;
    let mut command = Command::new(program);
    command.args(arguments).envs(&job.environment).current_dir(&job.directory).process_group(0);
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // It holds the pipe's writing ends.
    drop(command);
    let mut pipe = Pipe { file: std::fs::File::from(OwnedFd::from(reader)), open: true };
    let end = Instant::now() + Duration::from_millis(job.limit);
    let status = loop {
        pipe.pass_on(PAUSE, output);
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() >= end {
            break None;
        }
    };
    if status.is_none() {
        // The group is the child's until it is waited for.
        let _gone = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        child.wait()?;
    }
    let drained = Instant::now() + DRAIN;
    while pipe.pass_on(Duration::ZERO, output) && Instant::now() < drained {}
    Ok(status.map_or(End::TimedOut, ended))
}

fn ended(status: ExitStatus) -> End {
    match status.signal() {
        Some(signal) => End::Signalled(signal),
        None => End::Exited(status.code().unwrap_or_default()),
    }
}

struct Pipe {
    file: std::fs::File,
    open: bool,
}

impl Pipe {
    /// Waits for output and passes it on; whether there was any.
    fn pass_on(&mut self, limit: Duration, output: &mut dyn FnMut(&[u8])) -> bool {
        if !self.open {
            std::thread::sleep(limit);
            return false;
        }
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)], limit) {
            Ok(count) if count > 0 => {}
            _ => return false,
        }
        let mut buffer = [0; 64 << 10];
        match self.file.read(&mut buffer) {
            Ok(0) | Err(_) => {
                self.open = false;
                false
            }
            Ok(count) => {
                output(&buffer[..count]);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: u64) -> (End, String) {
        let job = Job {
            command: ["sh", "-c", script].map(str::to_owned).into(),
            directory: "/".into(),
            limit,
            ..Job::default()
        };
        let mut text = String::new();
        let end = run(&job, |bytes| text.push_str(&String::from_utf8_lossy(bytes)));
        (end, text)
    }

    #[test]
    fn both_streams_and_the_status_come_back() {
        assert_eq!(shell("echo a; echo b >&2; exit 3", 60_000), (End::Exited(3), "a\nb\n".to_owned()));
        assert_eq!(shell("kill -9 $$", 60_000), (End::Signalled(9), String::new()));
    }

    #[test]
    fn what_takes_too_long_is_killed_with_its_children() {
        let begin = Instant::now();
        let (end, text) = shell("sleep 600 & echo $!; wait", 500);
        assert_eq!(end, End::TimedOut);
        assert!(begin.elapsed() < Duration::from_secs(60));
        // Whoever inherits it may leave it as a zombie; what counts is that it runs no more.
        let runs = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", text.trim())).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
        };
        while runs() && begin.elapsed() < Duration::from_secs(80) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!text.is_empty() && !runs(), "process {text} still runs");
    }

    #[test]
    fn a_child_that_outlives_the_job_and_holds_its_output_does_not_hold_it_up() {
        let begin = Instant::now();
        let (end, text) = shell("sleep 20 & echo done", 60_000);
        assert_eq!((end, text.as_str()), (End::Exited(0), "done\n"));
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let job = Job { command: vec!["/no/such/program".into()], directory: "/".into(), ..Job::default() };
        let End::NotStarted(error) = run(&job, |_| {}) else { panic!("it ran") };
        assert!(error.contains("/no/such/program"), "{error}");
    }
}
