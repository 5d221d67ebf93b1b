//! What the processor says of itself: what the host's KVM supports, less what this machine does not give, with the
//! machine's own topology.
//!
//! Every vCPU is a core of one package, without threads: a container's processes gain nothing from knowing more, and the
//! host's scheduler moves vCPUs about anyway. Sources: Intel's manual (volume 2A, CPUID), AMD's (volume 3, appendix E).

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The most entries that KVM gives.
pub(crate) const MAX_ENTRIES: usize = 256;

/// What a vCPU's identification depends on, beside the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Topology {
    /// The vCPU's number, which is its APIC identifier.
    pub(crate) index: u8,
    /// How many there may be.
    pub(crate) max_vcpus: u8,
    /// Whether KVM's local APIC has the deadline timer.
    pub(crate) tsc_deadline: bool,
}

const FEATURES: u32 = 1;
const CACHES: u32 = 4;
const POWER: u32 = 6;
const MORE_FEATURES: u32 = 7;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

/// Leaves of things that are not given: performance counters (0xa, 0x80000022), monitoring and allocation of caches (0xf,
/// 0x10, 0x80000020), SGX (0x12), processor trace (0x14), nested virtualization (0x8000000a), instruction sampling
/// (0x8000001b), lightweight profiling (0x8000001c), encrypted memory (0x8000001f).
const HIDDEN: [u32; 10] = [0xa, 0xf, 0x10, 0x12, 0x14, 0x8000_000a, 0x8000_001b, 0x8000_001c, 0x8000_001f, 0x8000_0022];

/// Leaf 1, ECX.
mod ecx1 {
    pub(super) const MONITOR: u32 = 1 << 3;
    pub(super) const VMX: u32 = 1 << 5;
    pub(super) const PDCM: u32 = 1 << 15;
    pub(super) const TSC_DEADLINE: u32 = 1 << 24;
    pub(super) const HYPERVISOR: u32 = 1 << 31;
}
/// Leaf 1, EDX: more than one logical processor.
const HTT: u32 = 1 << 28;
/// Leaf 6, EAX: the local APIC's timer runs in every sleep state.
const ARAT: u32 = 1 << 2;
/// Leaf 7, EBX: SGX, memory bandwidth and cache monitoring, processor trace.
const EBX7_HIDDEN: u32 = 1 << 2 | 1 << 12 | 1 << 15 | 1 << 25;
/// Leaf 7, ECX: SGX's launch configuration.
const ECX7_HIDDEN: u32 = 1 << 30;
/// Leaf 0x80000001, ECX: SVM, instruction sampling, SKINIT, watchdog, lightweight profiling, performance counters (core,
/// north bridge, L2).
const AMD_ECX_HIDDEN: u32 = 1 << 2 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 23 | 1 << 24 | 1 << 28;

/// What level of the topology a sub-leaf of 0xb tells of.
const LEVEL_NONE: u32 = 0;
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The bits that number `count` things.
fn bits_for(count: u8) -> u32 {
    u8::BITS - count.saturating_sub(1).leading_zeros()
}

/// A vCPU's leaves, made of those that KVM supports.
pub(crate) fn for_vcpu(supported: &[kvm_cpuid_entry2], topology: Topology) -> Vec<kvm_cpuid_entry2> {
    let mut leaves: Vec<_> = supported.iter().filter(|leaf| !is_topology(leaf.function)).copied().collect();
    leaves.iter_mut().for_each(|leaf| adjust(leaf, topology));
    let highest = supported.iter().filter(|leaf| leaf.function == 0).map(|leaf| leaf.eax).max().unwrap_or(0);
    for function in [TOPOLOGY, TOPOLOGY_V2] {
        if function <= highest {
            leaves.extend(topology_leaves(function, topology));
        }
    }
    leaves.truncate(MAX_ENTRIES);
    leaves
}

/// [`for_vcpu`] as KVM takes it.
pub(crate) fn to_kvm(leaves: &[kvm_cpuid_entry2]) -> Result<CpuId, vmm_sys_util::fam::Error> {
    CpuId::from_entries(leaves)
}

fn is_topology(function: u32) -> bool {
    function == TOPOLOGY || function == TOPOLOGY_V2
}

fn topology_leaves(function: u32, topology: Topology) -> impl Iterator<Item = kvm_cpuid_entry2> {
    let levels = [
        (LEVEL_THREAD, 0, 1),
        (LEVEL_CORE, bits_for(topology.max_vcpus), u32::from(topology.max_vcpus)),
        (LEVEL_NONE, 0, 0),
    ];
    (0..).zip(levels).map(move |(index, (level, shift, count))| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: level << 8 | index,
        edx: u32::from(topology.index),
        ..Default::default()
    })
}

