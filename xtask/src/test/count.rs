//! Counts of tests, read from what cargo-nextest and cargo test print.

use std::fmt;
use std::ops::Add;

/// How many tests passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Count {
    /// Adds what a line reports, if it is a runner's summary: nextest's one line for all tests, or cargo's one for each
    /// program. (nextest shows the output of a test that fails, cargo's line in it, indented; the test may pass when it
    /// is run again.)
    pub(crate) fn add_line(&mut self, line: &str) {
        let Some(counts) = nextest_summary(line.trim()).or_else(|| line.strip_prefix("test result:")) else {
            return;
        };
        for (number, word) in pairs(counts) {
            match word {
                "passed" => self.passed += number,
                "failed" | "timed" => self.failed += number,
                "skipped" | "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }
}

impl Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// "Summary [ 1.2s] 3/3 tests run: 2 passed (1 slow), 1 failed, 1 timed out, 4 skipped" -> what follows "run:".
fn nextest_summary(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("Summary [")?;
    rest.split_once("run:").map(|(_, counts)| counts)
}

/// Each number with the word that follows it, but for those in parentheses, which are parts of another number.
fn pairs(counts: &str) -> impl Iterator<Item = (u64, &str)> {
    counts.split([',', ';']).flat_map(|part| {
        let part = part.split('(').next().unwrap_or_default();
        let words: Vec<&str> = part.split_whitespace().collect();
        words.windows(2).filter_map(|pair| Some((pair[0].parse().ok()?, pair[1]))).collect::<Vec<_>>()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(lines: &[&str]) -> Count {
        let mut count = Count::default();
        for line in lines {
            count.add_line(line);
        }
        count
    }

    #[test]
    fn nextests_summary_is_read_with_slow_and_timed_out_tests() {
        let line =
            "     Summary [   1.234s] 7/9 tests run: 4 passed (2 slow, 1 leaky), 2 failed, 1 timed out, 3 skipped\n";
        assert_eq!(count(&[line]), Count { passed: 4, failed: 3, skipped: 3 });
    }

    #[test]
    fn cargos_results_are_added_up() {
        let first = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let second = "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(count(&[first, second]), Count { passed: 7, failed: 1, skipped: 1 });
    }

    #[test]
    fn other_lines_count_nothing() {
        // The last is what a test wrote that failed at first.
        let lines = ["3 passed", "test a ... ok", "", "    test result: FAILED. 0 passed; 1 failed; 0 ignored"];
        assert_eq!(count(&lines), Count::default());
    }

    #[test]
    fn the_closing_line_has_all_three_numbers() {
        assert_eq!(Count { passed: 1, failed: 2, skipped: 3 }.to_string(), "1 passed, 2 failed, 3 skipped");
    }
}
