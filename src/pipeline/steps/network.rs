//! Step 6: what the namespace holds after the hooks becomes interfaces of the machine. And in step 8: the guest is told.

use crate::actors::network::{ConnectGuest, DetachNetwork, Reason, Rescan};
use crate::actors::runtime::Ask;
use crate::agent::AgentClient;
use crate::error::OpError;
use crate::pipeline::{LiveUndo, Step, UndoStack};
use crate::state::UndoRecord;
use std::sync::Arc;
use stockade_hypervisor::{DeviceConfig, DeviceId, Hypervisor};

/// Scans the namespace and connects what is in it. How each thing is undone the Network actor writes down.
#[derive(Debug)]
pub struct ConnectNetwork {
    /// Connects.
    pub rescan: Ask<Rescan>,
    /// Disconnects, also what comes later.
    pub detach: Ask<DetachNetwork>,
    /// Somebody may have put something there: it is someone else's namespace, or hooks were in it. Else it is new, with
    /// `lo` and nothing more.
    pub used: bool,
}

impl Step for ConnectNetwork {
    type Output = Vec<DeviceConfig>;
    const NAME: &'static str = "network";

    async fn run(self, undo: &mut UndoStack) -> Result<Vec<DeviceConfig>, OpError> {
        undo.push_live(UndoRecord::Live { what: "disconnect the network".into() }, Detach(self.detach))?;
        if !self.used {
            return Ok(Vec::new());
        }
        Ok(self.rescan.ask(Rescan { reason: Reason::Creation }).await?.devices)
    }
}

struct Detach(Ask<DetachNetwork>);

#[async_trait::async_trait]
impl LiveUndo for Detach {
    async fn undo(self: Box<Self>) -> Result<(), OpError> {
        self.0.ask(DetachNetwork).await
    }
}

/// Tells the guest.
#[derive(Debug)]
pub struct SetGuestNetwork {
    /// Tells it.
    pub connect: Ask<ConnectGuest>,
    /// The machine.
    pub machine: Arc<dyn Hypervisor>,
    /// Its agent.
    pub agent: AgentClient,
    /// The machine's interfaces.
    pub devices: Vec<DeviceId>,
}

impl Step for SetGuestNetwork {
    type Output = ();
    const NAME: &'static str = "guest-network";

    async fn run(self, _: &mut UndoStack) -> Result<(), OpError> {
        let request = ConnectGuest { machine: self.machine, agent: self.agent, devices: self.devices };
        self.connect.ask(request).await
    }
}

/// After the hooks of a further container, which may have changed the sandbox's network.
#[derive(Debug)]
pub struct RescanNetwork {
    /// Looks.
    pub rescan: Ask<Rescan>,
}

impl Step for RescanNetwork {
    type Output = ();
    const NAME: &'static str = "network-rescan";

    async fn run(self, _: &mut UndoStack) -> Result<(), OpError> {
        self.rescan.ask(Rescan { reason: Reason::Hooks }).await.map(drop)
    }
}
