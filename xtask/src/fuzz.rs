//! `cargo xtask fuzz`: the property tests, each as long as there is time for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{command, setup};

/// As many cases as a test has by default: enough to see how fast it is.
const FIRST_CASES: u32 = 256;

/// A property test in a program of cargo's.
#[derive(Debug)]
struct Property {
    name: String,
    program: PathBuf,
    /// The package's folder: seeds of failures are written below it.
    folder: PathBuf,
}

/// Runs the property tests whose name contains `filter`, all together about so many minutes.
pub(crate) fn run(minutes: u32, filter: Option<&str>) -> Result<ExitCode> {
    setup::install(setup::Purpose::Build)?;
    let mut properties = properties()?;
    properties.retain(|property| filter.is_none_or(|part| property.name.contains(part)));
    if properties.is_empty() {
        bail!("there is no property test{}", filter.map(|part| format!(" named like '{part}'")).unwrap_or_default());
    }
    let share = Duration::from_secs(60) * minutes / u32::try_from(properties.len())?;
    let mut failed = Vec::new();
    for property in &properties {
        let begun = Instant::now();
        let mut passed = property.run(FIRST_CASES)?;
        let mut cases = FIRST_CASES;
        let more = more_cases(begun.elapsed(), share);
        if passed && more > 0 {
            passed = property.run(more)?;
            cases += more;
        }
        println!(
            "{:>6} {:>9} cases {:>5} s  {}",
            if passed { "ok" } else { "FAILED" },
            cases,
            begun.elapsed().as_secs(),
            property.name
        );
        if !passed {
            failed.push(property.name.as_str());
        }
    }
    println!("{} property tests, {} failed", properties.len(), failed.len());
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("the cases that failed are in the packages' proptest-regressions, and run first from now on: commit them");
    Ok(ExitCode::FAILURE)
}

impl Property {
    fn run(&self, cases: u32) -> Result<bool> {
        let output = Command::new(&self.program)
            .args(["--exact", &self.name])
            .current_dir(&self.folder)
            .env("PROPTEST_CASES", cases.to_string())
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start '{}'", self.program.display()))?;
        if !output.status.success() {
            print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        }
        Ok(output.status.success())
    }
}

/// How many cases fill the rest of `share`, when the first ones took so long.
fn more_cases(first: Duration, share: Duration) -> u32 {
    let rest = share.saturating_sub(first);
    let cases = u128::from(FIRST_CASES) * rest.as_micros() / first.as_micros().max(1);
    u32::try_from(cases).unwrap_or(u32::MAX)
}

/// Builds and lists the property tests of the workspace's libraries.
fn properties() -> Result<Vec<Property>> {
    let text = command::output(command::cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cannot read cargo's metadata")?;
    let mut names = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let (Some(name), Some(manifest)) = (package["name"].as_str(), package["manifest_path"].as_str()) else {
            continue;
        };
        let folder = Path::new(manifest).parent().context("a manifest is in no folder")?;
        let mut found = Vec::new();
        collect(&folder.join("src"), &mut found)?;
        if !found.is_empty() {
            names.insert(name.to_owned(), (folder.to_owned(), found));
        }
    }
    let mut build = command::cargo();
    build.args(["test", "--release", "--lib", "--no-run", "--message-format=json-render-diagnostics"]);
    for package in names.keys() {
        build.args(["--package", package]);
    }
    build.stderr(Stdio::inherit());
    let mut properties = Vec::new();
    for message in command::output(&mut build)?.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let (Some(program), Some(manifest)) = (message["executable"].as_str(), message["manifest_path"].as_str())
        else {
            continue;
        };
        let here = names.values().find(|(folder, _)| Path::new(manifest).parent() == Some(folder));
        let Some((folder, functions)) = here else { continue };
        let list = command::output(Command::new(program).args(["--list", "--format=terse"]).current_dir(folder))?;
        for name in list.lines().filter_map(|line| line.strip_suffix(": test")) {
            if functions.iter().any(|function| name.rsplit("::").next() == Some(function)) {
                let (name, program, folder) = (name.to_owned(), program.into(), folder.clone());
                properties.push(Property { name, program, folder });
            }
        }
    }
    Ok(properties)
}

/// Adds the names of the functions in `proptest!` blocks of the Rust files below `folder`.
fn collect(folder: &Path, names: &mut Vec<String>) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot read {}", folder.display()))?,
    };
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if path.is_dir() {
            collect(&path, names)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            names.extend(functions(&text));
        }
    }
    Ok(())
}

/// The functions in the `proptest!` blocks of a file that is formatted as rustfmt does it.
fn functions(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut end: Option<String> = None;
    for line in text.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if line.trim_end() == format!("{indent}proptest! {{") {
            end = Some(format!("{indent}}}"));
        } else if end.as_deref() == Some(line) {
            end = None;
        } else if end.is_some()
            && let Some((name, _)) = line.trim_start().strip_prefix("fn ").and_then(|rest| rest.split_once('('))
        {
            names.push(name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_functions_in_proptest_blocks_are_property_tests() {
        let text = "fn helper() {}\n\nmod tests {\n    proptest! {\n        #[test]\n        fn one(x in 0..1) {\n            \
                    call(x);\n        }\n\n        #[test]\n        fn two(\n            x in 0..1,\n        ) {\n        }\n    }\n\n    \
                    #[test]\n    fn three() {}\n}\n";
        assert_eq!(functions(text), ["one", "two"]);
    }

    #[test]
    fn the_rest_of_a_tests_time_is_filled_with_cases() {
        let second = Duration::from_secs(1);
        assert_eq!(more_cases(second, 11 * second), 2560);
        assert_eq!(more_cases(second, second), 0);
        assert_eq!(more_cases(2 * second, second), 0);
        assert_eq!(more_cases(Duration::ZERO, 5000 * second), 1_280_000_000_000_u64.try_into().unwrap_or(u32::MAX));
    }
}
