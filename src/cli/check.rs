//! `stockade check`.

use super::globals::Context;
use super::table::{print, print_json};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use stockade_config::{Accelerator, Backend, Config, HypervisorChoice, MachineOptions};
use stockade_machine_process::probe::kvm_probe;

/// How guest files come to be.
const MAKE_GUEST: &str = "make them: stockade guest build";

/// Say what this host can do, for each backend, and what to install
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        let report = examine(context);
        if self.json {
            print_json(&report)?;
        } else {
            print(report.to_text().trim_end())?;
        }
        Ok(ExitCode::from(u8::from(!report.ok)))
    }
}

/// How a finding bears on running a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// As it should be.
    Good,
    /// A sandbox runs, but slower or with less.
    Limited,
    /// No sandbox runs.
    Bad,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    subject: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn good(subject: &'static str, found: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Good, found: found.into(), remedy: None }
    }

    fn limited(subject: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Limited, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn bad(subject: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Bad, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// One backend, or what all of them need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Section {
    name: &'static str,
    usable: bool,
    findings: Vec<Finding>,
}

impl Section {
    fn new(name: &'static str, findings: Vec<Finding>) -> Self {
        Self { name, usable: findings.iter().all(|finding| finding.verdict != Verdict::Bad), findings }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Report {
    /// Whether a sandbox can run.
    ok: bool,
    host: Section,
    backends: Vec<Section>,
    /// One sentence.
    conclusion: String,
}

impl Report {
    fn to_text(&self) -> String {
        let mut text = String::new();
        for section in std::iter::once(&self.host).chain(&self.backends) {
            // A String takes whatever is written.
            let _ = writeln!(text, "{}: {}", section.name, if section.usable { "usable" } else { "not usable" });
            for finding in &section.findings {
                let mark = match finding.verdict {
                    Verdict::Good => "ok",
                    Verdict::Limited => "limited",
                    Verdict::Bad => "missing",
                };
                let _ = writeln!(text, "  {mark:8} {}: {}", finding.subject, finding.found);
                if let Some(remedy) = &finding.remedy {
                    let _ = writeln!(text, "           -> {remedy}");
                }
            }
        }
        text.push_str(&self.conclusion);
        text
    }
}

fn examine(context: &Context) -> Report {
    let loaded = context.config();
    let mut host = vec![user(), control_groups(), tun()];
    let config = match loaded {
        Ok(loaded) => {
            let files: Vec<String> = loaded.files().map(|path| path.display().to_string()).collect();
            let found = if files.is_empty() { "built-in defaults".to_owned() } else { files.join(", ") };
            host.push(Finding::good("configuration", found));
            for (key, origin) in loaded.without_effect() {
                let found = format!("{key} ({origin}) is accepted but has no effect in this version");
                host.push(Finding::limited("configuration", found, "take it away, so that nobody relies on it"));
            }
            loaded.config
        }
        Err(error) => {
            host.push(Finding::bad(
                "configuration",
                format!("{error:#}"),
                "correct it; what follows is for the defaults",
            ));
            Config::default()
        }
    };
    let host = Section::new("host", host);
    let backends = vec![Section::new("kvm", kvm(&config)), Section::new("qemu", qemu(&config))];
    conclude(host, backends, config.runtime.hypervisor)
}

fn conclude(host: Section, backends: Vec<Section>, choice: HypervisorChoice) -> Report {
    let wanted = |section: &&Section| choice == HypervisorChoice::Auto || section.name == choice.as_str();
    // In the order of preference.
    let backend = backends.iter().filter(wanted).find(|section| section.usable);
    let ok = host.usable && backend.is_some();
    let conclusion = match backend {
        Some(backend) if host.usable => format!("Sandboxes run here, with the backend {}.", backend.name),
        Some(_) => "No sandbox runs here: see host.".to_owned(),
        None => format!("No sandbox runs here: [runtime] hypervisor = \"{choice}\" finds no usable backend."),
    };
    Report { ok, host, backends, conclusion }
}

fn user() -> Finding {
    if nix::unistd::geteuid().is_root() {
        Finding::good("user", "root")
    } else {
        Finding::bad("user", format!("user id {}", nix::unistd::geteuid()), "run as root")
    }
}

fn control_groups() -> Finding {
    match statfs("/sys/fs/cgroup") {
        Ok(fs) if fs.filesystem_type() == CGROUP2_SUPER_MAGIC => Finding::good("control groups", "version 2"),
        Ok(_) => Finding::limited(
            "control groups",
            "version 1, or both",
            "limits of the containers hold in the guest; for limits on the host boot with systemd.unified_cgroup_hierarchy=1",
        ),
        Err(error) => Finding::limited("control groups", format!("/sys/fs/cgroup: {error}"), "mount cgroup2 there"),
    }
}

fn tun() -> Finding {
    match std::fs::File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::good("network devices", "/dev/net/tun"),
        Err(error) => {
            let remedy = "containers have no network interface but loopback; load it: modprobe tun";
            Finding::limited("network devices", format!("/dev/net/tun: {error}"), remedy)
        }
    }
}

fn qemu(config: &Config) -> Vec<Finding> {
    let options = &config.hypervisor.qemu;
    let mut findings = Vec::new();
    let found = stockade_qemu::QemuOptions { binary: options.path.clone(), ..stockade_qemu::QemuOptions::default() };
    match found.find_binary() {
        Ok(path) => findings.push(match version_of(&path) {
            Ok(version) => Finding::good("program", format!("{} ({version})", path.display())),
            Err(error) => Finding::bad(
                "program",
                format!("{} does not run: {error}", path.display()),
                "install it: apt-get install qemu-system-x86",
            ),
        }),
        Err(error) => findings.push(Finding::bad(
            "program",
            error.to_string(),
            "apt-get install qemu-system-x86, or set [hypervisor.qemu] path",
        )),
    }
    findings.push(acceleration(options.accelerator));
    findings.extend(guest_files(config.machine(Backend::Qemu)));
    findings
}

fn acceleration(accelerator: Accelerator) -> Finding {
    if accelerator == Accelerator::Tcg {
        let remedy = "it is slow; where KVM works, set [hypervisor.qemu] accelerator = \"auto\"";
        return Finding::limited("acceleration", "emulation (tcg), as configured", remedy);
    }
    let probe = kvm_probe();
    if probe.usable {
        return Finding::good("acceleration", format!("KVM: {}", probe.reason));
    }
    if accelerator == Accelerator::Kvm {
        return Finding::bad(
            "acceleration",
            format!("[hypervisor.qemu] accelerator = \"kvm\", and {}", probe.reason),
            "set it to \"auto\" or \"tcg\"",
        );
    }
    Finding::limited(
        "acceleration",
        format!("emulation (tcg), for {}", probe.reason),
        "guests run some ten times slower than with KVM",
    )
}

fn version_of(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program).arg("--version").output()?;
    anyhow::ensure!(output.status.success(), "{}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(super::client::one_line(text.lines().next().unwrap_or_default()))
}

fn guest_files(machine: &MachineOptions) -> Vec<Finding> {
    let boot = match (&machine.image, &machine.initrd) {
        (Some(image), _) => Some(("guest image", image)),
        (None, Some(initrd)) => Some(("guest initrd", initrd)),
        (None, None) => None,
    };
    std::iter::once(("guest kernel", &machine.kernel))
        .chain(boot)
        .map(|(subject, path)| match std::fs::metadata(path) {
            Ok(data) if data.is_file() => {
                Finding::good(subject, format!("{} ({} KiB)", path.display(), data.len() / 1024))
            }
            Ok(_) => Finding::bad(subject, format!("{} is not a file", path.display()), MAKE_GUEST),
            Err(error) => Finding::bad(subject, format!("{}: {error}", path.display()), MAKE_GUEST),
        })
        .collect()
}

fn kvm(config: &Config) -> Vec<Finding> {
    let probe = kvm_probe();
    let monitor = if probe.usable {
        Finding::good("built-in monitor", probe.reason)
    } else {
        Finding::bad("built-in monitor", probe.reason, "use the backend qemu, which can emulate a processor")
    };
    let mut findings = vec![monitor];
    if config.hypervisor.kvm.disable_seccomp {
        let found = "[hypervisor.kvm] disable_seccomp: the monitor's system calls are not filtered";
        findings.push(Finding::limited("jail", found, "set it to false but for finding faults"));
    }
    findings.extend(guest_files(config.machine(Backend::Kvm)));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(name: &'static str, verdict: Verdict) -> Section {
        let finding = Finding { subject: "x", verdict, found: "y".into(), remedy: Some("do z".into()) };
        Section::new(name, vec![finding])
    }

    #[test]
    fn a_sandbox_runs_where_host_and_a_chosen_backend_are_usable() {
        use HypervisorChoice::{Auto, Kvm, Qemu};
        use Verdict::{Bad, Good, Limited};
        for (host, qemu, choice, ok) in [
            (Good, Good, Auto, true),
            (Limited, Limited, Qemu, true),
            (Bad, Good, Auto, false),
            (Good, Bad, Auto, false),
            (Good, Good, Kvm, false),
        ] {
            let backends = vec![section("qemu", qemu), section("kvm", Bad)];
            let report = conclude(section("host", host), backends, choice);
            assert_eq!(report.ok, ok, "{report:?}");
        }
    }

    #[test]
    fn the_report_in_words_names_each_finding_and_its_remedy() {
        let report =
            conclude(section("host", Verdict::Good), vec![section("qemu", Verdict::Bad)], HypervisorChoice::Auto);
        let text = report.to_text();
        assert!(
            text.contains("host: usable\n  ok       x: y\n") && text.contains("qemu: not usable\n  missing  x: y\n")
        );
        assert!(text.contains("-> do z") && text.ends_with('.'));
    }

    #[test]
    fn guest_files_that_are_not_there_are_named_with_what_to_do() {
        let machine = MachineOptions { kernel: "/nowhere/vmlinuz".into(), ..MachineOptions::default() };
        let finding = &guest_files(&machine)[0];
        assert_eq!(finding.verdict, Verdict::Bad);
        assert!(finding.found.contains("/nowhere/vmlinuz"));
    }
}
