//! Slots of virtio-mmio devices that another device has come into.
//!
//! Linux makes a platform device when ACPI first tells of the device in a slot, and keeps it for ever. When that device was
//! taken away, and its driver before, the slot may be used again; of what is in it then ACPI tells Linux nothing new. So
//! whoever waits for a device that is plugged in has the driver look at the slots that it does not hold. One that is
//! empty costs it three reads of registers.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

const PLATFORM_BUS: &str = "/sys/bus/platform";
const DRIVER: &str = "drivers/virtio-mmio";

/// How the names of the platform devices begin: ACPI's identifier of such a slot.
const NAMES: &[u8] = b"LNRO0005:";

/// How long after a look the next one is worth it.
const PAUSE: Duration = Duration::from_millis(100);

/// The looks of one who waits for a device.
#[derive(Debug)]
pub(crate) struct Looks {
    bus: &'static Path,
    next: Instant,
}

impl Looks {
    pub(crate) fn new() -> Self {
        Self::at(Path::new(PLATFORM_BUS))
    }

    fn at(bus: &'static Path) -> Self {
        Self { bus, next: Instant::now() }
    }

    /// To be called when the device is not there: at once, and then now and again, has the driver look at the slots that it
    /// does not hold. Whether it has found a device in one.
    pub(crate) async fn look(&mut self) -> bool {
        if Instant::now() < self.next {
            return false;
        }
        let bus = self.bus;
        let found = tokio::task::spawn_blocking(move || look_at(bus)).await;
        self.next = Instant::now() + PAUSE;
        // A guest without a platform bus, or without the driver, has no such slots.
        matches!(found, Ok(Ok(found)) if found > 0)
    }
}

/// Binds what can be bound, and says how many those were.
fn look_at(bus: &Path) -> io::Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir(bus.join("devices"))? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.as_bytes().starts_with(NAMES) || entry.path().join("driver").exists() {
            continue;
        }
        let mut bind = OpenOptions::new().append(true).open(bus.join(DRIVER).join("bind"))?;
        match bind.write_all(name.as_bytes()) {
            Ok(()) => found += 1,
            // Nothing is in the slot (ENODEV), or the kernel was quicker (EBUSY).
            Err(error) => tracing::trace!(?name, %error, "a slot has no device to drive"),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A bus with three slots, of which one has a driver, and something else without any.
    fn bus(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("stockade-agent-{name}-{}", std::process::id()));
        for device in ["LNRO0005:00", "LNRO0005:01", "LNRO0005:02", "PNP0501:00", "serial8250"] {
            fs::create_dir_all(root.join("devices").join(device)).expect("made");
        }
        fs::create_dir_all(root.join(DRIVER)).expect("made");
        std::os::unix::fs::symlink(root.join(DRIVER), root.join("devices/LNRO0005:01/driver")).expect("made");
        root
    }

    #[test]
    fn only_slots_without_a_driver_are_looked_at() {
        let root = bus("slots");
        let bind = root.join(DRIVER).join("bind");
        fs::write(&bind, "").expect("made");
        assert_eq!(look_at(&root).expect("looked"), 2);
        let written = fs::read_to_string(&bind).expect("read");
        // Each by a write of its own, in the order of the directory.
        assert!(written == "LNRO0005:00LNRO0005:02" || written == "LNRO0005:02LNRO0005:00", "{written}");
        fs::remove_dir_all(&root).expect("removed");
    }

    #[test]
    fn a_slot_in_which_nothing_is_found_does_not_end_the_look() {
        let root = bus("empty-slots");
        // Takes no byte, as the kernel does not for a slot that is empty.
        std::os::unix::fs::symlink("/dev/full", root.join(DRIVER).join("bind")).expect("made");
        assert_eq!(look_at(&root).expect("looked"), 0);
        fs::remove_dir_all(&root).expect("removed");
    }

    #[test]
    fn a_guest_without_the_driver_has_nothing_to_look_at() {
        let root = bus("no-driver");
        assert!(look_at(&root).is_err());
        assert!(look_at(&root.join("nowhere")).is_err());
        fs::remove_dir_all(&root).expect("removed");
    }

    #[tokio::test(start_paused = true)]
    async fn looks_have_pauses_between_them() {
        let mut looks = Looks::at(Path::new("/nonexistent"));
        let first = looks.next;
        looks.look().await;
        let second = looks.next;
        assert!(second >= first + PAUSE);
        looks.look().await;
        assert_eq!(looks.next, second, "it was too early");
        tokio::time::advance(PAUSE).await;
        looks.look().await;
        assert!(looks.next >= second + PAUSE);
    }
}
