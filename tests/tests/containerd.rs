//! containerd drives it: the real containerd and ctr, real machines.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use stockade_tests::harness::{Containerd, Tmpfs, unique_id, wait};

const SOON: Duration = Duration::from_secs(30);
const CALL: Duration = Duration::from_secs(120);
/// Ends with 42 when it is asked to.
const IDLE: &str = "trap 'exit 42' TERM; echo up; while :; do sleep 0.2; done";

#[test]
fn a_container_in_the_foreground_has_its_streams_and_its_status() {
    let containerd = Containerd::new();
    let before = containerd.host();
    let id = containerd.stockade().id("run");
    let mut command = containerd.ctr_cmd(containerd.run_args(
        &id,
        &["--rm", "--env", "WHO=ctr"],
        "read line; echo \"$WHO said $line\"; echo complaint >&2; exit 7",
    ));
    let input = containerd.stockade().folder().join("input");
    fs::write(&input, "hello\n").unwrap();
    command.stdin(fs::File::open(&input).unwrap());
    let output = containerd.stockade().spawn(command).wait(CALL);
    assert_eq!((output.code(), output.text().as_str()), (7, "ctr said hello\n"), "{output:?}");
    assert!(output.error().contains("complaint"), "{output:?}");
    containerd.assert_host(&before);
}

#[test]
fn a_detached_container_lives_through_every_call_of_the_task_service() {
    let containerd = Containerd::new();
    let before = containerd.host();
    let events = containerd.start_ctr(["events"]);
    let id = containerd.stockade().id("life");
    containerd.launch(&id, &["--memory-limit", "67108864"], IDLE);
    let (pid, status) = containerd.task(&id).expect("a task");
    assert_eq!(status, "RUNNING");
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!(name, "stockade\n", "the task's process is the supervisor");

    let said = containerd.exec(&id, "one", "echo inside; cat /proc/sys/kernel/ostype; exit 3");
    assert_eq!((said.code(), said.text().as_str()), (3, "inside\nLinux\n"), "{said:?}");
    let metrics = containerd.ctr(["task", "metrics", "--format", "json", &id]).ok().json();
    let (limit, used) = memory(&metrics);
    assert_eq!(limit, 64 << 20, "{metrics}");
    assert!(used > 0 && used < limit, "{metrics}");
    let figures = containerd.stockade().call(["metrics"]).ok().text();
    for wanted in [
        format!("stockade_container_memory_limit_bytes{{sandbox=\"{id}\",container=\"{id}\"}} {}\n", 64 << 20),
        format!("stockade_guest_memory_bytes{{sandbox=\"{id}\",item=\"MemTotal\"}} "),
        format!("stockade_vmm_resident_bytes{{sandbox=\"{id}\"}} "),
    ] {
        assert!(figures.contains(&wanted), "no {wanted} in {figures}");
    }
    let listed = containerd.ctr(["task", "ps", &id]).ok().text();
    assert!(listed.contains(&pid.to_string()), "{listed}");

    let _ = containerd.ctr(["task", "pause", &id]).ok();
    containerd.wait_status(&id, "PAUSED");
    let refused = containerd.exec(&id, "two", "true");
    assert!(!refused.status.success() && refused.error().contains("is paused"), "{refused:?}");
    let _ = containerd.ctr(["task", "resume", &id]).ok();
    containerd.wait_status(&id, "RUNNING");
    let refused = containerd.ctr(["task", "checkpoint", &id]);
    assert!(refused.error().contains("not supported"), "{refused:?}");
    let refused = containerd.ctr(["task", "delete", &id]);
    assert!(!refused.status.success(), "{refused:?}");

    let _ = containerd.ctr(["task", "kill", "--signal", "SIGTERM", &id]).ok();
    containerd.wait_status(&id, "STOPPED");
    // Its end is known, and another signal finds nobody.
    let again = containerd.ctr(["task", "kill", "--signal", "SIGKILL", &id]);
    assert!(again.error().contains("not found"), "{again:?}");
    assert_eq!(containerd.delete_task(&id), 42);
    let _ = containerd.ctr(["container", "delete", &id]).ok();

    assert!(wait::until(SOON, || events.text().contains("/tasks/delete")), "{}", events.text());
    let told: Vec<String> = events
        .text()
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("/tasks/")).map(str::to_owned))
        .collect();
    assert_eq!(
        told,
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit",
            "/tasks/paused",
            "/tasks/resumed",
            // containerd's own, around the checkpoint.
            "/tasks/paused",
            "/tasks/resumed",
            "/tasks/exit",
            "/tasks/delete"
        ]
    );
    drop(events);
    containerd.assert_host(&before);
}

