//! `cargo xtask bench`: the workspace's benchmarks, one after the other so that none disturbs another.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{build, command, setup};

/// Prepares everything and runs the benchmarks whose name contains `filter`.
pub(crate) fn run(filter: Option<&str>, arguments: &[String]) -> Result<ExitCode> {
    setup::install(setup::Purpose::Bench)?;
    let binaries = build::binaries()?;
    let guest = build::guest(&binaries, stockade_guest::GuestKind::Initrd)?;
    let text = command::output(command::cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cannot read cargo's metadata")?;
    let benches: Vec<(String, String)> =
        benches(&metadata).into_iter().filter(|(_, bench)| filter.is_none_or(|part| bench.contains(part))).collect();
    if benches.is_empty() {
        bail!(
            "the workspace has no benchmark{}",
            filter.map(|part| format!(" named like '{part}'")).unwrap_or_default()
        );
    }
    for (package, bench) in benches {
        command::run(
            command::cargo()
                .args(["bench", "--profile", "release", "--package", &package, "--bench", &bench, "--"])
                .args(arguments)
                .envs(build::test_environment(&binaries, &guest)?),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The package and the name of each benchmark.
fn benches(metadata: &Value) -> Vec<(String, String)> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for package in list(&metadata["packages"]) {
        for target in list(&package["targets"]) {
            if list(&target["kind"]).iter().any(|kind| kind == "bench")
                && let (Some(package), Some(name)) = (package["name"].as_str(), target["name"].as_str())
            {
                found.push((package.to_owned(), name.to_owned()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn benchmarks_are_found_among_a_packages_targets() {
        let metadata = json!({"packages": [{"name": "a", "targets": [
            {"kind": ["lib"], "name": "a"}, {"kind": ["bench"], "name": "creation"}]}]});
        assert_eq!(benches(&metadata), [("a".to_owned(), "creation".to_owned())]);
    }
}
