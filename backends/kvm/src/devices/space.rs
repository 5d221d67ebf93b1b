//! Configuration spaces that are bytes.

/// Answers a read of a configuration space that consists of `space`; what is beyond its end stays as it is.
pub(super) fn read(space: &[u8], offset: u64, data: &mut [u8]) {
    let Some(rest) = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)) else {
        return;
    };
    for (byte, value) in data.iter_mut().zip(rest) {
        *byte = *value;
    }
}
