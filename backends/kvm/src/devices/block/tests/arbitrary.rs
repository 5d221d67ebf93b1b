//! Any requests, right and wrong: against a model, and against a guard of memory and file.

use super::*;
use crate::virtio::testing::arbitrary::{HostileGuest, config as cases, queue_contents};
use proptest::prelude::*;

/// What could be a header, or a range to discard, with numbers near the limits.
fn sixteen_bytes() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![6 => prop::sample::select(vec![0_u32, 0, 1, 1, 4, 8, 11, 13]), 1 => any::<u32>()];
    let sector = prop_oneof![6 => 0..SECTORS + 2, 1 => any::<u64>()];
    let count = prop_oneof![6 => 0..12_u32, 1 => any::<u32>()];
    prop_oneof![
        3 => (kind, sector.clone()).prop_map(|(kind, sector)| header(kind, sector)),
        1 => (sector, count, 0..3_u32).prop_map(|(sector, count, flags)| range(sector, count, flags)),
    ]
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn whatever_the_queue_contains_only_buffers_given_for_it_and_the_disk_are_written(
        queue in queue_contents(prop::collection::vec(sixteen_bytes(), 0..32).prop_map(|pieces| pieces.concat())),
        read_only in any::<bool>(),
    ) {
        let guest = HostileGuest::new(&queue);
        let file = file();
        let before = contents(&file);
        let mut block = Block::new(Some(disk(&file, read_only)), read_only, Threads::default()).unwrap();
        let mut device = activate(&mut block, &guest.memory, &[&guest.driver]).unwrap();
        // Twice, as a guest may notify as often as it likes; it may fail then, which is the transport's business.
        let _ = device.worker.handle(Event::Queue(0));
        let _ = device.worker.handle(Event::Queue(0));
        prop_assert_eq!(device.worker.stop().len(), 1);
        guest.check_writes();
        let after = contents(&file);
        prop_assert_eq!(after.len(), before.len());
        prop_assert!(after.ends_with(b"beyond the end"));
        prop_assert!(!read_only || after == before);
    }
}

/// A request that makes sense, apart from its sector.
#[derive(Debug, Clone)]
enum Step {
    Read { sector: u64, pieces: Vec<usize> },
    Write { sector: u64, pieces: Vec<usize>, fill: u8 },
    Discard(Vec<(u64, u32)>),
    Zero { sector: u64, count: u32, unmap: bool },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let sector = || 0..SECTORS + 3;
    // Whole sectors in all, cut anywhere.
    let pieces = || {
        (1..6_usize, prop::collection::vec(0..3000_usize, 0..4)).prop_map(|(sectors, mut cuts)| {
            let total = sectors * 512;
            cuts.retain(|cut| *cut < total);
            cuts.extend([0, total]);
            cuts.sort_unstable();
            cuts.windows(2).map(|pair| pair[1] - pair[0]).collect()
        })
    };
    prop_oneof![
        4 => (sector(), pieces()).prop_map(|(sector, pieces)| Step::Read { sector, pieces }),
        4 => (sector(), pieces(), any::<u8>())
            .prop_map(|(sector, pieces, fill)| Step::Write { sector, pieces, fill }),
        1 => prop::collection::vec((sector(), 0..20_u32), 1..5).prop_map(Step::Discard),
        1 => (sector(), 0..20_u32, any::<bool>())
            .prop_map(|(sector, count, unmap)| Step::Zero { sector, count, unmap }),
        1 => Just(Step::Flush),
    ]
}

/// The bytes of these sectors, if the disk has them.
fn place(sector: u64, bytes: usize) -> Option<std::ops::Range<usize>> {
    let start = sector as usize * 512;
    (start + bytes <= SECTORS as usize * 512).then_some(start..start + bytes)
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn a_disk_is_an_array_of_sectors(steps in prop::collection::vec(step(), 1..30)) {
        let mut bench = Bench::new();
        let mut model = contents(&bench.file);
        for step in steps {
            match step {
                Step::Read { sector, pieces } => {
                    let parts: Vec<Part<'_>> = pieces.iter().map(|length| Part::In(*length)).collect();
                    let (status, _, request) = bench.ask(abi::VIRTIO_BLK_T_IN, sector, &parts);
                    let expected = place(sector, pieces.iter().sum());
                    prop_assert_eq!(status, if expected.is_some() { OK } else { IOERR });
                    if let Some(expected) = expected {
                        let read: Vec<u8> =
                            (1..=parts.len()).flat_map(|part| bench.driver.read(&request, part)).collect();
                        prop_assert!(read == model[expected]);
                    }
                }
                Step::Write { sector, pieces, fill } => {
                    let total = pieces.iter().sum();
                    let bytes: Vec<u8> = (0..total).map(|index| fill.wrapping_add((index / 7) as u8)).collect();
                    let mut rest = bytes.as_slice();
                    let mut parts = Vec::new();
                    for length in pieces {
                        let (now, later) = rest.split_at(length);
                        parts.push(Part::Out(now));
                        rest = later;
                    }
                    let expected = place(sector, total);
                    let (status, ..) = bench.ask(abi::VIRTIO_BLK_T_OUT, sector, &parts);
                    prop_assert_eq!(status, if expected.is_some() { OK } else { IOERR });
                    if let Some(expected) = expected {
                        model[expected].copy_from_slice(&bytes);
                    }
                }
                Step::Discard(ranges) => {
                    let bytes: Vec<u8> = ranges.iter().flat_map(|(sector, count)| range(*sector, *count, 0)).collect();
                    let (status, ..) = bench.ask(abi::VIRTIO_BLK_T_DISCARD, 0, &[Part::Out(&bytes)]);
                    let mut expected = OK;
                    // Those before the first one that does not fit are done.
                    for (sector, count) in ranges {
                        let Some(place) = place(sector, count as usize * 512) else {
                            expected = IOERR;
                            break;
                        };
                        model[place].fill(0);
                    }
                    prop_assert_eq!(status, expected);
                }
                Step::Zero { sector, count, unmap } => {
                    let bytes = range(sector, count, unmap.into());
                    let (status, ..) = bench.ask(abi::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[Part::Out(&bytes)]);
                    let expected = place(sector, count as usize * 512);
                    prop_assert_eq!(status, if expected.is_some() { OK } else { IOERR });
                    if let Some(expected) = expected {
                        model[expected].fill(0);
                    }
                }
                Step::Flush => prop_assert_eq!(bench.ask(abi::VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK),
            }
        }
        prop_assert!(contents(&bench.file) == model);
    }
}
