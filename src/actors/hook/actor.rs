//! The actix shell of the Hook actor; the work is in [`crate::hooks`].

use super::messages::RunHooks;
use crate::actors::runtime::{Envelope, Pending, spawned};
use crate::error::{ErrorKind, OpError};
use crate::hooks::run_hooks;
use actix::{Actor, Context, Handler};

/// Runs hooks.
#[derive(Debug, Default)]
pub struct HookActor;

impl Actor for HookActor {
    type Context = Context<Self>;
}

impl Handler<Envelope<RunHooks>> for HookActor {
    type Result = Pending<Self, RunHooks>;

    fn handle(&mut self, message: Envelope<RunHooks>, _: &mut Context<Self>) -> Self::Result {
        let RunHooks { phase, hooks, state, netns, cancel } = message.request;
        spawned::<_, RunHooks, _>(message.span, async move {
            use std::os::fd::AsFd;
            let netns = netns.as_ref().map(|descriptor| descriptor.as_fd());
            run_hooks(phase, &hooks, &state, netns, cancel)
                .await
                .map_err(|error| OpError::because(ErrorKind::Internal, format!("a {phase} hook failed"), error))
        })
    }
}
