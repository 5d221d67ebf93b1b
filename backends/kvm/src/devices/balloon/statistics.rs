//! What a guest tells of its memory.

/// Bytes of an entry: a tag and a value.
pub(super) const ENTRY: usize = 10;

/// Most entries that are looked at; the specification has ten.
pub(super) const MAX_ENTRIES: usize = 32;

/// Statistics of a guest's memory: the guest's word. What it did not tell is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Statistics {
    /// Bytes swapped in since boot.
    pub swapped_in: u64,
    /// Bytes swapped out since boot.
    pub swapped_out: u64,
    /// Page faults that read from a disk.
    pub major_faults: u64,
    /// Other page faults.
    pub minor_faults: u64,
    /// Bytes that are not used for anything.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes that could be used without swapping.
    pub available: u64,
    /// Bytes in caches that can be dropped.
    pub disk_caches: u64,
    /// Huge pages that were allocated.
    pub huge_page_allocations: u64,
    /// Huge pages that could not be allocated.
    pub huge_page_failures: u64,
}

impl Statistics {
    /// Reads a list of entries. Tags that are not known are passed over.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut statistics = Self::default();
        for entry in bytes.as_chunks::<ENTRY>().0.iter().take(MAX_ENTRIES) {
            let [t0, t1, v0, v1, v2, v3, v4, v5, v6, v7] = *entry;
            let field = match u16::from_le_bytes([t0, t1]) {
                0 => &mut statistics.swapped_in,
                1 => &mut statistics.swapped_out,
                2 => &mut statistics.major_faults,
                3 => &mut statistics.minor_faults,
                4 => &mut statistics.free,
                5 => &mut statistics.total,
                6 => &mut statistics.available,
                7 => &mut statistics.disk_caches,
                8 => &mut statistics.huge_page_allocations,
                9 => &mut statistics.huge_page_failures,
                _ => continue,
            };
            *field = u64::from_le_bytes([v0, v1, v2, v3, v4, v5, v6, v7]);
        }
        statistics
    }
}
