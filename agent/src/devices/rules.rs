//! Device rules: what a specification says, in the form that a program is made from.
//!
//! The meaning is that of the OCI runtime specification (config-linux, "Allowed Device List"): rules count in their
//! order, and of those that match a device, for each kind of access, the last one decides. What no rule matches is
//! denied. A rule of type `a` speaks of every device and every access whatever else it says, as in the kernel's first
//! device controller and in runc. The rules of [`ALWAYS`] come last, so that no specification takes them away.

use std::fmt;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// Rules of one container that are left when those that say nothing are dropped. The kernel's verifier follows every
/// one, which takes most of a second for as many as this, and half a millisecond for the dozen that engines write.
pub(super) const MAX_RULES: usize = 512;

/// Why rules cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum RuleError {
    /// One of them, by its place in the list.
    #[error("linux.resources.devices[{index}]: {reason}")]
    Rule { index: usize, reason: String },
    /// Too many for a program.
    #[error("linux.resources.devices: more than {MAX_RULES} rules")]
    TooMany,
}

/// The kind of a device, as `bpf_cgroup_dev_ctx` has it (linux/bpf.h, BPF_DEVCG_DEV_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Block = 1,
    Character = 2,
}

/// Kinds of access, as `bpf_cgroup_dev_ctx` has them (linux/bpf.h, BPF_DEVCG_ACC_*).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Access(u8);

impl Access {
    const MKNOD: Access = Access(1);
    const READ: Access = Access(2);
    const WRITE: Access = Access(4);
    pub(super) const ALL: Access = Access(7);

    /// Reads "rwm" or a part of it, in any order.
    fn parse(text: &str) -> Result<Access, String> {
        if text.is_empty() {
            return Err("it has no access: give some of \"rwm\"".to_owned());
        }
        text.chars().try_fold(Access(0), |all, letter| {
            let one = match letter {
                'r' => Access::READ,
                'w' => Access::WRITE,
                'm' => Access::MKNOD,
                _ => return Err(format!("access {text:?} has other letters than \"rwm\"")),
            };
            Ok(Access(all.0 | one.0))
        })
    }

    pub(super) fn bits(self) -> u8 {
        self.0
    }

    fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, bit) in [('r', Access::READ), ('w', Access::WRITE), ('m', Access::MKNOD)] {
            if self.0 & bit.0 != 0 {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// Allows or denies access to devices of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) allow: bool,
    pub(super) kind: DeviceKind,
    /// `None` is any number.
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    pub(super) access: Access,
}

impl Rule {
    const fn allow(kind: DeviceKind, major: Option<u32>, minor: Option<u32>, access: Access) -> Rule {
        Rule { allow: true, kind, major, minor, access }
    }

    /// Allows everything with one device.
    pub(super) const fn allow_device(device: DeviceNumber) -> Rule {
        Rule::allow(device.kind, Some(device.major), Some(device.minor), Access::ALL)
    }

    fn matches(&self, device: DeviceNumber) -> bool {
        self.kind == device.kind
            && self.major.is_none_or(|major| major == device.major)
            && self.minor.is_none_or(|minor| minor == device.minor)
    }
}

/// One device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceNumber {
    pub(crate) kind: DeviceKind,
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// What every container may do, the same as with runc: make any node, and use the devices that it finds in its /dev.
/// None of them is more than the container has anyway; an interface of /dev/net/tun takes CAP_NET_ADMIN.
const ALWAYS: [Rule; 11] = {
    const fn character(major: u32, minor: u32) -> Rule {
        Rule::allow(DeviceKind::Character, Some(major), Some(minor), Access::ALL)
    }
    [
        Rule::allow(DeviceKind::Character, None, None, Access::MKNOD),
        Rule::allow(DeviceKind::Block, None, None, Access::MKNOD),
        character(1, 3),                                                  // null
        character(1, 5),                                                  // zero
        character(1, 7),                                                  // full
        character(1, 8),                                                  // random
        character(1, 9),                                                  // urandom
        character(5, 0),                                                  // tty
        character(5, 2),                                                  // ptmx
        Rule::allow(DeviceKind::Character, Some(136), None, Access::ALL), // pts
        character(10, 200),                                               // net/tun
    ]
};

/// The rules of a container, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// What holds where no rule matches.
    pub(super) allow: bool,
    pub(super) list: Vec<Rule>,
}

