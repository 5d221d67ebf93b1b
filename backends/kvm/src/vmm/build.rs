//! From the description to the machine.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use stockade_devices::fs::{CachePolicy, FsConfig, file_system};
use stockade_devices::jail::Jailed;
use stockade_devices::vsock::{Muxer, MuxerConfig};
use stockade_hypervisor::{MiB, ShareCache};

use super::snapshot;
use super::{VmmError, host};
use crate::control::{Begin, Disk, Network, Share, Vsock as VsockPart};
use crate::devices::balloon::{Balloon, BalloonHandle};
use crate::devices::block::{self, Block, DiskOptions};
use crate::devices::fs::Fs;
use crate::devices::mem::{Mem, MemConfig, MemHandle};
use crate::devices::net::{Net, NetConfig};
use crate::devices::rng::Rng;
use crate::devices::vsock::Vsock;
use crate::jail::Jail;
use crate::machine::{Console, Machine, MachineConfig, RestoreConfig, Size, SlotIndex, VcpuHook};
use crate::sys;
use crate::virtio::{Threads, VirtioDevice};

/// How long a vCPU waits for a supervisor that does not read the console; what it wrote is lost then.
const CONSOLE_WAIT: Duration = Duration::from_millis(100);

/// What is plugged at a time: Linux plugs pages of 2 MiB.
const PLUG_BLOCK: u64 = 2 << 20;

/// A machine, and its devices by the supervisor's names.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) machine: Machine,
    pub(super) slots: BTreeMap<String, SlotIndex>,
    /// Memory at boot.
    pub(super) boot_memory: MiB,
    /// Plugs more, if the machine may have more.
    pub(super) plug: Option<MemHandle>,
    /// The balloon, if the guest gives memory back.
    pub(super) balloon: Option<BalloonHandle>,
}

impl Built {
    /// What the supervisor calls the device in a slot.
    pub(super) fn name_of(&self, slot: SlotIndex) -> Option<&str> {
        self.slots.iter().find(|(_, place)| **place == slot).map(|(name, _)| name.as_str())
    }

    /// Memory that the guest is offered.
    pub(super) fn memory(&self) -> MiB {
        let plugged = self.plug.as_ref().map_or(0, MemHandle::requested_bytes) >> 20;
        MiB(self.boot_memory.0.saturating_add(u32::try_from(plugged).unwrap_or(u32::MAX)))
    }
}

/// The descriptors that the process was started with; each is taken once.
struct Inherited(Vec<(RawFd, Option<OwnedFd>)>);

impl Inherited {
    fn adopt(begin: &Begin) -> Result<Self, VmmError> {
        let mut adopted: Vec<(RawFd, Option<OwnedFd>)> = Vec::new();
        for number in begin.descriptors() {
            if adopted.iter().any(|(known, _)| *known == number) {
                let source = io::Error::new(io::ErrorKind::AlreadyExists, "it is named twice");
                return Err(VmmError::Descriptor { number, source });
            }
            let fd = sys::adopt(number).map_err(|source| VmmError::Descriptor { number, source })?;
            adopted.push((number, Some(fd)));
        }
        Ok(Self(adopted))
    }

    fn take(&mut self, number: RawFd) -> Result<OwnedFd, VmmError> {
        let found = self.0.iter_mut().find(|(known, _)| *known == number).and_then(|(_, fd)| fd.take());
        found.ok_or_else(|| VmmError::Descriptor { number, source: io::ErrorKind::NotFound.into() })
    }
}

/// Makes the machine and its devices. Their threads begin here, with the privileges that they need.
pub(super) fn build(begin: Begin, jail: &Jail, jailed: Jailed) -> Result<Built, VmmError> {
    let mut inherited = Inherited::adopt(&begin)?;
    let console = UnixStream::from(inherited.take(begin.console)?);
    console.set_write_timeout(Some(CONSOLE_WAIT)).map_err(host("limit the wait for the console's reader"))?;
    let kvm = inherited.take(begin.kvm)?;
    let on_vcpu = jail.clone();
    let console = Console(Box::new(console));
    let vcpu_hook = VcpuHook::new(move || on_vcpu.vcpu().map_err(io::Error::other));
    let threads = threads(jail);
    let size = Size {
        memory: begin.memory,
        hotplug_memory: begin.hotplug_memory,
        vcpus: begin.vcpus,
        max_vcpus: begin.max_vcpus,
    };
    let (machine, places) = match begin.restore {
        Some((state, memory)) => {
            let saved = snapshot::read(&File::from(inherited.take(state)?))?;
            same_size(saved.machine.size, size)?;
            let memory = File::from(inherited.take(memory)?);
            let config = RestoreConfig { state: saved.machine, memory, console, vcpu_hook, threads };
            (Machine::restore(kvm, config)?, Some(saved.slots))
        }
        None => {
            let kernel = File::from(inherited.take(begin.kernel.ok_or(VmmError::OutOfOrder)?)?);
            let initrd = begin.initrd.map(|initrd| inherited.take(initrd)).transpose()?.map(File::from);
            let cmdline = begin.cmdline;
            (Machine::new(kvm, MachineConfig { size, kernel, initrd, cmdline, console, vcpu_hook, threads })?, None)
        }
    };
    let mut devices = Devices { machine, slots: BTreeMap::new(), places };
    devices.attach("rng", Box::new(Rng::new()))?;
    devices.attach("vsock", Box::new(vsock(begin.vsock, &mut inherited)?))?;
    if let Some(share) = begin.share {
        devices.attach(&share.tag.clone(), Box::new(fs(share, jailed)?))?;
    }
    for (id, part, file) in begin.disks {
        devices.attach(&id, disk(&id, part, vec![inherited.take(file)?], jail)?)?;
    }
    for (id, part, queues) in begin.networks {
        let taps = queues.into_iter().map(|queue| inherited.take(queue)).collect::<Result<_, _>>()?;
        devices.attach(&id, network(part, taps)?)?;
    }
    let balloon = begin.reclaim.then(Balloon::new).transpose().map_err(host("make a descriptor for the balloon"))?;
    let reclaimed = balloon.as_ref().map(Balloon::handle);
    if let Some(balloon) = balloon {
        devices.attach("balloon", Box::new(balloon))?;
    }
    let pluggable = pluggable(&devices.machine)?;
    let plug = pluggable.as_ref().map(Mem::handle);
    if let Some(mem) = pluggable {
        devices.attach("mem", Box::new(mem))?;
    }
    let (machine, slots) = devices.complete()?;
    Ok(Built { machine, slots, boot_memory: begin.memory, plug, balloon: reclaimed })
}

