//! Rules -> an eBPF program that the kernel asks before a process uses a device (BPF_PROG_TYPE_CGROUP_DEVICE).
//!
//! The program is given a `bpf_cgroup_dev_ctx` and returns 1 for yes. It goes through the rules from the last to the
//! first; the first that matches settles the accesses that it speaks of. One that is denied ends it, and so does the
//! moment when all are allowed. What is left at the end gets what holds without rules.
//!
//! A rule is compared without branches: differences are collected in a register, which is zero for a match. So the
//! kernel's verifier learns nothing of the device from a rule that matched, does not follow the rest of the program once
//! for each, and its work grows with the number of rules, not with its square.

use super::rules::Rules;

/// An instruction as the kernel takes it on the little-endian machines that guests are: code, registers (destination in
/// the lower half), offset, immediate (linux/bpf.h, `struct bpf_insn`).
pub(super) type Instruction = [u8; 8];

/// Registers. The context comes in the first and the answer is taken from the zeroth; both are free in between.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const DIFFERENCE: u8 = 1;
const TERM: u8 = 0;
const KIND: u8 = 2;
/// Accesses that are asked for and that no rule has settled.
const OPEN: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Operations (linux/bpf_common.h and linux/bpf.h): 32-bit arithmetic, loads of 32 bits, jumps.
const LOAD: u8 = 0x61;
const MOVE: u8 = 0xbc;
const OR: u8 = 0x4c;
const MOVE_NUMBER: u8 = 0xb4;
const AND_NUMBER: u8 = 0x54;
const XOR_NUMBER: u8 = 0xa4;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP: u8 = 0x05;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const JUMP_IF_ANY_BIT: u8 = 0x45;
const EXIT: u8 = 0x95;

/// Offsets in `struct bpf_cgroup_dev_ctx`: 32 bits each.
const ACCESS_TYPE: i16 = 0;
const CONTEXT_MAJOR: i16 = 4;
const CONTEXT_MINOR: i16 = 8;
/// The kind is in the lower half of `access_type`, the accesses are in the upper.
const KIND_MASK: u32 = 0xffff;
const ACCESS_SHIFT: u32 = 16;

/// Makes the program.
pub(super) fn compile(rules: &Rules) -> Vec<Instruction> {
    let mut program = Program::default();
    program.load(KIND, ACCESS_TYPE);
    program.registers(MOVE, OPEN, KIND);
    program.number(AND_NUMBER, KIND, KIND_MASK);
    program.number(SHIFT_RIGHT, OPEN, ACCESS_SHIFT);
    program.load(MAJOR, CONTEXT_MAJOR);
    program.load(MINOR, CONTEXT_MINOR);
    // Nothing asked for is nothing to deny.
    program.allow_if_settled();
    for rule in rules.list.iter().rev() {
        program.registers(MOVE, DIFFERENCE, KIND);
        program.number(XOR_NUMBER, DIFFERENCE, rule.kind as u32);
        for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
            if let Some(number) = number {
                program.registers(MOVE, TERM, register);
                program.number(XOR_NUMBER, TERM, number);
                program.registers(OR, DIFFERENCE, TERM);
            }
        }
        // Both forms of what follows are four instructions.
        program.jump(JUMP_UNLESS_EQUAL, DIFFERENCE, 0, 4);
        let bits = u32::from(rule.access.bits());
        if rule.allow {
            program.number(AND_NUMBER, OPEN, !bits);
            program.allow_if_settled();
        } else {
            program.jump(JUMP_IF_ANY_BIT, OPEN, bits, 1);
            program.jump(JUMP, 0, 0, 2);
            program.answer(false);
        }
    }
    program.answer(rules.allow);
    program.0
}

#[derive(Default)]
struct Program(Vec<Instruction>);

impl Program {
    fn push(&mut self, code: u8, destination: u8, source: u8, offset: i16, number: u32) {
        let [offset_low, offset_high] = offset.to_le_bytes();
        let [a, b, c, d] = number.to_le_bytes();
        self.0.push([code, destination | source << 4, offset_low, offset_high, a, b, c, d]);
    }

    fn load(&mut self, destination: u8, offset: i16) {
        self.push(LOAD, destination, CONTEXT, offset, 0);
    }

    fn registers(&mut self, code: u8, destination: u8, source: u8) {
        self.push(code, destination, source, 0, 0);
    }

    fn number(&mut self, code: u8, destination: u8, number: u32) {
        self.push(code, destination, 0, 0, number);
    }

    /// `over` is how many instructions are jumped over.
    fn jump(&mut self, code: u8, register: u8, number: u32, over: i16) {
        self.push(code, register, 0, over, number);
    }