fn adjust(leaf: &mut kvm_cpuid_entry2, topology: Topology) {
    let (index, count) = (u32::from(topology.index), u32::from(topology.max_vcpus));
    match leaf.function {
        hidden if HIDDEN.contains(&hidden) => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
        FEATURES => {
            // CLFLUSH's line size stays; APIC identifier and count are the machine's.
            leaf.ebx = leaf.ebx & 0xff00 | index << 24 | count << 16;
            leaf.ecx &= !(ecx1::MONITOR | ecx1::VMX | ecx1::PDCM);
            leaf.ecx |= ecx1::HYPERVISOR;
            set(&mut leaf.ecx, ecx1::TSC_DEADLINE, topology.tsc_deadline);
            set(&mut leaf.edx, HTT, count > 1);
        }
        // The first levels of cache are a core's own, the last is the package's.
        CACHES if leaf.eax & 0x1f != 0 => {
            let level = leaf.eax >> 5 & 7;
            let sharing = if level >= 3 { count } else { 1 };
            leaf.eax = leaf.eax & 0x3fff | (sharing - 1) << 14 | (count - 1).min(0x3f) << 26;
        }
        POWER => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (ARAT, 0, 0, 0),
        MORE_FEATURES if leaf.index == 0 => {
            leaf.ebx &= !EBX7_HIDDEN;
            leaf.ecx &= !ECX7_HIDDEN;
        }
        AMD_FEATURES => leaf.ecx &= !AMD_ECX_HIDDEN,
        AMD_SIZES => leaf.ecx = leaf.ecx & !0xf0ff | bits_for(topology.max_vcpus) << 12 | (count - 1),
        AMD_CACHES if leaf.eax & 0x1f != 0 => {
            let level = leaf.eax >> 5 & 7;
            let sharing = if level >= 3 { count } else { 1 };
            leaf.eax = leaf.eax & 0x3fff | (sharing - 1) << 14;
        }
        AMD_TOPOLOGY => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (index, index & 0xff, 0, 0),
        _ => {}
    }
}

fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *leaves.iter().find(|leaf| leaf.function == function && leaf.index == index).unwrap()
    }

    const FOUR: Topology = Topology { index: 2, max_vcpus: 4, tsc_deadline: true };

    #[test]
    fn a_vcpu_is_one_core_of_a_package_under_a_hypervisor() {
        let supported = [leaf(0, 0, [0x1f, 0, 0, 0]), leaf(1, 0, [0, 0xffff_08ff, ecx1::VMX | 1, 0])];
        let leaves = for_vcpu(&supported, FOUR);
        let features = find(&leaves, 1, 0);
        assert_eq!(features.ebx, 0x0204_0800);
        assert_eq!(features.ecx, ecx1::HYPERVISOR | ecx1::TSC_DEADLINE | 1);
        assert_eq!(features.edx, HTT);
        let core = find(&leaves, 0xb, 1);
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 4, 0x201, 2));
        assert_eq!(find(&leaves, 0x1f, 0).eax, 0);
    }

    #[test]
    fn a_machine_of_one_vcpu_says_so() {
        let supported = [leaf(0, 0, [0xb, 0, 0, 0]), leaf(1, 0, [0, 0, 0, HTT])];
        let leaves = for_vcpu(&supported, Topology { index: 0, max_vcpus: 1, tsc_deadline: false });
        assert_eq!(find(&leaves, 1, 0).edx, 0);
        assert_eq!(find(&leaves, 1, 0).ecx & ecx1::TSC_DEADLINE, 0);
        assert_eq!(find(&leaves, 0xb, 1).eax, 0);
        assert!(!leaves.iter().any(|leaf| leaf.function == 0x1f), "the host has no such leaf");
    }

    #[test]
    fn nested_virtualization_and_counters_are_not_given() {
        let all = [u32::MAX; 4];
        let supported = HIDDEN.map(|function| leaf(function, 0, all));
        assert!(for_vcpu(&supported, FOUR).iter().all(|leaf| (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) == (0, 0, 0, 0)));
        let amd = for_vcpu(&[leaf(AMD_FEATURES, 0, all)], FOUR);
        assert_eq!(amd[0].ecx & 1 << 2, 0, "SVM");
        assert_ne!(amd[0].ecx & 1 << 22, 0, "topology extensions");
    }

    #[test]
    fn the_last_level_of_cache_is_shared_by_all() {
        for function in [CACHES, AMD_CACHES] {
            let supported =
                [leaf(function, 0, [0x121 | 7 << 14, 0, 0, 0]), leaf(function, 3, [0x163 | 7 << 14, 0, 0, 0])];
            let leaves = for_vcpu(&supported, FOUR);
            assert_eq!(find(&leaves, function, 0).eax >> 14 & 0xfff, 0);
            assert_eq!(find(&leaves, function, 3).eax >> 14 & 0xfff, 3);
        }
    }

    proptest! {
        #[test]
        fn whatever_the_host_supports_gives_leaves_that_kvm_takes(
            leaves in proptest::collection::vec((prop_oneof![0u32..0x20, 0x8000_0000u32..0x8000_0030], 0u32..4, any::<[u32; 4]>()), 0..300),
            max_vcpus in 1u8..=254, index in any::<u8>()
        ) {
            let supported: Vec<_> = leaves.into_iter().map(|(function, index, registers)| leaf(function, index, registers)).collect();
            let topology = Topology { index: index % max_vcpus, max_vcpus, tsc_deadline: true };
            let made = for_vcpu(&supported, topology);
            prop_assert!(to_kvm(&made).is_ok());
            prop_assert!(1 << bits_for(max_vcpus) >= u32::from(max_vcpus));
        }
    }
}
