//! The OCI specification's operations: states, exit codes, errors of start, signals, kill and delete, guest hooks.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use stockade_tests::harness::{Bundle, BundleBuilder, Cases, Pod, unique_id, wait};

/// How long a state may take to be seen.
const SOON: Duration = Duration::from_secs(15);

fn plain() -> BundleBuilder {
    Bundle::builder()
}

fn same<T: PartialEq + std::fmt::Debug>(found: &T, wanted: &T) -> Result<()> {
    ensure!(found == wanted, "found {found:?}, not {wanted:?}");
    Ok(())
}

#[test]
fn states_follow_the_operations_and_each_has_its_rules() {
    let pod = Pod::boot();
    let stockade = pod.stockade();
    let mut cases = Cases::new();
    let id = unique_id("life");
    let script = "trap 'echo got TERM' TERM; trap 'exit 5' USR1; echo ready; while :; do sleep 0.1; done";
    let bundle = pod.bundle(plain().annotation("com.example.key", "välue\n2").shell(script)).expect("a bundle");
    let output = stockade.create(&id, &bundle, &[]).ok().stdout_path;
    let printed = |text: &str| wait::until(SOON, || fs::read_to_string(&output).unwrap_or_default().contains(text));

    cases.case("state: every field, once created", || {
        let state = stockade.state(&id);
        let version = state["ociVersion"].as_str().unwrap_or_default();
        ensure!(version.starts_with("1."), "{version:?}");
        same(&state["id"], &json!(id))?;
        same(&state["status"], &json!("created"))?;
        same(&state["bundle"], &json!(bundle.path()))?;
        same(&state["annotations"]["com.example.key"], &json!("välue\n2"))?;
        let pid = state["pid"].as_i64().unwrap_or_default();
        ensure!(pid > 0 && fs::exists(format!("/proc/{pid}"))?, "pid {pid}");
        Ok(())
    });
    cases.case("create: the program does not run before start", || same(&fs::read_to_string(&output)?, &String::new()));
    cases.case("create: an id that is taken", || {
        let error = stockade.create(&id, &bundle, &[]).failure();
        ensure!(error.contains(&id), "{error}");
        Ok(())
    });
    cases.case("create: ids that are no file names", || {
        for id in ["", ".", "..", "a/b", "a b", "ü"] {
            let error = stockade.call(["create".as_ref(), "--bundle".as_ref(), bundle.path().as_os_str(), id.as_ref()]);
            ensure!(!error.status.success(), "{id:?} was accepted");
        }
        Ok(())
    });
    cases.case("exec: not before start", || {
        let output = stockade.exec_shell(&id, "true");
        ensure!(!output.status.success(), "it ran");
        Ok(())
    });
    cases.case("delete: not refused once created, as by the specification only stopped ones are", || {
        let other = unique_id("created");
        let bundle = pod.bundle(plain())?;
        let _ = stockade.create(&other, &bundle, &[]).ok();
        let _ = stockade.kill(&other, "KILL").ok();
        stockade.wait_status(&other, "stopped", SOON);
        let _ = stockade.delete(&other, &[]).ok();
        same(&stockade.status(&other), &"none".to_owned())
    });
    let _ = stockade.start(&id).ok();
    cases.case("start: running, with the same pid", || {
        ensure!(printed("ready"), "the program did not run");
        same(&stockade.status(&id), &"running".to_owned())
    });
    cases.case("start: not twice", || {
        let error = stockade.start(&id).failure();
        ensure!(error.contains("running") || error.contains("created"), "{error}");
        Ok(())
    });
    cases.case("delete: not while running", || {
        let error = stockade.delete(&id, &[]).failure();
        ensure!(error.contains("not stopped") || error.contains("running"), "{error}");
        same(&stockade.status(&id), &"running".to_owned())
    });
    for signal in ["TERM", "SIGTERM", "15"] {
        cases.case(&format!("kill: {signal}"), || {
            let before = fs::read_to_string(&output)?.matches("got TERM").count();
            let _ = stockade.kill(&id, signal).ok();
            let seen = wait::until(SOON, || {
                fs::read_to_string(&output).unwrap_or_default().matches("got TERM").count() > before
            });
            ensure!(seen, "the program did not see it");
            Ok(())
        });
    }
    cases.case("kill: a signal that is none", || {
        let output = stockade.kill(&id, "SIGNONE");
        ensure!(!output.status.success() && output.error().contains("SIGNONE"), "{}", output.error());
        Ok(())
    });
    cases.case("kill: one that the program answers by ending; then it is stopped", || {
        let _ = stockade.kill(&id, "USR1").ok();
        stockade.wait_status(&id, "stopped", SOON);
        Ok(())
    });
    cases.case("state: a stopped one has no living pid", || {
        let state = stockade.state(&id);
        let pid = state["pid"].as_i64().unwrap_or_default();
        ensure!(pid == 0, "pid {pid}");
        Ok(())
    });
    cases.case("kill: a stopped one is an error, with --all none", || {
        let error = stockade.kill(&id, "TERM").failure();
        ensure!(error.contains("not running"), "{error}");
        let _ = stockade.call(["kill", "--all", &id, "TERM"]).ok();
        Ok(())
    });
    cases.case("start: not a stopped one", || {
        ensure!(!stockade.start(&id).failure().is_empty(), "no error");
        Ok(())
    });
    cases.case("exec: not in a stopped one", || {
        ensure!(!stockade.exec_shell(&id, "true").status.success(), "it ran");
        Ok(())
    });
    cases.case("delete: a stopped one; then it is not there, and its id is free", || {
        let _ = stockade.delete(&id, &[]).ok();
        for verb in ["state", "start", "kill", "delete"] {
            let error = stockade.call([verb, &id]).failure();
            ensure!(error.contains("does not exist") || error.contains("no container"), "{verb}: {error}");
        }
        let _ = stockade.call(["delete", "--force", &id]).ok();
        let _ = stockade.create(&id, &bundle, &[]).ok();
        let _ = stockade.delete(&id, &["--force"]).ok();
        Ok(())
    });
    cases.case("the pod's other container is untouched by all that", || {
        same(&stockade.status(pod.id()), &"running".to_owned())
    });
    cases.finish();
}