    fn answer(&mut self, allow: bool) {
        self.number(MOVE_NUMBER, ANSWER, u32::from(allow));
        self.push(EXIT, 0, 0, 0, 0);
    }

    fn allow_if_settled(&mut self) {
        self.jump(JUMP_UNLESS_EQUAL, OPEN, 0, 2);
        self.answer(true);
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::{DeviceKind, DeviceNumber, MAX_RULES, RuleError};
    use super::*;
    use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const READ: u32 = 2;
    const WRITE: u32 = 4;
    const MKNOD: u32 = 1;

    fn given(rules: Value) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_value(rules).expect("rules")
    }

    fn rules(json: Value) -> Rules {
        Rules::new(&given(json), &[], &[]).expect("usable rules")
    }

    fn block(major: u32, minor: u32) -> DeviceNumber {
        DeviceNumber { kind: DeviceKind::Block, major, minor }
    }

    fn character(major: u32, minor: u32) -> DeviceNumber {
        DeviceNumber { kind: DeviceKind::Character, major, minor }
    }

    /// What the program says, as an interpreter runs it.
    fn runs(rules: &Rules, device: DeviceNumber, access: u32) -> bool {
        let program = compile(rules).concat();
        let mut context = Vec::new();
        for field in [access << 16 | device.kind as u32, device.major, device.minor] {
            context.extend(field.to_le_bytes());
        }
        let vm = rbpf::EbpfVmRaw::new(Some(&program)).expect("a valid program");
        match vm.execute_program(&mut context).expect("the program ends") {
            0 => false,
            1 => true,
            other => panic!("the answer {other}"),
        }
    }

