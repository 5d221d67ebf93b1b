//! Listing of a container's processes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use stockade_agent_protocol::processes::{ListProcessesRequest, ListProcessesResponse, ProcessInfo};

use super::error::RpcError;
use crate::sandbox::Sandbox;

/// Arguments shown of one process, and bytes of them.
const MAX_ARGS: usize = 256;
const MAX_ARG_BYTES: usize = 16 << 10;
/// Processes in one answer: messages are limited to 4 MiB.
const MAX_PROCESSES: usize = 4096;

pub(super) fn list(sandbox: &Sandbox, request: &ListProcessesRequest) -> Result<ListProcessesResponse, RpcError> {
    let container = sandbox.container(&request.container_id)?;
    let mut pids = container.cgroup.processes();
    pids.sort_unstable();
    let mut budget = MAX_ARG_BYTES * 128;
    let processes = pids
        .into_iter()
        .take(MAX_PROCESSES)
        // One that ends while it is looked at is left out.
        .filter_map(|pid| info(&PathBuf::from(format!("/proc/{pid}")), &mut budget))
        .collect();
    Ok(ListProcessesResponse { processes, ..Default::default() })
}

fn info(dir: &Path, budget: &mut usize) -> Option<ProcessInfo> {
    let stat = fs::read(dir.join("stat")).ok()?;
    let (pid, command, state, ppid) = parse_stat(&String::from_utf8_lossy(&stat))?;
    let status = fs::read(dir.join("status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let uid = field("Uid:").and_then(|ids| ids.split_whitespace().next()?.parse().ok());
    let container_pid = field("NSpid:").and_then(|ids| ids.split_whitespace().last()?.parse().ok());
    let limit = MAX_ARG_BYTES.min(*budget);
    let mut line = fs::read(dir.join("cmdline")).unwrap_or_default();
    line.truncate(limit);
    *budget -= line.len();
    Some(ProcessInfo {
        pid,
        ppid,
        uid: uid.or_else(|| fs::metadata(dir).ok().map(|m| m.uid())).unwrap_or_default(),
        command,
        args: arguments(&line),
        state,
        container_pid: container_pid.unwrap_or(pid),
        ..Default::default()
    })
}

fn arguments(line: &[u8]) -> Vec<String> {
    let line = line.strip_suffix(&[0]).unwrap_or(line);
    if line.is_empty() {
        return Vec::new();
    }
    line.split(|&byte| byte == 0).take(MAX_ARGS).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect()
}

/// Number, name, state and parent. The name may hold anything, closing parentheses too.
fn parse_stat(text: &str) -> Option<(u32, String, String, u32)> {
    let (pid, rest) = text.split_once(" (")?;
    let (command, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.to_owned();
    let ppid = fields.next()?.parse().ok()?;
    Some((pid.parse().ok()?, command.to_owned(), state, ppid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse_the_reader() {
        let parsed = parse_stat("12 (a) (b) S 7 1 1 0");
        assert_eq!(parsed, Some((12, "a) (b".to_owned(), "S".to_owned(), 7)));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn arguments_are_split_at_zero_bytes_and_empty_ones_are_kept() {
        assert_eq!(arguments(b"sh\0-c\0\0x\0"), ["sh", "-c", "", "x"]);
        assert!(arguments(b"").is_empty());
    }

    #[test]
    fn this_process_can_be_described() {
        let mut budget = 1000;
        let info = info(Path::new("/proc/self"), &mut budget).expect("described");
        assert_eq!(info.pid, std::process::id());
        assert!(!info.args.is_empty());
    }
}
