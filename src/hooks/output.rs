//! What a hook prints: the end of it is kept.

/// How much is kept, in bytes.
pub(super) const KEPT_BYTES: usize = 64 << 10;
/// How much of that an error shows, in bytes.
const SHOWN_BYTES: usize = 2 << 10;

/// The last [`KEPT_BYTES`] of a stream.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // Cutting only at twice the size keeps the copying in proportion to what is printed.
        if self.bytes.len() > 2 * KEPT_BYTES {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let beyond = self.bytes.len().saturating_sub(KEPT_BYTES);
        self.bytes.drain(..beyond);
    }

    /// All that is kept.
    pub(super) fn kept(&mut self) -> String {
        self.cut();
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The end of it in one line: lines are joined by `; `, other control characters left out.
    pub(super) fn line(&mut self) -> String {
        let kept = self.kept();
        let lines = kept.lines().map(str::trim).filter(|line| !line.is_empty());
        let mut line = lines.collect::<Vec<_>>().join("; ");
        line.retain(|letter| !letter.is_control());
        if line.len() > SHOWN_BYTES {
            let mut from = line.len() - SHOWN_BYTES;
            while !line.is_char_boundary(from) {
                from += 1;
            }
            line.replace_range(..from, "...");
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_long_output_is_kept() {
        let mut tail = Tail::default();
        for number in 0..100_000 {
            tail.push(format!("{number}\n").as_bytes());
            assert!(tail.bytes.len() <= 2 * KEPT_BYTES);
        }
        let kept = tail.kept();
        assert_eq!(kept.len(), KEPT_BYTES);
        assert!(kept.ends_with("99998\n99999\n"));
    }

    #[test]
    fn an_error_shows_one_line_of_bounded_length() {
        let mut tail = Tail::default();
        tail.push(b"one\r\n\n  two\x1b[0m\xff\n");
        assert_eq!(tail.line(), "one; two[0m\u{fffd}");
        tail.push("ü".repeat(SHOWN_BYTES).as_bytes());
        let line = tail.line();
        assert!(line.starts_with("...ü") && line.len() <= SHOWN_BYTES + 3, "{}", line.len());
    }
}
