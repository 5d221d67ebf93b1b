//! The agent inside a sandbox's virtual machine.
//!
//! One static program with several roles: the server of the supervisor's calls (as the guest's init, or
//! started by the guest's init); forked off before it has threads, the zygote of the helpers in which libcontainer
//! forks; and, re-executed by itself, the first process of a shared pid namespace, and a hook.

mod cgroup;
mod container;
mod devices;
mod init;
mod kernel_params;
mod log;
mod mounts;
mod network;
mod paths;
mod reaper;
mod rpc;
mod sandbox;
mod server;
mod slots;
mod stdio;
mod sys;

use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::ResolveFlag;
use nix::sys::stat::Mode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        [container::zygote::ZYGOTE] => container::zygote::run_executed(),
        [sandbox::PID_NAMESPACE] => sandbox::make_pid_namespace().map_err(anyhow::Error::from),
        [sandbox::PAUSE] => sandbox::pause().map_err(anyhow::Error::from),
        [container::spec::MAKE_DIRECTORY, root, path] => make_directory(Path::new(root), Path::new(path)),
        [container::copy_up::COPY_UP, root, destinations @ ..] => {
            container::copy_up::run(Path::new(root), destinations)
        }
        ["--version"] => {
            println!("stockade-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        options => server::run(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::start(log::Level::Info, false);
            log::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

/// A hook of a container whose working directory does not exist.
fn make_directory(root: &Path, path: &Path) -> Result<()> {
    if !path.is_absolute() {
        bail!("{path:?} is not an absolute path");
    }
    let root_fd = paths::open_root(root).with_context(|| format!("cannot open {root:?}"))?;
    let mode = Mode::from_bits_truncate(0o755);
    paths::make_directories(root_fd.as_fd(), path, mode, ResolveFlag::RESOLVE_IN_ROOT)
        .with_context(|| format!("cannot make {path:?} below {root:?}"))?;
    Ok(())
}
