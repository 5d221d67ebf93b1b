//! What is said of outcomes: a line for each, all about a failure, and the sums.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::pool::Outcome;

/// Outcomes, added up.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, ran out of time or could not be run.
    pub failed: u64,
    /// Tests that were not to be run.
    pub skipped: u64,
    /// How often a lab host was lost and a test begun again.
    pub lost: u64,
    /// The failed tests' titles.
    pub failures: Vec<String>,
    tests: Vec<Value>,
}

impl Tally {
    /// Begins with so many tests that are not to be run.
    #[must_use]
    pub fn skipping(skipped: u64) -> Self {
        Self { skipped, ..Self::default() }
    }

    /// Counts an outcome and gives what is to be shown of it.
    pub fn add(&mut self, outcome: &Outcome) -> String {
        let mut text = String::new();
        let title = outcome.test.title();
        let seconds = outcome.took.as_secs_f64();
        // A String takes whatever is written.
        for how in &outcome.lost {
            let _ = writeln!(text, "    LAB LOST while it ran {title}: {how}");
        }
        self.lost += u64::try_from(outcome.lost.len()).unwrap_or(u64::MAX);
        match &outcome.failure {
            None => {
                self.passed += 1;
                let _ = writeln!(text, "        PASS [{seconds:>8.3}s] {title}");
            }
            Some(why) => {
                self.failed += 1;
                self.failures.push(title.clone());
                let _ = writeln!(text, "        FAIL [{seconds:>8.3}s] {title}: {why}");
                for line in outcome.output.lines() {
                    let _ = writeln!(text, "    {line}");
                }
            }
        }
        self.tests.push(json!({
            "name": title,
            "passed": outcome.failure.is_none(),
            "failure": outcome.failure,
            "seconds": seconds,
            "lost_lab_hosts": outcome.lost.len(),
        }));
        text
    }

    /// Adds another tally's numbers and tests.
    pub fn merge(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.lost += other.lost;
        self.failures.extend(other.failures);
        self.tests.extend(other.tests);
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "passed": self.passed,
            "failed": self.failed,
            "skipped": self.skipped,
            "lost_lab_hosts": self.lost,
            "tests": self.tests,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::listing::{Test, TestProgram};
    use crate::suites::SUITES;

    fn outcome(failure: Option<&str>, lost: &[&str]) -> Outcome {
        let program = TestProgram {
            package: "package".into(),
            target: "program".into(),
            executable: "/x".into(),
            directory: "/".into(),
        };
        Outcome {
            test: Test { suite: &SUITES[0], program, name: "a_test".into() },
            failure: failure.map(str::to_owned),
            took: Duration::from_secs(1),
            lost: lost.iter().map(|how| (*how).to_owned()).collect(),
            output: "what it said".into(),
        }
    }

    #[test]
    fn a_failure_is_shown_with_its_output_and_a_lost_host_whatever_came_after() {
        let mut tally = Tally::default();
        let passed = tally.add(&outcome(None, &["it died"]));
        assert!(passed.contains("LAB LOST") && passed.contains("it died") && passed.contains("PASS"), "{passed}");
        assert!(!passed.contains("what it said"));
        let failed = tally.add(&outcome(Some("exit status 101"), &[]));
        assert!(failed.contains("FAIL") && failed.contains("exit status 101"), "{failed}");
        assert!(failed.contains("what it said") && failed.contains("package::program a_test"), "{failed}");
        assert_eq!((tally.passed, tally.failed, tally.lost), (1, 1, 1));
        assert_eq!(tally.to_json()["tests"][1]["failure"], "exit status 101");
    }
}
