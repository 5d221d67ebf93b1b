//! Runs steps: spans, times, cancellation, deadline, injected failures.

use super::{Timeline, UndoStack};
use crate::error::{ErrorKind, OpError};
use std::future::Future;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// What happens to a step when its pipeline is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abandon {
    /// Its future is dropped at the next await; what it wrote down is undone.
    AtOnce,
    /// It watches the token itself and is awaited: it has something to end in order (a hook's processes).
    Cooperatively,
}

/// One step of a pipeline. `Err` means that nothing is left but what the undo stack holds.
pub trait Step: Send {
    /// What it makes.
    type Output: Send;
    /// Its name in errors, logs, timelines and `--inject-failure`.
    const NAME: &'static str;
    /// How it is abandoned.
    const ABANDON: Abandon = Abandon::AtOnce;

    /// Does it.
    fn run(self, undo: &mut UndoStack) -> impl Future<Output = Result<Self::Output, OpError>> + Send;
}

/// A step that failed.
#[derive(Debug)]
pub struct StepFailure {
    /// The step's name.
    pub step: &'static str,
    /// Why.
    pub cause: OpError,
}

impl From<StepFailure> for OpError {
    fn from(failure: StepFailure) -> Self {
        failure.cause.within(format!("step {}", failure.step))
    }
}

/// Runs the steps of one creation.
#[derive(Debug, Clone)]
pub struct Runner {
    /// Cancels the creation: Kill, Delete, a vanished stand-in.
    pub cancel: CancellationToken,
    /// When the client stops waiting.
    pub deadline: Instant,
    /// When each step ran.
    pub timeline: Timeline,
    /// For tests: the step that fails once it is done.
    pub inject_failure: Option<String>,
}

impl Runner {
    /// Runs one step.
    ///
    /// # Errors
    /// The step's own, [`ErrorKind::Cancelled`], or [`ErrorKind::DeadlineExceeded`]; the caller unwinds.
    pub async fn run<S: Step>(&self, step: S, undo: &mut UndoStack) -> Result<S::Output, StepFailure> {
        let fail = |cause| StepFailure { step: S::NAME, cause };
        if self.cancel.is_cancelled() {
            return Err(fail(cancelled()));
        }
        if Instant::now() >= self.deadline {
            return Err(fail(late()));
        }
        let span = tracing::info_span!("step", name = S::NAME);
        self.timeline.enter(S::NAME);
        let result = self.bounded(step, undo).instrument(span.clone()).await;
        let result = match result {
            Ok(_) if self.inject_failure.as_deref() == Some(S::NAME) => {
                Err(OpError::new(ErrorKind::Internal, "failure injected by --inject-failure"))
            }
            other => other,
        };
        self.timeline.leave(result.is_ok());
        span.in_scope(|| match &result {
            Ok(_) => tracing::debug!("done"),
            Err(cause) => tracing::error!(error = cause.one_line(), "failed"),
        });
        result.map_err(fail)
    }

    /// The step comes before the timer: one that has nothing to wait for sets none, and setting one wakes another thread.
    async fn bounded<S: Step>(&self, step: S, undo: &mut UndoStack) -> Result<S::Output, OpError> {
        match S::ABANDON {
            Abandon::AtOnce => tokio::select! {
                biased;
                () = self.cancel.cancelled() => Err(cancelled()),
                result = step.run(undo) => result,
                () = tokio::time::sleep_until(self.deadline) => Err(late()),
            },
            Abandon::Cooperatively => {
                let work = step.run(undo);
                tokio::pin!(work);
                tokio::select! {
                    biased;
                    result = &mut work => if self.cancel.is_cancelled() { Err(cancelled()) } else { result },
                    () = tokio::time::sleep_until(self.deadline) => {
                        self.cancel.cancel();
                        let _ = work.await;
                        Err(late())
                    }
                }
            }
        }
    }
}

fn cancelled() -> OpError {
    OpError::new(ErrorKind::Cancelled, "cancelled: the container was killed or deleted while it was being created")
}

fn late() -> OpError {
    OpError::new(ErrorKind::DeadlineExceeded, "the time limit for the creation has passed")
}

#[cfg(test)]
mod tests {
    use super::super::SharedJournal;
    use super::*;
    use crate::state::Journal;
    use std::time::Duration;

    struct Forever;
    impl Step for Forever {
        type Output = ();
        const NAME: &'static str = "forever";
        async fn run(self, _: &mut UndoStack) -> Result<(), OpError> {
            std::future::pending().await
        }
    }

    struct Quick;
    impl Step for Quick {
        type Output = u8;
        const NAME: &'static str = "quick";
        async fn run(self, _: &mut UndoStack) -> Result<u8, OpError> {
            Ok(7)
        }
    }

    fn runner() -> Runner {
        Runner {
            cancel: CancellationToken::new(),
            deadline: Instant::now() + Duration::from_secs(3600),
            timeline: Timeline::begin(),
            inject_failure: None,
        }
    }

    fn stack() -> UndoStack {
        UndoStack::new(SharedJournal::new(Journal::new("/nonexistent/journal".into())))
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_never_ends_is_abandoned_when_the_deadline_passes() {
        let failure = runner().run(Forever, &mut stack()).await.unwrap_err();
        assert_eq!((failure.step, failure.cause.kind()), ("forever", ErrorKind::DeadlineExceeded));
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_deadline_no_step_is_begun() {
        let runner = Runner { deadline: Instant::now(), ..runner() };
        assert_eq!(runner.run(Quick, &mut stack()).await.unwrap_err().cause.kind(), ErrorKind::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_cancelled_pipeline_ends_its_step_and_starts_no_other() {
        let runner = runner();
        let cancel = runner.cancel.clone();
        let (result, ()) = tokio::join!(async { runner.run(Forever, &mut stack()).await }, async { cancel.cancel() });
        assert_eq!(result.unwrap_err().cause.kind(), ErrorKind::Cancelled);
        assert_eq!(runner.run(Quick, &mut stack()).await.unwrap_err().cause.kind(), ErrorKind::Cancelled);
    }

    #[tokio::test]
    async fn an_injected_failure_names_its_step_and_the_timeline_shows_it() {
        let runner = Runner { inject_failure: Some("quick".into()), ..runner() };
        assert_eq!(runner.run(Quick, &mut stack()).await.unwrap_err().step, "quick");
        assert_eq!(runner.timeline.entries()[0].ok, Some(false));
    }
}