/// A machine that gets its devices.
struct Devices {
    machine: Machine,
    slots: BTreeMap<String, SlotIndex>,
    /// Where each was, of a machine that was saved.
    places: Option<BTreeMap<String, SlotIndex>>,
}

impl Devices {
    /// Adds a device, of a machine that was saved in the slot that it was in.
    fn attach(&mut self, name: &str, device: Box<dyn VirtioDevice>) -> Result<(), VmmError> {
        let slot = match &self.places {
            None => self.machine.attach(device)?,
            Some(places) => {
                let place = places.get(name).copied();
                let slot = place
                    .ok_or_else(|| snapshot::refused(format!("it had no device {name}, which this machine has")))?;
                self.machine.attach_at(slot, device)?;
                slot
            }
        };
        self.slots.insert(name.to_owned(), slot);
        Ok(())
    }

    /// The machine and where its devices are, which are all that were saved.
    fn complete(self) -> Result<(Machine, BTreeMap<String, SlotIndex>), VmmError> {
        let missing = self.places.iter().flatten().find(|(name, _)| !self.slots.contains_key(*name));
        match missing {
            Some((name, _)) => Err(snapshot::refused(format!("it had a device {name}, which this machine lacks"))),
            None => Ok((self.machine, self.slots)),
        }
    }
}

/// Refuses a saved machine that is not of the described one's size.
fn same_size(saved: Size, described: Size) -> Result<(), VmmError> {
    if saved == described {
        return Ok(());
    }
    let words = |size: Size| {
        let Size { memory, hotplug_memory, vcpus, max_vcpus } = size;
        format!("{vcpus} of at most {max_vcpus} vCPUs, {memory}, and {hotplug_memory} that may be plugged")
    };
    Err(snapshot::refused(format!("it had {}; this machine has {}", words(saved), words(described))))
}

/// Starts devices' threads in the jail.
fn threads(jail: &Jail) -> Threads {
    let jail = jail.clone();
    Threads::new(move |kind| jail.thread(kind).map_err(io::Error::other))
}

/// The device of the memory that can be plugged, if there may be any.
fn pluggable(machine: &Machine) -> Result<Option<Mem>, VmmError> {
    let range = machine.hotplug_range();
    let size = range.end.saturating_sub(range.start);
    if size == 0 {
        return Ok(None);
    }
    let mem = Mem::new(MemConfig { address: range.start, size, block_size: PLUG_BLOCK });
    Ok(Some(mem.map_err(failed("memory"))?))
}

fn vsock(part: VsockPart, inherited: &mut Inherited) -> Result<Vsock, VmmError> {
    let listener = inherited.take(part.listener)?;
    let config = MuxerConfig { guest_cid: u64::from(part.guest_cid), listener, host_sockets: None };
    Ok(Vsock::new(Muxer::new(config)?))
}

fn fs(share: Share, jailed: Jailed) -> Result<Fs, VmmError> {
    let file_system = file_system(FsConfig {
        // The jail's root is the share.
        root: PathBuf::from("/"),
        cache: match share.cache {
            ShareCache::Never => CachePolicy::Never,
            ShareCache::Metadata => CachePolicy::Metadata,
            ShareCache::Auto => CachePolicy::Auto,
            ShareCache::Always => CachePolicy::Always,
        },
        threads: 0,
        proc_self_fd: Some(jailed.proc_self_fd),
        descriptor_limit: jailed.descriptor_limit,
    })?;
    Ok(Fs::new(&share.tag, file_system, 1)?)
}

/// A disk on the one descriptor that came for it; the guest finds it by the name `id` too.
pub(super) fn disk(id: &str, part: Disk, files: Vec<OwnedFd>, jail: &Jail) -> Result<Box<dyn VirtioDevice>, VmmError> {
    let Ok([file]) = <[OwnedFd; 1]>::try_from(files) else { return Err(VmmError::OutOfOrder) };
    let options = DiskOptions { read_only: part.read_only, serial: id.to_owned() };
    let disk = block::Disk::new(File::from(file), &options).map_err(failed("block"))?;
    let block = Block::new(Some(disk), part.read_only, threads(jail)).map_err(failed("block"))?;
    Ok(Box::new(block))
}

/// A network interface on a descriptor for each pair of queues.
pub(super) fn network(network: Network, taps: Vec<OwnedFd>) -> Result<Box<dyn VirtioDevice>, VmmError> {
    let net = Net::new(NetConfig { taps, mac: network.mac, mtu: Some(network.mtu) });
    Ok(Box::new(net.map_err(failed("network"))?))
}

/// Names the device that could not be made.
fn failed<E: Error + Send + Sync + 'static>(device: &'static str) -> impl FnOnce(E) -> VmmError {
    move |source| VmmError::Device { device, source: Box::new(source) }
}
