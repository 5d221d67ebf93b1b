//! The QEMU backend.

pub mod probe;

mod options;
mod proc_stat;
mod process;
mod sys;

pub use options::{Accelerator, MachineType, QemuOptions};