#[test]
fn ends_and_failed_starts_are_reported() {
    let pod = Pod::boot();
    let stockade = pod.stockade();
    let mut cases = Cases::new();
    for (name, script, wanted) in [
        ("0", "exit 0", 0),
        ("1", "exit 1", 1),
        ("42", "exit 42", 42),
        ("255", "exit 255", 255),
        ("128 and the signal of one that KILL ended", "sleep 100 & kill -9 $!; wait $!", 137),
        ("of the shell for a command that is not there", "nosuchcommand 2>/dev/null", 127),
        ("of the shell for one that cannot be executed", "/etc/hosts 2>/dev/null", 126),
    ] {
        cases.case(&format!("status: {name}"), || same(&pod.run(plain().shell(script))?.code(), &wanted));
    }
    cases.case("status: killed from outside is 128 and the signal", || {
        let bundle = pod.bundle(plain().shell("echo up; exec sleep 1000"))?;
        let id = unique_id("killed");
        let running = stockade.start_run(&id, &bundle, &[]);
        ensure!(wait::until(SOON, || running.text() == "up\n"), "it did not begin");
        let _ = stockade.kill(&id, "KILL").ok();
        same(&running.wait(SOON).code(), &137)
    });
    cases.case("status: processes that the first one leaves end with it", || {
        let output = pod.run(plain().shell("sleep 1000 & exit 3"))?;
        same(&output.code(), &3)
    });
    cases.case("kill --all: each process of a container that shares the pod's process namespace", || {
        let state = stockade.state(pod.id());
        let path = format!("/proc/{}/ns/pid", state["pid"]);
        let script = "sh -c 'trap \"echo child\" USR1; echo one; while :; do sleep 0.1; done' & \
                      trap 'echo parent' USR1; echo two; while :; do sleep 0.1; done";
        let bundle = pod.bundle(plain().namespace("pid", Some(path.as_ref())).shell(script))?;
        let id = unique_id("all");
        let output = stockade.launch(&id, &bundle).stdout_path;
        let has = |part: &str| fs::read_to_string(&output).unwrap_or_default().contains(part);
        ensure!(wait::until(SOON, || has("one") && has("two")), "it did not begin");
        let _ = stockade.call(["kill", "--all", &id, "USR1"]).ok();
        let seen = wait::until(SOON, || has("child") && has("parent"));
        let _ = stockade.delete(&id, &["--force"]).ok();
        ensure!(seen, "not all saw it: {:?}", fs::read_to_string(&output));
        Ok(())
    });

    let file = |name: &str, mode: u32, content: &[u8], args: &[&str]| -> Result<String> {
        let bundle = pod.bundle(plain().args(args))?;
        let path = bundle.rootfs().join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        let output = stockade.run(&unique_id("c"), &bundle, &[]);
        ensure!(!output.status.success(), "it ran");
        Ok(output.error())
    };
    for (name, args, part) in [
        ("a name that is not in PATH", vec!["nosuch"], "\"nosuch\": executable file not found in $PATH"),
        ("a path that is not there", vec!["/no/such"], "/no/such: no such file or directory"),
        ("a folder", vec!["/etc"], "permission denied"),
        ("a file without the permission", vec!["/etc/hosts"], "\"/etc/hosts\": permission denied"),
    ] {
        cases.refused(&format!("start: {name}"), &pod, plain().args(args), &[part]);
    }
    cases.case("start: a file that is no program", || {
        let error = file("bin/data", 0o755, b"\x01\x02\x03", &["/bin/data"])?;
        ensure!(error.contains("exec format error"), "{error}");
        Ok(())
    });
    cases.case("start: a script whose interpreter is not there", || {
        let error = file("bin/script", 0o755, b"#!/no/such/shell\n", &["/bin/script"])?;
        ensure!(error.contains("no such file or directory"), "{error}");
        Ok(())
    });
    cases.finish();
}

