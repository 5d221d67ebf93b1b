//! `cargo xtask lab`: the tests that need KVM, and any command, on a host that has it (see docs/testing.md).

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;
use stockade_guest::GuestAssets;
use stockade_lab::assets::Assets;
use stockade_lab::listing::{self, Listing};
use stockade_lab::machine::{LabHost, Options};
use stockade_lab::pool::{self, Here, Host as _, Labs, Place};
use stockade_lab::report::Tally;
use stockade_lab::suites::{Need, SUITES, Suite};
use stockade_lab::wire::{End, Job};

use crate::build::Binaries;
use crate::{build, command, setup};

/// All tests of one place together, as part of every run; what is not begun by then counts as failed.
const LIMIT: Duration = Duration::from_secs(40 * 60);
/// The same for tests that were asked for.
const ASKED_LIMIT: Duration = Duration::from_secs(10 * 60 * 60);
/// How many times longer a test's deadlines are in a lab host.
const SLOWNESS: &str = "8";
/// MiB that a lab host gets where there is enough, and the least that is of use.
const MEMORY: u64 = 4096;
const LEAST_MEMORY: u64 = 1536;

#[derive(Debug, Args)]
pub(crate) struct LabArgs {
    /// Only tests whose "suite package::program name" contains one of these, or begins with what follows its ^
    filters: Vec<String>,
    /// Run this one command in a lab host, whatever this host's KVM can do, instead of tests
    #[arg(last = true)]
    command: Vec<String>,
    /// For the command: one processor whose clock counts instructions, one a nanosecond, so that times repeat
    #[arg(long)]
    count: bool,
    /// For the command: the lab host's processors
    #[arg(long, default_value_t = 1)]
    processors: u32,
    /// For the command: seconds until it is killed
    #[arg(long, default_value_t = 600)]
    limit: u64,
}

/// Runs the tests, or the command.
pub(crate) fn run(arguments: &LabArgs) -> Result<ExitCode> {
    setup::install(setup::Purpose::Test)?;
    let binaries = build::binaries()?;
    let guest = build::guest(&binaries, stockade_guest::GuestKind::Both)?;
    if !arguments.command.is_empty() {
        return run_command(arguments, &binaries, &guest);
    }
    let tally = tests(&binaries, &guest, &arguments.filters)?;
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
    if tally.passed + tally.failed == 0 {
        bail!("no test is named like {}", arguments.filters.join(" or "));
    }
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the suites: here where this host has what they need, else in lab hosts. Says how many of each passed.
pub(crate) fn tests(binaries: &Binaries, guest: &GuestAssets, filters: &[String]) -> Result<Tally> {
    let kvm = kvm(binaries)?;
    let here = |need: Need| match need {
        Need::Kvm => kvm.is_ok(),
        Need::ControlGroups2 => has_control_groups_2(),
        Need::LinkKinds => has_all_link_kinds(),
    };
    let programs = programs()?;
    // What needs control groups of version 2 alone, or kinds of links, is among the other tests; where they are, it has
    // run with those.
    let (mut on_host, mut in_lab): (Vec<&Suite>, Vec<&Suite>) = (Vec::new(), Vec::new());
    for suite in SUITES {
        match (here(suite.need), suite.need) {
            (true, Need::Kvm) => on_host.push(suite),
            (true, Need::ControlGroups2 | Need::LinkKinds) => {}
            (false, _) => in_lab.push(suite),
        }
    }
    let environment = build::test_environment(binaries, guest)?;
    let limit = if filters.is_empty() { LIMIT } else { ASKED_LIMIT };
    let mut tally = Tally::default();
    let listing = listing::list(on_host, &programs, filters)?;
    if !listing.tests.is_empty() {
        eprintln!("{} tests with KVM run on this host", listing.tests.len());
    }
    tally.merge(run_tests(&Here, listing, &environment, limit));

    let listing = listing::list(in_lab, &programs, filters)?;
    if listing.tests.is_empty() {
        tally.skipped += listing.skipped;
    } else {
        let labs = labs(binaries)?;
        let why = kvm.err().unwrap_or_else(|| "control groups are not of version 2 alone".to_owned());
        eprintln!("{} tests run in {} lab hosts, as here {why}", listing.tests.len(), labs.width());
        let slow = ("STOCKADE_TEST_SLOWNESS".to_owned(), SLOWNESS.to_owned());
        let all_links = ("STOCKADE_TEST_ALL_LINK_KINDS".to_owned(), "1".to_owned());
        let environment = environment.into_iter().chain([slow, all_links]).collect();
        tally.merge(run_tests(&labs, listing, &environment, limit));
    }
    if tally.lost > 0 {
        eprintln!(
            "lab hosts were lost {} times; the tests that they ran were begun again (see LAB LOST above)",
            tally.lost
        );
    }
    Ok(tally)
}

fn run_tests(place: &dyn Place, listing: Listing, environment: &BTreeMap<String, String>, limit: Duration) -> Tally {
    let mut tally = Tally::skipping(listing.skipped);
    pool::run(place, listing.tests, environment, limit, |outcome| {
        let text = tally.add(&outcome);
        print!("{text}");
        let _shown = std::io::stdout().flush();
    });
    for title in &tally.failures {
        println!("        FAIL {title}");
    }
    tally
}

/// Whether this host's kernel has each kind of link, tried in a network namespace that goes at once.
fn has_all_link_kinds() -> bool {
    let script = "ip link add a type veth peer name b && ip link add c link a type ipvlan && ip link add d link b type vlan id 5";
    let tried = Command::new("unshare").args(["--net", "sh", "-c", script]).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// Whether this host's KVM runs stock guests; if not, why.
fn kvm(binaries: &Binaries) -> Result<Result<(), String>> {
    let folder = folder();
    let config = folder.join("empty.toml");
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&config, ""))
        .with_context(|| format!("cannot write {}", config.display()))?;
    let mut check = Command::new(&binaries.stockade);
    check.arg("--config").arg(&config).args(["check", "--json"]);
    // Its status says whether sandboxes run at all, which is not the question.
    let output = check.output().with_context(|| format!("cannot run {}", binaries.stockade.display()))?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("stockade check: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
    acceleration(&report).context("stockade check says nothing about acceleration")
}

fn acceleration(report: &Value) -> Option<Result<(), String>> {
    let qemu = report["backends"].as_array()?.iter().find(|section| section["name"] == "qemu")?;
    let finding = qemu["findings"].as_array()?.iter().find(|finding| finding["subject"] == "acceleration")?;
    let found = finding["found"].as_str()?.to_owned();
    Some(if finding["verdict"] == "good" { Ok(()) } else { Err(found) })
}

/// cgroup2 is mounted at the place itself, not beside the hierarchies of version 1.
fn has_control_groups_2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Builds the test programs and lists them.
fn programs() -> Result<Vec<listing::TestProgram>> {
    let mut build = command::cargo();
    build.args(["test", "--release", "--workspace", "--no-run", "--lib", "--bins", "--tests"]);
    // The messages go to stdout, the progress to stderr.
    build.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    listing::programs(&command::output(&mut build)?)
}

fn folder() -> PathBuf {
    command::build_dir().join("lab")
}

fn assets(binaries: &Binaries) -> Result<Assets> {
    let cache = command::build_dir().join("cache");
    let make = || Assets::make(&folder(), &cache, &binaries.lab_init);
    make().or_else(|error| {
        // apt's lists may be missing or name files that the archive has replaced since.
        eprintln!("lab: {error:#}; fetching apt's lists and trying again");
        setup::update()?;
        make()
    })
}

/// A lab host for each processor of this one.
fn labs(binaries: &Binaries) -> Result<Labs> {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = memory(u64::try_from(count)?)?;
    let options = (1..=count).map(|number| Options {
        memory,
        processors: 1,
        count: false,
        out: folder().join("out"),
        logs: folder().join(format!("host-{number}")),
    });
    Ok(Labs { assets: assets(binaries)?, options: options.collect() })
}

/// MiB for each of `count` lab hosts: no more than two thirds of what is available.
fn memory(count: u64) -> Result<u32> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let available = available(&text).context("/proc/meminfo does not say how much memory is available")?;
    let each = available * 2 / 3 / count;
    if each < LEAST_MEMORY {
        bail!("{count} lab hosts need {LEAST_MEMORY} MiB each, and only {available} MiB are available");
    }
    Ok(u32::try_from(each.min(MEMORY))?)
}

