//! The life of a container by the OCI command line, on a real virtual machine.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use stockade_tests::harness::{Bundle, HostState, Stockade, wait};

const SOON: Duration = Duration::from_secs(20);
/// Waits to be killed, and is by SIGTERM, which a first process otherwise ignores.
const IDLE: &str = "trap 'exit 143' TERM; echo up; while :; do sleep 1; done";

#[test]
fn a_container_is_created_started_killed_and_deleted() {
    // The stand-in of a container is an orphan when `create` has ended; this makes it ours to wait for.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("life");
    let bundle = Bundle::builder().shell(IDLE).annotation("org.example.key", "value").build().unwrap();
    let pid_file = stockade.folder().join("pid");
    let created = stockade.create(&id, &bundle, &["--pid-file", pid_file.to_str().unwrap()]).ok();

    let state = stockade.state(&id);
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], id);
    assert_eq!(state["pid"], pid);
    assert_eq!(state["bundle"], bundle.path().to_str().unwrap());
    assert_eq!(state["annotations"]["org.example.key"], "value");
    assert_eq!(state["ociVersion"], "1.0.2");
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "the pid of the container is no process");
    assert!(stockade.exec_shell(&id, "true").failure().contains(&id), "exec in a created container");
    assert!(stockade.create(&id, &bundle, &[]).failure().contains(&id), "a second create");
    assert_eq!(fs::read(&created.stdout_path).unwrap(), b"", "nothing runs before start");

    let _ = stockade.start(&id).ok();
    assert_eq!(stockade.status(&id), "running");
    assert!(stockade.start(&id).failure().contains("running"));
    assert!(wait::until(SOON, || fs::read(&created.stdout_path).unwrap() == b"up\n"));
    assert!(stockade.delete(&id, &[]).failure().contains(&id), "delete of a running container");
    assert!(stockade.call(["list", "--quiet"]).ok().text().contains(&id));
    let listed = stockade.call(["list", "--format", "json"]).ok().json();
    assert_eq!((&listed[0]["id"], &listed[0]["status"]), (&id.clone().into(), &"running".into()));

    let _ = stockade.kill(&id, "TERM").ok();
    stockade.wait_status(&id, "stopped", SOON);
    assert_eq!(stockade.state(&id)["pid"], 0);
    let mut status = WaitStatus::StillAlive;
    wait::until(SOON, || {
        status = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)).unwrap();
        status != WaitStatus::StillAlive
    });
    assert_eq!(status, WaitStatus::Exited(Pid::from_raw(pid), 143), "the stand-in ends with the container's status");
    assert!(stockade.kill(&id, "TERM").failure().contains("not running"));
    assert!(!stockade.start(&id).failure().is_empty());
    let _ = stockade.delete(&id, &[]).ok();
    assert_eq!(stockade.status(&id), "none");
    before.assert_same(&stockade);
}

