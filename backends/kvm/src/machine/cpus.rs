//! A machine's vCPUs: those that run, and those that may come and go.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::MachineError;
use super::assembly::Parts;
use crate::vcpu::{Vcpu, VcpuThread, Wanted};

/// How long a vCPU may take to come out of the guest. It takes microseconds, unless the host has no time for it.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The numbers of the vCPUs that the guest has. Shared with the register by which it gives one back.
#[derive(Debug, Clone)]
pub(super) struct Plugged(Arc<Mutex<BTreeSet<u8>>>);

impl Plugged {
    pub(super) fn new(indices: impl Iterator<Item = u8>) -> Self {
        Self(Arc::new(Mutex::new(indices.collect())))
    }

    fn with<T>(&self, work: impl FnOnce(&mut BTreeSet<u8>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn remove(&self, index: u8) -> bool {
        self.with(|set| set.remove(&index))
    }

    pub(super) fn list(&self) -> Vec<u8> {
        self.with(|set| set.iter().copied().collect())
    }
}

/// The vCPUs. One that the guest has given back stays, halted, until the guest wants it again: KVM cannot remove it.
#[derive(Debug)]
pub(super) struct Cpus {
    made: Vec<Arc<Vcpu>>,
    threads: Vec<VcpuThread>,
    plugged: Plugged,
}

impl Cpus {
    pub(super) fn new(made: Vec<Arc<Vcpu>>, parts: &Parts) -> Self {
        Self { made, threads: Vec::new(), plugged: parts.plugged.clone() }
    }

    /// How many the guest has.
    pub(super) fn count(&self) -> u8 {
        u8::try_from(self.plugged.with(|set| set.len())).unwrap_or(u8::MAX)
    }

    /// All that were made, by their number.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Vcpu> {
        self.made.iter().map(Arc::as_ref)
    }

    /// Starts the threads, parked.
    pub(super) fn start(&mut self, parts: &Parts) -> Result<(), MachineError> {
        for vcpu in &self.made {
            self.threads.push(start_thread(vcpu, parts)?);
        }
        Ok(())
    }

    /// Stops all; when it returns, no vCPU runs.
    pub(super) fn pause(&self) -> Result<(), MachineError> {
        let deadline = Instant::now() + STOP_LIMIT;
        self.threads.iter().for_each(|thread| thread.want(Wanted::Parked));
        self.threads.iter().try_for_each(|thread| thread.wait_parked(deadline))?;
        self.threads.iter().for_each(|thread| thread.vcpu().tell_paused());
        Ok(())
    }

    /// Lets all run.
    pub(super) fn resume(&self) {
        self.threads.iter().for_each(|thread| thread.want(Wanted::Running));
    }

    /// Offers vCPUs to the guest or asks for them back, until it has `count`.
    pub(super) fn resize(&mut self, count: u8, parts: &Parts) -> Result<u8, MachineError> {
        let (least, most) = (parts.size.vcpus, parts.size.max_vcpus);
        if count == 0 || count > most {
            let problem = format!("{count} is not within 1 and {most}");
            return Err(MachineError::Config { option: "vcpus", problem });
        }
        // Those of the boot are no devices that the guest could give back.
        let count = count.max(least);
        let missing: Vec<u8> = (least..count).filter(|index| !self.plugged.with(|set| set.contains(index))).collect();
        for index in &missing {
            self.make_running(*index, parts)?;
        }
        for index in least..most {
            let page = &parts.plug_page;
            let asked = if missing.contains(&index) {
                self.plugged.with(|set| set.insert(index));
                page.offer_vcpu(index)
            } else if index >= count && self.plugged.with(|set| set.contains(&index)) {
                page.ask_back_vcpu(index)
            } else {
                continue;
            };
            asked.map_err(|error| MachineError::Host {
                what: "write to the guest's memory what is plugged",
                source: std::io::Error::other(error),
            })?;
        }
        parts.tell_guest()?;
        Ok(count)
    }

    /// Makes a vCPU that waits for its start signal, unless it has been made before.
    fn make_running(&mut self, index: u8, parts: &Parts) -> Result<(), MachineError> {
        if self.made.iter().any(|vcpu| vcpu.index() == index) {
            return Ok(());
        }
        let vcpu = Vcpu::new(&parts.vm, index, parts.size.max_vcpus)?;
        vcpu.set_firmware_registers()?;
        let thread = start_thread(&vcpu, parts)?;
        thread.want(Wanted::Running);
        self.threads.push(thread);
        self.made.push(vcpu);
        self.made.sort_by_key(|vcpu| vcpu.index());
        Ok(())
    }
}

fn start_thread(vcpu: &Arc<Vcpu>, parts: &Parts) -> Result<VcpuThread, MachineError> {
    VcpuThread::start(Arc::clone(vcpu), parts.surroundings.clone(), parts.vcpu_hook.clone())
}
