//! A scope made by systemd, asked through its own `busctl`: one call in a sandbox's life is not worth a D-Bus library.

use super::CgroupError;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

/// There as long as systemd is process 1.
const RUNNING: &str = "/run/systemd/system";

/// Makes the scope `unit` in `slice`, with the process `pid` in it (a scope without a process is refused). systemd
/// removes it when the last process has gone.
pub(super) fn start_scope(slice: &str, unit: &str, pid: u32) -> Result<(), CgroupError> {
    if !Path::new(RUNNING).is_dir() {
        return Err(CgroupError::Systemd {
            what: format!("there is no {RUNNING}, so it does not run here"),
            source: None,
        });
    }
    let output = Command::new("busctl")
        .args(call(slice, unit, pid))
        .output()
        .map_err(|source| CgroupError::Systemd { what: "busctl cannot be started".to_owned(), source: Some(source) })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(CgroupError::Systemd { what: format!("StartTransientUnit {unit}: {said}"), source: None })
}

fn call(slice: &str, unit: &str, pid: u32) -> Vec<OsString> {
    let pid = pid.to_string();
    let parts = [
        "--system",
        "--timeout=10",
        "--quiet",
        "call",
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
        "StartTransientUnit",
        "ssa(sv)a(sa(sv))",
        unit,
        "fail",
        "5",
        "Description",
        "s",
        "Stockade sandbox",
        "Slice",
        "s",
        slice,
        "Delegate",
        "b",
        "true",
        "PIDs",
        "au",
        "1",
        &pid,
        "CollectMode",
        "s",
        "inactive-or-failed",
        "0",
    ];
    parts.into_iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_systemd_does_not_run_the_error_says_so() {
        if Path::new(RUNNING).is_dir() {
            return;
        }
        let error = start_scope("system.slice", "a-b.scope", 1).expect_err("no systemd");
        assert!(
            error.to_string().starts_with("systemd cannot be reached for --systemd-cgroup: there is no"),
            "{error}"
        );
    }

    #[test]
    fn the_call_counts_its_properties_and_has_no_auxiliary_units() {
        let call = call("machine.slice", "a-b.scope", 7);
        let call: Vec<_> = call.iter().map(|part| part.to_str().expect("text")).collect();
        let at = call.iter().position(|part| *part == "fail").expect("mode");
        assert_eq!(call[at - 1], "a-b.scope");
        assert_eq!(call[at + 1], "5");
        assert_eq!(
            call[at + 2..],
            [
                "Description",
                "s",
                "Stockade sandbox",
                "Slice",
                "s",
                "machine.slice",
                "Delegate",
                "b",
                "true",
                "PIDs",
                "au",
                "1",
                "7",
                "CollectMode",
                "s",
                "inactive-or-failed",
                "0"
            ]
        );
    }
}
