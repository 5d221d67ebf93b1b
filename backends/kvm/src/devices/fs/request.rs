//! One request: what is checked before the file server sees it, and how it is answered when the server has no answer.
//!
//! The server bounds what a request may name: its own length (1 MiB and a page), the data of reads and writes, and lists
//! of extended attributes and forgotten files. It takes for granted that there is room for the header of an answer, and
//! walks the list of buffers anew for each part of a message; both are seen to here.

use std::io::Write;

use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::passthrough::PassthroughFs;
use virtiofsd::server::Server;
use vm_memory::Bytes as _;

use super::sys::ServerMemory;
use crate::virtio::queue::Chain;

/// Most descriptors of a request. The largest that a driver has a use for is 1 MiB of data in single pages beside headers
/// and names.
const MAX_DESCRIPTORS: usize = 1024;

/// Bytes of `fuse_in_header`.
const IN_HEADER: usize = 40;
/// Bytes of `fuse_out_header`.
const OUT_HEADER: usize = 16;

/// Numbers of requests (`enum fuse_opcode`).
const FORGET: u32 = 2;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

/// What a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Bytes that were written for the guest.
    pub(super) written: u32,
    /// It made no sense.
    pub(super) malformed: bool,
    /// A session of the file system has begun or ended.
    pub(super) session: Option<bool>,
}

impl Outcome {
    const MALFORMED: Self = Self { written: 0, malformed: true, session: None };
}

/// The fields of a request's header that matter here.
struct InHeader {
    opcode: u32,
    unique: u64,
}

impl InHeader {
    /// Reads it, and looks at all descriptors on the way: one walk does for both.
    fn read(chain: Chain<'_>) -> Option<Self> {
        let memory = chain.clone();
        let mut bytes = [0; IN_HEADER];
        let mut missing = &mut bytes[..];
        for (number, descriptor) in chain.enumerate() {
            if number == MAX_DESCRIPTORS {
                return None;
            }
            if !descriptor.is_write_only() && !missing.is_empty() {
                let length = usize::try_from(descriptor.len()).unwrap_or(usize::MAX).min(missing.len());
                let (part, rest) = missing.split_at_mut(length);
                memory.memory().read_slice(part, descriptor.addr()).ok()?;
                missing = rest;
            }
        }
        if !missing.is_empty() {
            return None;
        }
        let (_, rest) = bytes.split_first_chunk::<4>()?;
        let (opcode, rest) = rest.split_first_chunk()?;
        let (unique, _) = rest.split_first_chunk()?;
        Some(Self { opcode: u32::from_le_bytes(*opcode), unique: u64::from_le_bytes(*unique) })
    }

    /// Whether the driver expects no answer.
    fn is_silent(&self) -> bool {
        matches!(self.opcode, FORGET | BATCH_FORGET | INTERRUPT | DESTROY)
    }
}

/// Has the server do what a request says.
pub(super) fn serve(server: &Server<PassthroughFs>, memory: &ServerMemory, chain: Chain<'_>) -> Outcome {
    let Some(header) = InHeader::read(chain.clone()) else {
        return Outcome::MALFORMED;
    };
    let (Ok(reader), Ok(writer)) = (Reader::new(memory, chain.clone()), Writer::new(memory, chain.clone())) else {
        return Outcome::MALFORMED;
    };
    if !header.is_silent() && writer.available_bytes() < OUT_HEADER {
        return Outcome::MALFORMED;
    }
    match server.handle_message(reader, writer, None::<&mut ()>) {
        Ok(written) => Outcome {
            written: u32::try_from(written).unwrap_or(u32::MAX),
            malformed: false,
            session: match header.opcode {
                INIT => Some(true),
                DESTROY => Some(false),
                _ => None,
            },
        },
        Err(_) if header.is_silent() => Outcome::MALFORMED,
        Err(_) => match Writer::new(memory, chain) {
            Ok(answer) => Outcome { written: refuse(answer, header.unique), ..Outcome::MALFORMED },
            Err(_) => Outcome::MALFORMED,
        },
    }
}

/// Answers with EINVAL; the bytes written.
fn refuse(mut answer: Writer<'_>, unique: u64) -> u32 {
    let mut bytes = [0; OUT_HEADER];
    bytes[..4].copy_from_slice(&16_u32.to_le_bytes());
    bytes[4..8].copy_from_slice(&(-libc::EINVAL).to_le_bytes());
    bytes[8..].copy_from_slice(&unique.to_le_bytes());
    answer.write_all(&bytes).map_or(0, |()| 16)
}