/// Limit and use, by either of the two forms.
fn memory(metrics: &Value) -> (u64, u64) {
    let number = |pointer: &str| metrics.pointer(pointer).and_then(Value::as_u64);
    number("/memory/usage_limit").zip(number("/memory/usage")).unwrap_or_else(|| {
        let pair = number("/memory/usage/limit").zip(number("/memory/usage/usage"));
        pair.unwrap_or_else(|| panic!("no memory in {metrics}"))
    })
}

#[test]
fn a_terminal_is_one_inside_and_outside() {
    let containerd = Containerd::new();
    let before = containerd.host();
    let id = containerd.stockade().id("tty");
    let run = containerd.ctr_cmd(containerd.run_args(
        &id,
        &["--rm", "--tty"],
        "tty; until stty size 2>/dev/null; do sleep 0.1; done; exit 5",
    ));
    // script(1) gives ctr a terminal, and passes its status on.
    let words: Vec<String> = std::iter::once(run.get_program())
        .chain(run.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''")))
        .collect();
    let mut script = std::process::Command::new("script");
    script.args(["--quiet", "--return", "--command"]).arg(format!("stty rows 33 cols 99; {}", words.join(" ")));
    script
        .arg("/dev/null")
        .env("STOCKADE_TEST_FOLDER", containerd.stockade().folder())
        .stdin(std::process::Stdio::null());
    let output = containerd.stockade().spawn(script).wait(CALL);
    assert_eq!(output.code(), 5, "{output:?}");
    // Both terminals, script's and the container's, end a line.
    assert!(output.text().replace('\r', "").contains("/dev/pts/0\n33 99\n"), "{output:?}");
    containerd.assert_host(&before);
}

#[test]
fn a_log_file_and_a_logger_get_the_output() {
    let containerd = Containerd::new();
    let before = containerd.host();
    let folder = containerd.stockade().folder().to_owned();
    let file = folder.join("logs/of the container");
    let logger = folder.join("logger");
    let noted = folder.join("noted");
    let script = format!(
        "#!/bin/sh\nexec 5>&-\n{{ echo \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\"; cat <&3; cat <&4; }} >{}\n",
        noted.display()
    );
    fs::write(&logger, script).unwrap();
    fs::set_permissions(&logger, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let uris = [
        format!("file://{}", file.display().to_string().replace(' ', "%20")),
        format!("binary://{}?tag=a", logger.display()),
    ];
    for (number, uri) in uris.iter().enumerate() {
        let id = containerd.stockade().id("log");
        containerd.launch(&id, &["--log-uri", uri], "echo out; sleep 0.3; echo err >&2; exit 9");
        containerd.wait_status(&id, "STOPPED");
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let (path, wanted) = match number {
            0 => (&file, "out\nerr\n".to_owned()),
            _ => (&noted, format!("{id} stockade-tests tag a\nout\nerr\n")),
        };
        assert!(wait::until(SOON, || text(path) == wanted), "{uri}: {}", text(path));
        assert_eq!(containerd.delete_task(&id), 9);
        let _ = containerd.ctr(["container", "delete", &id]).ok();
    }
    containerd.assert_host(&before);
}

#[test]
fn a_containerd_that_goes_and_comes_back_finds_its_tasks_and_what_became_of_them() {
    let containerd = Containerd::new();
    let before = containerd.host();
    let id = containerd.stockade().id("restart");
    containerd.launch(&id, &[], IDLE);
    let pid = containerd.task(&id).expect("a task").0;
    containerd.stop();
    containerd.start();
    assert_eq!(containerd.task(&id), Some((pid, "RUNNING".to_owned())));
    assert_eq!(containerd.exec(&id, "one", "echo on").ok().text(), "on\n");
    containerd.kill();
    containerd.start();
    assert_eq!(containerd.task(&id), Some((pid, "RUNNING".to_owned())));
    assert_eq!(containerd.exec(&id, "two", "echo and on").ok().text(), "and on\n");
    // It ends while nobody listens.
    containerd.kill();
    let mut command = std::process::Command::new(containerd.stockade().program());
    command.arg("--root").arg(containerd.root()).args(["kill", &id, "TERM"]);
    assert!(command.status().unwrap().success());
    let ended = || {
        let mut state = std::process::Command::new(containerd.stockade().program());
        let output = state.arg("--root").arg(containerd.root()).args(["state", &id]).output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|state| state["status"] == "stopped")
    };
    assert!(wait::until(SOON, ended), "the container does not end");
    containerd.start();
    containerd.wait_status(&id, "STOPPED");
    assert_eq!(containerd.delete_task(&id), 42);
    let _ = containerd.ctr(["container", "delete", &id]).ok();
    containerd.assert_host(&before);
}

#[test]
fn a_supervisor_that_is_killed_is_an_exit_and_leaves_nothing() {
    let containerd = Containerd::new();
    let before = containerd.host();
    let events = containerd.start_ctr(["events"]);
    let id = containerd.stockade().id("crash");
    let running = containerd.start_ctr(containerd.run_args(&id, &[], IDLE));
    assert!(wait::until(CALL, || running.text() == "up\n"), "{}", containerd.log());
    let pid = containerd.task(&id).expect("a task").0;
    let begin = Instant::now();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    // ctr's own wait ends with the connection; the exit is in the event.
    assert!(!running.wait(SOON).status.success());
    let told = |topic: &str| {
        let text = events.text();
        text.lines().find(|line| line.contains(topic) && line.contains(&id)).map(str::to_owned)
    };
    let exit = wait::until_some(SOON, || told("/tasks/exit")).unwrap_or_else(|| panic!("no exit: {}", events.text()));
    println!("containerd told the exit {:?} after the supervisor was killed", begin.elapsed());
    assert!(exit.contains("\"exit_status\":137") && exit.contains(&format!("\"pid\":{pid}")), "{exit}");
    assert!(wait::until(SOON, || told("/tasks/delete").is_some()), "{}", events.text());
    drop(events);
    assert!(wait::until(SOON, || containerd.task(&id).is_none()), "{:?}", containerd.task(&id));
    let gone = containerd.ctr(["task", "delete", &id]);
    assert!(gone.error().contains("not found"), "{gone:?}");
    let _ = containerd.ctr(["container", "delete", &id]).ok();
    containerd.assert_host(&before);
}

#[test]
fn a_supervisor_and_its_containerd_that_are_killed_together_leave_nothing_once_containerd_is_back() {
    let containerd = Containerd::new();
    let before = containerd.host();
    let id = containerd.stockade().id("both");
    containerd.launch(&id, &[], IDLE);
    let pid = containerd.task(&id).expect("a task").0;
    containerd.kill();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    containerd.start();
    assert!(wait::until(SOON, || containerd.task(&id).is_none()), "{:?}", containerd.task(&id));
    let _ = containerd.ctr(["container", "delete", &id]).ok();
    containerd.assert_host(&before);
}

#[test]
fn a_bundle_that_disappears_costs_its_container_nothing_but_the_bundle() {
    let containerd = Containerd::new();
    let before = containerd.host();
    let id = containerd.stockade().id("bundle");
    containerd.launch(&id, &[], IDLE);
    fs::remove_dir_all(containerd.bundle(&id)).unwrap();
    assert_eq!(containerd.exec(&id, "one", "echo still here").ok().text(), "still here\n");
    let _ = containerd.ctr(["task", "kill", "--signal", "SIGTERM", &id]).ok();
    containerd.wait_status(&id, "STOPPED");
    assert_eq!(containerd.delete_task(&id), 42);
    let _ = containerd.ctr(["container", "delete", &id]).ok();
    containerd.assert_host(&before);
}

#[test]
fn a_pods_containers_share_a_machine_its_volumes_and_its_end() {
    let containerd = Containerd::new();
    let folder = containerd.stockade().folder().join("pod/volumes");
    let (memory, disk) = (folder.join("kubernetes.io~empty-dir/memory"), folder.join("kubernetes.io~empty-dir/disk"));
    let config = folder.join("kubernetes.io~configmap/config");
    for path in [&memory, &disk, &config.join("..1"), &config.join("..2")] {
        fs::create_dir_all(path).unwrap();
    }
    let _tmpfs = Tmpfs::mount(&memory);
    // As the kubelet writes a config map: the names lead through a link, which is replaced as a whole.
    for version in ["..1", "..2"] {
        fs::write(config.join(version).join("key"), format!("value {version}")).unwrap();
    }
    symlink("..1", config.join("..data")).unwrap();
    symlink("..data/key", config.join("key")).unwrap();
    let hosts = folder.join("hosts");
    fs::write(&hosts, "10.1.2.3 pod\n").unwrap();
    let before = containerd.host();

    let pod = containerd.stockade().id("pod");
    let kind = |kind: &str| format!("io.kubernetes.cri.container-type={kind}");
    let (sandbox, container) = (kind("sandbox"), kind("container"));
    let of_pod = format!("io.kubernetes.cri.sandbox-id={pod}");
    containerd.launch(&pod, &["--annotation", &sandbox, "--annotation", &of_pod], IDLE);
    let mount = |path: &std::path::Path, target: &str, access: &str| {
        format!("type=bind,src={},dst={target},options=rbind:{access}", path.display())
    };
    let mounts = [
        mount(&memory, "/memory", "rw"),
        mount(&disk, "/disk", "rw"),
        mount(&config, "/config", "ro"),
        mount(&hosts, "/etc/hosts", "ro"),
    ];
    let mut options = vec!["--annotation", &container, "--annotation", &of_pod];
    for mount in &mounts {
        options.extend(["--mount", mount]);
    }
    let apps = [containerd.stockade().id("app"), containerd.stockade().id("app")];
    for app in &apps {
        containerd.launch(app, &options, IDLE);
    }
    let pid = containerd.task(&pod).expect("a task").0;
    assert!(apps.iter().all(|app| containerd.task(app) == Some((pid, "RUNNING".to_owned()))));
    assert_eq!(containerd.stockade().monitors().len(), 1);

    let said = |app: &str, exec: &str, script: &str| containerd.exec(app, exec, script).ok().text();
    said(&apps[0], "write", "echo fast >/memory/file; echo slow >/disk/file; echo x >/tmp/own");
    assert_eq!(said(&apps[1], "read", "cat /memory/file /disk/file; ls /tmp"), "fast\nslow\n");
    // Neither reaches the host, and the one in memory is a tmpfs of its own size.
    assert_eq!(fs::read_dir(&memory).unwrap().count() + fs::read_dir(&disk).unwrap().count(), 0);
    assert_eq!(said(&apps[1], "type", "grep ' /memory ' /proc/mounts | cut -d' ' -f3"), "tmpfs\n");
    assert_eq!(
        said(&apps[0], "old", "cat /config/key /etc/hosts; echo no >/config/new || echo refused"),
        "value ..110.1.2.3 pod\nrefused\n"
    );
    symlink("..2", config.join("..new")).unwrap();
    fs::rename(config.join("..new"), config.join("..data")).unwrap();
    let updated = wait::until(SOON, || said(&apps[0], &unique_id("new"), "cat /config/key") == "value ..2");
    assert!(updated, "an update does not arrive");

    // A container of the pod goes, the others stay.
    let _ = containerd.ctr(["task", "kill", "--signal", "SIGTERM", &apps[0]]).ok();
    containerd.wait_status(&apps[0], "STOPPED");
    assert_eq!(containerd.delete_task(&apps[0]), 42);
    assert_eq!(said(&apps[1], "still", "cat /memory/file"), "fast\n");
    let refused = containerd.ctr(["task", "delete", "--force", &pod]);
    assert!(refused.error().contains(&apps[1]), "{refused:?}");
    let _ = containerd.ctr(["task", "delete", "--force", &apps[1]]).ok();
    let _ = containerd.ctr(["task", "delete", "--force", &pod]).ok();
    for id in [&pod, &apps[0], &apps[1]] {
        let _ = containerd.ctr(["container", "delete", id]).ok();
    }
    containerd.assert_host(&before);
}

#[test]
fn a_pods_supervisor_that_is_killed_is_an_exit_of_each_container_and_leaves_nothing() {
    let containerd = Containerd::new();
    let before = containerd.host();
    let events = containerd.start_ctr(["events"]);
    let (pod, app) = (containerd.stockade().id("pod"), containerd.stockade().id("app"));
    let of_pod = format!("io.kubernetes.cri.sandbox-id={pod}");
    for (id, kind) in [(&pod, "sandbox"), (&app, "container")] {
        let kind = format!("io.kubernetes.cri.container-type={kind}");
        containerd.launch(id, &["--annotation", &kind, "--annotation", &of_pod], IDLE);
    }
    let pid = containerd.task(&app).expect("a task").0;
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    for id in [&pod, &app] {
        let told = || {
            let text = events.text();
            text.lines().any(|line| line.contains("/tasks/exit") && line.contains(id) && line.contains(":137"))
        };
        assert!(wait::until(SOON, told), "{id}: {}", events.text());
        assert!(wait::until(SOON, || containerd.task(id).is_none()), "{:?}", containerd.task(id));
        let _ = containerd.ctr(["container", "delete", id]).ok();
    }
    drop(events);
    containerd.assert_host(&before);
}

#[test]
fn twenty_containers_start_at_once_and_know_nothing_of_each_other() {
    // Many more than a host has processors: each waits for the others.
    let containerd = Containerd::with_config(
        "boot_timeout = 300\ndefault_memory = 128",
        "[runtime]\ncreate_timeout = 600\n[agent.kata]\ncreate_container_timeout = 300\nrequest_timeout = 300",
    );
    let before = containerd.host();
    let ids: Vec<String> = (0..20).map(|_| containerd.stockade().id("many")).collect();
    let begin = Instant::now();
    let running: Vec<_> = ids
        .iter()
        .map(|id| {
            let script = format!("echo {id} >/tmp/who; cat /tmp/who; date +%s");
            containerd.start_ctr(containerd.run_args(id, &["--rm"], &script))
        })
        .collect();
    for (id, call) in ids.iter().zip(running) {
        let text = call.wait(CALL * 4).ok().text();
        let (who, clock) = text.split_once('\n').expect("two lines");
        assert_eq!(who, id);
        // It was set when the agent answered, long before in this crowd. One that runs too fast ends waits too early.
        let clock = UNIX_EPOCH + Duration::from_secs(clock.trim().parse().expect("seconds"));
        let ahead = clock.duration_since(SystemTime::now()).unwrap_or_default();
        assert!(ahead < Duration::from_secs(1), "the clock of {id} is {ahead:?} ahead");
    }
    println!("{} containers ran at once in {:?}", ids.len(), begin.elapsed());
    containerd.assert_host(&before);
}

#[test]
fn what_cannot_be_created_says_why_and_leaves_nothing() {
    let containerd = Containerd::new();
    let before = containerd.host();
    let broken = containerd.stockade().folder().join("broken.toml");
    fs::write(&broken, "[runtime]\nhypervisr = \"kvm\"\n").unwrap();
    let broken = broken.display().to_string();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--runtime-config-path", "/no/such/stockade.toml"], &["/no/such/stockade.toml"]),
        (&["--runtime-config-path", "stockade.toml"], &["stockade.toml", "not an absolute path"]),
        (&["--runtime-config-path", &broken], &["broken.toml:2:1", "hypervisr", "did you mean"]),
        (&["--annotation", "io.kubernetes.cri.container-type=pod"], &["io.kubernetes.cri.container-type", "\"pod\""]),
        (
            &[
                "--annotation",
                "io.kubernetes.cri.container-type=container",
                "--annotation",
                "io.kubernetes.cri.sandbox-id=nowhere",
            ],
            &["sandbox nowhere", "does not exist"],
        ),
        (
            &["--annotation", "io.katacontainers.config.hypervisor.default_vcpus=4"],
            &["default_vcpus", "enable_annotations", "invalid argument"],
        ),
        (&["--net-host"], &["host networking is not supported", "invalid argument"]),
        (&["--log-uri", "binary:///no/such/logger", "--detach"], &["/no/such/logger", "invalid argument"]),
    ];
    for (options, words) in cases {
        let id = containerd.stockade().id("bad");
        let failed = containerd.run(&id, options, "true");
        assert!(!failed.status.success(), "{options:?}");
        for word in *words {
            assert!(failed.error().contains(word), "{options:?}: {}", failed.error());
        }
        // ctr run leaves the container's metadata where the task fails.
        let _ = containerd.ctr(["container", "delete", &id]);
        containerd.assert_host(&before);
    }
}