#[test]
fn exec_runs_processes_with_their_own_status_environment_directory_and_user() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("exec");
    let bundle = Bundle::builder().shell(IDLE).env("OF_CONTAINER=yes").build().unwrap();
    stockade.launch(&id, &bundle);

    assert_eq!(stockade.exec_shell(&id, "exit 7").code(), 7);
    assert_eq!(stockade.exec_shell(&id, "kill -9 $$").code(), 137);
    let options = ["--env", "OF_EXEC=too", "--cwd", "/tmp", "--user", "1000:1000"];
    let script = "echo $OF_CONTAINER $OF_EXEC; pwd; id -u; id -g; echo error >&2";
    let output = stockade.exec(&id, &options, &["sh", "-c", script]).ok();
    assert_eq!((output.text().as_str(), output.error().as_str()), ("yes too\n/tmp\n1000\n1000\n", "error\n"));
    assert_eq!(
        stockade.exec(&id, &["--tty"], &["sh", "-c", "test -t 0 && test -t 1 && echo tty"]).ok().text(),
        "tty\r\n"
    );
    let input = stockade.call_with_input(["exec", &id, "sh", "-c", "cat; echo end"], b"from the host\n").ok();
    assert_eq!(input.text(), "from the host\nend\n");
    let missing = stockade.exec(&id, &[], &["/no/such/program"]);
    assert!(missing.failure().contains("/no/such/program"), "{missing:?}");

    let detached = stockade.exec(&id, &["--detach"], &["sh", "-c", "echo detached; sleep 1000"]).ok();
    assert!(wait::until(SOON, || fs::read(&detached.stdout_path).unwrap() == b"detached\n"));
    let mut processes = String::new();
    // For a moment, while the shell becomes `sleep`, the process has no command line.
    let listed = wait::until(SOON, || {
        processes = stockade.call(["ps", &id]).ok().text();
        processes.contains("sleep 1000") && processes.contains("trap")
    });
    assert!(listed, "{processes}");
    let pids = stockade.call(["ps", "--format", "json", &id]).ok().json();
    assert_eq!(pids, serde_json::json!([stockade.state(&id)["pid"]]), "pids of the host");

    // A child that keeps the streams of its parent costs a wait for what may still come, and no more.
    let begin = Instant::now();
    assert_eq!(stockade.exec_shell(&id, "sleep 2000 & echo started; exit 3").code(), 3);
    assert!(
        begin.elapsed() < wait::scaled(SOON),
        "a child that keeps the streams held its parent for {:?}",
        begin.elapsed()
    );

    // A reader that takes its time must not hold up others.
    let mut flood = stockade.cmd(["exec", &id, "yes"]);
    flood.stdout(std::process::Stdio::piped());
    let mut flood = flood.spawn().unwrap();
    let begin = Instant::now();
    for _ in 0..3 {
        assert_eq!(stockade.exec_shell(&id, "echo answer").ok().text(), "answer\n");
    }
    assert!(begin.elapsed() < wait::scaled(SOON), "three execs beside a stuck one took {:?}", begin.elapsed());
    flood.kill().unwrap();
    flood.wait().unwrap();

    let _ = stockade.delete(&id, &["--force"]).ok();
    before.assert_same(&stockade);
}

#[test]
fn a_running_container_is_paused_resumed_limited_counted_and_inspected() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("control");
    let bundle = Bundle::shell(IDLE).unwrap();
    stockade.launch(&id, &bundle);

    let _ = stockade.call(["pause", &id]).ok();
    assert_eq!(stockade.status(&id), "paused");
    assert!(stockade.exec_shell(&id, "true").failure().contains("paused"));
    assert!(!stockade.call(["pause", &id]).failure().is_empty());
    let _ = stockade.call(["resume", &id]).ok();
    assert_eq!(stockade.status(&id), "running");
    assert!(!stockade.call(["resume", &id]).failure().is_empty());

    let _ = stockade.call(["update", "--memory", "32M", "--pids-limit", "50", &id]).ok();
    let limits = stockade.exec_shell(&id, "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max").ok().text();
    assert_eq!(limits, "33554432\n50\n");

    let stats = stockade.call(["events", "--stats", &id]).ok().json();
    assert_eq!((&stats["type"], &stats["id"]), (&"stats".into(), &id.clone().into()));
    assert!(stats["data"]["pids"]["current"].as_u64().unwrap() >= 1, "{stats}");
    assert!(stats["data"]["memory"]["usage"]["usage"].as_u64().unwrap() > 0, "{stats}");

    let document = stockade.call(["inspect", &id]).ok().json();
    assert_eq!(document["state"], "up");
    assert_eq!(document["supervisor_pid"], stockade.supervisor_pid(&id));
    let timeline = document["containers"][&id]["timeline"].as_array().unwrap();
    let steps: Vec<_> = timeline.iter().filter_map(|entry| entry["step"].as_str()).collect();
    assert_eq!((steps.first(), steps.last()), (Some(&"bundle"), Some(&"commit")), "{document}");
    assert!(document["messages"].as_object().is_some_and(|times| !times.is_empty()) || document["messages"].is_array());

    let _ = stockade.delete(&id, &["--force"]).ok();
    before.assert_same(&stockade);
}

#[test]
fn run_ends_with_the_containers_status_and_deletes_it() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("run");
    let timeline = stockade.folder().join("timeline");
    let output = stockade.run(
        &id,
        &Bundle::shell("echo out; echo err >&2; exit 42").unwrap(),
        &["--timeline", timeline.to_str().unwrap()],
    );
    assert_eq!((output.code(), output.text().as_str(), output.error().as_str()), (42, "out\n", "err\n"));
    let steps = fs::read_to_string(&timeline).unwrap();
    assert!(steps.lines().count() >= 10 && steps.lines().all(|line| line.contains("\"ok\":true")), "{steps}");
    assert_eq!(stockade.status(&id), "none");
    before.assert_same(&stockade);
}

