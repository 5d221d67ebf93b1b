//! Step 6: what the namespace holds after the hooks becomes interfaces of the machine. And in step 8: the guest is told.

use crate::actors::network::{AttachNetwork, DetachNetwork, PlannedNetwork, ScanNetwork};
use crate::actors::runtime::Ask;
use crate::agent::AgentClient;
use crate::error::OpError;
use crate::network::{GuestNetwork, Model, Plan};
use crate::pipeline::{LiveUndo, Step, UndoStack};
use crate::state::UndoRecord;
use std::path::PathBuf;
use stockade_config::InternetworkingModel;
use stockade_hypervisor::{DeviceConfig, NetQueueFds};

/// Scans the namespace and connects what is in it.
#[derive(Debug)]
pub struct ConnectNetwork {
    /// Looks.
    pub scan: Ask<ScanNetwork>,
    /// Connects.
    pub attach: Ask<AttachNetwork>,
    /// Disconnects.
    pub detach: Ask<DetachNetwork>,
    /// `[runtime] internetworking_model`.
    pub model: InternetworkingModel,
    /// Where the namespace is, when it is someone else's.
    pub joined: Option<PathBuf>,
    /// Hooks were in it, who may have put something there.
    pub hooked: bool,
}

/// What a machine and its guest get.
#[derive(Debug, Default)]
pub struct ConnectedNetwork {
    /// For the machine.
    pub devices: Vec<DeviceConfig>,
    /// For the guest.
    pub guest: GuestNetwork,
}

impl Step for ConnectNetwork {
    type Output = ConnectedNetwork;
    const NAME: &'static str = "network";

    async fn run(self, undo: &mut UndoStack) -> Result<ConnectedNetwork, OpError> {
        // Nobody else has seen a namespace of ours: there is `lo` and nothing more.
        if self.joined.is_none() && !self.hooked {
            return Ok(ConnectedNetwork::default());
        }
        let model = match self.model {
            InternetworkingModel::Tcfilter => Model::TcFilter,
            InternetworkingModel::Macvtap => Model::Macvtap,
            InternetworkingModel::None => return Ok(ConnectedNetwork::default()),
        };
        let PlannedNetwork { plans, guest } = self.scan.ask(ScanNetwork { model }).await?;
        if plans.is_empty() {
            return Ok(ConnectedNetwork::default());
        }
        let record = match self.joined {
            Some(netns) => UndoRecord::DetachNetwork { netns, undos: plans.iter().map(Plan::undo).collect() },
            None => UndoRecord::Live { what: "disconnect the network".into() },
        };
        undo.push_live(record, Detach { ask: self.detach, plans: plans.clone() })?;
        let attached = self.attach.ask(AttachNetwork { plans }).await?;
        let devices = attached
            .into_iter()
            .map(|endpoint| DeviceConfig::Net {
                mac: endpoint.mac,
                queues: NetQueueFds(endpoint.queues),
                mtu: endpoint.mtu,
            })
            .collect();
        Ok(ConnectedNetwork { devices, guest })
    }
}

struct Detach {
    ask: Ask<DetachNetwork>,
    plans: Vec<Plan>,
}

#[async_trait::async_trait]
impl LiveUndo for Detach {
    async fn undo(self: Box<Self>) -> Result<(), OpError> {
        self.ask.ask(DetachNetwork { plans: self.plans }).await
    }
}

/// Tells the guest.
#[derive(Debug)]
pub struct SetGuestNetwork {
    /// Its agent.
    pub agent: AgentClient,
    /// What it is told.
    pub guest: GuestNetwork,
}

impl Step for SetGuestNetwork {
    type Output = ();
    const NAME: &'static str = "guest-network";

    async fn run(self, _: &mut UndoStack) -> Result<(), OpError> {
        self.agent.set_network(&self.guest).await
    }
}
