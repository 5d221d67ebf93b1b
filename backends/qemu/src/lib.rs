//! The QEMU backend.

pub mod probe;

mod command_line;
mod console;
mod options;
mod proc_stat;
mod process;
mod qmp;
mod sys;

pub use options::{Accelerator, MachineType, QemuOptions};
