//! The actix shell and the logic of the Network actor.

use super::messages::{PrepareNetns, ReleaseNetns, SandboxNetns};
use crate::actors::runtime::{Envelope, Pending, now};
use crate::error::{ErrorKind, OpError};
use crate::network::{NetnsError, NetworkNamespace};
use actix::{Actor, Context, Handler};
use std::thread::JoinHandle;

/// Owns the sandbox's network namespace.
#[derive(Debug)]
pub struct NetworkActor {
    /// `[runtime] disable_new_netns`: the machine runs in the supervisor's namespace and gets no interface.
    disabled: bool,
    /// One that is being made before anybody has asked for it.
    ahead: Option<JoinHandle<Result<NetworkNamespace, NetnsError>>>,
    held: Option<SandboxNetns>,
}

impl NetworkActor {
    /// An actor that holds nothing. `ahead`: a namespace will be asked for that does not exist; it is made at once, since
    /// the kernel needs more than a millisecond for one.
    pub fn new(disabled: bool, ahead: bool) -> Self {
        let ahead = (ahead && !disabled).then(|| std::thread::spawn(NetworkNamespace::create));
        Self { disabled, ahead, held: None }
    }

    /// Opening a namespace takes microseconds; a thread of its own makes one and ends.
    fn prepare(&mut self, request: PrepareNetns) -> Result<SandboxNetns, OpError> {
        if self.held.is_some() {
            return Err(OpError::new(ErrorKind::FailedPrecondition, "the sandbox has a network namespace already"));
        }
        let path = request.path.filter(|path| !path.as_os_str().is_empty());
        let failed = |error| OpError::because(ErrorKind::InvalidArgument, "cannot prepare the network namespace", error);
        let netns = match path {
            _ if self.disabled => SandboxNetns { descriptor: None, ours: false },
            Some(path) => {
                let joined = NetworkNamespace::join(&path).map_err(failed)?;
                SandboxNetns { descriptor: Some(joined.into_shared()), ours: false }
            }
            None => {
                let ahead = self.ahead.take().map(JoinHandle::join);
                let created = ahead.unwrap_or_else(|| Ok(NetworkNamespace::create()));
                let created = created.unwrap_or(Err(NetnsError::Panicked)).map_err(failed)?;
                SandboxNetns { descriptor: Some(created.into_shared()), ours: true }
            }
        };
        tracing::debug!(ours = netns.ours, "network namespace ready");
        self.held = Some(netns.clone());
        Ok(netns)
    }
}

impl Actor for NetworkActor {
    type Context = Context<Self>;
}

impl Handler<Envelope<PrepareNetns>> for NetworkActor {
    type Result = Pending<Self, PrepareNetns>;

    fn handle(&mut self, message: Envelope<PrepareNetns>, _: &mut Context<Self>) -> Self::Result {
        let _entered = message.span.entered();
        now::<_, PrepareNetns>(self.prepare(message.request))
    }
}

impl Handler<Envelope<ReleaseNetns>> for NetworkActor {
    type Result = Pending<Self, ReleaseNetns>;

    fn handle(&mut self, _: Envelope<ReleaseNetns>, _: &mut Context<Self>) -> Self::Result {
        self.held = None;
        // One that nobody has taken goes with its thread.
        self.ahead = None;
        now::<_, ReleaseNetns>(Ok(()))
    }
}
