//! A process's standard streams on the host, and the pumps between them and the guest.
//!
//! The guest's pipe is the only buffer: a pump reads when the host side takes what it read before, and the guest's
//! process blocks when nobody reads. So no byte is lost or reordered, and none is kept without bound.

mod logger;
mod pump;
mod stream;
mod target;
mod watch;

pub use pump::{GuestStdio, Pumps, ReadOutcome};
pub use stream::{HostStdio, StdioNames, StdioOwner};
pub use watch::process_end;
