//! Which blocks of the region are plugged.

use std::ops::Range;

/// A set of blocks, by their numbers in the region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocks {
    words: Vec<u64>,
    count: u64,
    plugged: u64,
}

/// Whether the blocks of a range are plugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockState {
    /// All of them.
    Plugged,
    /// None.
    Unplugged,
    /// Some.
    Mixed,
}

impl Blocks {
    /// `count` blocks, none plugged.
    pub(super) fn new(count: u64) -> Self {
        let words = usize::try_from(count.div_ceil(64)).unwrap_or(usize::MAX);
        Self { words: vec![0; words], count, plugged: 0 }
    }

    /// How many are plugged.
    pub(super) fn plugged(&self) -> u64 {
        self.plugged
    }

    fn is_plugged(&self, block: u64) -> bool {
        let word = usize::try_from(block / 64).ok().and_then(|index| self.words.get(index));
        word.is_some_and(|word| word & 1 << (block % 64) != 0)
    }

    /// Of the blocks of a range, which is not empty.
    pub(super) fn state(&self, range: Range<u64>) -> BlockState {
        let mut blocks = range.map(|block| self.is_plugged(block));
        let first = blocks.next().unwrap_or(false);
        match (first, blocks.all(|plugged| plugged == first)) {
            (true, true) => BlockState::Plugged,
            (false, true) => BlockState::Unplugged,
            (_, false) => BlockState::Mixed,
        }
    }

    /// Plugs or unplugs the blocks of a range. Those beyond the region stay away.
    pub(super) fn set(&mut self, range: Range<u64>, plugged: bool) {
        for block in range.start..range.end.min(self.count) {
            if self.is_plugged(block) == plugged {
                continue;
            }
            if let Some(word) = usize::try_from(block / 64).ok().and_then(|index| self.words.get_mut(index)) {
                *word ^= 1 << (block % 64);
                self.plugged = if plugged { self.plugged + 1 } else { self.plugged - 1 };
            }
        }
    }

    /// The plugged blocks, as ranges that do not touch, ascending.
    pub(super) fn runs(&self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for block in (0..self.count).filter(|block| self.is_plugged(*block)) {
            match runs.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_of_numbers(changes in prop::collection::vec((0..150_u64, 0..80_u64, any::<bool>()), 0..40)) {
            let mut blocks = Blocks::new(130);
            let mut model = BTreeSet::new();
            for (start, len, plugged) in changes {
                blocks.set(start..start + len, plugged);
                for block in start..(start + len).min(130) {
                    if plugged { model.insert(block); } else { model.remove(&block); }
                }
                prop_assert_eq!(blocks.plugged(), model.len() as u64);
                let range = start..start + len.max(1);
                let inside = range.clone().filter(|block| model.contains(block)).count() as u64;
                let expected = match inside {
                    0 => BlockState::Unplugged,
                    all if all == range.end - range.start => BlockState::Plugged,
                    _ => BlockState::Mixed,
                };
                prop_assert_eq!(blocks.state(range), expected);
            }
            let listed: BTreeSet<u64> = blocks.runs().into_iter().flatten().collect();
            prop_assert_eq!(listed, model);
        }
    }
}
