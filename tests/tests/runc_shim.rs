//! containerd's own shim for runc with the program in runc's place, which is how Docker's engine runs containers.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use stockade_tests::harness::{Containerd, wait};

const SOON: Duration = Duration::from_secs(30);
const IDLE: &str = "trap 'exit 42' TERM; echo up; while :; do sleep 0.2; done";

#[test]
fn containerds_shim_for_runc_drives_the_command_line() {
    let containerd = Containerd::new();
    let before = containerd.host();
    let stockade = containerd.stockade();
    let (program, config) = (stockade.program().display(), stockade.config());
    let binary = stockade.folder().join("runc");
    fs::write(&binary, format!("#!/bin/sh\nexec {program} --config {} \"$@\"\n", config.display())).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let (binary, root) = (binary.display().to_string(), stockade.root().join("runc").display().to_string());
    // Of two runtimes the last counts.
    let by_runc = [
        "--runtime",
        "io.containerd.runc.v2",
        "--runc-binary",
        &binary,
        "--runc-root",
        &root,
        "--memory-limit",
        "67108864",
    ];

    let id = stockade.id("runc");
    containerd.launch(&id, &by_runc, IDLE);
    let (pid, status) = containerd.task(&id).expect("a task");
    assert_eq!(status, "RUNNING");
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(line.contains("stand-in") && line.contains(&id), "the task's process stands in for the container: {line}");
    assert!(Path::new(&format!("/proc/{pid}/root/bin/busybox")).exists(), "and has its files");

    let said = containerd.exec(&id, "one", "echo inside; exit 3");
    assert_eq!((said.code(), said.text().as_str()), (3, "inside\n"), "{said:?}");
    // containerd's namespace is a folder of its own; of two roots the last counts.
    let inside = stockade.call(["--root", &format!("{root}/stockade-tests"), "events", "--stats", &id]).ok().json();
    assert_eq!(inside["data"]["memory"]["usage"]["limit"], 64 << 20, "{inside}");
    let missing = containerd.ctr(["task", "exec", "--exec-id", "two", &id, "nosuch"]);
    assert!(missing.error().contains("executable file not found in $PATH"), "{missing:?}");
    let listed = containerd.ctr(["task", "ps", &id]).ok().text();
    assert!(listed.contains(&pid.to_string()), "{listed}");
    // The shim reads them from the control group of that process, which is the machine's.
    let metrics = containerd.ctr(["task", "metrics", &id]).ok().text();
    let used = metrics.lines().find(|line| line.starts_with("memory.usage"));
    let used = used.and_then(|line| line.split_whitespace().last()).and_then(|bytes| bytes.parse::<u64>().ok());
    assert!(used.is_some_and(|bytes| (32 << 20..1 << 30).contains(&bytes)), "{metrics}");

    let _ = containerd.ctr(["task", "pause", &id]).ok();
    containerd.wait_status(&id, "PAUSED");
    let _ = containerd.ctr(["task", "resume", &id]).ok();
    containerd.wait_status(&id, "RUNNING");
    let _ = containerd.ctr(["task", "kill", "--signal", "SIGTERM", &id]).ok();
    containerd.wait_status(&id, "STOPPED");
    assert_eq!(containerd.delete_task(&id), 42);
    let _ = containerd.ctr(["container", "delete", &id]).ok();
    assert!(wait::until(SOON, || !Path::new(&format!("/proc/{pid}")).exists()));

    containerd.assert_host(&before);
}
