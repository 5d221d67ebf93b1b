//! The guest's figures in Prometheus' text format.

use std::fmt::Write as _;
use std::fs;

/// Clock ticks a second in /proc: fixed by the kernel's interface.
const TICKS: f64 = 100.0;

/// Memory, processor time and the agent's own size.
pub(super) fn text() -> String {
    let mut out = String::new();
    memory(&mut out, &fs::read_to_string("/proc/meminfo").unwrap_or_default());
    cpu(&mut out, &fs::read_to_string("/proc/stat").unwrap_or_default());
    agent(&mut out, &fs::read_to_string("/proc/self/status").unwrap_or_default());
    load(&mut out, &fs::read_to_string("/proc/loadavg").unwrap_or_default());
    out
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string does not fail, here and below.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn kib(value: &str) -> Option<u64> {
    value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn memory(out: &mut String, text: &str) {
    head(out, "stockade_guest_memory_bytes", "gauge", "Memory of the guest, by /proc/meminfo.");
    for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
        if let Some(bytes) = kib(value) {
            let _ = writeln!(out, "stockade_guest_memory_bytes{{item=\"{name}\"}} {bytes}");
        }
    }
}

fn cpu(out: &mut String, text: &str) {
    const MODES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];
    head(out, "stockade_guest_cpu_seconds_total", "counter", "Processor time of the guest.");
    for line in text.lines().filter(|line| line.starts_with("cpu")) {
        let mut words = line.split_whitespace();
        let Some(cpu) = words.next() else { continue };
        let name = if cpu == "cpu" { "total" } else { cpu };
        for (mode, ticks) in MODES.iter().zip(words) {
            if let Ok(ticks) = ticks.parse::<f64>() {
                let seconds = ticks / TICKS;
                let _ = writeln!(out, "stockade_guest_cpu_seconds_total{{cpu=\"{name}\",mode=\"{mode}\"}} {seconds}");
            }
        }
    }
}

fn agent(out: &mut String, text: &str) {
    head(out, "stockade_agent_resident_bytes", "gauge", "Memory of the agent.");
    let resident = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).and_then(kib);
    let _ = writeln!(out, "stockade_agent_resident_bytes {}", resident.unwrap_or_default());
}

fn load(out: &mut String, text: &str) {
    head(out, "stockade_guest_load", "gauge", "Load average of the guest.");
    for (minutes, value) in ["1", "5", "15"].iter().zip(text.split_whitespace()) {
        let _ = writeln!(out, "stockade_guest_load{{minutes=\"{minutes}\"}} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_comment_or_a_sample() {
        let text = text();
        assert!(text.contains("stockade_guest_memory_bytes{item=\"MemTotal\"} "));
        assert!(text.contains("stockade_guest_cpu_seconds_total{cpu=\"total\",mode=\"user\"} "));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
            assert!(value.is_some(), "{line}");
        }
    }
}
