//! Block devices: found by name, or by where they sit on the PCI bus.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::{MountError, POLL};
use crate::slots::Looks;

const PCI_ROOT: &str = "/sys/devices/pci0000:00";

/// Waits until a file is there.
pub(crate) async fn wait_for_device(path: &Path, limit: Duration) -> Result<(), MountError> {
    wait(&path.to_string_lossy(), limit, || path.exists().then_some(())).await
}

/// The device file of a block device: `/dev/...`, or a PCI path such as `02` or `02/03.1`.
pub(super) async fn find(source: &str, limit: Duration) -> Result<String, MountError> {
    if source.starts_with("/dev/") {
        wait_for_device(Path::new(source), limit).await?;
        return Ok(source.to_owned());
    }
    wait(source, limit, || {
        let name = by_pci_path(Path::new(PCI_ROOT), source)?;
        let path = format!("/dev/{name}");
        Path::new(&path).exists().then_some(path)
    })
    .await
}

async fn wait<T>(device: &str, limit: Duration, found: impl Fn() -> Option<T>) -> Result<T, MountError> {
    let deadline = Instant::now() + limit;
    let mut looks = Looks::new();
    loop {
        if let Some(value) = found() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            return Err(MountError::NoDevice { device: device.to_owned(), limit });
        }
        // A disk that was found in a slot that is used again is there at once, and may be it.
        if !looks.look().await {
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Follows slots from the root bus through bridges to a virtio disk, and returns the disk's name.
fn by_pci_path(root: &Path, path: &str) -> Option<String> {
    let mut dir = root.to_owned();
    for slot in path.split('/') {
        let slot = match slot.split_once('.') {
            Some((slot, function)) => format!("{slot:0>2}.{function}"),
            None => format!("{slot:0>2}.0"),
        };
        dir = entry(&dir, |name| name.split(':').nth(2).is_some_and(|tail| tail.eq_ignore_ascii_case(&slot)))?;
    }
    let virtio = entry(&dir, |name| name.starts_with("virtio"))?;
    let disk = entry(&virtio.join("block"), |_| true)?;
    Some(disk.file_name()?.to_string_lossy().into_owned())
}

fn entry(dir: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    entries.map(|entry| entry.path()).find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_behind_a_bridge_is_found_by_its_slots() {
        let root = std::env::temp_dir().join(format!("stockade-agent-pci-{}", std::process::id()));
        let disk = root.join("0000:00:02.0/0000:01:1f.0/virtio3/block/vdb");
        fs::create_dir_all(&disk).expect("made");
        fs::create_dir_all(root.join("0000:00:1f.0")).expect("made");
        assert_eq!(by_pci_path(&root, "2/1f"), Some("vdb".to_owned()));
        assert_eq!(by_pci_path(&root, "02/1f.0"), Some("vdb".to_owned()));
        assert_eq!(by_pci_path(&root, "1f"), None);
        assert_eq!(by_pci_path(&root, "../etc"), None);
        fs::remove_dir_all(&root).expect("removed");
    }
}
