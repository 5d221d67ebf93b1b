//! The devices of a machine, by the names that it gives them.

use stockade_hypervisor::{DeviceConfig, DeviceId, HypervisorError};

/// A device that was added.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its name.
    pub id: DeviceId,
    /// What it is.
    pub config: DeviceConfig,
}

/// All of a machine's.
#[derive(Debug, Default)]
pub struct Table {
    devices: Vec<Device>,
    next: u32,
}

impl Table {
    /// Those that are there from the boot.
    pub fn of(devices: &[DeviceConfig]) -> Self {
        let mut table = Self::default();
        for device in devices {
            table.add(device.clone());
        }
        table
    }

    /// A name that no device of this machine ever had.
    pub fn next_id(&mut self) -> DeviceId {
        let id = DeviceId(format!("dev{}", self.next));
        self.next = self.next.saturating_add(1);
        id
    }

    /// Adds a device; answers with its name.
    pub fn add(&mut self, config: DeviceConfig) -> DeviceId {
        let id = self.next_id();
        self.insert(Device { id: id.clone(), config });
        id
    }

    /// Adds a device that has a name of [`Table::next_id`].
    pub fn insert(&mut self, device: Device) {
        self.devices.push(device);
    }

    /// The device of that name.
    pub fn get(&self, id: &DeviceId) -> Option<Device> {
        self.devices.iter().find(|device| device.id == *id).cloned()
    }

    /// Forgets the device of that name.
    pub fn remove(&mut self, id: &DeviceId) -> Option<Device> {
        let at = self.devices.iter().position(|device| device.id == *id)?;
        Some(self.devices.remove(at))
    }

    /// Each of them, in the order in which they were added.
    pub fn all(&self) -> &[Device] {
        &self.devices
    }

    /// How many shared directories there are.
    pub fn shares(&self) -> usize {
        self.devices.iter().filter(|device| matches!(device.config, DeviceConfig::Share { .. })).count()
    }

    /// Refuses more than one shared directory.
    ///
    /// # Errors
    /// There are more.
    pub fn check_shares(&self) -> Result<(), HypervisorError> {
        if self.shares() > 1 {
            let problem = "this backend shares one directory".to_owned();
            return Err(HypervisorError::Config { option: "share", problem });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_never_used_again() {
        let mut table = Table::default();
        let disk = || DeviceConfig::Block { path: "/dev/null".into(), read_only: true };
        let first = table.add(disk());
        assert!(table.remove(&first).is_some());
        assert!(table.remove(&first).is_none());
        assert_ne!(table.add(disk()), first);
    }
}
