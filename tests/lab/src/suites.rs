//! Which tests run where there is KVM: the one list. A further backend is a further line.

use std::time::Duration;

/// What a suite needs that a host may lack. Where it is there, the suite runs on the host itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A KVM that runs stock guests.
    Kvm,
    /// Control groups of version 2 alone.
    ControlGroups2,
    /// Every kind of link that a sandbox's network may have: ipvlan and VLAN are not in every kernel.
    LinkKinds,
}

/// Tests of one test program, or of all of a package, that run with one backend.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    /// What stands before each test's name.
    pub name: &'static str,
    /// What must be there.
    pub need: Need,
    /// The value of STOCKADE_TEST_BACKEND.
    pub backend: Option<&'static str>,
    /// The package.
    pub package: &'static str,
    /// Its test program ("" for the library's own tests), or all of them.
    pub target: Option<&'static str>,
    /// Only tests whose names begin so.
    pub prefix: &'static str,
    /// How long one test may take in a lab host.
    pub limit: Duration,
    /// Whether it is part of every run; else it is run when it is asked for, as emulated hosts take hours for all.
    pub always: bool,
}

const fn suite(name: &'static str, need: Need, backend: Option<&'static str>, package: &'static str) -> Suite {
    Suite { name, need, backend, package, target: None, prefix: "", limit: Duration::from_secs(600), always: true }
}

/// Tests of a program of the vm tier, with the built-in monitor.
const fn kvm(target: &'static str, prefix: &'static str) -> Suite {
    Suite { target: Some(target), prefix, ..suite("kvm", Need::Kvm, Some("kvm"), "stockade-tests") }
}

/// In the order in which they run: the quick ones first. A test that several of a name have is the first one's.
pub const SUITES: &[Suite] = &[
    Suite { target: Some(""), prefix: "cgroup::", ..suite("cgroup-v2", Need::ControlGroups2, None, "stockade") },
    Suite { target: Some(""), ..suite("cgroup-v2", Need::ControlGroups2, None, "stockade-agent") },
    Suite {
        target: Some("agent_calls"),
        always: false,
        ..suite("cgroup-v2", Need::ControlGroups2, None, "stockade-agent")
    },
    Suite {
        target: Some("attach"),
        prefix: "packets_pass_through_an_ipvlan",
        ..suite("links", Need::LinkKinds, None, "stockade-network")
    },
    Suite {
        target: Some("attach"),
        prefix: "a_link_and_the_vlan",
        ..suite("links", Need::LinkKinds, None, "stockade-network")
    },
    Suite { target: Some("scan"), prefix: "a_scan_finds", ..suite("links", Need::LinkKinds, None, "stockade-network") },
    Suite { target: Some("contract"), ..suite("kvm", Need::Kvm, Some("kvm"), "stockade-kvm") },
    Suite {
        target: Some("contract"),
        prefix: "q35::the_agent",
        ..suite("qemu-kvm", Need::Kvm, Some("qemu-kvm"), "stockade-qemu")
    },
    kvm("life_cycle", ""),
    kvm("oci_life_cycle", ""),
    kvm("oci_linux", ""),
    kvm("oci_mounts", ""),
    kvm("oci_process", ""),
    kvm("oci_resources", ""),
    kvm("bad_input", ""),
    kvm("rollback", ""),
    kvm("crash", ""),
    kvm("hooks", ""),
    kvm("network", "table::"),
    // Of each of the larger programs what makes most of its calls: with all of them a run takes twice as long.
    kvm("network", "engines::what_a_prestart"),
    kvm("containerd", "a_detached_container"),
    kvm("cri", "exec_and_attach"),
    kvm("podman", "a_container_has"),
    Suite { always: false, ..suite("qemu-kvm", Need::Kvm, Some("qemu-kvm"), "stockade-qemu") },
    Suite { always: false, ..suite("kvm", Need::Kvm, Some("kvm"), "stockade-tests") },
    Suite { always: false, ..suite("qemu-kvm", Need::Kvm, Some("qemu-kvm"), "stockade-tests") },
];
