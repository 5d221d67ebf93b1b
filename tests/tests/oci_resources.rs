//! The OCI specification's `linux.resources` and `linux.cgroupsPath`: limits and device rules as the guest's cgroups hold
//! them.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use stockade_tests::harness::{Bundle, BundleBuilder, Cases, Pod, unique_id};

fn plain() -> BundleBuilder {
    Bundle::builder()
}

fn value(file: &str) -> String {
    format!("cat /sys/fs/cgroup/{file}")
}

#[test]
fn limits_are_in_the_guests_cgroup_and_hold() {
    let pod = Pod::boot();
    let mut cases = Cases::new();
    let builder = plain()
        .resource("memory", json!({"limit": 100_003_840, "reservation": 16_777_216, "swap": 100_003_840}))
        .resource("cpu", json!({"shares": 512, "quota": 150_000, "period": 200_000, "cpus": "0", "mems": "0"}))
        .resource("pids", json!({"limit": 20}))
        .resource("unified", json!({"memory.high": "90001408"}));
    pod.table(
        &mut cases,
        "resources",
        builder,
        &[
            ("memory.limit", &value("memory.max"), "100003840"),
            ("memory.reservation", &value("memory.low"), "16777216"),
            ("unified", &value("memory.high"), "90001408"),
            ("cpu.quota and cpu.period", &value("cpu.max"), "150000 200000"),
            ("cpu.shares", &value("cpu.weight"), "59"),
            ("cpu.cpus are of the host, and left out", &value("cpuset.cpus"), ""),
            ("cpu.mems", &value("cpuset.mems"), "0"),
            ("pids.limit", &value("pids.max"), "20"),
            ("it cannot be written", "echo max > /sys/fs/cgroup/pids.max", "~Read-only file system"),
        ],
    );
    pod.table(
        &mut cases,
        "resources, none given",
        plain(),
        &[
            ("memory", &value("memory.max"), "max"),
            ("cpu", &value("cpu.max"), "max 100000"),
            ("pids", &value("pids.max"), "max"),
        ],
    );
    let zero = plain()
        .resource("memory", json!({"limit": -1}))
        .resource("cpu", json!({"quota": -1, "period": 100_000, "shares": 0}))
        .resource("pids", json!({"limit": -1}));
    pod.table(
        &mut cases,
        "resources, unlimited",
        zero,
        &[
            ("memory of -1", &value("memory.max"), "max"),
            ("quota of -1", &value("cpu.max"), "max 100000"),
            ("pids of -1", &value("pids.max"), "max"),
        ],
    );
    cases.case("resources: processes end at the limit", || {
        let script = "for i in $(seq 40); do sleep 100 & done; echo all";
        let output = pod.run(plain().resource("pids", json!({"limit": 20})).shell(script))?;
        ensure!(
            !output.text().contains("all") && output.error().contains("fork"),
            "{}{}",
            output.text(),
            output.error()
        );
        Ok(())
    });
    cases.case("resources: more memory than the limit ends the process by signal 9", || {
        let script = "head -c 100000000 /dev/zero | tail -c 100000000 >/dev/null; exit $?";
        let builder = plain().resource("memory", json!({"limit": 20_000_000, "swap": 20_000_000}));
        let output = pod.run(builder.shell(script))?;
        ensure!(output.code() == 137, "status {}: {}", output.code(), output.error());
        Ok(())
    });
    cases.case("resources: those of the host's hardware are left out with a warning", || {
        let builder = plain()
            .resource("blockIO", json!({"weight": 100}))
            .resource("hugepageLimits", json!([{"pageSize": "2MB", "limit": 1}]))
            .resource("network", json!({"classID": 1}));
        ensure!(pod.shell(builder, "echo ok")? == "ok");
        let log = pod.stockade().log();
        for name in ["blockIO", "hugepageLimits", "network", "cpu.cpus"] {
            ensure!(log.contains(&format!("linux.resources.{name}")), "the log does not name {name}");
        }
        Ok(())
    });
    cases.case("resources: a cgroupsPath of any form", || {
        for path in ["/some/where", "relative/path", "system.slice:docker:abc"] {
            let found = pod.shell(plain().linux("cgroupsPath", path), "cat /proc/self/cgroup")?;
            ensure!(found == "0::/", "{path}: {found:?}");
        }
        Ok(())
    });
    let id = unique_id("update");
    let bundle = pod.bundle(plain().resource("pids", json!({"limit": 30})).args(["sleep", "1000"])).expect("a bundle");
    let _ = pod.stockade().launch(&id, &bundle);
    cases.case("update: the limits change, and those not named stay", || {
        let resources = r#"{"memory": {"limit": 50003968}, "cpu": {"quota": 30000, "period": 100000, "shares": 1024}}"#;
        let output = pod.stockade().call_with_input(["update", "--resources", "-", &id], resources.as_bytes());
        ensure!(output.status.success(), "{}", output.error());
        let script = "cd /sys/fs/cgroup; cat memory.max cpu.max cpu.weight pids.max";
        let found = pod.stockade().exec_shell(&id, script).ok().text();
        ensure!(found == "50003968\n30000 100000\n100\n30\n", "{found:?}");
        Ok(())
    });
    cases.case("pause: the guest's cgroup is frozen, and resume thaws it", || {
        let _ = pod.stockade().call(["pause", &id]).ok();
        pod.stockade().wait_status(&id, "paused", Duration::from_secs(5));
        let _ = pod.stockade().call(["resume", &id]).ok();
        let found = pod.stockade().exec_shell(&id, "cat /sys/fs/cgroup/cgroup.freeze").ok().text();
        ensure!(found == "0\n", "{found:?}");
        Ok(())
    });
    cases.finish();
}

