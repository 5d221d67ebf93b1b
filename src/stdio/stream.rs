//! Host streams that never block a thread, and never change the flags of a description that others share.

use super::logger::{self, Logger};
use super::target::Target;
use crate::error::{ErrorKind, OpError};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::stat::{Mode, SFlag, fstat};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The names of a process's streams as a front door gives them: `pidfd://PID/FD`, a path, `file://PATH` (made where it is
/// not there, and appended to), `binary://PROGRAM?ARGUMENTS` for the output (a logger), or empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioNames {
    /// The process has a terminal: `stdin` and `stdout` are its two directions, `stderr` is unused.
    pub terminal: bool,
    /// Where its input comes from.
    pub stdin: String,
    /// Where its output goes.
    pub stdout: String,
    /// Where its error output goes.
    pub stderr: String,
}

/// Whose streams they are: a logger is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioOwner {
    /// The container's id.
    pub container: String,
    /// containerd's namespace; empty without containerd.
    pub namespace: String,
}

/// The opened streams of one process.
#[derive(Debug, Default)]
pub struct HostStdio {
    pub(super) stdin: Option<Stream>,
    pub(super) stdout: Option<Stream>,
    pub(super) stderr: Option<Stream>,
    pub(super) logger: Option<Logger>,
}

impl HostStdio {
    /// Opens the streams that have names.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] naming the stream that cannot be opened.
    pub async fn open(names: &StdioNames, owner: &StdioOwner) -> Result<Self, OpError> {
        let stdin = open("stdin", &names.stdin, Direction::Read)?;
        let target = parse("stdout", &names.stdout)?;
        if let Some(Target::Logger(command)) = target {
            // One logger has both, whatever the name of the error output is: it is the same.
            let started = async {
                let (logger, output, error) = logger::start(&command, owner).await?;
                let output = Stream::from_descriptor(output, Direction::Write)?;
                Ok((logger, output, Stream::from_descriptor(error, Direction::Write)?))
            };
            let (logger, output, error) =
                started.await.map_err(|error: io::Error| refused("start the logger", &names.stdout, error))?;
            let stderr = (!names.terminal).then_some(error);
            return Ok(Self { stdin, stdout: Some(output), stderr, logger: Some(logger) });
        }
        let stdout = open("stdout", &names.stdout, Direction::Write)?;
        let stderr = if names.terminal { None } else { open("stderr", &names.stderr, Direction::Write)? };
        Ok(Self { stdin, stdout, stderr, logger: None })
    }
}

