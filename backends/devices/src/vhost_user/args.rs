//! The arguments of `stockade vhost-user`, by which one of our processes starts another.
//!
//! Every argument is `--name=value`; descriptors are numbers that the child inherits.

use std::fmt::Display;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::str::FromStr;

use super::{FsDevice, VhostUserConfig, VsockDevice};
use crate::fs::CachePolicy;
use crate::sys;
use crate::vsock::HostSockets;

/// The virtio-fs device, by descriptor numbers; see [`FsDevice`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsArgs {
    /// Listening vhost-user socket.
    pub listener: RawFd,
    /// The directory to share; UTF-8.
    pub root: PathBuf,
    /// What the guest may remember.
    pub cache: CachePolicy,
    /// Threads beside the queue's own.
    pub threads: usize,
}

/// The vsock device, by descriptor numbers; see [`VsockDevice`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockArgs {
    /// Listening vhost-user socket.
    pub listener: RawFd,
    /// Listening socket for `CONNECT` clients.
    pub uds: RawFd,
    /// Context id of the guest.
    pub guest_cid: u64,
    /// Directory (`O_PATH` is enough) and name of the sockets that the guest may connect to.
    pub host_sockets: Option<(RawFd, String)>,
}

/// A whole command line after the verb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostUserArgs {
    /// The virtio-fs device, if there is to be one.
    pub fs: Option<FsArgs>,
    /// The vsock device, if there is to be one.
    pub vsock: Option<VsockArgs>,
    /// Stream socket whose other end the supervisor keeps.
    pub lifeline: RawFd,
    /// The supervisor's pid, for the child to notice that it died before the child could ask to die with it.
    pub parent: Option<u32>,
}