/// A container that may make nodes and do whatever else a device asks for, so that only the rules are between.
fn with_devices(rules: serde_json::Value) -> BundleBuilder {
    let capabilities = json!(["CAP_MKNOD", "CAP_SYS_RAWIO", "CAP_SYS_ADMIN"]);
    let sets = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    plain().process("capabilities", sets).resource("devices", rules)
}

/// Nodes that no container has by itself: the guest's memory, FUSE, and a disk that is not there.
const NODES: &str = "cd /dev && mknod memory c 1 1 && mknod fuse c 10 229 && mknod disk b 254 0 && echo made";

#[test]
fn devices_open_as_the_rules_say() {
    let pod = Pod::boot();
    let mut cases = Cases::new();
    let denied = "~Operation not permitted";
    let missing = "~No such device";
    let all = json!({"allow": false, "access": "rwm"});
    let fuse = json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"});
    pod.table(
        &mut cases,
        "devices, all denied",
        with_devices(json!([all])),
        &[
            ("nodes are made", NODES, "made"),
            ("memory", "true < /dev/memory", denied),
            ("FUSE", "true < /dev/fuse", denied),
            ("FUSE, to write", "true > /dev/fuse", denied),
            ("a disk", "true < /dev/disk", denied),
            ("/dev/null", "echo x > /dev/null && cat /dev/null && echo ok", "ok"),
            ("/dev/zero", "head -c 3 /dev/zero | od -An -tx1 | tr -d ' '", "000000"),
            ("/dev/full", "echo x > /dev/full", "~No space left"),
            ("/dev/random and /dev/urandom", "{ head -c 8 /dev/random; head -c 8 /dev/urandom; } | wc -c", "16"),
            ("/dev/ptmx makes a terminal", "exec 9<>/dev/ptmx && ls /dev/pts && true <> /dev/ptmx", "0\nptmx"),
            ("/dev/tty has no terminal", "true < /dev/tty", missing),
        ],
    );
    let part = json!({"allow": true, "type": "b", "major": 254, "minor": -1, "access": "r"});
    pod.table(
        &mut cases,
        "devices, some allowed",
        with_devices(json!([all, fuse, part])),
        &[
            ("nodes are made", NODES, "made"),
            ("FUSE", "true <> /dev/fuse && echo opened", "opened"),
            ("memory", "true < /dev/memory", denied),
            ("a disk, which is looked for", "true < /dev/disk", missing),
            ("a disk, to write", "true >> /dev/disk", denied),
        ],
    );
    pod.table(
        &mut cases,
        "devices, all allowed",
        with_devices(json!([{"allow": true, "access": "rwm"}])),
        &[
            ("nodes are made", NODES, "made"),
            ("memory", "true < /dev/memory && echo opened", "opened"),
            ("FUSE", "true <> /dev/fuse && echo opened", "opened"),
            ("a disk", "true <> /dev/disk", missing),
        ],
    );
    let wrong = with_devices(json!([all, {"allow": true, "type": "c", "access": "rx"}]));
    cases.refused("devices: an unknown access", &pod, wrong, &["linux.resources.devices[1]", "\"rx\""]);

    let id = unique_id("devices");
    let script = format!("{NODES} && exec sleep 1000");
    let bundle = pod.bundle(with_devices(json!([all])).shell(&script)).expect("a bundle");
    let _ = pod.stockade().launch(&id, &bundle);
    let open = || {
        let script = "until [ -e /dev/disk ]; do sleep 0.1; done; (true <> /dev/fuse) && echo opened";
        pod.stockade().exec_shell(&id, script)
    };
    cases.case("devices: the rules hold for a process that is added", || {
        let output = open();
        ensure!(output.error().contains("Operation not permitted"), "{}{}", output.text(), output.error());
        Ok(())
    });
    cases.case("update: the device rules are replaced, and stay when none are given", || {
        for (resources, wanted) in [
            (json!({"devices": [all, fuse]}), "opened"),
            (json!({"pids": {"limit": 100}}), "opened"),
            (json!({"devices": [all]}), ""),
        ] {
            let text = resources.to_string();
            let output = pod.stockade().call_with_input(["update", "--resources", "-", &id], text.as_bytes());
            ensure!(output.status.success(), "{}", output.error());
            let found = open().text();
            ensure!(found.trim() == wanted, "{text}: {found:?}");
        }
        Ok(())
    });
    cases.finish();
}
