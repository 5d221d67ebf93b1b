//! The actix shell of the Network actor; the work is in [`super::wiring`].

use super::messages::{
    ConnectGuest, DescribeNetwork, DetachNetwork, NetworkDescription, PrepareNetns, Reason, ReleaseNetns, Rescan,
    Rescanned, SandboxNetns,
};
use super::wiring::Wiring;
use crate::actors::runtime::{Envelope, Pending, ask, now, spawned};
use crate::error::{ErrorKind, OpError};
use crate::network::{Limits, NetnsError, Network, NetworkNamespace, Watch};
use crate::pipeline::SharedJournal;
use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, WeakAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;

/// A namespace that is being made before anybody has asked for it, since the kernel needs more than a millisecond for one.
pub type NamespaceAhead = JoinHandle<Result<NetworkNamespace, NetnsError>>;

/// How long the namespace must be left to whoever changes it, who seldom changes one thing alone.
const SETTLE: Duration = Duration::from_millis(50);

/// How often one change is tried: the guest may refuse a state that the namespace had only for a moment.
const ATTEMPTS: u32 = 5;
/// The pause after an attempt that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Owns the sandbox's network namespace.
#[derive(Debug)]
pub struct NetworkActor {
    journal: SharedJournal,
    /// One that is being made before anybody has asked for it.
    ahead: Option<NamespaceAhead>,
    held: Held,
    watcher: Option<AbortHandle>,
}

#[derive(Debug)]
enum Held {
    Nothing,
    /// The namespace, and what is connected in it, where anything is.
    Netns(Option<Live>),
    /// For good.
    Released,
}

/// A namespace whose links are connected.
#[derive(Debug, Clone)]
struct Live {
    /// Rescans take turns: they are tasks, and the lock is this actor's own.
    wiring: Arc<Mutex<Wiring>>,
    changes: Arc<Watch>,
    description: watch::Receiver<NetworkDescription>,
}

impl NetworkActor {
    /// An actor that holds nothing, but perhaps a namespace that is being made `ahead`. How to undo what it adds to a
    /// namespace of someone else's it writes into the journal.
    pub fn new(journal: SharedJournal, ahead: Option<NamespaceAhead>) -> Self {
        Self { journal, ahead, held: Held::Nothing, watcher: None }
    }

    fn live(&self) -> Result<Option<Live>, OpError> {
        match &self.held {
            Held::Netns(live) => Ok(live.clone()),
            Held::Nothing => {
                Err(OpError::new(ErrorKind::FailedPrecondition, "the sandbox has no network namespace yet"))
            }
            Held::Released => Ok(None),
        }
    }

    /// Rescans with each change from now on.
    fn follow(&mut self, actor: WeakAddr<Self>, watch: Arc<Watch>) {
        if self.watcher.is_none() {
            self.watcher = Some(tokio::spawn(follow(actor, watch)).abort_handle());
        }
    }

    fn stop_following(&mut self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.abort();
        }
    }
}

impl Drop for NetworkActor {
    fn drop(&mut self) {
        self.stop_following();
    }
}

async fn follow(actor: WeakAddr<NetworkActor>, watch: Arc<Watch>) {
    loop {
        if let Err(error) = watch.changed().await {
            tracing::error!(%error, "changes of the network namespace are not seen any more");
            return;
        }
        let mut pause = SETTLE;
        for _ in 0..ATTEMPTS {
            tokio::time::sleep(pause).await;
            let Some(actor) = actor.upgrade() else { return };
            let Err(error) = ask(actor, Rescan { reason: Reason::Event }).await else { break };
            tracing::error!(error = error.one_line(), "the guest's network is not what the namespace holds");
            pause = RETRY;
        }
    }
}

/// Opens or makes the namespace. Blocks: a new one takes the kernel more than a millisecond.
fn prepare(
    request: PrepareNetns,
    ahead: Option<NamespaceAhead>,
    journal: SharedJournal,
) -> Result<(SandboxNetns, Option<Live>), OpError> {
    let PrepareNetns { path, stand_in, options } = request;
    if options.disabled {
        return Ok((SandboxNetns { descriptor: None, ours: false }, None));
    }
    let joined = path.filter(|path| !path.as_os_str().is_empty());
    let netns = match &joined {
        Some(path) => NetworkNamespace::join(path),
        None => create(stand_in, ahead),
    };
    let failed = |error| OpError::because(ErrorKind::InvalidArgument, "cannot prepare the network namespace", error);
    let netns = netns.map_err(failed)?;
    let ours = netns.is_created();
    tracing::debug!(ours, "network namespace ready");
    let descriptor = netns.into_shared();
    let answer = SandboxNetns { descriptor: Some(descriptor.clone()), ours };
    let Some(options) = options.attach()? else { return Ok((answer, None)) };
    let failed = |error| OpError::internal("cannot look at the network namespace", error);
    let network = Network::new(descriptor, Limits::default()).map_err(failed)?;
    let changes = Arc::new(network.watch().map_err(failed)?);
    let described = watch::Sender::default();
    let description = described.subscribe();
    let wiring = Wiring::new(network, joined, options, journal, changes.clone(), described);
    Ok((answer, Some(Live { wiring: Arc::new(Mutex::new(wiring)), changes, description })))
}

