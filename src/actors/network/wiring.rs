//! What of a namespace is connected: its links, the machine's interfaces and the guest's network are brought to agree,
//! as often as wanted.
//!
//! ```text
//!   scan, without what we added ──diff──▶ links gone:   unplug, undo on the host, strike the record
//!                                         links new:    record the undo, connect, plug in
//!                                         the rest:     tell the guest what is different
//! ```

use super::messages::{ConnectGuest, ConnectedInterface, LeftOut, NetworkDescription, Reason, Rescanned};
use crate::agent::AgentClient;
use crate::error::{ErrorKind, OpError};
use crate::network::{
    AttachOptions, Attachment, Endpoint, EndpointId, GuestNetwork, Network, Plan, Scan, Undo, Watch, diff, plan,
};
use crate::pipeline::SharedJournal;
use crate::state::UndoRecord;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use stockade_hypervisor::{DeviceConfig, DeviceId, Hypervisor, HypervisorError, NetQueueFds, VmState};
use tokio::sync::watch;

/// A namespace and what is connected in it.
#[derive(Debug)]
pub(super) struct Wiring {
    network: Network,
    /// Where the namespace is found, when it is someone else's.
    joined: Option<PathBuf>,
    options: AttachOptions,
    journal: SharedJournal,
    changes: Arc<Watch>,
    /// For `inspect`, which waits for nothing.
    description: watch::Sender<NetworkDescription>,
    connected: Vec<Connected>,
    /// What could not be undone yet.
    leftover: Vec<Recorded>,
    left_out: BTreeMap<EndpointId, String>,
    guest: Option<Guest>,
    /// What the guest is to know, and what of it it knows.
    wanted: GuestNetwork,
    told: GuestNetwork,
    /// The last rescan did not come to its end.
    stale: bool,
    ended: bool,
}

/// An undo, and its number in the journal where it is written down.
#[derive(Debug, Clone)]
struct Recorded {
    undo: Undo,
    number: Option<u64>,
}

#[derive(Debug)]
struct Connected {
    /// The link as it was last seen.
    endpoint: Endpoint,
    recorded: Recorded,
    /// The largest MTU that the machine's device can have.
    most_mtu: u32,
    device: Option<DeviceId>,
    /// The name that the guest was told.
    told: Option<String>,
}

#[derive(Debug, Clone)]
struct Guest {
    machine: Arc<dyn Hypervisor>,
    agent: AgentClient,
}

impl Wiring {
    /// Of a namespace in which nothing is connected yet.
    pub(super) fn new(
        network: Network,
        joined: Option<PathBuf>,
        options: AttachOptions,
        journal: SharedJournal,
        changes: Arc<Watch>,
        description: watch::Sender<NetworkDescription>,
    ) -> Self {
        Self {
            network,
            joined,
            options,
            journal,
            changes,
            description,
            connected: Vec::new(),
            leftover: Vec::new(),
            left_out: BTreeMap::new(),
            guest: None,
            wanted: GuestNetwork::default(),
            told: GuestNetwork::default(),
            stale: false,
            ended: false,
        }
    }

    /// Brings all to agree with what the namespace holds now.
    pub(super) async fn rescan(&mut self, reason: Reason) -> Result<Rescanned, OpError> {
        let result = self.agree(reason).await;
        self.description.send_replace(self.describe());
        result
    }

