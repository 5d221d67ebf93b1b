//! The guest's disks, which come into slots of virtio-mmio devices and leave them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::sys::Registers;

/// As long as the slowest host may need to plug a disk in.
const LIMIT: Duration = Duration::from_secs(120);

/// Waits for the disk that begins with `text`, and tells its name.
pub(crate) fn wait(text: &str) -> io::Result<String> {
    let end = Instant::now() + LIMIT;
    loop {
        for entry in fs::read_dir("/sys/block")? {
            let name = entry?.file_name();
            let mut begin = vec![0; text.len()];
            let read = File::open(Path::new("/dev").join(&name)).and_then(|mut disk| disk.read_exact(&mut begin));
            if read.is_ok() && begin == text.as_bytes() {
                return Ok(name.to_string_lossy().into_owned());
            }
        }
        if Instant::now() > end {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no disk begins with {text}")));
        }
        look_at_slots()?;
        sleep(Duration::from_millis(10));
    }
}

/// Has the driver look at the slots that it does not hold, as the agent does: Linux does not do so by itself for those that
/// had a device before.
fn look_at_slots() -> io::Result<()> {
    for slot in fs::read_dir("/sys/bus/platform/devices")? {
        let slot = slot?;
        if slot.file_name().as_bytes().starts_with(b"LNRO0005:") && !slot.path().join("driver").exists() {
            // Most are empty.
            let _ = fs::write("/sys/bus/platform/drivers/virtio-mmio/bind", slot.file_name().as_bytes());
        }
    }
    Ok(())
}

/// The platform device of a disk.
fn slot(disk: &str) -> io::Result<OsString> {
    // .../LNRO0005:03/virtio2, and above it the device on the bus.
    let device = fs::canonicalize(Path::new("/sys/block").join(disk).join("device"))?;
    let slot = device.parent().and_then(Path::file_name).ok_or(io::ErrorKind::NotFound)?;
    Ok(slot.to_owned())
}

fn unbind(slot: &OsString) -> io::Result<()> {
    fs::write("/sys/bus/platform/drivers/virtio-mmio/unbind", slot.as_bytes())
}

/// Takes a disk from its driver.
pub(crate) fn release(disk: &str) -> io::Result<()> {
    unbind(&slot(disk)?)
}

/// How often a device is broken.
const OFTEN: u32 = 100;

/// The registers by their offsets (virtio 1.2, section 4.2.2), and bits of the status (section 2.1).
const DRIVER_FEATURES: usize = 0x20;
const DRIVER_FEATURES_SELECT: usize = 0x24;
const STATUS: usize = 0x70;
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

/// Drives a disk's device past the kernel, without the queue that it needs.
pub(crate) fn break_often(disk: &str) -> io::Result<()> {
    let slot = slot(disk)?;
    unbind(&slot)?;
    let registers = Registers::map(address(&slot)?)?;
    for _ in 0..OFTEN {
        let mut status = 0;
        registers.write(STATUS, status);
        for bit in [ACKNOWLEDGE, DRIVER] {
            status |= bit;
            registers.write(STATUS, status);
        }
        // VERSION_1, which is bit 32, and nothing else.
        for (half, features) in [(0, 0), (1, 1)] {
            registers.write(DRIVER_FEATURES_SELECT, half);
            registers.write(DRIVER_FEATURES, features);
        }
        for bit in [FEATURES_OK, DRIVER_OK] {
            status |= bit;
            registers.write(STATUS, status);
        }
    }
    Ok(())
}

/// Where a slot's registers are.
fn address(slot: &OsString) -> io::Result<u64> {
    let resources = fs::read_to_string("/proc/iomem")?;
    let line = resources.lines().find(|line| line.split(" : ").nth(1) == slot.to_str());
    let start = line.and_then(|line| line.trim_start().split('-').next());
    start
        .and_then(|start| u64::from_str_radix(start, 16).ok())
        .ok_or_else(|| io::Error::other("/proc/iomem names no slot"))
}