    /// The meaning of the rules, spelled out: every access that is asked for, by the last rule of the specification
    /// that speaks of it.
    fn means(given: &[LinuxDeviceCgroup], device: DeviceNumber, access: u32) -> bool {
        let bits = |text: &str| text.chars().fold(0, |all, c| all | [MKNOD, READ, WRITE]["mrw".find(c).expect("rwm")]);
        let mut verdict = [false; 3];
        for rule in given {
            let every = rule.typ().is_none_or(|typ| typ == LinuxDeviceType::A);
            let kind = if rule.typ() == Some(LinuxDeviceType::B) { DeviceKind::Block } else { DeviceKind::Character };
            let one = |number: Option<i64>, own: u32| number.is_none_or(|n| n < 0 || n == i64::from(own));
            let of_device = kind == device.kind && one(rule.major(), device.major) && one(rule.minor(), device.minor);
            for (index, verdict) in verdict.iter_mut().enumerate() {
                let speaks = bits(rule.access().as_deref().expect("access")) & 1 << index != 0;
                if every || (of_device && speaks) {
                    *verdict = rule.allow();
                }
            }
        }
        // What a container always has.
        let standard = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (10, 200)];
        let terminal = device.major == 136;
        if device.kind == DeviceKind::Character && (terminal || standard.contains(&(device.major, device.minor))) {
            return true;
        }
        verdict[0] = true;
        (0..3).all(|index| access & 1 << index == 0 || verdict[index])
    }

    #[test]
    fn what_engines_write_denies_all_but_the_usual_devices() {
        for rules in [rules(json!([{"allow": false, "access": "rwm"}])), rules(json!([]))] {
            for (major, minor) in
                [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 0), (136, 77), (10, 200)]
            {
                assert!(runs(&rules, character(major, minor), READ | WRITE), "{major}:{minor}");
            }
            for device in [character(1, 1), character(5, 1), character(10, 229), block(254, 0), block(1, 3)] {
                assert!(!runs(&rules, device, READ) && !runs(&rules, device, WRITE), "{device:?}");
                assert!(runs(&rules, device, MKNOD), "{device:?}");
                assert!(!runs(&rules, device, MKNOD | READ), "{device:?}");
            }
        }
    }

    #[test]
    fn the_last_rule_that_speaks_of_an_access_decides_it() {
        let rules = rules(json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": -1, "access": "rw"},
            {"allow": false, "type": "c", "major": 10, "minor": 229, "access": "w"},
            {"allow": true, "type": "b", "major": 8, "access": "r"},
            {"allow": true, "type": "b", "minor": 1, "access": "w"},
        ]));
        assert!(runs(&rules, character(10, 1), READ | WRITE));
        assert!(runs(&rules, character(10, 229), READ));
        assert!(!runs(&rules, character(10, 229), READ | WRITE));
        assert!(runs(&rules, block(8, 1), READ | WRITE), "one rule allows reading, another one writing");
        assert!(!runs(&rules, block(8, 2), WRITE) && !runs(&rules, block(9, 2), READ));
    }

    #[test]
    fn a_privileged_container_needs_no_rules() {
        let rules = rules(json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            {"allow": true, "type": "a", "major": -1, "minor": -1, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "minor": 1, "access": "rwm"},
        ]));
        assert!(rules.allow && rules.list.is_empty(), "{rules:?}");
        assert!(runs(&rules, block(254, 0), READ | WRITE | MKNOD));
        let denied = self::rules(json!([
            {"allow": true, "access": "rwm"},
            {"allow": false, "type": "b", "major": 254, "access": "w"},
        ]));
        assert!(runs(&denied, block(254, 0), READ) && !runs(&denied, block(254, 0), READ | WRITE));
        assert!(runs(&denied, block(253, 0), READ | WRITE));
    }

    #[test]
    fn rules_follow_devices_to_their_numbers_in_the_guest() {
        let json = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "r"},
            {"allow": true, "type": "b", "major": 8, "minor": 16, "access": "rw"},
            {"allow": true, "type": "b", "major": 9, "access": "r"},
        ]);
        let renumbered = [
            (block(8, 0), block(8, 16)),
            (block(8, 16), block(8, 32)),
            (block(9, 1), block(254, 1)),
            (block(10, 1), block(254, 2)),
        ];
        let rules = Rules::new(&given(json), &renumbered, &[block(254, 3)]).expect("usable rules");
        assert!(runs(&rules, block(8, 16), READ) && !runs(&rules, block(8, 16), WRITE), "each is renumbered once");
        assert!(runs(&rules, block(8, 32), READ | WRITE));
        assert!(!runs(&rules, block(8, 0), READ), "the guest's own device of the host's number");
        assert!(
            runs(&rules, block(254, 1), READ) && !runs(&rules, block(254, 1), WRITE),
            "what a rule for many grants"
        );
        assert!(runs(&rules, block(254, 2), READ | WRITE), "no rule speaks of it");
        assert!(runs(&rules, block(254, 3), READ | WRITE), "its number on the host is not known");
        assert!(!runs(&rules, block(254, 4), READ));
    }

    #[test]
    fn rules_that_make_no_sense_are_named() {
        let refused = |rule: Value| {
            let list = json!([{"allow": false, "access": "rwm"}, rule]);
            Rules::new(&given(list), &[], &[]).expect_err("refused").to_string()
        };
        for (rule, part) in [
            (json!({"allow": true, "type": "c"}), "no access"),
            (json!({"allow": true, "type": "c", "access": ""}), "no access"),
            (json!({"allow": true, "type": "c", "access": "rx"}), "\"rx\""),
            (json!({"allow": true, "type": "p", "access": "r"}), "type \"p\""),
            (json!({"allow": true, "type": "c", "major": 1i64 << 32, "access": "r"}), "major 4294967296"),
            (json!({"allow": true, "type": "c", "minor": i64::MAX, "access": "r"}), "minor 9223372036854775807"),
        ] {
            let text = refused(rule);
            assert!(text.contains("devices[1]") && text.contains(part), "{text}");
        }
        let many = vec![json!({"allow": true, "type": "b", "major": 1, "access": "r"}); MAX_RULES + 1];
        assert_eq!(Rules::new(&given(json!(many)), &[], &[]), Err(RuleError::TooMany));
    }

    proptest! {
        #[test]
        fn the_program_says_what_the_rules_mean(
            list in prop::collection::vec(
                (any::<bool>(), prop::option::of(0..3usize), number(), number(), "[rwm]{1,3}"), 0..12),
            kind in any::<bool>(), major in device_number(), minor in device_number(), access in 0..8u32,
        ) {
            let list: Vec<Value> = list
                .into_iter()
                .map(|(allow, typ, major, minor, access)| {
                    let mut rule = json!({"allow": allow, "access": access});
                    if let Some(typ) = typ {
                        rule["type"] = json!(["a", "b", "c"][typ]);
                    }
                    for (name, number) in [("major", major), ("minor", minor)] {
                        if let Some(number) = number {
                            rule[name] = json!(number);
                        }
                    }
                    rule
                })
                .collect();
            let list = given(json!(list));
            let device = DeviceNumber { kind: if kind { DeviceKind::Block } else { DeviceKind::Character }, major, minor };
            let rules = Rules::new(&list, &[], &[]).expect("usable rules");
            prop_assert_eq!(runs(&rules, device, access), means(&list, device, access), "{:?}", rules);
        }
    }

    /// Few different ones, so that rules and devices meet.
    fn number() -> impl Strategy<Value = Option<i64>> {
        prop::option::of(prop_oneof![-1..4i64, Just(136), Just(i64::from(u32::MAX))])
    }

    fn device_number() -> impl Strategy<Value = u32> {
        prop_oneof![0..4u32, Just(5), Just(136), Just(u32::MAX)]
    }
}
