//! The steps of a creation, one file each, in the order of [`super::create`].

mod agent;
mod bundle;
mod cgroup;
mod commit;
mod container;
mod factory;
mod hooks;
mod machine;
mod netns;
mod network;
mod reserve;
mod rootfs;
mod share;
mod stdio;

pub use agent::{ConnectAgent, GuestReady};
pub use bundle::{Bundle, ReadBundle};
pub use cgroup::{BeginCgroup, BeginJoin};
pub use commit::{Commit, OneContainer};
pub use container::CreateInGuest;
pub use factory::AskFactory;
pub use hooks::CreationHooks;
pub use machine::{Machine, MachineBegun, StartMachine};
pub use netns::{NamespaceReady, PrepareNamespace};
pub use network::{ConnectNetwork, RescanNetwork, SetGuestNetwork};
pub use reserve::ReserveId;
pub use rootfs::{ResolveRootfs, Rootfs};
pub use share::{MakeShare, ShareFiles, SharedContainer};
pub(in crate::pipeline) use share::{guest_share, sandbox_shm};
pub use stdio::OpenStdio;