fn refused(what: &str, name: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> OpError {
    OpError::because(ErrorKind::InvalidArgument, format!("cannot {what} ({name})"), error)
}

fn parse(stream: &str, name: &str) -> Result<Option<Target>, OpError> {
    Target::parse(name).map_err(|error| refused(&format!("open {stream}"), name, error))
}

fn open(stream: &str, name: &str, direction: Direction) -> Result<Option<Stream>, OpError> {
    let Some(target) = parse(stream, name)? else { return Ok(None) };
    let opened = Stream::open(&target, direction);
    opened.map(Some).map_err(|error| refused(&format!("open {stream}"), name, error))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

impl Direction {
    fn interest(self) -> Interest {
        match self {
            Self::Read => Interest::READABLE,
            Self::Write => Interest::WRITABLE,
        }
    }
}

/// One stream.
#[derive(Debug)]
pub(super) enum Stream {
    /// A pipe, FIFO or terminal, through a description of our own that does not block.
    Ready(AsyncFd<OwnedFd>),
    /// A socket: each call says that it must not block.
    Socket(AsyncFd<OwnedFd>),
    /// A file or another thing that is always ready.
    Plain(tokio::fs::File),
    /// Nobody is at the other end: output vanishes, as it would for a process that ignores SIGPIPE.
    Nobody,
}

impl Stream {
    fn open(target: &Target, direction: Direction) -> io::Result<Self> {
        let flags = OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
        match (target, direction) {
            (Target::Descriptor(pid, descriptor), _) => {
                Self::from_descriptor(descriptor_of(*pid, *descriptor)?, direction)
            }
            (Target::Path(path), Direction::Write) => {
                // To read as well, so that opening a FIFO waits for nobody, and what is written stays in it when its
                // reader goes and another one comes: a containerd that is restarted (Linux allows it).
                let descriptor = owned(nix::fcntl::open(path, flags | OFlag::O_RDWR, Mode::empty())?);
                if kind_of(&descriptor)? == SFlag::S_IFIFO {
                    return Ok(Self::Ready(register(descriptor, Interest::WRITABLE)?));
                }
                Self::from_descriptor(descriptor, direction)
            }
            (Target::Path(path) | Target::File(path), Direction::Read) => {
                let descriptor = owned(nix::fcntl::open(path, flags | OFlag::O_RDONLY, Mode::empty())?);
                Self::from_descriptor(descriptor, direction)
            }
            (Target::File(path), Direction::Write) => {
                if let Some(directory) = path.parent() {
                    std::fs::create_dir_all(directory)?;
                }
                let file = std::fs::File::options().create(true).append(true).mode(0o644).open(path)?;
                Self::from_descriptor(file.into(), direction)
            }
            (Target::Logger(_), _) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a logger takes the output, or output and error output",
            )),
        }
    }

    fn from_descriptor(descriptor: OwnedFd, direction: Direction) -> io::Result<Self> {
        let kind = kind_of(&descriptor)?;
        if kind == SFlag::S_IFSOCK {
            return Ok(Self::Socket(register(descriptor, direction.interest())?));
        }
        let waits = kind == SFlag::S_IFIFO
            || (kind == SFlag::S_IFCHR && nix::unistd::isatty(descriptor.as_raw_fd()).unwrap_or(false));
        if !waits {
            return Ok(Self::Plain(tokio::fs::File::from_std(descriptor.into())));
        }
        // O_NONBLOCK is a flag of the description, which the caller's other processes share: open one of our own.
        let access = match direction {
            Direction::Read => OFlag::O_RDONLY,
            Direction::Write => OFlag::O_WRONLY,
        };
        let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let flags = access | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        match nix::fcntl::open(path.as_str(), flags, Mode::empty()) {
            Ok(own) => Ok(Self::Ready(register(owned(own), direction.interest())?)),
            Err(Errno::ENXIO) if direction == Direction::Write => Ok(Self::Nobody),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads once; 0 is the end. A terminal that hung up has ended.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = match self {
            Self::Plain(file) => return file.read(buffer).await,
            Self::Nobody => return Ok(0),
            Self::Ready(stream) => {
                ready_io(stream, Direction::Read, |fd| Ok(nix::unistd::read(fd.as_raw_fd(), buffer)?)).await
            }
            Self::Socket(stream) => {
                ready_io(stream, Direction::Read, |fd| Ok(recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)).await
            }
        };
        match result {
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(0),
            other => other,
        }
    }

    /// Writes all of it, as fast as the reader takes it.
    pub(super) async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match self {
                Self::Nobody => return Ok(()),
                Self::Plain(file) => {
                    file.write_all(bytes).await?;
                    return file.flush().await;
                }
                Self::Ready(stream) => {
                    let written = ready_io(stream, Direction::Write, |fd| Ok(nix::unistd::write(fd, bytes)?)).await;
                    match written {
                        // A pipe can be opened without a reader, unlike a FIFO.
                        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                            *self = Self::Nobody;
                            return Ok(());
                        }
                        written => written?,
                    }
                }
                Self::Socket(stream) => {
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    ready_io(stream, Direction::Write, |fd| Ok(send(fd.as_raw_fd(), bytes, flags)?)).await?
                }
            };
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

/// tokio deprecates its safe constructor because of types that lie about their descriptor; an [`OwnedFd`] does not.
#[expect(deprecated, reason = "the other constructor is unsafe, and an OwnedFd upholds what it asks")]
pub(super) fn register(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, interest)
}

