//! What the Network actor is asked.

use crate::actors::runtime::Request;
use crate::agent::AgentClient;
use crate::error::OpError;
use crate::network::{AttachOptions, EndpointId, Mac, Mark, Model};
use serde::Serialize;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use stockade_config::InternetworkingModel;
use stockade_hypervisor::{DeviceConfig, DeviceId, Hypervisor};

/// The namespace that the sandbox's processes and hooks run in.
#[derive(Debug, Clone)]
pub struct SandboxNetns {
    /// The open namespace; `None` when the sandbox has none of its own (`disable_new_netns`).
    pub descriptor: Option<Arc<OwnedFd>>,
    /// Whether it was made for the sandbox.
    pub ours: bool,
}

/// How interfaces are connected, from the sandbox's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkOptions {
    /// `internetworking_model`.
    pub model: InternetworkingModel,
    /// `network_queues`.
    pub queues: u16,
    /// `rx_rate_limiter_max_rate`, in bits a second; 0: without limit.
    pub rx_rate: u64,
    /// `tx_rate_limiter_max_rate`, in bits a second; 0: without limit.
    pub tx_rate: u64,
    /// `disable_new_netns`: the machine runs in the supervisor's namespace and gets no interface.
    pub disabled: bool,
}

impl NetworkOptions {
    /// As the network crate has them; `None` where nothing is to be connected.
    pub(super) fn attach(self) -> Result<Option<AttachOptions>, OpError> {
        let model = match self.model {
            InternetworkingModel::Tcfilter => Model::TcFilter,
            InternetworkingModel::Macvtap => Model::Macvtap,
            InternetworkingModel::None => return Ok(None),
        };
        let mark = Mark::random().map_err(|error| OpError::internal("cannot get random numbers", error))?;
        Ok(Some(AttachOptions { model, queues: self.queues, rx_rate: self.rx_rate, tx_rate: self.tx_rate, mark }))
    }
}

/// Join the namespace that the spec names, or create one.
#[derive(Debug)]
pub struct PrepareNetns {
    /// The path in the spec's network namespace entry; `None` or empty: create one.
    pub path: Option<PathBuf>,
    /// The container's stand-in, which has made one to be used where one is to be created.
    pub stand_in: Option<i32>,
    /// How its interfaces are connected.
    pub options: NetworkOptions,
}

impl Request for PrepareNetns {
    type Answer = SandboxNetns;
    const NAME: &'static str = "PrepareNetns";
}

/// Let go of it. Idempotent.
#[derive(Debug)]
pub struct ReleaseNetns;

impl Request for ReleaseNetns {
    type Answer = ();
    const NAME: &'static str = "ReleaseNetns";
}

/// When the namespace is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// At the sandbox's creation, after the prestart and createRuntime hooks. There is no machine yet: what is connected
    /// is answered as devices for it.
    Creation,
    /// After the hooks of a further container.
    Hooks,
    /// Before the sandbox's first process starts. Docker 26 and later adds its veth between create and start.
    Start,
    /// The kernel told of a change.
    Event,
}

impl Reason {
    /// Whether somebody waits for a network that works: what cannot be connected is then an error, not a warning.
    pub fn is_strict(self) -> bool {
        self != Self::Event
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Creation => "creation",
            Self::Hooks => "hooks",
            Self::Start => "start",
            Self::Event => "event",
        })
    }
}

/// Let machine and guest have what the namespace holds now, and no longer what it does not. Idempotent: a link is known
/// by its number and MAC address.
#[derive(Debug)]
pub struct Rescan {
    /// Why now.
    pub reason: Reason,
}

/// What a [`Rescan`] did.
#[derive(Debug, Default)]
pub struct Rescanned {
    /// For [`Reason::Creation`]: what the machine is to have from its boot, in the order in which [`ConnectGuest`]
    /// names them.
    pub devices: Vec<DeviceConfig>,
    /// Links that were connected.
    pub added: Vec<String>,
    /// Links that were disconnected.
    pub removed: Vec<String>,
}

impl Request for Rescan {
    type Answer = Rescanned;
    const NAME: &'static str = "Rescan";
}

/// The machine runs and its agent answers: tell the guest its network, and let later rescans change both.
#[derive(Debug)]
pub struct ConnectGuest {
    /// The machine.
    pub machine: Arc<dyn Hypervisor>,
    /// The guest's agent.
    pub agent: AgentClient,
    /// The names of the devices that the creation's rescan answered.
    pub devices: Vec<DeviceId>,
}

impl Request for ConnectGuest {
    type Answer = ();
    const NAME: &'static str = "ConnectGuest";
}

/// Take everything away again that was added to the namespace, and rescan no more. The machine has ended. Idempotent.
#[derive(Debug)]
pub struct DetachNetwork;

impl Request for DetachNetwork {
    type Answer = ();
    const NAME: &'static str = "DetachNetwork";
}

/// What is connected, and what is not, for `inspect`.
#[derive(Debug)]
pub struct DescribeNetwork;

/// A connected interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConnectedInterface {
    /// Its link's name.
    pub name: String,
    /// Its link's number in the namespace.
    pub index: u32,
    /// Of both.
    pub mac: Mac,
    /// In bytes.
    pub mtu: u32,
    /// The machine's device; `None` until the machine runs.
    pub device: Option<DeviceId>,
}

/// A link with addresses of the sandbox that the guest does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Which.
    pub link: EndpointId,
    /// Why, in words.
    pub reason: String,
}

/// The sandbox's network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NetworkDescription {
    /// In the order in which they were connected.
    pub interfaces: Vec<ConnectedInterface>,
    /// What the guest lacks.
    pub left_out: Vec<LeftOut>,
}

impl Request for DescribeNetwork {
    type Answer = NetworkDescription;
    const NAME: &'static str = "DescribeNetwork";
}
