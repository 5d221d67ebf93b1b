//! `stockade env`.

use super::globals::Context;
use super::table::{print, print_json};
use crate::oci::OCI_VERSION;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use stockade_config::{Backend, HypervisorChoice};
use stockade_guest::GuestAssets;

/// Print this installation and host, for a bug report
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        let environment = collect(context)?;
        if self.json {
            print_json(&environment)?;
        } else {
            print(&lines(&serde_json::to_value(&environment)?).join("\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Serialize)]
struct Environment {
    runtime: RuntimeInfo,
    hypervisor: HypervisorInfo,
    guest: GuestInfo,
    host: HostInfo,
}

#[derive(Debug, Serialize)]
struct RuntimeInfo {
    version: &'static str,
    oci: &'static str,
    program: PathBuf,
    configuration: Vec<PathBuf>,
    root: PathBuf,
    containers: usize,
}

#[derive(Debug, Serialize)]
struct HypervisorInfo {
    choice: HypervisorChoice,
    qemu: PathBuf,
    machine_type: String,
    accelerator: String,
}

#[derive(Debug, Serialize)]
struct GuestInfo {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    image: Option<PathBuf>,
    parameters: String,
    /// From the manifest beside the kernel, if it is one of `guest build`'s.
    release: Option<String>,
}

#[derive(Debug, Serialize)]
struct HostInfo {
    kernel: String,
    architecture: String,
    distribution: Option<String>,
    processor: Option<String>,
    processors: usize,
    memory_kib: Option<u64>,
}

fn collect(context: &Context) -> anyhow::Result<Environment> {
    let loaded = context.config()?;
    let qemu = &loaded.config.hypervisor.qemu;
    let machine = loaded.config.machine(Backend::Qemu);
    let guest = machine.kernel.parent().and_then(|directory| GuestAssets::open(directory).ok());
    let uname = nix::sys::utsname::uname()?;
    Ok(Environment {
        runtime: RuntimeInfo {
            version: super::version::SHORT,
            oci: OCI_VERSION,
            program: std::env::current_exe()?,
            configuration: loaded.files().cloned().collect(),
            root: context.store.root().to_owned(),
            containers: context.store.container_ids()?.len(),
        },
        hypervisor: HypervisorInfo {
            choice: loaded.config.runtime.hypervisor,
            qemu: qemu.path.clone(),
            machine_type: qemu.machine_type.to_string(),
            accelerator: qemu.accelerator.to_string(),
        },
        guest: GuestInfo {
            kernel: machine.kernel.clone(),
            initrd: machine.initrd.clone(),
            image: machine.image.clone(),
            parameters: machine.kernel_params.to_string(),
            release: guest.map(|guest| guest.manifest.kernel.release),
        },
        host: HostInfo {
            kernel: uname.release().to_string_lossy().into_owned(),
            architecture: uname.machine().to_string_lossy().into_owned(),
            distribution: field("/etc/os-release", "PRETTY_NAME=").map(|name| name.trim_matches('"').to_owned()),
            processor: field("/proc/cpuinfo", "model name")
                .map(|name| name.trim_start_matches([':', ' ', '\t']).to_owned()),
            processors: std::thread::available_parallelism()?.get(),
            memory_kib: field("/proc/meminfo", "MemTotal:")
                .and_then(|text| text.split_whitespace().next()?.parse().ok()),
        },
    })
}

/// What follows `name` in the first line of `path` that begins with it.
fn field(path: impl AsRef<Path>, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned())
}

/// `table.key = value` for each value.
fn lines(environment: &serde_json::Value) -> Vec<String> {
    let tables = environment.as_object().into_iter().flatten();
    let entries = tables.flat_map(|(table, entries)| {
        let entries = entries.as_object().into_iter().flatten();
        entries.map(move |(key, value)| format!("{table}.{key} = {value}"))
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_a_line() {
        let value = serde_json::json!({"host": {"kernel": "6", "processors": 2}, "guest": {"initrd": null}});
        assert_eq!(lines(&value), ["guest.initrd = null", "host.kernel = \"6\"", "host.processors = 2"]);
    }

    #[test]
    fn a_field_is_the_rest_of_its_first_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "a b\nNAME=\"x y\" \nNAME=z\n").unwrap();
        assert_eq!(field(&path, "NAME=").as_deref(), Some("\"x y\""));
        assert_eq!(field(&path, "NONE="), None);
    }
}
