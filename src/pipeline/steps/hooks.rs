//! Step 5: prestart, then createRuntime hooks, inside the network namespace.

use crate::actors::hook::RunHooks;
use crate::actors::network::SandboxNetns;
use crate::actors::runtime::Ask;
use crate::error::OpError;
use crate::hooks::Phase;
use crate::oci::{OciState, Status};
use crate::pipeline::{Abandon, LiveUndo, Step, UndoStack};
use crate::state::UndoRecord;
use oci_spec::runtime::Hooks;
use tokio_util::sync::CancellationToken;

/// Runs them. The poststop hooks run when the container goes, also when this creation fails.
#[derive(Debug)]
pub struct CreationHooks {
    /// Runs hooks.
    pub runner: Ask<RunHooks>,
    /// The bundle's hooks.
    pub hooks: Option<Hooks>,
    /// What they read: status `creating`.
    pub state: OciState,
    /// Where they run.
    pub netns: SandboxNetns,
    /// Ends them.
    pub cancel: CancellationToken,
}

impl Step for CreationHooks {
    type Output = ();
    const NAME: &'static str = "hooks";
    const ABANDON: Abandon = Abandon::Cooperatively;

    async fn run(self, undo: &mut UndoStack) -> Result<(), OpError> {
        let Some(hooks) = self.hooks else { return Ok(()) };
        let poststop = hooks.poststop().clone().unwrap_or_default();
        if !poststop.is_empty() {
            let state = OciState { status: Status::Stopped, pid: None, ..self.state.clone() };
            let record = UndoRecord::PoststopHooks { hooks: poststop, state };
            let live = Poststop { runner: self.runner.clone(), record: record.clone(), netns: self.netns.clone() };
            undo.push_live(record, live)?;
        }
        #[allow(deprecated, reason = "the OCI runtime specification still has prestart hooks, and engines use them")]
        let prestart = hooks.prestart().clone().unwrap_or_default();
        let create_runtime = hooks.create_runtime().clone().unwrap_or_default();
        for (phase, hooks) in [(Phase::Prestart, prestart), (Phase::CreateRuntime, create_runtime)] {
            if hooks.is_empty() {
                continue;
            }
            let request = RunHooks {
                phase,
                hooks,
                state: self.state.clone(),
                netns: self.netns.descriptor.clone(),
                cancel: self.cancel.clone(),
            };
            self.runner.ask(request).await?;
        }
        Ok(())
    }
}

struct Poststop {
    runner: Ask<RunHooks>,
    record: UndoRecord,
    netns: SandboxNetns,
}

#[async_trait::async_trait]
impl LiveUndo for Poststop {
    async fn undo(self: Box<Self>) -> Result<(), OpError> {
        let UndoRecord::PoststopHooks { hooks, state } = self.record else { return Ok(()) };
        let request = RunHooks {
            phase: Phase::Poststop,
            hooks,
            state,
            netns: self.netns.descriptor,
            cancel: CancellationToken::new(),
        };
        // OCI runtime specification, life cycle: a poststop hook that fails is logged, and the deletion goes on.
        if let Err(error) = self.runner.ask(request).await {
            tracing::warn!(error = error.one_line(), "a poststop hook failed");
        }
        Ok(())
    }
}
