//! A sandbox's figures, from its actors and its guest.

use super::{Families, Kind};
use crate::actors::container::Stats;
use crate::actors::runtime::message_times;
use crate::actors::sandbox::{Containers, FindContainer, GuestMetrics, SandboxHandle, SandboxStats};
use crate::ids::SandboxId;
use nix::unistd::{SysconfVar, sysconf};
use stockade_agent_protocol::agent::StatsContainerResponse;
use stockade_hypervisor::VmMetrics;

/// All that is known of a sandbox. What does not answer, such as a guest that has ended, has no samples.
pub async fn sandbox(id: &SandboxId, handle: &SandboxHandle) -> Families {
    let mut families = Families::default();
    let labels = [("sandbox", id.as_str())];
    families.add("stockade_sandbox_up", Kind::Gauge, "One for each supervisor that answers.", &labels, 1.0);
    supervisor(&mut families, &labels);
    messages(&mut families, id.as_str());
    if let Ok(metrics) = handle.stats.ask(SandboxStats {}).await {
        machine(&mut families, &labels, &metrics);
    }
    let Ok(containers) = handle.containers.ask(Containers {}).await else { return families };
    for container in containers {
        let name = container.to_string();
        let Ok(found) = handle.find.ask(FindContainer { id: container }).await else { continue };
        if let Ok(stats) = found.stats.ask(Stats {}).await {
            of_container(&mut families, &[("sandbox", id.as_str()), ("container", &name)], &stats);
        }
    }
    if let Ok(text) = handle.guest_metrics.ask(GuestMetrics {}).await {
        families.merge(Families::of_guest(&text, &labels));
    }
    families
}

type Labels<'a> = [(&'a str, &'a str)];

#[expect(clippy::cast_precision_loss, reason = "the format has floating-point numbers only")]
fn number(value: u64) -> f64 {
    value as f64
}

fn machine(families: &mut Families, labels: &Labels<'_>, metrics: &VmMetrics) {
    devices(families, labels, metrics);
    let mut add = |name, kind, help, value| families.add(name, kind, help, labels, value);
    let seconds = number(metrics.cpu_ms) / 1000.0;
    add("stockade_vmm_cpu_seconds_total", Kind::Counter, "Processor time of the machine's processes.", seconds);
    let resident = number(metrics.resident_bytes);
    add(
        "stockade_vmm_resident_bytes",
        Kind::Gauge,
        "Memory of the machine's processes, the guest's included.",
        resident,
    );
    add("stockade_vmm_vcpus", Kind::Gauge, "Virtual processors.", f64::from(metrics.vcpus));
    add("stockade_vmm_memory_bytes", Kind::Gauge, "Memory that the guest has.", number(metrics.memory_bytes));
}

/// The machine's devices, where the monitor tells of them.
fn devices(families: &mut Families, labels: &Labels<'_>, metrics: &VmMetrics) {
    if let Some(exits) = metrics.exits {
        let help = "How often virtual processors have left the guest for the monitor.";
        families.add("stockade_vmm_exits_total", Kind::Counter, help, labels, number(exits));
    }
    for device in &metrics.devices {
        let labels = [labels, &[("device", device.device.as_str())]].concat();
        let mut add = |name, help, value| families.add(name, Kind::Counter, help, &labels, number(value));
        add("stockade_vmm_device_requests_total", "Requests of the guest.", device.requests);
        add("stockade_vmm_device_errors_total", "Requests that failed or are not supported.", device.errors);
        add("stockade_vmm_device_malformed_total", "Requests that make no sense.", device.malformed);
    }
}

/// This process: what a sandbox costs beside its machine.
fn supervisor(families: &mut Families, labels: &Labels<'_>) {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok());
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    let (Some(page), Some(ticks)) = (page, ticks.filter(|ticks| *ticks > 0)) else { return };
    let pages = read_field("/proc/self/statm", 1).unwrap_or_default();
    let help = "Memory of the supervisor.";
    families.add("stockade_supervisor_resident_bytes", Kind::Gauge, help, labels, number(pages.saturating_mul(page)));
    // Fields 14 and 15 of proc(5)'s stat; the name before them has no spaces here.
    let time =
        read_field("/proc/self/stat", 13).unwrap_or_default() + read_field("/proc/self/stat", 14).unwrap_or_default();
    let (help, seconds) = ("Processor time of the supervisor.", number(time) / number(ticks));
    families.add("stockade_supervisor_cpu_seconds_total", Kind::Counter, help, labels, seconds);
}

fn read_field(path: &str, index: usize) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.split_whitespace().nth(index)?.parse().ok()
}

fn messages(families: &mut Families, sandbox: &str) {
    for (name, times) in message_times() {
        let labels = [("sandbox", sandbox), ("message", name)];
        let mut add = |name, kind, help, value| families.add(name, kind, help, &labels, value);
        add("stockade_messages_total", Kind::Counter, "Answers of actors.", number(times.count));
        add("stockade_message_errors_total", Kind::Counter, "Answers that were errors.", number(times.errors));
        let seconds = number(times.total_us) / 1e6;
        add("stockade_message_seconds_total", Kind::Counter, "Time that answers took.", seconds);
        let longest = number(times.max_us) / 1e6;
        add("stockade_message_longest_seconds", Kind::Gauge, "The longest that an answer took.", longest);
    }
}

fn of_container(families: &mut Families, labels: &Labels<'_>, stats: &StatsContainerResponse) {
    let group = stats.cgroup_stats.get_or_default();
    let usage = group.cpu_stats.get_or_default().cpu_usage.get_or_default();
    let memory = group.memory_stats.get_or_default().usage.get_or_default();
    let mut add = |name, kind, help, value| families.add(name, kind, help, labels, value);
    let seconds = number(usage.total_usage) / 1e9;
    add("stockade_container_cpu_seconds_total", Kind::Counter, "Processor time of a container.", seconds);
    add("stockade_container_memory_bytes", Kind::Gauge, "Memory of a container.", number(memory.usage));
    if memory.limit != u64::MAX {
        add("stockade_container_memory_limit_bytes", Kind::Gauge, "Its limit.", number(memory.limit));
    }
    let pids = number(group.pids_stats.get_or_default().current);
    add("stockade_container_processes", Kind::Gauge, "Processes of a container.", pids);
}
