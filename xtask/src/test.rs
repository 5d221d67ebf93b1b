//! `cargo xtask test`: every test of the workspace, with the count of them as the last line.

mod count;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use self::count::Count;
use crate::{build, command, lab, setup};

/// Prepares everything, runs the tests, those that need KVM on a host that has it, and prints "N passed, N failed,
/// N skipped" last. All counts are in build/tests.json too.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    setup::install(setup::Purpose::Test)?;
    let binaries = build::binaries()?;
    let guest = build::guest(&binaries, stockade_guest::GuestKind::Both)?;

    let mut tests = runner(arguments)?;
    tests.envs(build::test_environment(&binaries, &guest)?);
    let (passed, count) = watched(&mut tests)?;
    println!("this host: {count}");
    if !arguments.is_empty() {
        println!("with KVM: none, as arguments chose the tests (`cargo xtask lab` runs them)");
        println!("{count}");
        return Ok(if passed && count.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let tally = lab::tests(&binaries, &guest, &[])?;
    let with_kvm = Count { passed: tally.passed, failed: tally.failed, skipped: tally.skipped };
    let all = count + with_kvm;
    write_summary(&json!({
        "passed": all.passed, "failed": all.failed, "skipped": all.skipped,
        "this_host": {"passed": count.passed, "failed": count.failed, "skipped": count.skipped},
        "with_kvm": tally.to_json(),
    }))?;
    println!("with KVM: {with_kvm}");
    println!("{all}");
    Ok(if passed && all.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write_summary(summary: &Value) -> Result<()> {
    let path = command::build_dir().join("tests.json");
    let text = serde_json::to_string_pretty(summary).context("cannot write JSON")?;
    std::fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// nextest, which gives each test a process and a time limit; where it is not installed, cargo's own runner.
fn runner(arguments: &[String]) -> Result<Command> {
    let mut command = command::cargo();
    if command::output(command::cargo().args(["nextest", "--version"])).is_ok() {
        command.args(["nextest", "run", "--release", "--workspace"]).args(arguments);
        return Ok(command);
    }
    eprintln!("cargo-nextest is not installed: using cargo test");
    command.args(["test", "--release", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests"]).args(arguments);
    // As .config/nextest.toml has it for tests with virtual machines.
    command.env("RUST_TEST_THREADS", "2");
    Ok(command)
}

/// Runs the tests, passes their output on as it comes, and adds up the counts in it.
fn watched(command: &mut Command) -> Result<(bool, Count)> {
    // nextest reports on stderr and cargo on stdout: one pipe takes both, in the order in which they were written.
    let (reader, writer) = std::io::pipe().context("cannot create a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone().context("cannot copy a pipe's end")?).stderr(writer);
    let mut child = command.spawn().context("cannot start the test runner")?;
    // The command still holds the pipe's writing ends; the output ends only when they are closed.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut count = Count::default();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut stdout = std::io::stdout().lock();
    while reader.read_until(b'\n', &mut line).context("cannot read the tests' output")? > 0 {
        stdout.write_all(&line).and_then(|()| stdout.flush()).context("cannot pass on the tests' output")?;
        count.add_line(&String::from_utf8_lossy(&line));
        line.clear();
    }
    drop(stdout);
    let status = child.wait().context("cannot wait for the test runner")?;
    Ok((status.success(), count))
}