/// In MiB.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib / 1024)
}

/// Runs one command in a lab host, in the repository; its output and status are this program's.
fn run_command(arguments: &LabArgs, binaries: &Binaries, guest: &GuestAssets) -> Result<ExitCode> {
    let options = Options {
        memory: memory(1)?,
        processors: arguments.processors,
        count: arguments.count,
        out: folder().join("out"),
        logs: folder().join("host-command"),
    };
    let mut host = LabHost::boot(&assets(binaries)?, &options)?;
    let job = Job {
        id: 0,
        command: arguments.command.clone(),
        environment: build::test_environment(binaries, guest)?,
        directory: command::repository().to_owned(),
        limit: arguments.limit.saturating_mul(1000),
    };
    let mut show = |text: &str| {
        let mut stdout = std::io::stdout().lock();
        // Whoever reads may have gone; the command's status still counts.
        let _shown = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    };
    match host.run(&job, &mut show) {
        Ok(End::Exited(status)) => Ok(ExitCode::from(u8::try_from(status)?)),
        Ok(End::Signalled(signal)) => bail!("the command ended by signal {signal}"),
        Ok(End::TimedOut) => bail!("the command did not end within {} s (--limit)", arguments.limit),
        Ok(End::NotStarted(why)) => bail!("the command could not be started: {why}"),
        Err(lost) => bail!("the lab host was lost: {}", lost.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_check_says_whether_kvm_works_and_why_not() {
        let report = |verdict: &str| {
            json!({"backends": [{"name": "qemu", "findings": [
                {"subject": "program", "verdict": "good", "found": "x"},
                {"subject": "acceleration", "verdict": verdict, "found": "words"}]}]})
        };
        assert_eq!(acceleration(&report("good")), Some(Ok(())));
        assert_eq!(acceleration(&report("limited")), Some(Err("words".to_owned())));
        assert_eq!(acceleration(&json!({})), None);
    }

    #[test]
    fn available_memory_is_read_in_mib() {
        assert_eq!(available("MemTotal: 1 kB\nMemAvailable:   2097152 kB\n"), Some(2048));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }
}