/// Why arguments cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// Not of the form, or of no known name.
    #[error("unknown argument {0:?}")]
    Unknown(String),
    /// The same name twice.
    #[error("argument --{0} is given twice")]
    Twice(&'static str),
    /// The value does not fit.
    #[error("argument --{name} cannot be {value:?}")]
    Value {
        /// The argument.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// An argument that others need.
    #[error("argument --{0} is missing")]
    Missing(&'static str),
    /// Two arguments name one descriptor.
    #[error("descriptor {0} is given twice")]
    SameDescriptor(RawFd),
    /// No such descriptor is open.
    #[error("descriptor {fd} of argument --{name} is not open")]
    Descriptor {
        /// The argument.
        name: &'static str,
        /// The number.
        fd: RawFd,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

const LIFELINE: &str = "lifeline-fd";
const PARENT: &str = "parent";
const FS_LISTENER: &str = "fs-fd";
const FS_ROOT: &str = "fs-root";
const FS_CACHE: &str = "fs-cache";
const FS_THREADS: &str = "fs-threads";
const VSOCK_LISTENER: &str = "vsock-fd";
const VSOCK_UDS: &str = "vsock-listener-fd";
const VSOCK_CID: &str = "guest-cid";
const VSOCK_DIRECTORY: &str = "vsock-dir-fd";
const VSOCK_NAME: &str = "vsock-name";

const NAMES: [&str; 11] = [
    LIFELINE,
    PARENT,
    FS_LISTENER,
    FS_ROOT,
    FS_CACHE,
    FS_THREADS,
    VSOCK_LISTENER,
    VSOCK_UDS,
    VSOCK_CID,
    VSOCK_DIRECTORY,
    VSOCK_NAME,
];

impl VhostUserArgs {
    /// The arguments after the verb.
    #[must_use]
    pub fn to_args(&self) -> Vec<String> {
        let mut args = Vec::new();
        let mut push = |name: &str, value: &dyn Display| args.push(format!("--{name}={value}"));
        push(LIFELINE, &self.lifeline);
        if let Some(parent) = &self.parent {
            push(PARENT, parent);
        }
        if let Some(fs) = &self.fs {
            push(FS_LISTENER, &fs.listener);
            push(FS_ROOT, &fs.root.display());
            push(FS_CACHE, &fs.cache);
            push(FS_THREADS, &fs.threads);
        }
        if let Some(vsock) = &self.vsock {
            push(VSOCK_LISTENER, &vsock.listener);
            push(VSOCK_UDS, &vsock.uds);
            push(VSOCK_CID, &vsock.guest_cid);
            if let Some((directory, name)) = &vsock.host_sockets {
                push(VSOCK_DIRECTORY, directory);
                push(VSOCK_NAME, name);
            }
        }
        args
    }

    /// Reads what [`to_args`](Self::to_args) wrote.
    ///
    /// # Errors
    /// An argument is unknown, missing, given twice or out of range.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, ArgsError> {
        let mut given = Given::default();
        for arg in args {
            given.add(&arg)?;
        }
        let fs = given
            .take(FS_LISTENER)?
            .map(|listener| {
                Ok::<_, ArgsError>(FsArgs {
                    listener,
                    root: given.require(FS_ROOT)?,
                    cache: given.take(FS_CACHE)?.unwrap_or_default(),
                    threads: given.take(FS_THREADS)?.unwrap_or_default(),
                })
            })
            .transpose()?;
        let vsock = given
            .take(VSOCK_LISTENER)?
            .map(|listener| {
                let directory: Option<RawFd> = given.take(VSOCK_DIRECTORY)?;
                Ok::<_, ArgsError>(VsockArgs {
                    listener,
                    uds: given.require(VSOCK_UDS)?,
                    guest_cid: given.require(VSOCK_CID)?,
                    host_sockets: directory
                        .map(|directory| Ok::<_, ArgsError>((directory, given.require(VSOCK_NAME)?)))
                        .transpose()?,
                })
            })
            .transpose()?;
        let args = Self { fs, vsock, lifeline: given.require(LIFELINE)?, parent: given.take(PARENT)? };
        // What is left belongs to a device whose own socket is not given.
        match given.0.first() {
            Some((name, _)) => Err(ArgsError::Unknown(format!("--{name}"))),
            None => Ok(args),
        }
    }

    /// Takes ownership of the descriptors. To be called once, early in the process that inherited them.
    ///
    /// # Errors
    /// A descriptor is not open or named twice.
    pub fn into_config(self) -> Result<VhostUserConfig, ArgsError> {
        let mut taken = vec![0, 1, 2];
        let mut adopt = |name, fd: RawFd| -> Result<OwnedFd, ArgsError> {
            if taken.contains(&fd) {
                return Err(ArgsError::SameDescriptor(fd));
            }
            taken.push(fd);
            sys::adopt_fd(fd).map_err(|source| ArgsError::Descriptor { name, fd, source })
        };
        let lifeline = adopt(LIFELINE, self.lifeline)?;
        let fs = self
            .fs
            .map(|fs| {
                Ok::<_, ArgsError>(FsDevice {
                    listener: adopt(FS_LISTENER, fs.listener)?,
                    root: fs.root,
                    cache: fs.cache,
                    threads: fs.threads,
                })
            })
            .transpose()?;
        let vsock = self
            .vsock
            .map(|vsock| {
                Ok::<_, ArgsError>(VsockDevice {
                    listener: adopt(VSOCK_LISTENER, vsock.listener)?,
                    uds: adopt(VSOCK_UDS, vsock.uds)?,
                    guest_cid: vsock.guest_cid,
                    host_sockets: vsock
                        .host_sockets
                        .map(|(directory, name)| {
                            Ok::<_, ArgsError>(HostSockets { directory: adopt(VSOCK_DIRECTORY, directory)?, name })
                        })
                        .transpose()?,
                })
            })
            .transpose()?;
        Ok(VhostUserConfig { fs, vsock, lifeline, parent: self.parent })
    }
}

/// Arguments that were given and not yet taken.
#[derive(Default)]
struct Given(Vec<(&'static str, String)>);

impl Given {
    fn add(&mut self, arg: &str) -> Result<(), ArgsError> {
        let unknown = || ArgsError::Unknown(arg.to_owned());
        let (name, value) = arg.strip_prefix("--").and_then(|arg| arg.split_once('=')).ok_or_else(unknown)?;
        let name = NAMES.into_iter().find(|known| *known == name).ok_or_else(unknown)?;
        if self.0.iter().any(|(given, _)| *given == name) {
            return Err(ArgsError::Twice(name));
        }
        self.0.push((name, value.to_owned()));
        Ok(())
    }

    fn take<T: FromStr>(&mut self, name: &'static str) -> Result<Option<T>, ArgsError> {
        let Some(at) = self.0.iter().position(|(given, _)| *given == name) else {
            return Ok(None);
        };
        let (_, value) = self.0.remove(at);
        match value.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(ArgsError::Value { name, value }),
        }
    }

    fn require<T: FromStr>(&mut self, name: &'static str) -> Result<T, ArgsError> {
        self.take(name)?.ok_or(ArgsError::Missing(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> VhostUserArgs {
        VhostUserArgs {
            fs: Some(FsArgs {
                listener: 5,
                root: PathBuf::from("/run/a=b/shared dir"),
                cache: CachePolicy::Never,
                threads: 2,
            }),
            vsock: Some(VsockArgs {
                listener: 6,
                uds: 7,
                guest_cid: 3,
                host_sockets: Some((8, "vsock.sock".to_owned())),
            }),
            lifeline: 4,
            parent: Some(17),
        }
    }

    fn parse(args: &[&str]) -> Result<VhostUserArgs, ArgsError> {
        VhostUserArgs::parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut args = all();
        assert_eq!(VhostUserArgs::parse(args.to_args()).unwrap(), args);
        args.fs = None;
        args.parent = None;
        assert_eq!(VhostUserArgs::parse(args.to_args()).unwrap(), args);
        args.vsock = None;
        assert_eq!(VhostUserArgs::parse(args.to_args()).unwrap(), args);
    }

    #[test]
    fn unknown_missing_and_double_arguments_are_refused() {
        assert!(matches!(parse(&[]), Err(ArgsError::Missing(LIFELINE))));
        assert!(matches!(parse(&["--lifeline-fd=x"]), Err(ArgsError::Value { .. })));
        assert!(matches!(parse(&["--lifeline-fd=3", "--lifeline-fd=3"]), Err(ArgsError::Twice(_))));
        assert!(matches!(parse(&["--colour=red"]), Err(ArgsError::Unknown(_))));
        assert!(matches!(parse(&["--lifeline-fd=3", "--fs-root=/"]), Err(ArgsError::Unknown(_))));
        assert!(matches!(parse(&["--lifeline-fd=3", "--fs-fd=4"]), Err(ArgsError::Missing(FS_ROOT))));
    }

    #[test]
    fn a_descriptor_that_is_not_open_or_named_twice_is_refused() {
        let mut args = VhostUserArgs { fs: None, vsock: None, lifeline: RawFd::MAX, parent: None };
        assert!(matches!(args.clone().into_config(), Err(ArgsError::Descriptor { .. })));
        args.lifeline = 2;
        assert!(matches!(args.into_config(), Err(ArgsError::SameDescriptor(2))));
    }
}
