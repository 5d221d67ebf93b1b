//! Which devices a container may use: `linux.resources.devices`, as cgroup v2 has it.
//!
//! ```text
//!   rules of the specification ──rules──► Rules ──program──► Filter ──sys──► Program, attached to the cgroup
//!   numbers of this guest      ──┘
//! ```
//! Whoever is in the cgroup is asked about, so that processes which are added to the container need nothing more.

mod program;
mod rules;
mod sys;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use oci_spec::runtime::LinuxDeviceCgroup;

pub(crate) use rules::{DeviceKind, DeviceNumber, RuleError};

/// The devices that a supervisor gave to a container, with their numbers in this guest.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeviceMap {
    renumbered: Vec<(DeviceNumber, DeviceNumber)>,
    added: Vec<DeviceNumber>,
}

impl DeviceMap {
    /// Notes a device; `host` is what the specification calls it, if it does.
    pub(crate) fn note(&mut self, host: Option<DeviceNumber>, guest: DeviceNumber) {
        match host {
            Some(host) => self.renumbered.push((host, guest)),
            None => self.added.push(guest),
        }
    }

    /// What holds for a container with these rules.
    ///
    /// # Errors
    /// When a rule cannot be understood, or there are too many.
    pub(crate) fn filter(&self, rules: &[LinuxDeviceCgroup]) -> Result<Filter, RuleError> {
        let rules = rules::Rules::new(rules, &self.renumbered, &self.added)?;
        Ok(Filter(program::compile(&rules)))
    }
}

/// Rules that are ready for the kernel.
#[derive(Clone, Debug)]
pub(crate) struct Filter(Vec<program::Instruction>);

impl Filter {
    /// Lets the kernel check them.
    ///
    /// # Errors
    /// When the kernel refuses them, or has no programs for cgroups' devices.
    pub(crate) fn load(&self) -> io::Result<Program> {
        Ok(Program(sys::load(&self.0)?))
    }
}

/// Rules that the kernel has taken.
#[derive(Debug)]
pub(crate) struct Program(OwnedFd);

impl Program {
    /// Makes them hold in a cgroup; with `instead_of`, in the place of those that hold there, without a moment between.
    ///
    /// # Errors
    /// When the cgroup is not there, or the kernel does not do it.
    pub(crate) fn attach(&self, cgroup: &Path, instead_of: Option<&Program>) -> io::Result<()> {
        let directory = File::open(cgroup)?;
        Ok(sys::attach(self.0.as_fd(), directory.as_fd(), instead_of.map(|program| program.0.as_fd()))?)
    }
}
