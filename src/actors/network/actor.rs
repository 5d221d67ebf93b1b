//! The actix shell and the logic of the Network actor.

use super::messages::{
    AttachNetwork, AttachedEndpoint, DetachNetwork, PlannedNetwork, PrepareNetns, ReleaseNetns, SandboxNetns,
    ScanNetwork,
};
use crate::actors::runtime::{Envelope, Pending, now, spawned};
use crate::error::{ErrorKind, OpError};
use crate::network::{
    AttachOptions, Attachment, GuestNetwork, Limits, Mark, Model, NetnsError, Network, NetworkNamespace, endpoints,
    plan,
};
use actix::{Actor, Context, Handler};
use std::thread::JoinHandle;

/// A namespace that is being made before anybody has asked for it, since the kernel needs more than a millisecond for one.
pub type NamespaceAhead = JoinHandle<Result<NetworkNamespace, NetnsError>>;

/// Owns the sandbox's network namespace.
#[derive(Debug)]
pub struct NetworkActor {
    /// `[runtime] disable_new_netns`: the machine runs in the supervisor's namespace and gets no interface.
    disabled: bool,
    /// One that is being made before anybody has asked for it.
    ahead: Option<NamespaceAhead>,
    held: Option<SandboxNetns>,
}

impl NetworkActor {
    /// An actor that holds nothing, but perhaps a namespace that is being made `ahead`.
    pub fn new(disabled: bool, ahead: Option<NamespaceAhead>) -> Self {
        Self { disabled, ahead, held: None }
    }

    /// Opening a namespace takes microseconds; a thread of its own makes one and ends.
    fn prepare(&mut self, request: PrepareNetns) -> Result<SandboxNetns, OpError> {
        if self.held.is_some() {
            return Err(OpError::new(ErrorKind::FailedPrecondition, "the sandbox has a network namespace already"));
        }
        let path = request.path.filter(|path| !path.as_os_str().is_empty());
        let failed =
            |error| OpError::because(ErrorKind::InvalidArgument, "cannot prepare the network namespace", error);
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

impl NetworkActor {
    /// The namespace to connect, unless the machine runs in the supervisor's and gets no interface.
    fn network(&self) -> Result<Option<Network>, OpError> {
        let Some(held) = &self.held else {
            return Err(OpError::new(ErrorKind::FailedPrecondition, "the sandbox has no network namespace yet"));
        };
        let Some(descriptor) = held.descriptor.clone() else { return Ok(None) };
        let network = Network::new(descriptor, Limits::default());
        network.map(Some).map_err(|error| OpError::internal("cannot look at the network namespace", error))
    }
}

async fn scan(network: Option<Network>, model: Model) -> Result<PlannedNetwork, OpError> {
    let Some(network) = network else { return Ok(PlannedNetwork::default()) };
    let failed = |error| OpError::internal("cannot scan the network namespace", error);
    let scan = network.scan().await.map_err(failed)?;
    let refused =
        |error| OpError::because(ErrorKind::FailedPrecondition, "cannot connect the sandbox's network", error);
    let found = endpoints(&scan).map_err(refused)?;
    let guest = GuestNetwork::new(&scan, &found);
    for left_out in &guest.not_carried {
        tracing::warn!(%left_out, "the guest's network lacks something that the namespace has");
    }
    let mark = Mark::random().map_err(|error| OpError::internal("cannot get random numbers", error))?;
    let options = AttachOptions { model, ..AttachOptions::new(mark) };
    let plans: Result<_, _> = found.iter().map(|endpoint| plan(&scan, network.id(), endpoint, &options)).collect();
    let refused =
        |error| OpError::because(ErrorKind::FailedPrecondition, "cannot connect the sandbox's network", error);
    Ok(PlannedNetwork { plans: plans.map_err(refused)?, guest })
}

fn attached(attachment: Attachment) -> Result<AttachedEndpoint, OpError> {
    let endpoint = attachment.endpoint;
    // A plan has an MTU that fits.
    let mtu = u16::try_from(endpoint.mtu).map_err(|error| OpError::internal("the MTU is too large", error))?;
    let queues = attachment.queues.into_iter().map(std::sync::Arc::new).collect();
    Ok(AttachedEndpoint { mac: endpoint.id.mac.0, mtu, queues })
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

impl Handler<Envelope<ScanNetwork>> for NetworkActor {
    type Result = Pending<Self, ScanNetwork>;

    fn handle(&mut self, message: Envelope<ScanNetwork>, _: &mut Context<Self>) -> Self::Result {
        let network = self.network();
        let model = message.request.model;
        spawned::<_, ScanNetwork, _>(message.span, async move { scan(network?, model).await })
    }
}

impl Handler<Envelope<AttachNetwork>> for NetworkActor {
    type Result = Pending<Self, AttachNetwork>;

    fn handle(&mut self, message: Envelope<AttachNetwork>, _: &mut Context<Self>) -> Self::Result {
        let network = self.network();
        let plans = message.request.plans;
        spawned::<_, AttachNetwork, _>(message.span, async move {
            let Some(network) = network? else { return Ok(Vec::new()) };
            let attachments = network.attach(plans).await;
            let attachments =
                attachments.map_err(|error| OpError::internal("cannot connect the sandbox's network", error))?;
            attachments.into_iter().map(attached).collect()
        })
    }
}

impl Handler<Envelope<DetachNetwork>> for NetworkActor {
    type Result = Pending<Self, DetachNetwork>;

    fn handle(&mut self, message: Envelope<DetachNetwork>, _: &mut Context<Self>) -> Self::Result {
        let network = self.network();
        let undos = message.request.plans.iter().map(crate::network::Plan::undo).collect();
        spawned::<_, DetachNetwork, _>(message.span, async move {
            let Some(network) = network? else { return Ok(()) };
            let detached = network.detach(undos).await;
            detached.map_err(|error| OpError::internal("cannot disconnect the sandbox's network", error))
        })
    }
}
