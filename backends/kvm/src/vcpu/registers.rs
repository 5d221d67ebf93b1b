//! A vCPU at its first instruction.

use kvm_bindings::{kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::GuestMemory;
use crate::memory::layout::{BOOT_PARAMS, BOOT_STACK, GDT, PAGE_TABLES};

/// The selectors that the boot protocol asks for.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_ALWAYS: u64 = 2;

const PAGE_PRESENT: u64 = 1;
const PAGE_WRITABLE: u64 = 1 << 1;
const PAGE_LARGE: u64 = 1 << 7;

/// Flat segments: base 0, limit 4 GiB; code in 64-bit mode, data, and a task state that must be there.
const DESCRIPTORS: [u64; 5] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];

const IA32_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, and all memory write-back: with no firmware there is nobody else to say so.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Writes the descriptor table and the page tables that the first vCPU begins with: the first GiB at its own address.
pub(crate) fn write_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    for (index, descriptor) in (0..).zip(DESCRIPTORS) {
        memory.write_obj(descriptor, GuestAddress(GDT + index * 8))?;
    }
    let (top, middle, bottom) = (PAGE_TABLES, PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
    memory.write_obj(middle | PAGE_PRESENT | PAGE_WRITABLE, GuestAddress(top))?;
    memory.write_obj(bottom | PAGE_PRESENT | PAGE_WRITABLE, GuestAddress(middle))?;
    let pages: Vec<u8> =
        (0..512u64).flat_map(|index| (index << 21 | PAGE_PRESENT | PAGE_WRITABLE | PAGE_LARGE).to_le_bytes()).collect();
    memory.write_slice(&pages, GuestAddress(bottom))
}

/// The general registers of the first vCPU.
pub(crate) fn general(entry: u64) -> kvm_regs {
    kvm_regs {
        rip: entry,
        rsi: BOOT_PARAMS,
        rsp: BOOT_STACK,
        rbp: BOOT_STACK,
        rflags: RFLAGS_ALWAYS,
        ..Default::default()
    }
}

/// Makes `registers`, as KVM has them at reset, those of 64-bit mode with paging.
pub(crate) fn enter_long_mode(registers: &mut kvm_sregs) {
    registers.gdt.base = GDT;
    registers.gdt.limit = u16::try_from(DESCRIPTORS.len() * 8 - 1).unwrap_or(0);
    registers.idt.base = 0;
    registers.idt.limit = 0;
    registers.cs = segment(CODE);
    let data = segment(DATA);
    (registers.ds, registers.es, registers.fs, registers.gs, registers.ss) = (data, data, data, data, data);
    registers.tr = segment(TASK);
    registers.cr3 = PAGE_TABLES;
    registers.cr4 |= CR4_PAE;
    registers.cr0 = CR0_PE | CR0_ET | CR0_PG;
    registers.efer |= EFER_LME | EFER_LMA;
}

/// The floating point unit after FNINIT.
pub(crate) fn floating_point() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

/// The model-specific registers that are not as KVM has them at reset.
pub(crate) fn model_specific() -> [kvm_msr_entry; 2] {
    [(IA32_MISC_ENABLE, FAST_STRINGS), (MTRR_DEF_TYPE, MTRR_WRITE_BACK)].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    })
}

/// The hidden part of a segment register that was loaded with `selector`.
fn segment(selector: u16) -> kvm_segment {
    let descriptor = DESCRIPTORS.get(usize::from(selector / 8)).copied().unwrap_or(0);
    let bits = |shift: u32, count: u32| u8::try_from(descriptor >> shift & ((1 << count) - 1)).unwrap_or(0);
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: bits(40, 4),
        s: bits(44, 1),
        dpl: bits(45, 2),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: bits(55, 1),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    #[test]
    fn the_first_gib_is_mapped_at_its_own_address() {
        let memory = Memory::reserve(&[0..0x10_0000]).unwrap();
        write_tables(memory.guest()).unwrap();
        let entry = |table: u64, index: u64| memory.guest().read_obj::<u64>(GuestAddress(table + index * 8)).unwrap();
        let middle = entry(PAGE_TABLES, 0) & !0xfff;
        let bottom = entry(middle, 0) & !0xfff;
        assert_eq!((middle, bottom), (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000));
        for index in 0..512 {
            assert_eq!(entry(bottom, index), index << 21 | 0x83);
        }
    }

    #[test]
    fn segments_are_those_of_64_bit_mode() {
        let mut registers = kvm_sregs::default();
        enter_long_mode(&mut registers);
        assert_eq!((registers.cs.l, registers.cs.db, registers.cs.type_, registers.cs.s), (1, 0, 0xb, 1));
        assert_eq!((registers.ds.type_, registers.ds.s, registers.ds.present, registers.ds.g), (3, 1, 1, 1));
        assert_eq!((registers.tr.type_, registers.tr.s, registers.tr.present), (0xb, 0, 1));
    }
}
