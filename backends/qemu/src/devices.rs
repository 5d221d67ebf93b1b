//! The devices of a machine, and plugging them while it runs.

use crate::command_line;
use crate::options::MachineType;
use crate::qmp::{BlockdevAdd, Client, DeviceAdd, NetdevAdd};
use qapi::qmp;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use stockade_hypervisor::{DeviceConfig, HypervisorError, NetQueueFds, Operation};
use stockade_machine_process::devices::Device;
use tokio::sync::broadcast;

/// What this backend asks of a device beyond what every backend does.
pub(crate) fn check(device: &DeviceConfig) -> Result<(), HypervisorError> {
    device.validate()?;
    let (option, path) = match device {
        DeviceConfig::Share { source, .. } => ("share", source),
        DeviceConfig::Block { path, .. } => ("block device", path),
        DeviceConfig::Net { .. } => return Ok(()),
    };
    utf8(option, path)
}

/// Refuses a path that QEMU's JSON or the device process's arguments cannot hold.
pub(crate) fn utf8(option: &'static str, path: &Path) -> Result<(), HypervisorError> {
    match path.to_str() {
        Some(_) => Ok(()),
        None => Err(HypervisorError::Config { option, problem: format!("{} is not UTF-8", path.display()) }),
    }
}

pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The parts of plugging that need QEMU.
pub(crate) struct Plug<'a> {
    pub(crate) qmp: &'a Client,
    pub(crate) machine: MachineType,
    pub(crate) limit: Duration,
}

impl Plug<'_> {
    /// Plugs `device`, or takes back what it had done for it.
    pub(crate) async fn add(&self, device: &Device) -> Result<(), HypervisorError> {
        let Device { id, config } = device;
        let bus = command_line::hot_plug_bus(self.machine);
        match config {
            DeviceConfig::Block { path, read_only } => self.add_block(&id.0, path, *read_only, bus).await,
            DeviceConfig::Net { mac, queues, mtu } => {
                let properties = json!({ "mac": mac_text(*mac), "host_mtu": mtu });
                self.add_net(&id.0, queues, properties, bus).await
            }
            DeviceConfig::Share { .. } => Err(HypervisorError::Unsupported {
                operation: Operation::AddDevice,
                backend: crate::NAME,
                reason: "a share must be there from the boot".to_owned(),
            }),
        }
    }

    async fn add_block(&self, id: &str, path: &Path, read_only: bool, bus: &str) -> Result<(), HypervisorError> {
        let operation = Operation::AddDevice;
        self.qmp.execute(operation, BlockdevAdd(command_line::blockdev(id, path, read_only))).await?;
        let driver = command_line::driver(self.machine, "virtio-blk");
        let device = json!({ "driver": driver, "id": id, "drive": id, "bus": bus });
        let added = self.qmp.execute(operation, DeviceAdd(device)).await;
        if added.is_err() {
            self.undo(qmp::blockdev_del { node_name: id.to_owned() }).await;
        }
        added.map(drop)
    }

    async fn add_net(
        &self,
        id: &str,
        queues: &NetQueueFds,
        mut device: Value,
        bus: &str,
    ) -> Result<(), HypervisorError> {
        let operation = Operation::AddDevice;
        let mut names: Vec<String> = Vec::new();
        let given = async {
            for (queue, fd) in queues.0.iter().enumerate() {
                let name = format!("{id}-{queue}");
                names.push(name.clone());
                self.qmp.give_fd(operation, name, fd.clone()).await?;
            }
            let netdev = json!({ "type": "tap", "id": id, "fds": names.join(":"), "vhost": false });
            self.qmp.execute(operation, NetdevAdd(netdev)).await
        }
        .await;
        if let Err(e) = given {
            for name in names {
                self.undo(qmp::closefd { fdname: name }).await;
            }
            return Err(e);
        }
        let driver = command_line::driver(self.machine, "virtio-net");
        if let Some(properties) = device.as_object_mut() {
            let fixed = [("driver", driver), ("id", id.to_owned()), ("netdev", id.to_owned()), ("bus", bus.to_owned())];
            properties.extend(fixed.map(|(name, value)| (name.to_owned(), Value::from(value))));
            // As at the boot. microvm takes none while it runs.
            properties.insert("romfile".to_owned(), Value::from(""));
            if queues.0.len() > 1 {
                properties.insert("mq".to_owned(), Value::from(true));
                properties.insert("vectors".to_owned(), Value::from(2 * queues.0.len() + 2));
            }
        }
        let added = self.qmp.execute(operation, DeviceAdd(device)).await;
        if added.is_err() {
            self.undo(qmp::netdev_del { id: id.to_owned() }).await;
        }
        added.map(drop)
    }

    /// Unplugs `device`: the guest is asked, and must let it go within the limit.
    pub(crate) async fn remove(&self, device: &Device) -> Result<(), HypervisorError> {
        let id = device.id.0.clone();
        self.let_go(Operation::RemoveDevice, &id).await?;
        match &device.config {
            DeviceConfig::Block { .. } => self.undo(qmp::blockdev_del { node_name: id }).await,
            DeviceConfig::Net { .. } => self.undo(qmp::netdev_del { id }).await,
            DeviceConfig::Share { .. } => {}
        }
        Ok(())
    }

    /// Asks the guest to let the device `id` go and waits until it has.
    pub(crate) async fn let_go(&self, operation: Operation, id: &str) -> Result<(), HypervisorError> {
        let mut deleted = self.qmp.deleted();
        self.qmp.execute(operation, qmp::device_del { id: id.to_owned() }).await?;
        let gone = async {
            loop {
                match deleted.recv().await {
                    Ok(gone) if gone == id => return true,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return false,
                }
            }
        };
        match tokio::time::timeout(self.limit, gone).await {
            Ok(true) => Ok(()),
            _ => Err(HypervisorError::Timeout { operation, limit: self.limit }),
        }
    }

    /// Takes something back; what fails here is told in the log, since the error before it is the one to report.
    async fn undo(&self, command: impl qapi::qmp::QmpCommand) {
        if let Err(e) = self.qmp.execute(Operation::RemoveDevice, command).await {
            tracing::warn!(error = %e, "a part of a device stays in QEMU");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_address_is_written_with_colons() {
        assert_eq!(mac_text([2, 0, 0, 0xab, 0, 0xf]), "02:00:00:ab:00:0f");
    }
}