    async fn agree(&mut self, reason: Reason) -> Result<Rescanned, OpError> {
        // One that stands still can be told nothing: the change is kept until it goes on, and there is another event.
        let stands = self.guest.as_ref().is_some_and(|guest| guest.machine.state() != VmState::Running);
        if self.ended || stands || !self.may_have_changed(reason) {
            return Ok(Rescanned::default());
        }
        self.stale = true;
        let scan = self.network.scan().await;
        let mut scan = scan.map_err(|error| OpError::internal("cannot scan the network namespace", error))?;
        for connected in self.connected.iter().rev() {
            connected.recorded.undo.apply_to(&mut scan);
        }
        let known: Vec<Endpoint> = self.connected.iter().map(|connected| connected.endpoint.clone()).collect();
        let change = diff(&known, &scan);
        let mut answer = Rescanned::default();
        for gone in change.removed {
            self.disconnect(gone.id).await;
            answer.removed.push(gone.name);
        }
        for changed in change.changed {
            self.note_change(changed);
        }
        let before = std::mem::take(&mut self.left_out);
        for (id, error) in change.refused {
            self.leave_out(id, &before, error.to_string());
        }
        let mut plans = Vec::new();
        for endpoint in change.added {
            // Trying again what failed would be a change of the namespace, which would lead here again.
            if let Some(cause) = before.get(&endpoint.id).filter(|_| !reason.is_strict()) {
                self.left_out.insert(endpoint.id, cause.clone());
                continue;
            }
            match plan(&scan, self.network.id(), &endpoint, &self.options) {
                Ok(plan) => plans.push(plan),
                Err(error) => self.leave_out(endpoint.id, &before, error.to_string()),
            }
        }
        if reason.is_strict() {
            self.nothing_left_out()?;
        }
        match self.guest.clone() {
            None => answer.devices = self.connect_before_boot(plans, &mut answer.added).await?,
            Some(guest) => {
                for plan in plans {
                    let (id, name) = (plan.endpoint().id, plan.endpoint().name.clone());
                    match self.plug(&guest, plan).await {
                        Ok(()) => answer.added.push(name),
                        Err(error) => self.leave_out(id, &before, error.one_line()),
                    }
                }
            }
        }
        self.want(&scan);
        if !answer.added.is_empty() || !answer.removed.is_empty() {
            tracing::info!(%reason, added = ?answer.added, removed = ?answer.removed, "the sandbox's network has changed");
        }
        if let Some(guest) = self.guest.clone() {
            self.tell(&guest.agent).await?;
        }
        if reason.is_strict() {
            self.nothing_left_out()?;
        }
        self.stale = false;
        Ok(answer)
    }

    /// Whether a scan may find anything new.
    fn may_have_changed(&self, reason: Reason) -> bool {
        // Taken in any case: what came before the scan is seen by it.
        let noticed = self.changes.take().unwrap_or_else(|error| {
            tracing::warn!(%error, "changes of the network namespace are not told");
            true
        });
        noticed || self.stale || reason == Reason::Creation
    }

    fn note_change(&mut self, now: Endpoint) {
        let Some(connected) = self.connected.iter_mut().find(|connected| connected.endpoint.id == now.id) else {
            return;
        };
        if now.mtu > connected.most_mtu && now.mtu != connected.endpoint.mtu {
            let (name, most) = (&now.name, connected.most_mtu);
            tracing::warn!(
                name,
                "the link's MTU is now {}; the guest's interface cannot have more than the {most} of when it was made",
                now.mtu
            );
        }
        connected.endpoint = now;
    }

    fn leave_out(&mut self, id: EndpointId, before: &BTreeMap<EndpointId, String>, cause: String) {
        if before.get(&id) != Some(&cause) {
            tracing::error!(cause, "the guest lacks an interface of the network namespace");
        }
        self.left_out.insert(id, cause);
    }

    fn nothing_left_out(&self) -> Result<(), OpError> {
        match self.left_out.values().next() {
            None => Ok(()),
            Some(cause) => {
                let what = format!("cannot connect the sandbox's network: {cause}");
                Err(OpError::new(ErrorKind::FailedPrecondition, what))
            }
        }
    }

    /// What the guest is to know from now on.
    fn want(&mut self, scan: &Scan) {
        let endpoints: Vec<Endpoint> = self
            .connected
            .iter()
            .map(|Connected { endpoint, most_mtu, .. }| Endpoint {
                mtu: endpoint.mtu.min(*most_mtu),
                ..endpoint.clone()
            })
            .collect();
        let wanted = GuestNetwork::new(scan, &endpoints);
        for lacks in wanted.not_carried.iter().filter(|lacks| !self.wanted.not_carried.contains(lacks)) {
            tracing::warn!(%lacks, "the guest's network lacks something that the namespace has");
        }
        self.wanted = wanted;
    }

