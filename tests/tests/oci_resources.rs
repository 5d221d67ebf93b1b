//! The OCI specification's `linux.resources` and `linux.cgroupsPath`: limits as the guest's cgroups hold them.

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
