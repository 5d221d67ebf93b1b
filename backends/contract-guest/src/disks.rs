//! The guest's disks, which come into slots of virtio-mmio devices and leave them.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

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

/// Takes a disk from its driver.
pub(crate) fn release(disk: &str) -> io::Result<()> {
    // .../LNRO0005:03/virtio2, and above it the device on the bus.
    let device = fs::canonicalize(Path::new("/sys/block").join(disk).join("device"))?;
    let slot = device.parent().and_then(Path::file_name).ok_or(io::ErrorKind::NotFound)?;
    fs::write("/sys/bus/platform/drivers/virtio-mmio/unbind", slot.as_bytes())
}