/// The stand-in's, which others find by its pid; else the one that was begun ahead, or a new one.
fn create(stand_in: Option<i32>, ahead: Option<NamespaceAhead>) -> Result<NetworkNamespace, NetnsError> {
    if let Some(pid) = stand_in
        && let Some(made) = NetworkNamespace::made_by(pid)?
    {
        return Ok(made);
    }
    match ahead {
        Some(ahead) => ahead.join().unwrap_or(Err(NetnsError::Panicked)),
        None => NetworkNamespace::create(),
    }
}

impl Actor for NetworkActor {
    type Context = Context<Self>;
}

impl Handler<Envelope<PrepareNetns>> for NetworkActor {
    type Result = Pending<Self, PrepareNetns>;

    fn handle(&mut self, message: Envelope<PrepareNetns>, _: &mut Context<Self>) -> Self::Result {
        if !matches!(self.held, Held::Nothing) {
            let what = "the sandbox has a network namespace already";
            return now::<_, PrepareNetns>(Err(OpError::new(ErrorKind::FailedPrecondition, what)));
        }
        let (request, ahead, journal) = (message.request, self.ahead.take(), self.journal.clone());
        let (sender, prepared) = tokio::sync::oneshot::channel();
        let answered = spawned::<Self, PrepareNetns, _>(message.span, async move {
            let prepared = tokio::task::spawn_blocking(move || prepare(request, ahead, journal)).await;
            let (answer, live) =
                prepared.map_err(|error| OpError::internal("cannot prepare the network namespace", error))??;
            // Nobody takes it when the actor has gone.
            _ = sender.send(live);
            Ok(answer)
        });
        Box::pin(answered.map(move |result, actor, _| {
            let mut prepared = prepared;
            // A release may have come meanwhile.
            if let (Held::Nothing, Ok(live)) = (&actor.held, prepared.try_recv()) {
                actor.held = Held::Netns(live);
            }
            result
        }))
    }
}

impl Handler<Envelope<ReleaseNetns>> for NetworkActor {
    type Result = Pending<Self, ReleaseNetns>;

    fn handle(&mut self, _: Envelope<ReleaseNetns>, _: &mut Context<Self>) -> Self::Result {
        self.stop_following();
        self.held = Held::Released;
        // One that nobody has taken goes with its thread.
        self.ahead = None;
        now::<_, ReleaseNetns>(Ok(()))
    }
}

impl Handler<Envelope<Rescan>> for NetworkActor {
    type Result = Pending<Self, Rescan>;

    fn handle(&mut self, message: Envelope<Rescan>, context: &mut Context<Self>) -> Self::Result {
        let reason = message.request.reason;
        let live = match self.live() {
            Ok(Some(live)) => live,
            Ok(None) => return now::<_, Rescan>(Ok(Rescanned::default())),
            Err(error) => return now::<_, Rescan>(Err(error)),
        };
        let wiring = live.wiring;
        let rescanned =
            spawned::<Self, Rescan, _>(message.span, async move { wiring.lock().await.rescan(reason).await });
        let address = context.address().downgrade();
        Box::pin(rescanned.map(move |result, actor, _| {
            // Until the first start nobody needs to know of a change at once, and the start itself looks.
            if reason == Reason::Start && matches!(actor.held, Held::Netns(_)) {
                actor.follow(address, live.changes);
            }
            result
        }))
    }
}

impl Handler<Envelope<ConnectGuest>> for NetworkActor {
    type Result = Pending<Self, ConnectGuest>;

    fn handle(&mut self, message: Envelope<ConnectGuest>, _: &mut Context<Self>) -> Self::Result {
        let live = self.live();
        let request = message.request;
        spawned::<_, ConnectGuest, _>(message.span, async move {
            let Some(live) = live? else { return Ok(()) };
            live.wiring.lock().await.connect_guest(request).await
        })
    }
}

impl Handler<Envelope<DetachNetwork>> for NetworkActor {
    type Result = Pending<Self, DetachNetwork>;

    fn handle(&mut self, message: Envelope<DetachNetwork>, _: &mut Context<Self>) -> Self::Result {
        self.stop_following();
        let Held::Netns(Some(live)) = &self.held else { return now::<_, DetachNetwork>(Ok(())) };
        let wiring = live.wiring.clone();
        spawned::<_, DetachNetwork, _>(message.span, async move { wiring.lock().await.detach().await })
    }
}

impl Handler<Envelope<DescribeNetwork>> for NetworkActor {
    type Result = Pending<Self, DescribeNetwork>;

    fn handle(&mut self, _: Envelope<DescribeNetwork>, _: &mut Context<Self>) -> Self::Result {
        let description = match &self.held {
            Held::Netns(Some(live)) => live.description.borrow().clone(),
            _ => NetworkDescription::default(),
        };
        now::<_, DescribeNetwork>(Ok(description))
    }
}
