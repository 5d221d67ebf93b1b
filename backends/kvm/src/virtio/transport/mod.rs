//! The transport: a window of registers in guest-physical memory for each device (virtio 1.2, section 4.2).
//!
//! ```text
//!                 attach                    DRIVER_OK                     pause
//!   Empty ───────────────────▶ Idle ─────────────────────────▶ Active ◀────────────▶ Paused
//!     ▲                         ▲                                │        resume       │
//!     │                         ├──────── the driver resets ─────┤                     │
//!     │ detach                  │                                ▼                     │
//!     └──────── from each ──────┴── the driver resets ──────── Failed ◀────────────────┘
//! ```
//! A device fails when the guest's queues make no sense, when the host fails it, or when its driver says FAILED. Then
//! DEVICE_NEEDS_RESET is set (unless it was the driver who said so), the machine is told, and nothing happens until the driver
//! resets it.
//!
//! What the driver reads is memory, the slot's page, which is kept up to date; what it
//! writes comes here, or to descriptors.
//!
//! - [`mmio`]: the slot, as the machine and the bus see it;
//! - `attached`: a device in it, and what its registers do;
//! - `registers`: what the offsets mean;
//! - `status`: which writes of the status register are allowed;
//! - `queue`: what the driver tells of a queue, and whether it can be used;
//! - `interrupt`: what the device changes by itself, and the guest sees when it is interrupted;
//! - `failures`: who hears that a device has failed;
//! - [`state`]: a slot as a value that can be written down.

mod attached;
mod failures;
mod interrupt;
pub mod mmio;
mod queue;
mod registers;
pub mod state;
mod status;
#[cfg(test)]
mod tests;

pub use interrupt::{InterruptLine, USED as INTERRUPT_USED};
pub use mmio::{DeviceState, MmioTransport, TransportError};
pub use registers::{CONFIG_OFFSET, INTERRUPT_ACKNOWLEDGE_OFFSET, QUEUE_NOTIFY_OFFSET, WINDOW_SIZE};
pub use state::{RestoreError, TransportState};
