//! All generic actix code: how requests travel, how they are traced, how an answer that takes time is given.
//!
//! House rules (each has bitten somebody): no handler blocks; long work runs in `tokio::spawn` and owns its undo
//! stack, because an actor's future is dropped when the actor stops; mailboxes bound nothing, so nobody floods them;
//! actors do not store their own address.

use crate::error::{ErrorKind, OpError};
use actix::fut::wrap_future;
use actix::{Actor, Addr, Context, Handler, Message, ResponseActFuture};
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Instant;
use tracing::Instrument;

/// A typed request: what is asked, and what a successful answer holds.
pub trait Request: Send + 'static {
    /// The successful answer.
    type Answer: Send + 'static;
    /// The name in spans and in `inspect`.
    const NAME: &'static str;
}

/// A request on its way to an actor.
#[derive(Debug)]
pub struct Envelope<R> {
    /// The request.
    pub request: R,
    /// The span that the asker was in.
    pub span: tracing::Span,
}

impl<R: Request> Message for Envelope<R> {
    type Result = Result<R::Answer, OpError>;
}

/// The answer of a handler that takes time.
pub type Pending<A, R> = ResponseActFuture<A, Result<<R as Request>::Answer, OpError>>;

/// What becomes the answer to a request.
type Answering<R> = BoxFuture<'static, Result<<R as Request>::Answer, OpError>>;

/// Something that answers requests of one kind: an actor, or in tests a function.
pub struct Ask<R: Request>(Arc<dyn Fn(R) -> Answering<R> + Send + Sync>);

impl<R: Request> Clone for Ask<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<R: Request> fmt::Debug for Ask<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ask<{}>", R::NAME)
    }
}

impl<R: Request> Ask<R> {
    /// Asks an actor.
    pub fn actor<A>(address: Addr<A>) -> Self
    where
        A: Actor<Context = Context<A>> + Handler<Envelope<R>>,
    {
        Self(Arc::new(move |request| {
            let address = address.clone();
            Box::pin(ask(address, request))
        }))
    }

    /// Asks a function.
    pub fn function<F>(function: impl Fn(R) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<R::Answer, OpError>> + Send + 'static,
    {
        Self(Arc::new(move |request| Box::pin(function(request))))
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The answer's own, or [`ErrorKind::Internal`] when the actor is gone.
    pub async fn ask(&self, request: R) -> Result<R::Answer, OpError> {
        (self.0)(request).await
    }
}

/// Asks an actor directly.
///
/// # Errors
/// As [`Ask::ask`].
pub async fn ask<A, R>(address: Addr<A>, request: R) -> Result<R::Answer, OpError>
where
    A: Actor<Context = Context<A>> + Handler<Envelope<R>>,
    R: Request,
{
    let span = tracing::info_span!("message", name = R::NAME);
    let begin = Instant::now();
    let sent = address.send(Envelope { request, span: span.clone() }).instrument(span).await;
    let answer = sent.unwrap_or_else(|_| Err(gone(R::NAME)));
    record(R::NAME, begin, answer.is_ok());
    answer
}

/// Tells an actor something without waiting. A message to an actor that is gone is logged, not lost silently.
pub fn tell<A, R>(address: &Addr<A>, request: R)
where
    A: Actor<Context = Context<A>> + Handler<Envelope<R>>,
    R: Request,
{
    let span = tracing::info_span!("message", name = R::NAME);
    if address.try_send(Envelope { request, span }).is_err() {
        tracing::debug!(message = R::NAME, "the actor that it was for is gone");
    }
}

fn gone(name: &str) -> OpError {
    OpError::new(ErrorKind::Internal, format!("{name}: the actor that answers it is gone"))
}

/// Gives an answer that takes time: runs `work` as a task of its own, which outlives the actor.
pub fn spawned<A, R, F>(span: tracing::Span, work: F) -> Pending<A, R>
where
    A: Actor<Context = Context<A>>,
    R: Request,
    F: Future<Output = Result<R::Answer, OpError>> + Send + 'static,
{
    let task = tokio::spawn(work.instrument(span));
    Box::pin(wrap_future(async move { task.await.unwrap_or_else(|_| Err(gone(R::NAME))) }))
}

/// Gives an answer at once.
pub fn now<A, R>(answer: Result<R::Answer, OpError>) -> Pending<A, R>
where
    A: Actor<Context = Context<A>>,
    R: Request,
{
    Box::pin(wrap_future(std::future::ready(answer)))
}

/// How often a message was asked and how long its answers took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct MessageTimes {
    /// Answers.
    pub count: u64,
    /// Answers that were errors.
    pub errors: u64,
    /// Sum, in microseconds.
    pub total_us: u64,
    /// The longest, in microseconds.
    pub max_us: u64,
}

/// Written by every ask of the process, read by `inspect`; hence the lock.
static TIMES: LazyLock<Mutex<BTreeMap<&'static str, MessageTimes>>> = LazyLock::new(Mutex::default);

fn record(name: &'static str, begin: Instant, ok: bool) {
    let took = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = times.entry(name).or_default();
    entry.count += 1;
    entry.errors += u64::from(!ok);
    entry.total_us = entry.total_us.saturating_add(took);
    entry.max_us = entry.max_us.max(took);
}

/// The times of all messages so far, by name.
pub fn message_times() -> BTreeMap<&'static str, MessageTimes> {
    TIMES.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
