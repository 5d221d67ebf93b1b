//! Reading the text format. What is read may come from a guest, so nothing is believed: a line is a sample of a name and
//! with labels that the format allows, or it is left out; and there is an end to how much is read.

use super::{Families, Kind, written};
use std::collections::BTreeMap;

/// The longest text that is read, in bytes.
const MAX_TEXT: usize = 1 << 20;
/// The most samples that are taken.
const MAX_SAMPLES: usize = 10_000;
/// The longest line, in bytes.
const MAX_LINE: usize = 1024;

/// Reads `text`; samples get `labels` before their own. Names that `wanted` does not want are left out.
pub(super) fn read(text: &str, labels: &[(&str, &str)], wanted: impl Fn(&str) -> bool) -> Families {
    let mut families = Families::default();
    let mut kinds = BTreeMap::new();
    let mut helps = BTreeMap::new();
    let before = written(labels);
    let mut count = 0;
    let end = (0..=text.len().min(MAX_TEXT)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    for line in text.get(..end).unwrap_or_default().lines().filter(|line| line.len() <= MAX_LINE) {
        if let Some(comment) = line.strip_prefix("# ") {
            match comment.splitn(3, ' ').collect::<Vec<_>>()[..] {
                ["TYPE", name, "counter"] => _ = kinds.insert(name, Kind::Counter),
                ["HELP", name, help] if !help.contains(char::is_control) => _ = helps.insert(name, help),
                _ => {}
            }
            continue;
        }
        let Some((name, own, value)) = sample(line).filter(|(name, ..)| wanted(name)) else { continue };
        if count == MAX_SAMPLES {
            break;
        }
        count += 1;
        let separator = if before.is_empty() || own.is_empty() { "" } else { "," };
        let kind = kinds.get(name).copied().unwrap_or(Kind::Gauge);
        let help = helps.get(name).copied().unwrap_or_default();
        families.push(name, kind, help, format!("{before}{separator}{own}"), value);
    }
    families
}

/// Name, labels without their braces, value.
fn sample(line: &str) -> Option<(&str, &str, f64)> {
    let (name, labels, value) = match line.split_once('{') {
        Some((name, rest)) => {
            let end = rest.rfind('}')?;
            (name, rest.get(..end)?, rest.get(end + 1..)?.strip_prefix(' ')?)
        }
        None => {
            let (name, value) = line.split_once(' ')?;
            (name, "", value)
        }
    };
    let value = value.parse::<f64>().ok()?;
    (is_name(name) && are_labels(labels)).then_some((name, labels, value))
}

fn is_name(text: &str) -> bool {
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `key="value",...`; a value has its quotes and backslashes escaped.
fn are_labels(mut text: &str) -> bool {
    while !text.is_empty() {
        let Some((key, rest)) = text.split_once("=\"") else { return false };
        let mut escaped = false;
        let end = rest.char_indices().find(|(_, c)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        let Some((value, rest)) = end.and_then(|(end, _)| Some((rest.get(..end)?, rest.get(end + 1..)?))) else {
            return false;
        };
        if !is_name(key) || value.contains(char::is_control) {
            return false;
        }
        text = match rest.strip_prefix(',') {
            Some(more) if !more.is_empty() => more,
            None if rest.is_empty() => "",
            _ => return false,
        };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text_of(text: &str) -> String {
        Families::of_guest(text, &[("sandbox", "s")]).text()
    }

    #[test]
    fn a_guests_samples_get_its_sandboxs_label_and_keep_their_own() {
        let text = "# HELP stockade_guest_x X.\n# TYPE stockade_guest_x counter\nstockade_guest_x{a=\"b\"} 1\n\
                    stockade_agent_y 2e3\n";
        assert_eq!(
            text_of(text),
            "# TYPE stockade_agent_y gauge\nstockade_agent_y{sandbox=\"s\"} 2000\n# HELP stockade_guest_x X.\n\
             # TYPE stockade_guest_x counter\nstockade_guest_x{sandbox=\"s\",a=\"b\"} 1\n"
        );
    }

    #[test]
    fn what_a_guest_must_not_say_is_left_out() {
        for line in [
            "stockade_vmm_resident_bytes 1",
            "stockade_guest_x{a=\"b\"} 1 2",
            "stockade_guest_x{a=\"b} 1",
            "stockade_guest_x{a=\"b\",} 1",
            "stockade_guest_x{=\"b\"} 1",
            "stockade_guest_x{a=\"\u{1b}[2J\"} 1",
            "stockade_guest_x{} {} 1",
            "stockade_guest_x one",
            "stockade_guest_x",
            "",
        ] {
            assert_eq!(text_of(line), "", "{line}");
        }
        assert_eq!(text_of(&format!("stockade_guest_x{{a=\"{}\"}} 1", "y".repeat(MAX_LINE))), "");
        let many = "stockade_guest_x 1\n".repeat(MAX_SAMPLES + 5);
        assert_eq!(text_of(&many).lines().count(), MAX_SAMPLES + 1);
    }

    proptest! {
        #[test]
        fn whatever_a_guest_says_each_line_is_of_the_format(text in "[\\PC\n\"\\\\{}=, #a-z_0-9]{0,200}") {
            let text = format!("stockade_guest_{text}");
            for line in text_of(&text).lines().filter(|line| !line.starts_with('#')) {
                prop_assert!(sample(line).is_some(), "{line}");
                prop_assert!(line.contains("sandbox=\"s\""));
            }
        }
    }
}
