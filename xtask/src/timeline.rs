//! The timeline of a creation, as `stockade run --timeline FILE` writes it: one JSON object a line.

use std::fmt::Write as _;

use serde::Deserialize;

/// The width of the chart, in characters.
const CHART: u64 = 40;

#[derive(Debug, Deserialize)]
struct Step {
    step: String,
    start_us: u64,
    /// None for a step that was under way when the creation ended.
    duration_us: Option<u64>,
}

impl Step {
    fn took_us(&self) -> u64 {
        self.duration_us.unwrap_or(0)
    }

    fn end_us(&self) -> u64 {
        self.start_us.saturating_add(self.took_us())
    }
}

/// The timeline as a table with a chart; lines that are no steps are left out. Empty when there is no step.
pub(crate) fn table(text: &str) -> String {
    let steps: Vec<Step> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let total = steps.iter().map(|step| step.end_us()).max().unwrap_or(0);
    let width = steps.iter().map(|step| step.step.chars().count()).max().unwrap_or(0).max("step".len());
    let mut output = String::new();
    if steps.is_empty() {
        return output;
    }
    // Writing to a string cannot fail.
    let _ = writeln!(output, "{:<width$}  {:>10}  {:>10}", "step", "start ms", "took ms");
    for step in &steps {
        let from = chart_column(step.start_us, total);
        let to = chart_column(step.end_us(), total).max(from + 1);
        let _ = writeln!(
            output,
            "{:<width$}  {:>10}  {:>10}  {}{}",
            step.step,
            milliseconds(step.start_us),
            milliseconds(step.took_us()),
            " ".repeat(from),
            "#".repeat(to - from),
        );
    }
    let _ = writeln!(output, "{:<width$}  {:>10}  {:>10}", "total", "", milliseconds(total));
    output
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:03}", microseconds / 1000, microseconds % 1000)
}

fn chart_column(at: u64, total: u64) -> usize {
    let column = u128::from(at) * u128::from(CHART) / u128::from(total.max(1));
    usize::try_from(column).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_shown_in_milliseconds_with_their_place_in_time() {
        let text = "{\"step\":\"load\",\"start_us\":0,\"duration_us\":500}\n\
                    {\"step\":\"boot\",\"start_us\":500,\"duration_us\":500}\n";
        let table = table(text);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], format!("load       0.000       0.500  {}", "#".repeat(20)));
        assert_eq!(lines[2], format!("boot       0.500       0.500  {}{}", " ".repeat(20), "#".repeat(20)));
        assert!(lines[3].ends_with("1.000"));
    }

    #[test]
    fn a_step_that_did_not_end_took_no_time() {
        let table = table("{\"step\":\"boot\",\"start_us\":0,\"duration_us\":null,\"ok\":false}\n");
        assert!(table.contains("boot       0.000       0.000"), "{table}");
    }

    #[test]
    fn text_without_steps_gives_no_table() {
        assert_eq!(table(""), "");
        assert_eq!(table("not json\n"), "");
    }
}
