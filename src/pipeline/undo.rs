//! The undo stack of one sandbox or container.

use crate::error::OpError;
use crate::state::{Journal, UndoRecord};
use std::sync::{Arc, Mutex, PoisonError};

/// The journal of a sandbox. Its own stack and those of its containers append to the one file, hence the lock; it is
/// held for one short write.
#[derive(Debug, Clone)]
pub struct SharedJournal(Arc<Mutex<Journal>>);

impl SharedJournal {
    /// Shares a journal.
    pub fn new(journal: Journal) -> Self {
        Self(Arc::new(Mutex::new(journal)))
    }

    fn with<T>(&self, action: impl FnOnce(&mut Journal) -> T) -> T {
        action(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes down how to undo what is about to be done, for an owner who undoes it himself. Answers with its number.
    ///
    /// # Errors
    /// The journal cannot be written: then do not do it.
    pub fn append(&self, record: UndoRecord) -> Result<u64, OpError> {
        let what = record.describe();
        self.with(|journal| journal.append(record))
            .map_err(|error| OpError::internal(format!("cannot write down how to {what}"), error))
    }

    /// Strikes out what is undone. A failure is logged: it may then be undone again, which is harmless.
    pub fn strike(&self, number: u64) {
        if let Err(error) = self.with(|journal| journal.strike(number)) {
            tracing::warn!(number, %error, "cannot strike it out of the journal");
        }
    }

    /// What is written down now, oldest first, in words.
    pub fn describe(&self) -> Vec<String> {
        self.with(|journal| journal.entries().iter().map(|entry| entry.record.describe()).collect())
    }
}

/// Undoing with what only the living supervisor has: the machine, the agent, a descriptor.
#[async_trait::async_trait]
pub trait LiveUndo: Send + Sync {
    /// Undoes it. May be called when the thing was begun but not finished. Has its own time limits: it returns.
    async fn undo(self: Box<Self>) -> Result<(), OpError>;
}

struct Entry {
    number: u64,
    record: UndoRecord,
    live: Option<Box<dyn LiveUndo>>,
}

/// What could not be undone.
#[derive(Debug)]
pub struct UndoFailure {
    /// What was to be undone.
    pub what: String,
    /// Why it failed.
    pub error: OpError,
}

/// How to undo what was done, newest first. Giving the stack away is the commit of a creation.
#[must_use = "what the stack holds stays on the host until it is unwound"]
pub struct UndoStack {
    journal: SharedJournal,
    entries: Vec<Entry>,
}

impl std::fmt::Debug for UndoStack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|entry| entry.record.describe())).finish()
    }
}

impl UndoStack {
    /// An empty stack on `journal`.
    pub fn new(journal: SharedJournal) -> Self {
        Self { journal, entries: Vec::new() }
    }

    /// Writes down how to undo what is about to be done.
    ///
    /// # Errors
    /// The journal cannot be written: then do not do it.
    pub fn push(&mut self, record: UndoRecord) -> Result<(), OpError> {
        self.push_entry(record, None)
    }

    /// As [`push`](Self::push), with the way that the living supervisor undoes it; `record` is what recovery does.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_live(&mut self, record: UndoRecord, live: impl LiveUndo + 'static) -> Result<(), OpError> {
        self.push_entry(record, Some(Box::new(live)))
    }

    fn push_entry(&mut self, record: UndoRecord, live: Option<Box<dyn LiveUndo>>) -> Result<(), OpError> {
        let number = self.journal.append(record.clone())?;
        self.entries.push(Entry { number, record, live });
        Ok(())
    }

    /// Undoes everything, newest first. An error stops nothing; what failed stays in the journal for recovery.
    pub async fn unwind(mut self) -> Vec<UndoFailure> {
        let mut failures = Vec::new();
        while let Some(Entry { number, record, live }) = self.entries.pop() {
            let what = record.describe();
            let result = match live {
                Some(live) => live.undo().await,
                None => perform(record).await,
            };
            match result {
                Ok(()) => {
                    tracing::debug!(what, "undone");
                    self.journal.strike(number);
                }
                Err(error) => {
                    tracing::error!(what, error = error.one_line(), "cannot undo");
                    failures.push(UndoFailure { what, error });
                }
            }
        }
        failures
    }
}

impl Drop for UndoStack {
    fn drop(&mut self) {
        if !self.entries.is_empty() {
            tracing::error!(left = ?self, "an undo stack was dropped; the journal still has its entries");
        }
    }
}

/// Performs a record on a thread that may block.
pub(super) async fn perform(record: UndoRecord) -> Result<(), OpError> {
    let what = format!("cannot {}", record.describe());
    // A mount is undone in microseconds, and the mount namespace of this thread is the supervisor's.
    if matches!(record, UndoRecord::Unmount { .. } | UndoRecord::RemoveFile { .. } | UndoRecord::Live { .. }) {
        return record.perform().map_err(|error| OpError::internal(what, error));
    }
    match tokio::task::spawn_blocking(move || record.perform()).await {
        Ok(result) => result.map_err(|error| OpError::internal(what, error)),
        Err(error) => Err(OpError::internal(what, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    struct Note(Arc<Mutex<Vec<&'static str>>>, &'static str, bool);

    #[async_trait::async_trait]
    impl LiveUndo for Note {
        async fn undo(self: Box<Self>) -> Result<(), OpError> {
            self.0.lock().unwrap().push(self.1);
            if self.2 { Ok(()) } else { Err(OpError::new(ErrorKind::Internal, "refused")) }
        }
    }

    #[tokio::test]
    async fn everything_is_undone_newest_first_and_an_error_stops_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.jsonl");
        let mut stack = UndoStack::new(SharedJournal::new(Journal::new(path.clone())));
        let order = Arc::new(Mutex::new(Vec::new()));
        for (name, ok) in [("first", true), ("second", false), ("third", true)] {
            let record = UndoRecord::Live { what: name.into() };
            stack.push_live(record, Note(order.clone(), name, ok)).unwrap();
        }
        assert_eq!(Journal::load(path.clone()).unwrap().entries().len(), 3);
        let failures = stack.unwind().await;
        assert_eq!(*order.lock().unwrap(), ["third", "second", "first"]);
        assert_eq!(failures.len(), 1);
        let left = Journal::load(path).unwrap();
        assert_eq!(left.entries().len(), 1);
        assert_eq!(left.entries()[0].record.describe(), "second");
    }
}