async fn ready_io(
    stream: &AsyncFd<OwnedFd>,
    direction: Direction,
    mut action: impl FnMut(&OwnedFd) -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        let mut guard = match direction {
            Direction::Read => stream.readable().await?,
            Direction::Write => stream.writable().await?,
        };
        match guard.try_io(|fd| action(fd.get_ref())) {
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

/// A duplicate of a descriptor of another process (pidfd_getfd(2), Linux 5.6; needs the right to trace it).
fn descriptor_of(pid: i32, descriptor: i32) -> io::Result<OwnedFd> {
    sys::pidfd_getfd(&sys::pidfd_open(pid)?, descriptor)
}

fn owned(raw: i32) -> OwnedFd {
    sys::own(raw)
}

fn kind_of(descriptor: &OwnedFd) -> io::Result<SFlag> {
    let mode = fstat(descriptor.as_raw_fd())?.st_mode;
    Ok(SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits()))
}

#[expect(unsafe_code, reason = "system calls that nix has no wrapper for, and owning what open returned")]
pub(super) mod sys {
    use super::{FromRawFd, OwnedFd, io};
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    /// Gives the command's process these descriptors as 3, 4 and 5. They are closed here with the command.
    pub(in crate::stdio) fn with_descriptors(command: &mut Command, descriptors: [OwnedFd; 3]) {
        let install = move || {
            // First out of the way of the numbers that are about to be taken.
            let mut above = [-1; 3];
            for (descriptor, above) in descriptors.iter().zip(&mut above) {
                // SAFETY: the call takes integers; the descriptor is open, for this closure owns it.
                *above = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10) };
                if *above < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            for (above, number) in above.into_iter().zip(3..) {
                // SAFETY: the call takes integers; whatever was open under the number is close-on-exec anyway.
                if unsafe { libc::dup2(above, number) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: the closure makes system calls only; it neither allocates nor takes locks.
        unsafe { command.pre_exec(install) };
    }

    pub(in crate::stdio) fn own(raw: i32) -> OwnedFd {
        // SAFETY: callers pass what open(2) has just returned; nobody else has that number.
        unsafe { OwnedFd::from_raw_fd(raw) }
    }

    /// A descriptor that stands for a process (pidfd_open(2)).
    pub(in crate::stdio) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
        // SAFETY: the call takes two integers and returns a new descriptor or -1.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        own_result(raw)
    }

    pub(super) fn pidfd_getfd(process: &OwnedFd, descriptor: i32) -> io::Result<OwnedFd> {
        // SAFETY: the call takes three integers and returns a new descriptor (close-on-exec) or -1.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), descriptor, 0) };
        own_result(raw)
    }

    fn own_result(raw: i64) -> io::Result<OwnedFd> {
        match i32::try_from(raw) {
            Ok(raw) if raw >= 0 => Ok(own(raw)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::descriptor_of_process;
    use std::io::{Read, Write};

    fn target(name: &str) -> Target {
        Target::parse(name).unwrap().unwrap()
    }

    fn own(descriptor: &impl AsRawFd) -> String {
        descriptor_of_process(std::process::id().cast_signed(), descriptor.as_raw_fd())
    }

    #[tokio::test]
    async fn a_pipe_is_read_without_making_the_callers_end_non_blocking() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut stream = Stream::open(&target(&own(&reader)), Direction::Read).unwrap();
        writer.write_all(b"hello").unwrap();
        drop(writer);
        let mut buffer = [0; 16];
        assert_eq!(stream.read(&mut buffer).await.unwrap(), 5);
        assert_eq!(stream.read(&mut buffer).await.unwrap(), 0);
        let flags = nix::fcntl::fcntl(reader.as_raw_fd(), nix::fcntl::FcntlArg::F_GETFL).unwrap();
        assert_eq!(flags & OFlag::O_NONBLOCK.bits(), 0);
    }

    #[tokio::test]
    async fn more_than_a_pipe_holds_arrives_whole() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut stream = Stream::open(&target(&own(&writer)), Direction::Write).unwrap();
        drop(writer);
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let expected = bytes.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all)
        });
        stream.write_all(&bytes).await.unwrap();
        drop(stream);
        assert_eq!(reading.await.unwrap().unwrap(), expected);
    }

    #[tokio::test]
    async fn a_pipe_without_a_reader_swallows_output() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut stream = Stream::open(&target(&own(&writer)), Direction::Write).unwrap();
        stream.write_all(b"lost").await.unwrap();
    }

    #[tokio::test]
    async fn a_stream_that_is_not_there_is_named() {
        for name in ["/no/such/fifo", "http://x", "binary:///no/such/logger"] {
            let names = StdioNames { stdout: name.into(), ..StdioNames::default() };
            let error = HostStdio::open(&names, &StdioOwner::default()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.one_line().contains(&format!("({name})")), "{}", error.one_line());
        }
    }

    #[tokio::test]
    async fn what_a_fifo_holds_survives_its_reader() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let mut stream = Stream::open(&Target::Path(path.clone()), Direction::Write).unwrap();
        let mut buffer = [0; 5];
        for _ in 0..2 {
            stream.write_all(b"hello").await.unwrap();
            std::fs::File::open(&path).unwrap().read_exact(&mut buffer).unwrap();
            assert_eq!(&buffer, b"hello");
        }
    }

    #[tokio::test]
    async fn a_file_is_made_with_its_directory_and_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        for text in ["one", "two"] {
            let mut stream = Stream::open(&Target::File(path.clone()), Direction::Write).unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "onetwo");
    }
}
