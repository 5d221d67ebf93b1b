//! Counters of a process from /proc.

use std::io;
use std::time::Duration;

/// The unit of /proc's times: user space always sees 100 a second.
const TICK: Duration = Duration::from_millis(10);
const PAGE: u64 = 4096;

/// Numbers of /proc/PID/stat after the command's name.
fn fields(pid: i32) -> io::Result<Vec<u64>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold spaces and parentheses; the last one ends it.
    let (_, rest) = stat.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
    Ok(rest.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

fn field(fields: &[u64], number: usize) -> io::Result<u64> {
    // The numbering of proc(5): the name is field 2.
    number.checked_sub(3).and_then(|index| fields.get(index)).copied().ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// When the process started, in clock ticks since boot.
///
/// # Errors
/// There is no such process.
pub fn start_time(pid: i32) -> io::Result<u64> {
    field(&fields(pid)?, 22)
}

/// CPU time so far, in milliseconds, and resident memory, in bytes.
///
/// # Errors
/// There is no such process.
pub fn usage(pid: i32) -> io::Result<(u64, u64)> {
    let fields = fields(pid)?;
    let ticks = field(&fields, 14)?.saturating_add(field(&fields, 15)?);
    let tick_ms = u64::try_from(TICK.as_millis()).unwrap_or(10);
    Ok((ticks.saturating_mul(tick_ms), field(&fields, 24)?.saturating_mul(PAGE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_has_a_start_time_and_memory() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(pid).unwrap() > 0);
        assert!(usage(pid).unwrap().1 > 0);
    }
}