    /// Tells the guest what it does not know yet.
    async fn tell(&mut self, agent: &AgentClient) -> Result<(), OpError> {
        let mut disturbed = self.wanted.interfaces.len() < self.told.interfaces.len();
        // One an endpoint, in their order.
        for (interface, connected) in self.wanted.interfaces.iter().zip(&mut self.connected) {
            if connected.told.is_some() && self.told.interfaces.contains(interface) {
                continue;
            }
            agent.update_interface(interface, connected.told.as_deref()).await?;
            connected.told = Some(interface.name.clone());
            disturbed = true;
        }
        self.told.interfaces.clone_from(&self.wanted.interfaces);
        // Routes go with the addresses that they need.
        if disturbed || self.wanted.routes != self.told.routes {
            agent.update_routes(&self.wanted.routes).await?;
            self.told.routes.clone_from(&self.wanted.routes);
        }
        if disturbed || self.wanted.neighbours != self.told.neighbours {
            agent.add_neighbours(&self.wanted.neighbours).await?;
            self.told.neighbours.clone_from(&self.wanted.neighbours);
        }
        Ok(())
    }

    /// Writes down how to undo a plan.
    fn record(&self, plan: &Plan) -> Result<Recorded, OpError> {
        let undo = plan.undo();
        let record = |netns: &PathBuf| UndoRecord::DetachNetwork { netns: netns.clone(), undos: vec![undo.clone()] };
        // In a namespace of the sandbox's own all goes with the namespace.
        let number = self.joined.as_ref().map(|netns| self.journal.append(record(netns))).transpose()?;
        Ok(Recorded { undo, number })
    }

    /// Carries plans out, all or none.
    async fn attach(&mut self, plans: Vec<Plan>) -> Result<Vec<(Attachment, Recorded)>, OpError> {
        let mut recorded = Vec::with_capacity(plans.len());
        for plan in &plans {
            match self.record(plan) {
                Ok(record) => recorded.push(record),
                Err(error) => {
                    self.undo(recorded).await;
                    return Err(error);
                }
            }
        }
        match self.network.attach(plans).await {
            Ok(attachments) => Ok(attachments.into_iter().zip(recorded).collect()),
            Err(error) => {
                // It is undone, but for what the error names and what was late.
                self.undo(recorded).await;
                Err(OpError::internal("cannot connect the sandbox's network", error))
            }
        }
    }

    async fn connect_before_boot(
        &mut self,
        plans: Vec<Plan>,
        names: &mut Vec<String>,
    ) -> Result<Vec<DeviceConfig>, OpError> {
        if plans.is_empty() {
            return Ok(Vec::new());
        }
        let mut devices = Vec::with_capacity(plans.len());
        for (attachment, recorded) in self.attach(plans).await? {
            names.push(attachment.endpoint.name.clone());
            let (device, connected) = split(attachment, recorded);
            devices.push(device);
            self.connected.push(connected);
        }
        Ok(devices)
    }

    /// Connects one more link to a machine that runs.
    async fn plug(&mut self, guest: &Guest, plan: Plan) -> Result<(), OpError> {
        let Some((attachment, recorded)) = self.attach(vec![plan]).await?.pop() else { return Ok(()) };
        let (device, mut connected) = split(attachment, recorded);
        match guest.machine.add_device(device).await {
            Ok(device) => {
                connected.device = Some(device);
                self.connected.push(connected);
                Ok(())
            }
            Err(error) => {
                self.undo(vec![connected.recorded]).await;
                let what =
                    format!("the interface {:?} came after the start of the virtual machine", connected.endpoint.name);
                Err(OpError::from(error).within(what))
            }
        }
    }

