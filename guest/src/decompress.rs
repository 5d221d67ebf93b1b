//! The compressions that kernels and modules come in. Output is bounded: a damaged file cannot exhaust memory.

use std::io::{self, Read};
use std::path::Path;

use crate::GuestError;

/// The most that one file may unpack to, in bytes.
pub(crate) const OUTPUT_LIMIT: usize = 512 << 20;

/// The most that a block of the LZ4 legacy format unpacks to.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const XZ_MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Unpacks `data`, whose first bytes tell its format: LZ4 (legacy frames, as the kernel uses them), gzip, xz or zstd.
/// What follows the first compressed stream (the kernel appends the unpacked size) is ignored.
///
/// # Errors
/// When the format is another, the data is damaged, or it unpacks to more than [`OUTPUT_LIMIT`]. `path` is only named.
pub(crate) fn decompress(data: &[u8], path: &Path) -> Result<Vec<u8>, GuestError> {
    let result = if data.starts_with(&LZ4_LEGACY_MAGIC) {
        lz4_legacy(data.get(LZ4_LEGACY_MAGIC.len()..).unwrap_or_default())
    } else if data.starts_with(&GZIP_MAGIC) {
        bounded(flate2::bufread::GzDecoder::new(data))
    } else if data.starts_with(&XZ_MAGIC) {
        bounded(lzma_rust2::XzReader::new(data, false))
    } else if data.starts_with(&ZSTD_MAGIC) {
        ruzstd::decoding::StreamingDecoder::new(data).map_err(|error| error.to_string()).and_then(bounded)
    } else {
        Err("it is none of LZ4, gzip, xz and zstd".to_owned())
    };
    result.map_err(|reason| GuestError::Decompress { path: path.to_owned(), reason })
}

/// Whether `data` starts like one of the formats that [`decompress`] knows.
pub(crate) fn is_compressed(data: &[u8]) -> bool {
    [&LZ4_LEGACY_MAGIC[..], &GZIP_MAGIC, &XZ_MAGIC, &ZSTD_MAGIC].iter().any(|magic| data.starts_with(magic))
}

fn bounded(reader: impl Read) -> Result<Vec<u8>, String> {
    let mut output = Vec::new();
    let taken = io::copy(&mut reader.take(OUTPUT_LIMIT as u64 + 1), &mut output).map_err(|error| error.to_string())?;
    if taken > OUTPUT_LIMIT as u64 {
        return Err(format!("it unpacks to more than {OUTPUT_LIMIT} bytes"));
    }
    Ok(output)
}

/// Blocks, each with its length before it, up to the end or to a length that no block can have.
fn lz4_legacy(mut data: &[u8]) -> Result<Vec<u8>, String> {
    let mut output = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        // The kernel's build appends the unpacked size: four bytes that are no block's length.
        if rest.is_empty() {
            break;
        }
        let block = rest.get(..length).ok_or("a block is cut off")?;
        data = rest.get(length..).unwrap_or_default();
        let unpacked = lz4_flex::block::decompress(block, LZ4_LEGACY_BLOCK).map_err(|error| error.to_string())?;
        if output.len() + unpacked.len() > OUTPUT_LIMIT {
            return Err(format!("it unpacks to more than {OUTPUT_LIMIT} bytes"));
        }
        output.extend_from_slice(&unpacked);
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn unpack(data: &[u8]) -> Result<Vec<u8>, GuestError> {
        decompress(data, Path::new("test"))
    }

    fn lz4(blocks: &[&[u8]]) -> Vec<u8> {
        let mut data = LZ4_LEGACY_MAGIC.to_vec();
        for block in blocks {
            let packed = lz4_flex::block::compress(block);
            data.extend_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
            data.extend_from_slice(&packed);
        }
        data
    }

    #[test]
    fn lz4_blocks_are_joined_and_the_appended_size_is_ignored() {
        let mut data = lz4(&[b"one ", b"two"]);
        data.extend_from_slice(&7u32.to_le_bytes());
        assert_eq!(unpack(&data).unwrap(), b"one two");
    }

    #[test]
    fn a_cut_off_lz4_block_is_an_error() {
        let mut data = lz4(&[b"one two three four five"]);
        data.truncate(data.len() - 2);
        assert!(unpack(&data).unwrap_err().to_string().contains("cut off"));
    }

    #[test]
    fn a_damaged_lz4_block_is_an_error() {
        let mut data = LZ4_LEGACY_MAGIC.to_vec();
        data.extend_from_slice(&[5, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff]);
        unpack(&data).unwrap_err();
    }

    #[test]
    fn gzip_followed_by_other_bytes_is_unpacked() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"kernel").unwrap();
        let mut data = encoder.finish().unwrap();
        data.extend_from_slice(b"tail");
        assert_eq!(unpack(&data).unwrap(), b"kernel");
    }

    #[test]
    fn zstd_is_unpacked() {
        let data = ruzstd::encoding::compress_to_vec(&b"kernel"[..], ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(unpack(&data).unwrap(), b"kernel");
    }

    #[test]
    fn xz_is_unpacked() {
        // The output of `printf kernel | xz --check=crc32`.
        let data = include_bytes!("../testdata/kernel.xz");
        assert_eq!(unpack(data).unwrap(), b"kernel");
    }

    #[test]
    fn an_unknown_format_is_named_as_such() {
        assert!(unpack(b"BZh9").unwrap_err().to_string().contains("none of"));
    }
}
