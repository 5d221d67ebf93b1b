//! /init of the contract's guest: loads the modules of the initrd and obeys lines on a vsock port.

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, listen, socket};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::disks;

const PORT: u32 = 1024;
const ANY_CID: u32 = u32::MAX;

/// Answers a line that the contract does not know, and may read from and write to the connection before that; `None`: does
/// not know it either.
pub type MoreOrders = fn(&str, &mut BufReader<File>) -> Option<io::Result<String>>;

/// What process 1 of the guest does. Never returns but by an error, which makes the kernel panic: just what the host must
/// notice then.
pub fn init() -> ExitCode {
    init_with(|_, _| None)
}

/// [`init`] of a guest that obeys further orders.
pub fn init_with(more: MoreOrders) -> ExitCode {
    if let Err(e) = serve(more) {
        eprintln!("contract guest: {e}");
    }
    ExitCode::FAILURE
}

fn serve(more: MoreOrders) -> io::Result<()> {
    let none: Option<&str> = None;
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        std::fs::create_dir_all(target)?;
        if let Err(e) = mount(none, target, Some(kind), MsFlags::empty(), none) {
            eprintln!("contract guest: {target}: {e}");
        }
    }
    let mut modules: Vec<_> = std::fs::read_dir("/modules")?.filter_map(Result::ok).map(|entry| entry.path()).collect();
    modules.sort();
    for module in modules {
        if let Err(e) = finit_module(File::open(&module)?, c"", ModuleInitFlags::empty()) {
            eprintln!("contract guest: {}: {e}", module.display());
        }
    }
    let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(ANY_CID, PORT))?;
    listen(&listener, Backlog::new(8)?)?;
    println!("contract guest: listening");
    loop {
        let stream = accept(listener.as_raw_fd())?;
        std::thread::spawn(move || {
            if let Err(e) = obey(stream, more) {
                eprintln!("contract guest: {e}");
            }
        });
    }
}

#[expect(unsafe_code, reason = "accept of this version of nix gives a number")]
fn owned(fd: i32) -> File {
    // SAFETY: accept has just made it.
    unsafe { OwnedFd::from_raw_fd(fd) }.into()
}

fn obey(fd: i32, more: MoreOrders) -> io::Result<()> {
    let mut stream = BufReader::new(owned(fd));
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim_end_matches('\n');
        let answer = match line.split_once(' ') {
            Some(("echo", text)) => text.to_owned(),
            Some(("remember", text)) => {
                *memory() = text.to_owned();
                "yes".to_owned()
            }
            Some(("read", names)) => read(names).unwrap_or_else(|e| e.to_string()),
            Some(("disk", text)) => disks::wait(text).unwrap_or_else(|e| e.to_string()),
            Some(("break", disk)) => disks::break_often(disk).map_or_else(|e| e.to_string(), |()| "broken".to_owned()),
            Some(("release", disk)) => disks::release(disk).map_or_else(|e| e.to_string(), |()| "released".to_owned()),
            _ => match line {
                "recall" => memory().clone(),
                "poweroff" => return end(RebootMode::RB_POWER_OFF),
                "reset" => return end(RebootMode::RB_AUTOBOOT),
                // The end of process 1 is a panic.
                "panic" => std::process::exit(1),
                other => match more(other, &mut stream) {
                    Some(outcome) => outcome.unwrap_or_else(|e| e.to_string()),
                    None => format!("what is {other}?"),
                },
            },
        };
        writeln!(stream.get_mut(), "{answer}")?;
    }
}

/// What the guest was told to remember.
fn memory() -> MutexGuard<'static, String> {
    static MEMORY: Mutex<String> = Mutex::new(String::new());
    MEMORY.lock().unwrap_or_else(PoisonError::into_inner)
}

fn end(mode: RebootMode) -> io::Result<()> {
    reboot(mode).map(|never| match never {}).map_err(Into::into)
}

fn read(names: &str) -> io::Result<String> {
    let (tag, name) = names.split_once(' ').ok_or(io::ErrorKind::InvalidInput)?;
    let at = Path::new("/share").join(tag);
    let none: Option<&str> = None;
    if !at.exists() {
        std::fs::create_dir_all(&at)?;
        mount(Some(tag), &at, Some("virtiofs"), MsFlags::empty(), none)?;
    }
    let text = std::fs::read_to_string(at.join(name))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