    /// Takes a link from the machine and undoes what was done for it.
    async fn disconnect(&mut self, id: EndpointId) {
        let Some(at) = self.connected.iter().position(|connected| connected.endpoint.id == id) else { return };
        let Connected { endpoint, recorded, device, told, .. } = self.connected.remove(at);
        if let (Some(guest), Some(device)) = (&self.guest, device) {
            // Needed where the machine's bus cannot take a device back: the guest would keep the interface.
            if let Some(told) = told
                && let Err(error) = guest.agent.release_interface(&told, id.mac).await
            {
                tracing::debug!(
                    name = endpoint.name,
                    error = error.one_line(),
                    "the guest does not release an interface"
                );
            }
            match guest.machine.remove_device(&device).await {
                Ok(()) | Err(HypervisorError::NoSuchDevice(_)) => {}
                // It is of no more use there, but no harm either.
                Err(error) => {
                    let name = endpoint.name;
                    tracing::warn!(
                        name,
                        error = OpError::from(error).one_line(),
                        "the guest keeps an interface without a link"
                    );
                }
            }
        }
        self.undo(vec![recorded]).await;
    }

    /// Undoes on the host. What cannot be undone now is tried again in the end, and stays in the journal.
    async fn undo(&mut self, all: Vec<Recorded>) {
        for recorded in all.into_iter().rev() {
            match self.network.detach(vec![recorded.undo.clone()]).await {
                Ok(()) => self.strike(&recorded),
                Err(error) => {
                    tracing::error!(%error, "cannot disconnect a link of the network namespace");
                    self.leftover.push(recorded);
                }
            }
        }
    }

    fn strike(&self, recorded: &Recorded) {
        if let Some(number) = recorded.number {
            self.journal.strike(number);
        }
    }

    /// The machine and its guest are there.
    pub(super) async fn connect_guest(&mut self, request: ConnectGuest) -> Result<(), OpError> {
        let ConnectGuest { machine, agent, devices } = request;
        for (connected, device) in self.connected.iter_mut().zip(devices) {
            connected.device = Some(device);
        }
        self.guest = Some(Guest { machine, agent: agent.clone() });
        self.description.send_replace(self.describe());
        self.tell(&agent).await
    }

    /// Takes everything away.
    pub(super) async fn detach(&mut self) -> Result<(), OpError> {
        self.ended = true;
        self.guest = None;
        let mut all = std::mem::take(&mut self.leftover);
        all.extend(self.connected.drain(..).map(|connected| connected.recorded));
        if all.is_empty() {
            return Ok(());
        }
        let undos = all.iter().map(|recorded| recorded.undo.clone()).collect();
        match self.network.detach(undos).await {
            Ok(()) => {
                for recorded in &all {
                    self.strike(recorded);
                }
                Ok(())
            }
            Err(error) => {
                self.leftover = all;
                Err(OpError::internal("cannot disconnect the sandbox's network", error))
            }
        }
    }

    fn describe(&self) -> NetworkDescription {
        let interface = |connected: &Connected| ConnectedInterface {
            name: connected.endpoint.name.clone(),
            index: connected.endpoint.id.index,
            mac: connected.endpoint.id.mac,
            mtu: connected.endpoint.mtu.min(connected.most_mtu),
            device: connected.device.clone(),
        };
        let left_out = self.left_out.iter().map(|(link, reason)| LeftOut { link: *link, reason: reason.clone() });
        NetworkDescription { interfaces: self.connected.iter().map(interface).collect(), left_out: left_out.collect() }
    }
}

/// The machine's part of an attachment, and ours.
fn split(attachment: Attachment, recorded: Recorded) -> (DeviceConfig, Connected) {
    let Attachment { endpoint, queues, .. } = attachment;
    let device = DeviceConfig::Net {
        mac: endpoint.id.mac.0,
        queues: NetQueueFds(queues.into_iter().map(Arc::new).collect()),
        // A plan has an MTU that fits.
        mtu: u16::try_from(endpoint.mtu).unwrap_or(u16::MAX),
    };
    let connected = Connected { most_mtu: endpoint.mtu, endpoint, recorded, device: None, told: None };
    (device, connected)
}
