//! The devices of a machine, by the names that it gives them.

use stockade_hypervisor::{BootSource, DeviceConfig, DeviceId, HypervisorError, VmConfig};

use crate::control::DESCRIPTOR_LIMIT;
use crate::devices::net::MAX_PAIRS;
use crate::machine::SLOTS;

/// Devices that may be there beside: vsock, the random number generator, the balloon, and pluggable memory.
const BUILT_IN: usize = 4;

/// A device that was added.
#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) id: DeviceId,
    pub(super) config: DeviceConfig,
}

/// All of a machine's.
#[derive(Debug, Default)]
pub(super) struct Table {
    devices: Vec<Device>,
    next: u32,
}

impl Table {
    /// A name that no device of this machine ever had.
    pub(super) fn next_id(&mut self) -> DeviceId {
        let id = DeviceId(format!("dev{}", self.next));
        self.next = self.next.saturating_add(1);
        id
    }

    pub(super) fn insert(&mut self, device: Device) {
        self.devices.push(device);
    }

    pub(super) fn get(&self, id: &DeviceId) -> Option<Device> {
        self.devices.iter().find(|device| device.id == *id).cloned()
    }

    pub(super) fn remove(&mut self, id: &DeviceId) {
        self.devices.retain(|device| device.id != *id);
    }

    pub(super) fn all(&self) -> Vec<Device> {
        self.devices.clone()
    }

    pub(super) fn has_share(&self) -> bool {
        self.devices.iter().any(|device| matches!(device.config, DeviceConfig::Share { .. }))
    }

    /// Checks that a machine can have all of them.
    pub(super) fn check(&self, config: &VmConfig) -> Result<(), HypervisorError> {
        let shares = self.devices.iter().filter(|device| matches!(device.config, DeviceConfig::Share { .. })).count();
        if shares > 1 {
            let problem = "this backend shares one directory".to_owned();
            return Err(HypervisorError::Config { option: "share", problem });
        }
        let image = usize::from(matches!(config.boot, BootSource::Image { .. }));
        let needed = self.devices.len() + image + BUILT_IN;
        if needed > SLOTS {
            let problem = format!("a machine has {SLOTS} places for devices, not {needed}");
            return Err(HypervisorError::Config { option: "devices", problem });
        }
        Ok(())
    }
}

/// What this backend asks of a device beyond what every backend does.
pub(super) fn check(device: &DeviceConfig) -> Result<(), HypervisorError> {
    device.validate()?;
    match device {
        DeviceConfig::Net { queues, .. } if queues.0.len() > MAX_PAIRS => Err(HypervisorError::Config {
            option: "network interface",
            problem: format!("{} queues are more than the {MAX_PAIRS} that this backend has", queues.0.len()),
        }),
        _ => Ok(()),
    }
}

/// A message has room for the queues of any interface.
const _: () = assert!(MAX_PAIRS <= DESCRIPTOR_LIMIT);
