//! The guest's hardware, clock and random numbers.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use stockade_agent_protocol::agent::{
    AgentDetails, GuestDetailsRequest, GuestDetailsResponse, OnlineCPUMemRequest, SetGuestDateTimeRequest,
};
use tokio::time::Instant;
use ttrpc::Code;

use super::error::{RpcError, io_failure};
use crate::mounts::DRIVERS;
use crate::sandbox::Sandbox;

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";
/// Entropy taken in one call.
const MAX_ENTROPY: usize = 64 << 10;
/// How often hot-plugged processors are looked for.
const POLL: std::time::Duration = std::time::Duration::from_millis(10);

/// Brings up to `nb_cpus` offline processors into use, and all memory.
pub(super) async fn online(sandbox: Arc<Sandbox>, request: OnlineCPUMemRequest) -> Result<(), RpcError> {
    let wanted = usize::try_from(request.nb_cpus).unwrap_or(usize::MAX);
    let deadline = Instant::now() + sandbox.options.hotplug_timeout;
    let mut brought = 0;
    loop {
        brought += switch_on(Path::new(CPUS), "cpu", wanted - brought)?;
        // The kernel tells of new processors one by one.
        if brought >= wanted || !request.wait || Instant::now() >= deadline {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    if request.wait && brought < wanted {
        let text = format!("only {brought} of {wanted} processors came online");
        return Err(RpcError::new(Code::DEADLINE_EXCEEDED, text));
    }
    if !request.cpu_only {
        switch_on(Path::new(MEMORY), "memory", usize::MAX)?;
    }
    Ok(())
}

fn switch_on(dir: &Path, prefix: &str, limit: usize) -> Result<usize, RpcError> {
    let mut switches: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
            number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        })
        .map(|entry| entry.path().join("online"))
        .filter(|switch| fs::read_to_string(switch).is_ok_and(|state| state.trim() == "0"))
        .collect();
    switches.sort_unstable();
    switches.truncate(limit);
    for switch in &switches {
        fs::write(switch, "1").map_err(io_failure(format_args!("switch on {switch:?}")))?;
    }
    Ok(switches.len())
}

pub(super) fn reseed(data: &[u8]) -> Result<(), RpcError> {
    if data.len() > MAX_ENTROPY {
        let text = format!("{} bytes of entropy are more than {MAX_ENTROPY}", data.len());
        return Err(RpcError::new(Code::INVALID_ARGUMENT, text));
    }
    let mut random: File =
        OpenOptions::new().write(true).open("/dev/urandom").map_err(io_failure("open /dev/urandom"))?;
    random.write_all(data).map_err(io_failure("write to /dev/urandom"))?;
    crate::sys::reseed_generator(random.as_fd()).map_err(|errno| io_failure("reseed the generator")(errno.into()))
}

pub(super) fn set_time(request: &SetGuestDateTimeRequest) -> Result<(), RpcError> {
    if request.Sec < 0 || !(0..1_000_000).contains(&request.Usec) {
        return Err(RpcError::new(Code::INVALID_ARGUMENT, "not a time after the epoch"));
    }
    let time = TimeSpec::new(request.Sec, request.Usec * 1000);
    clock_settime(ClockId::CLOCK_REALTIME, time).map_err(|errno| io_failure("set the clock")(errno.into()))
}

pub(super) fn details(request: &GuestDetailsRequest) -> GuestDetailsResponse {
    let block_size = request.mem_block_size.then(|| {
        let text = fs::read_to_string(Path::new(MEMORY).join("block_size_bytes")).ok()?;
        u64::from_str_radix(text.trim(), 16).ok()
    });
    let probe = request.mem_hotplug_probe && Path::new(MEMORY).join("probe").exists();
    GuestDetailsResponse {
        mem_block_size_bytes: block_size.flatten().unwrap_or_default(),
        agent_details: Some(AgentDetails {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            init_daemon: std::process::id() == 1,
            device_handlers: ["blk", "mmioblk"].map(str::to_owned).to_vec(),
            storage_handlers: DRIVERS.iter().map(|&driver| driver.to_owned()).collect(),
            supports_seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            ..Default::default()
        })
        .into(),
        support_mem_hotplug_probe: probe,
        ..Default::default()
    }
}
