//! Step 4: the network namespace, before the machine, whose processes run in it. The kernel needs about a millisecond
//! for one, so it is begun first, and the control group is made meanwhile.

use crate::actors::network::{NetworkOptions, PrepareNetns, ReleaseNetns, SandboxNetns};
use crate::actors::runtime::Ask;
use crate::error::OpError;
use crate::pipeline::{LiveUndo, Step, UndoStack};
use crate::state::UndoRecord;
use futures::future::{BoxFuture, FutureExt as _};
use std::path::PathBuf;
use std::task::Poll;

/// Joins the namespace that the spec names, or creates one.
#[derive(Debug)]
pub struct PrepareNamespace {
    /// Prepares it.
    pub prepare: Ask<PrepareNetns>,
    /// Lets go of it.
    pub release: Ask<ReleaseNetns>,
    /// The path in the spec.
    pub path: Option<PathBuf>,
    /// The stand-in, which has made one where none is named.
    pub stand_in: Option<i32>,
    /// How its interfaces are connected.
    pub options: NetworkOptions,
}

/// A namespace that is being made.
pub struct NamespaceReady(BoxFuture<'static, Result<SandboxNetns, OpError>>);

impl std::fmt::Debug for NamespaceReady {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamespaceReady").finish_non_exhaustive()
    }
}

impl Step for PrepareNamespace {
    type Output = NamespaceReady;
    const NAME: &'static str = "begin-network-namespace";

    async fn run(self, undo: &mut UndoStack) -> Result<NamespaceReady, OpError> {
        let record = UndoRecord::Live { what: "release the network namespace".into() };
        undo.push_live(record, Release(self.release))?;
        let request = PrepareNetns { path: self.path, stand_in: self.stand_in, options: self.options };
        let mut asked = async move { self.prepare.ask(request).await }.boxed();
        // The first poll sends the request: the actor is at work, and a release is behind it in its mailbox.
        match futures::poll!(&mut asked) {
            Poll::Ready(answer) => Ok(NamespaceReady(std::future::ready(answer).boxed())),
            Poll::Pending => Ok(NamespaceReady(asked)),
        }
    }
}

impl Step for NamespaceReady {
    type Output = SandboxNetns;
    const NAME: &'static str = "network-namespace";

    async fn run(self, _: &mut UndoStack) -> Result<SandboxNetns, OpError> {
        self.0.await
    }
}

struct Release(Ask<ReleaseNetns>);

#[async_trait::async_trait]
impl LiveUndo for Release {
    async fn undo(self: Box<Self>) -> Result<(), OpError> {
        self.0.ask(ReleaseNetns).await
    }
}
