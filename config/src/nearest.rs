//! The nearest word to a mistyped one.

/// Longer words are not compared: nothing that we know is as long.
const LONGEST: usize = 64;

/// The one of `known` that needs the fewest single-character edits to become `word`, if those are few enough (a third
/// of the word, or two swapped letters in a short one) to be a slip of the keyboard. The first of equals wins.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(LONGEST + 1).collect();
    if word.len() > LONGEST {
        return None;
    }
    let most = (word.len() / 3).max(word.len().min(4) / 2);
    known
        .into_iter()
        .map(|candidate| (edits(&word, &candidate.chars().collect::<Vec<_>>()), candidate))
        .filter(|(edits, _)| *edits <= most)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions and substitutions between two words, with case and the choice of `-` or `_` worth nothing.
fn edits(left: &[char], right: &[char]) -> usize {
    let same = |a: char, b: char| fold(a) == fold(b);
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(!same(*a, *b));
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

fn fold(c: char) -> char {
    if c == '-' { '_' } else { c.to_ascii_lowercase() }
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_slip_of_the_keyboard_finds_its_word() {
        let known = ["default_memory", "default_vcpus", "kernel"];
        assert_eq!(nearest("defualt_memory", known), Some("default_memory"));
        assert_eq!(nearest("default-memory", known), Some("default_memory"));
        assert_eq!(nearest("qmeu", ["kvm", "qemu"]), Some("qemu"));
        assert_eq!(nearest("kernal", known), Some("kernel"));
    }

    #[test]
    fn a_word_like_none_finds_nothing() {
        assert_eq!(nearest("confidential_guest", ["kernel", "path"]), None);
        assert_eq!(nearest(&"x".repeat(100_000), ["kernel"]), None);
        assert_eq!(nearest("", ["kernel"]), None);
    }
}
