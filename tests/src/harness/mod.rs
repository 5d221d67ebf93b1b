//! What the tests share.

mod backend;
mod bundle;
mod containerd;
pub mod cri;
mod host_state;
mod id;
pub mod image;
mod pod;
mod podman;
mod remote_command;
mod rootfs;
mod stockade;
mod terminal;
mod tmpfs;
pub mod wait;

pub use backend::Backend;
pub use bundle::{Bundle, BundleBuilder};
pub use containerd::{Containerd, HANDLER, HANDLER_WITHOUT_CONFIGURATION, RUNTIME};
pub use cri::Cri;
pub use host_state::{HostState, processes_of};
pub use id::unique_id;
pub use pod::{Cases, Pod};
pub use podman::{IMAGE, Podman};
pub use remote_command::RemoteCommand;
pub use rootfs::busybox_rootfs;
pub use stockade::{Output, Running, Stockade, guest, program};
pub use terminal::{Screen, Terminal};
pub use tmpfs::Tmpfs;