#[test]
fn a_call_that_containerd_would_not_make_is_refused() {
    let containerd = Containerd::new();
    let shim = |args: &[&str], input: &[u8]| {
        let program = containerd.stockade().folder().join("containerd/bin/containerd-shim-stockade-v2");
        let file = containerd.stockade().folder().join("stdin");
        fs::write(&file, input).unwrap();
        let mut command = std::process::Command::new(program);
        command.args(args).env("STOCKADE_ROOT", containerd.stockade().root()).stdin(fs::File::open(&file).unwrap());
        command.current_dir(containerd.stockade().folder());
        containerd.stockade().spawn(command).wait(SOON)
    };
    assert!(shim(&["-v"], b"").ok().text().starts_with("stockade "));
    for (args, input, wanted) in [
        (&["start"][..], &b""[..], "-namespace is missing"),
        (&["-namespace", "n", "-id", "c", "-rm", "start"], b"", "-rm is not known"),
        (&["-namespace", "../n", "-id", "c", "start"], b"", "not one of containerd's"),
        (&["-namespace", "n", "-id", "../c", "start"], b"", "is not allowed"),
        // An Any of the type "x.Options".
        (&["-namespace", "n", "-id", "c", "start"], b"\x0a\x09x.Options", "x.Options"),
        (&["-namespace", "n", "-id", "c", "start"], b"\xff\xff", "cannot be read"),
        // No bundle in the working directory.
        (&["-namespace", "n", "-id", "c", "start"], b"", "config.json"),
    ] {
        let failure = shim(args, input).failure();
        assert!(failure.contains(wanted), "{args:?}: {failure}");
    }
    // Of what is not there, nothing is left.
    let _ = shim(&["-namespace", "n", "-id", "c", "-bundle", "/no/such", "delete"], b"").ok();
}
