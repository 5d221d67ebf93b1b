//! The tests of the suites: test programs say which they have.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::suites::Suite;

/// A test program that cargo made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestProgram {
    /// The package that it is of.
    pub package: String,
    /// Its name, or "" for the tests in a library or a program itself.
    pub target: String,
    /// The file.
    pub executable: PathBuf,
    /// The package's folder, in which tests run.
    pub directory: PathBuf,
}

/// One test.
#[derive(Clone, Debug)]
pub struct Test {
    /// Where it stands in the list.
    pub suite: &'static Suite,
    /// The program that has it.
    pub program: TestProgram,
    /// Its path in the program.
    pub name: String,
}

impl Test {
    /// As it is shown, and matched by filters: suite, package, program, and name.
    #[must_use]
    pub fn title(&self) -> String {
        let Self { suite, program, name } = self;
        let separator = if program.target.is_empty() { "" } else { "::" };
        format!("{} {}{separator}{} {name}", suite.name, program.package, program.target)
    }
}

/// Tests to run, and how many of the suites are not to be run.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// In the order of the list.
    pub tests: Vec<Test>,
    /// Marked as ignored in the source, not wanted by a filter, or not part of every run.
    pub skipped: u64,
}

/// The test programs among the messages of `cargo test --no-run --message-format=json`.
///
/// # Errors
/// When a message that should be one is not.
pub fn programs(messages: &str) -> Result<Vec<TestProgram>> {
    let mut programs = Vec::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("cannot read cargo's messages")?;
        let Some(executable) = message["executable"].as_str().filter(|_| message["profile"]["test"] == true) else {
            continue;
        };
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a message of cargo's lacks a field");
        let manifest = PathBuf::from(text(&message["manifest_path"])?);
        let directory = manifest.parent().context("a manifest is in no folder")?.to_owned();
        let is_test = message["target"]["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"));
        programs.push(TestProgram {
            package: package(&text(&message["package_id"])?),
            target: if is_test { text(&message["target"]["name"])? } else { String::new() },
            executable: executable.into(),
            directory,
        });
    }
    Ok(programs)
}

/// The name in a package id: "path+file:///a/b#name@1.0.0", or "path+file:///a/name#1.0.0" where the folder has it.
fn package(id: &str) -> String {
    let (place, rest) = id.rsplit_once('#').unwrap_or((id, ""));
    let name = rest.split_once('@').map_or_else(|| place.rsplit('/').next().unwrap_or_default(), |(name, _)| name);
    name.to_owned()
}

/// Whether a title contains a filter, or begins with what follows its `^`.
fn matches(title: &str, filter: &str) -> bool {
    filter.strip_prefix('^').map_or_else(|| title.contains(filter), |begin| title.starts_with(begin))
}

/// Lists the tests of `suites`: those whose titles contain one of `filters`, or begin with what follows a filter's `^`;
/// without filters, those of every run.
///
/// # Errors
/// When a suite has no test program, or one does not list its tests.
pub fn list<'a>(
    suites: impl IntoIterator<Item = &'static Suite>,
    programs: &'a [TestProgram],
    filters: &[String],
) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut seen = BTreeSet::new();
    for suite in suites {
        let of = |program: &&'a TestProgram| {
            program.package == suite.package && suite.target.is_none_or(|target| target == program.target)
        };
        let mut found = programs.iter().filter(of).peekable();
        if found.peek().is_none() {
            bail!("package {} has no test program {}", suite.package, suite.target.unwrap_or("at all"));
        }
        for program in found {
            let all = names(&program.executable, false)?;
            let ignored = names(&program.executable, true)?;
            for name in all.into_iter().filter(|name| name.starts_with(suite.prefix)) {
                let test = Test { suite, program: program.clone(), name };
                let title = test.title();
                if !seen.insert(title.clone()) {
                    continue;
                }
                let wanted = if filters.is_empty() {
                    suite.always
                } else {
                    filters.iter().any(|filter| matches(&title, filter))
                };
                if wanted && !ignored.contains(&test.name) {
                    listing.tests.push(test);
                } else {
                    listing.skipped += 1;
                }
            }
        }
    }
    Ok(listing)
}

fn names(executable: &Path, ignored: bool) -> Result<Vec<String>> {
    let mut command = Command::new(executable);
    command.args(["--list", "--format", "terse"]).args(ignored.then_some("--ignored")).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot run {}", executable.display()))?;
    if !output.status.success() {
        bail!("{} --list failed: {}", executable.display(), output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suites::SUITES;

    #[test]
    fn test_programs_are_found_among_cargos_messages() {
        let line = |kind: &str, name: &str, test: bool, id: &str| {
            serde_json::json!({"reason": "compiler-artifact", "package_id": id, "manifest_path": "/w/tests/Cargo.toml",
                "target": {"kind": [kind], "name": name}, "profile": {"test": test}, "executable": "/t/x-1"})
            .to_string()
        };
        let messages = [
            line("test", "life", true, "path+file:///w/tests#stockade-tests@0.1.0"),
            line("lib", "stockade", true, "path+file:///w/stockade#0.1.0"),
            line("bin", "stockade", false, "path+file:///w/stockade#0.1.0"),
            "not a message".to_owned(),
        ];
        let found = programs(&messages.join("\n")).unwrap();
        let names: Vec<_> = found.iter().map(|one| (one.package.as_str(), one.target.as_str())).collect();
        assert_eq!(names, [("stockade-tests", "life"), ("stockade", "")]);
        assert_eq!(found[0].directory, Path::new("/w/tests"));
    }

    #[test]
    fn a_filter_is_a_part_of_a_title_or_its_beginning() {
        let title = "qemu-kvm stockade-tests::many two_at_once";
        for (filter, wanted) in [("kvm", true), ("^kvm", false), ("^qemu-kvm stock", true), ("one", false)] {
            assert_eq!(matches(title, filter), wanted, "{filter}");
        }
    }

    #[test]
    fn this_programs_tests_are_listed_by_itself() {
        let names = names(&std::env::current_exe().unwrap(), false).unwrap();
        assert!(names.contains(&"listing::tests::this_programs_tests_are_listed_by_itself".to_owned()), "{names:?}");
    }

    const fn own(always: bool) -> Suite {
        Suite { package: "stockade-lab", target: Some(""), prefix: "listing::", always, ..SUITES[0] }
    }

    static OF_EVERY_RUN: [Suite; 2] = [Suite { prefix: "listing::tests::a_suite_without", ..own(true) }, own(false)];

    #[test]
    fn a_test_of_two_suites_is_listed_once_and_what_nobody_asked_for_is_skipped() {
        let program = TestProgram {
            package: "stockade-lab".into(),
            target: String::new(),
            executable: std::env::current_exe().unwrap(),
            directory: "/".into(),
        };
        let every_run = list(&OF_EVERY_RUN, std::slice::from_ref(&program), &[]).unwrap();
        let names: Vec<_> = every_run.tests.iter().map(|test| test.name.as_str()).collect();
        assert_eq!(names, ["listing::tests::a_suite_without_a_test_program_is_an_error_that_names_it"]);
        let by_name = list(&OF_EVERY_RUN, &[program], &["listing::".to_owned()]).unwrap();
        assert_eq!((by_name.tests.len() as u64, by_name.skipped), (1 + every_run.skipped, 0));
    }

    #[test]
    fn a_suite_without_a_test_program_is_an_error_that_names_it() {
        let error = list(&SUITES[..1], &[], &[]).unwrap_err().to_string();
        assert!(error.contains(SUITES[0].package), "{error}");
    }
}