impl Rules {
    /// Those of a specification, with the numbers of this guest instead of the host's.
    ///
    /// `renumbered` are devices with both numbers: a rule that names the host's names the guest's from here on. A device
    /// that no rule names gets what the rules grant to the host's, and everything if that is neither reading nor
    /// writing: it was given to the container, and a supervisor may leave rules to the host. `added` are devices whose
    /// number on the host is not known.
    ///
    /// # Errors
    /// When a rule cannot be understood, or there are too many.
    pub(super) fn new(
        given: &[LinuxDeviceCgroup],
        renumbered: &[(DeviceNumber, DeviceNumber)],
        added: &[DeviceNumber],
    ) -> Result<Rules, RuleError> {
        let mut hosts = Rules { allow: false, list: Vec::new() };
        let mut guests = hosts.clone();
        let mut named = vec![false; renumbered.len()];
        for (index, rule) in given.iter().enumerate() {
            let refused = |reason| RuleError::Rule { index, reason };
            let access = Access::parse(rule.access().as_deref().unwrap_or_default()).map_err(refused)?;
            let kind = match rule.typ().unwrap_or_default() {
                LinuxDeviceType::A => {
                    hosts.set_all(rule.allow());
                    guests.set_all(rule.allow());
                    continue;
                }
                LinuxDeviceType::B => DeviceKind::Block,
                LinuxDeviceType::C => DeviceKind::Character,
                other => return Err(refused(format!("type {:?} is none of a, b and c", other.as_str()))),
            };
            let major = number("major", rule.major()).map_err(refused)?;
            let minor = number("minor", rule.minor()).map_err(refused)?;
            let rule = Rule { allow: rule.allow(), kind, major, minor, access };
            hosts.add(rule)?;
            let exact = major.zip(minor).map(|(major, minor)| DeviceNumber { kind, major, minor });
            let device = renumbered.iter().position(|(host, _)| Some(*host) == exact);
            guests.add(match device.and_then(|at| Some((named.get_mut(at)?, renumbered.get(at)?))) {
                Some((named, (_, guest))) => {
                    *named = true;
                    let (major, minor) = (Some(guest.major), Some(guest.minor));
                    Rule { kind: guest.kind, major, minor, ..rule }
                }
                None => rule,
            })?;
        }
        for ((host, guest), _) in renumbered.iter().zip(&named).filter(|(_, named)| !**named) {
            let granted = hosts.granted(*host);
            let usable = Access(granted.0 & !Access::MKNOD.0);
            let access = if usable.is_none() { Access::ALL } else { granted };
            guests.add(Rule { access, ..Rule::allow_device(*guest) })?;
        }
        for rule in added.iter().copied().map(Rule::allow_device).chain(ALWAYS) {
            guests.add(rule)?;
        }
        Ok(guests)
    }

    fn set_all(&mut self, allow: bool) {
        self.allow = allow;
        self.list.clear();
    }

    fn add(&mut self, rule: Rule) -> Result<(), RuleError> {
        // Says what holds without it.
        if rule.allow == self.allow && self.list.is_empty() {
            return Ok(());
        }
        if self.list.len() >= MAX_RULES {
            return Err(RuleError::TooMany);
        }
        self.list.push(rule);
        Ok(())
    }

    /// What may be done with a device.
    fn granted(&self, device: DeviceNumber) -> Access {
        let all = if self.allow { Access::ALL } else { Access(0) };
        self.list.iter().filter(|rule| rule.matches(device)).fold(all, |granted, rule| {
            if rule.allow { Access(granted.0 | rule.access.0) } else { Access(granted.0 & !rule.access.0) }
        })
    }
}

/// Absent and negative numbers are any.
fn number(name: &str, given: Option<i64>) -> Result<Option<u32>, String> {
    given
        .filter(|number| *number >= 0)
        .map(|number| u32::try_from(number).map_err(|_| format!("{name} {number} is no device number")))
        .transpose()
}