#[test]
fn a_signal_for_run_is_the_containers() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("signal");
    let bundle = Bundle::shell(IDLE).unwrap();
    let running = stockade.start_run(&id, &bundle, &[]);
    assert!(wait::until(Duration::from_secs(60), || running.text() == "up\n"));
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait(SOON).code(), 143);
    before.assert_same(&stockade);
}

#[test]
fn a_container_killed_by_force_ends_with_137() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("killed");
    let bundle = Bundle::shell(IDLE).unwrap();
    let running = stockade.start_run(&id, &bundle, &[]);
    assert!(wait::until(Duration::from_secs(60), || running.text() == "up\n"));
    let _ = stockade.kill(&id, "KILL").ok();
    assert_eq!(running.wait(SOON).code(), 137);
    before.assert_same(&stockade);
}

#[test]
fn delete_and_kill_end_a_creation_under_way() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let bundle = Bundle::shell("true").unwrap();
    for verb in ["delete", "kill"] {
        let id = stockade.id("cancel");
        let creating = stockade.start_create(&id, &bundle, &[]);
        assert!(wait::until(SOON, || stockade.status(&id) == "creating"));
        // Well into the boot: the machine is there and its guest does not answer yet.
        assert!(wait::until(SOON, || !stockade.monitors().is_empty()));
        assert!(!stockade.delete(&id, &[]).failure().is_empty(), "delete without --force during a creation");
        let begin = Instant::now();
        match verb {
            "delete" => drop(stockade.delete(&id, &["--force"]).ok()),
            _ => drop(stockade.kill(&id, "KILL").ok()),
        }
        let failure = creating.wait(SOON).failure();
        println!("{verb} ended the creation in {:?}: {failure}", begin.elapsed());
        assert!(failure.contains("cancelled") || failure.contains("ended"), "{failure}");
        assert_eq!(stockade.status(&id), "none");
        before.assert_same(&stockade);
    }
}

#[test]
fn a_creation_that_takes_too_long_is_rolled_back() {
    let stockade = Stockade::with_config("", "[runtime]\ncreate_timeout = 1");
    let before = HostState::capture(&stockade);
    let id = stockade.id("late");
    let begin = Instant::now();
    let failure = stockade.create(&id, &Bundle::shell("true").unwrap(), &[]).failure();
    assert!(failure.contains("agent") || failure.contains("time"), "{failure}");
    assert!(begin.elapsed() < wait::scaled(SOON), "{:?}", begin.elapsed());
    before.assert_same(&stockade);
}

#[test]
fn a_signal_for_create_takes_the_creation_back() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("ctrl-c");
    let bundle = Bundle::shell("true").unwrap();
    let creating = stockade.start_create(&id, &bundle, &[]);
    assert!(wait::until(SOON, || !stockade.monitors().is_empty()));
    creating.signal(Signal::SIGINT);
    let failure = creating.wait(SOON).failure();
    assert!(failure.contains("SIGINT"), "{failure}");
    before.assert_same(&stockade);
}

#[test]
fn a_create_that_is_killed_takes_the_creation_with_it() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("killed-create");
    let bundle = Bundle::shell("true").unwrap();
    let creating = stockade.start_create(&id, &bundle, &[]);
    assert!(wait::until(SOON, || !stockade.monitors().is_empty()));
    creating.signal(Signal::SIGKILL);
    assert_eq!(creating.wait(SOON).code(), 137);
    before.assert_same(&stockade);
    assert_eq!(stockade.status(&id), "none");
}

#[test]
fn what_does_not_exist_is_an_error_but_for_a_forced_delete() {
    let stockade = Stockade::new();
    let id = stockade.id("nobody");
    for verb in ["state", "start", "kill", "delete", "pause", "resume", "ps", "events", "inspect"] {
        let failure = stockade.call([verb, &id]).failure();
        assert!(failure.contains(&id) && failure.contains("does not exist"), "{verb}: {failure}");
    }
    let _ = stockade.delete(&id, &["--force"]).ok();
    assert_eq!(stockade.call(["list", "--quiet"]).ok().text(), "");
}
