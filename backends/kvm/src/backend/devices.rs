//! Which devices a machine can have.

use stockade_hypervisor::{BootSource, DeviceConfig, HypervisorError, VmConfig};
use stockade_machine_process::devices::Table;

use crate::control::DESCRIPTOR_LIMIT;
use crate::devices::net::MAX_PAIRS;
use crate::machine::SLOTS;

/// Devices that may be there beside: vsock, the random number generator, the balloon, and pluggable memory.
const BUILT_IN: usize = 4;

/// Checks that a machine can have all of them.
pub(super) fn check_all(devices: &Table, config: &VmConfig) -> Result<(), HypervisorError> {
    devices.check_shares()?;
    let image = usize::from(matches!(config.boot, BootSource::Image { .. }));
    let needed = devices.all().len() + image + BUILT_IN;
    if needed > SLOTS {
        let problem = format!("a machine has {SLOTS} places for devices, not {needed}");
        return Err(HypervisorError::Config { option: "devices", problem });
    }
    Ok(())
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
