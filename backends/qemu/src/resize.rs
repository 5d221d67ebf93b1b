//! Adding vCPUs and memory while the machine runs, and taking added vCPUs away.

use crate::devices::Plug;
use crate::qmp::{Client, DeviceAdd, ObjectAdd};
use qapi::qmp;
use serde_json::{Value, json};
use stockade_hypervisor::{HypervisorError, MiB, Operation, Resized, VmConfig};

/// Linux on x86 takes memory in blocks of this size.
const BLOCK: MiB = MiB(128);

/// What was added since the boot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Added {
    /// Ids of vCPUs, the last added last.
    pub(crate) vcpus: Vec<String>,
    /// Number of memory devices.
    pub(crate) dimms: u32,
    /// Numbers the ids.
    pub(crate) next: u32,
}

fn refuse(option: &'static str, problem: String) -> HypervisorError {
    HypervisorError::Config { option, problem }
}

fn unsupported(reason: &str) -> HypervisorError {
    HypervisorError::Unsupported { operation: Operation::Resize, backend: crate::NAME, reason: reason.to_owned() }
}

/// How many vCPUs to add (or, negative, to take away), after checking that it can be.
pub(crate) fn vcpu_steps(
    present: Resized,
    added: &Added,
    config: &VmConfig,
    wanted: u32,
) -> Result<i64, HypervisorError> {
    if wanted == 0 || wanted > config.max_vcpus {
        let max = config.max_vcpus;
        return Err(refuse("default_maxvcpus", format!("{wanted} vCPUs are not between 1 and {max}")));
    }
    let steps = i64::from(wanted) - i64::from(present.vcpus);
    let removable = i64::try_from(added.vcpus.len()).unwrap_or(0);
    if -steps > removable {
        return Err(unsupported("the vCPUs of the boot cannot be taken away"));
    }
    Ok(steps)
}

/// The size of the memory device to add, after checking that it can be; `None`: nothing is to be done.
pub(crate) fn memory_step(present: Resized, config: &VmConfig, wanted: MiB) -> Result<Option<MiB>, HypervisorError> {
    if wanted > config.max_memory {
        return Err(refuse("default_maxmemory", format!("{wanted} are more than {}", config.max_memory)));
    }
    if wanted < present.memory {
        return Err(unsupported("memory cannot be taken away"));
    }
    let more = (wanted.0 - present.memory.0).next_multiple_of(BLOCK.0);
    if more == 0 {
        return Ok(None);
    }
    if more > config.max_memory.0 - present.memory.0 {
        let problem = format!(
            "memory is added by {BLOCK}, and {present} + {more} MiB are more than {max}",
            present = present.memory,
            max = config.max_memory
        );
        return Err(refuse("default_maxmemory", problem));
    }
    Ok(Some(MiB(more)))
}

/// Plugs one vCPU; answers its id.
pub(crate) async fn add_vcpu(client: &Client, added: &mut Added) -> Result<(), HypervisorError> {
    let slots = client.execute(Operation::Resize, qmp::query_hotpluggable_cpus {}).await?;
    // QEMU lists the last first.
    let Some(slot) = slots.into_iter().rev().find(|slot| slot.qom_path.is_none()) else {
        return Err(HypervisorError::Refused {
            operation: Operation::Resize,
            message: "it has no free place for a vCPU".to_owned(),
        });
    };
    let id = format!("cpu{}", added.next);
    let mut device = serde_json::to_value(&slot.props).unwrap_or_default();
    if let Some(properties) = device.as_object_mut() {
        properties.insert("driver".to_owned(), Value::from(slot.type_));
        properties.insert("id".to_owned(), Value::from(id.clone()));
    }
    client.execute(Operation::Resize, DeviceAdd(device)).await?;
    added.next = added.next.saturating_add(1);
    added.vcpus.push(id);
    Ok(())
}

/// Unplugs the vCPU that was added last.
pub(crate) async fn remove_vcpu(plug: &Plug<'_>, added: &mut Added) -> Result<(), HypervisorError> {
    if let Some(id) = added.vcpus.last() {
        plug.let_go(Operation::Resize, id).await?;
        added.vcpus.pop();
    }
    Ok(())
}

/// Plugs a memory device.
pub(crate) async fn add_memory(client: &Client, added: &mut Added, size: MiB) -> Result<(), HypervisorError> {
    let number = added.dimms;
    let memory = format!("mem{number}");
    let object = json!({ "qom-type": "memory-backend-memfd", "id": memory, "size": size.bytes(), "share": true });
    client.execute(Operation::Resize, ObjectAdd(object)).await?;
    let device = json!({ "driver": "pc-dimm", "id": format!("dimm{number}"), "memdev": memory });
    if let Err(e) = client.execute(Operation::Resize, DeviceAdd(device)).await {
        if let Err(undo) = client.execute(Operation::Resize, qmp::object_del { id: memory }).await {
            tracing::warn!(error = %undo, "memory that could not be plugged stays in QEMU");
        }
        return Err(e);
    }
    added.dimms = number.saturating_add(1);
    Ok(())
}

#[cfg(test)]
#[path = "resize_tests.rs"]
mod tests;