#[test]
fn hooks_of_the_container_run_in_the_guest() {
    let pod = Pod::boot();
    let stockade = pod.stockade();
    let mut cases = Cases::new();
    let hook =
        |script: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin", "H=hook env"]});

    let script = "cat > /hook-state; echo \"$H\" > /hook-env; hostname > /hook-host; pwd > /hook-cwd";
    let builder = plain()
        .hook("startContainer", hook(script))
        .hook("startContainer", hook("echo second >> /hook-env"))
        .hostname("hooked")
        .annotation("com.example.hook", "yes")
        .shell("cat /hook-state; echo; cat /hook-env /hook-host /hook-cwd");
    let output = pod.run(builder);
    let text = output.as_ref().map(|output| format!("{}{}", output.text(), output.error())).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    cases.case("startContainer: the state on standard input", || {
        let state: Value = serde_json::from_str(lines.first().copied().unwrap_or_default())?;
        ensure!(state["ociVersion"].is_string() && state["id"].is_string() && state["bundle"].is_string(), "{state}");
        same(&state["status"], &json!("created"))?;
        same(&state["annotations"]["com.example.hook"], &json!("yes"))
    });
    cases.case("startContainer: its environment, in order, inside the container", || {
        same(&lines.get(1..4).unwrap_or_default().to_vec(), &vec!["hook env", "second", "hooked"])
    });
    cases.case("startContainer: before the program, after start", || {
        let bundle = pod.bundle(plain().hook("startContainer", hook("touch /ran")).args(["true"]))?;
        let id = unique_id("hook");
        let _ = stockade.create(&id, &bundle, &[]).ok();
        ensure!(!bundle.rootfs().join("ran").exists(), "it ran at create");
        let _ = stockade.start(&id).ok();
        ensure!(bundle.rootfs().join("ran").exists(), "it did not run");
        let _ = stockade.delete(&id, &["--force"]).ok();
        Ok(())
    });
    cases.case("startContainer: a failure ends the start, and names it", || {
        let error = pod.refused(plain().hook("startContainer", hook("exit 7")).shell("echo ran"))?;
        ensure!(error.contains("hook") && !error.contains("ran\n"), "{error}");
        Ok(())
    });
    cases.case("startContainer: a timeout ends the start", || {
        let mut slow = hook("sleep 100");
        slow["timeout"] = json!(1);
        let error = pod.refused(plain().hook("startContainer", slow))?;
        ensure!(error.contains("hook") || error.contains("time"), "{error}");
        Ok(())
    });
    cases.case("createContainer: one whose path the guest does not have is an error", || {
        let error = pod.refused(plain().hook("createContainer", json!({"path": "/no/such/hook"})))?;
        ensure!(error.contains("hook"), "{error}");
        Ok(())
    });
    cases.finish();
}
