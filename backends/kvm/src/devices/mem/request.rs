//! Requests of the driver and the answers (virtio 1.2, section 5.15.6).

use std::io::{Read, Write};

use vm_memory::GuestMemoryMmap;

use super::region::{Answer, Region, Request};
use crate::virtio::queue::Chain;

/// Bytes of `struct virtio_mem_req` and `struct virtio_mem_resp`.
const REQUEST: usize = 24;
const RESPONSE: usize = 10;

/// Answers a request: the bytes written, and whether it was in order.
pub(super) fn serve(region: &mut Region, memory: &GuestMemoryMmap, chain: Chain<'_>) -> (u32, bool) {
    let (Ok(mut reader), Ok(mut writer)) = (chain.clone().reader(memory), chain.writer(memory)) else {
        return (0, false);
    };
    let mut bytes = [0; REQUEST];
    if reader.read_exact(&mut bytes).is_err() || writer.available_bytes() < RESPONSE {
        return (0, false);
    }
    let answer = parse(&bytes).map_or(Answer::ERROR, |request| region.serve(memory, request));
    let mut response = [0; RESPONSE];
    response[..2].copy_from_slice(&answer.kind.to_le_bytes());
    response[8..].copy_from_slice(&answer.state.to_le_bytes());
    match writer.write_all(&response) {
        Ok(()) => (10, answer != Answer::ERROR),
        Err(_) => (0, false),
    }
}

/// What the bytes ask for; `None` when it is nothing there is.
fn parse(bytes: &[u8; REQUEST]) -> Option<Request> {
    let [t0, t1, _, _, _, _, _, _, a0, a1, a2, a3, a4, a5, a6, a7, n0, n1, ..] = *bytes;
    let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
    let blocks = u16::from_le_bytes([n0, n1]);
    match u16::from_le_bytes([t0, t1]) {
        0 => Some(Request::Plug { address, blocks }),
        1 => Some(Request::Unplug { address, blocks }),
        2 => Some(Request::UnplugAll),
        3 => Some(Request::State { address, blocks }),
        _ => None,
    }
}
