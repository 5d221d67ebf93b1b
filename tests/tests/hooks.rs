//! OCI hooks: their order, what they read and where they run.

use std::fs;
use std::path::Path;

use serde_json::Value;
use stockade_tests::harness::{Bundle, BundleBuilder, HostState, Stockade, wait};

/// A hook that writes down its phase, the state it reads, and its network namespace.
fn witness(builder: BundleBuilder, phase: &str, folder: &Path) -> BundleBuilder {
    let folder = folder.display();
    let script = format!(
        "cat >{folder}/{phase}.json; readlink /proc/self/ns/net >{folder}/{phase}.ns; echo {phase} >>{folder}/order"
    );
    builder.shell_hook(phase, &script)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn hooks_run_in_their_order_with_the_state_inside_the_sandboxs_network_namespace() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("hooks");
    let mut builder = Bundle::builder().shell("while :; do sleep 1; done").annotation("a.b", "c");
    let phases = ["prestart", "createRuntime", "poststart", "poststop"];
    for phase in phases {
        builder = witness(builder, phase, stockade.folder());
    }
    let bundle = builder.build().unwrap();
    let order = stockade.folder().join("order");
    let _ = stockade.create(&id, &bundle, &[]).ok();
    assert_eq!(read(&order), "prestart\ncreateRuntime\n");
    let pid = stockade.state(&id)["pid"].clone();
    let _ = stockade.start(&id).ok();
    assert!(wait::until(std::time::Duration::from_secs(20), || read(&order) == "prestart\ncreateRuntime\npoststart\n"));
    let _ = stockade.delete(&id, &["--force"]).ok();
    assert_eq!(read(&order), "prestart\ncreateRuntime\npoststart\npoststop\n");

    let own = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    let statuses = ["creating", "creating", "running", "stopped"];
    for (phase, status) in phases.iter().zip(statuses) {
        let state: Value = serde_json::from_str(&read(&stockade.folder().join(format!("{phase}.json")))).unwrap();
        assert_eq!(state["id"], id, "{phase}");
        assert_eq!(state["bundle"], bundle.path().to_str().unwrap(), "{phase}");
        assert_eq!(state["annotations"]["a.b"], "c", "{phase}");
        assert!(state["ociVersion"].is_string(), "{phase}");
        assert_eq!(state["status"], status, "{phase}");
        if *phase != "poststop" {
            assert_eq!(state["pid"], pid, "{phase}");
        }
        let namespace = read(&stockade.folder().join(format!("{phase}.ns")));
        assert!(namespace.starts_with("net:[") && namespace.trim() != own, "{phase} ran in {namespace}");
        assert_eq!(namespace, read(&stockade.folder().join("prestart.ns")), "{phase}");
    }
    before.assert_same(&stockade);
}

#[test]
fn a_failing_prestart_hook_fails_the_creation_and_poststop_hooks_run() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("failing");
    let builder = Bundle::builder().shell("true").shell_hook("prestart", "echo no such bridge >&2; exit 3");
    let bundle = witness(witness(builder, "createRuntime", stockade.folder()), "poststop", stockade.folder());
    let failure = stockade.create(&id, &bundle.build().unwrap(), &[]).failure();
    for word in ["hook", "prestart", "no such bridge", "3"] {
        assert!(failure.contains(word), "{failure}");
    }
    assert_eq!(read(&stockade.folder().join("order")), "poststop\n");
    before.assert_same(&stockade);
}

#[test]
fn a_hook_that_takes_too_long_fails_the_creation_and_leaves_no_process() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("slow");
    let mark = stockade.folder().join("mark");
    let script = format!("sleep 600 & echo {} >/dev/null; wait", mark.display());
    let hook = serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1});
    let failure = stockade.create(&id, &Bundle::builder().hook("prestart", hook).build().unwrap(), &[]).failure();
    assert!(failure.contains("prestart") && failure.contains("1 s"), "{failure}");
    before.assert_same(&stockade);
}

#[test]
fn failing_poststart_and_poststop_hooks_stop_nothing() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("warned");
    let builder =
        Bundle::builder().shell("echo done").shell_hook("poststart", "exit 1").shell_hook("poststop", "exit 1");
    assert_eq!(stockade.run(&id, &builder.build().unwrap(), &[]).ok().text(), "done\n");
    before.assert_same(&stockade);
}
