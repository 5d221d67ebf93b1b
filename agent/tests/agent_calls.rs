//! The agent's calls, case by case, on real containers. Needs root, cgroup v2 and busybox-static.

mod devices;
mod harness;

use devices::*;
use harness::*;
use serde_json::json;
use std::time::{Duration, Instant};
use stockade_agent_protocol::agent::*;
use stockade_agent_protocol::health::CheckRequest;
use stockade_agent_protocol::processes::ListProcessesRequest;

type Case = (&'static str, fn());

macro_rules! cases {
    ($($name:ident)*) => { &[$((stringify!($name), $name as fn())),*] };
}

/// The name of all cases together, as one test of cargo-nextest.
const TOGETHER: &str = "agent_calls";

/// The cases run in order in one process: they share an agent, and one sandbox cannot be in two states.
fn main() {
    // What cargo-nextest asks a test program: its tests, and those of them that are ignored.
    if std::env::args().any(|argument| argument == "--list") {
        if !std::env::args().any(|argument| argument == "--ignored") {
            println!("{TOGETHER}: test");
        }
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("these tests make containers: they need root");
        std::process::exit(1);
    }
    let all: &[Case] = cases! {
        the_agent_answers_health_and_version
        a_container_lives_from_created_to_removed
        exit_codes_and_signals_are_told
        input_comes_back_as_output_byte_for_byte
        the_process_is_set_up_as_the_specification_says
        the_environment_is_passed_verbatim
        a_missing_working_directory_is_made
        programs_that_cannot_run_are_errors_with_the_usual_texts
        a_process_can_be_added_and_gets_its_own_settings
        a_filter_holds_for_all_processes_of_a_container
        a_terminal_has_a_size_and_can_be_resized
        a_child_that_keeps_the_output_open_hangs_nobody
        kill_ends_everything_in_the_container
        a_container_can_be_paused
        the_container_sees_its_own_root_and_names
        processes_are_listed
        a_zygote_that_was_killed_is_replaced
        limits_are_seen_in_the_container
        devices_open_as_the_rules_say
        device_rules_can_be_replaced
        device_rules_that_cannot_be_used_are_refused
        devices_of_the_supervisor_have_the_guests_numbers
        a_failed_creation_leaves_nothing
        ids_must_be_plain_and_new
        containers_share_a_pid_namespace
        interfaces_routes_and_neighbours_are_set
        unimplemented_calls_say_so
        destroying_the_sandbox_ends_the_agent
    };
    let wanted = std::env::args().skip_while(|word| word != "--exact").nth(1).or_else(|| std::env::args().nth(1));
    let wanted = wanted.filter(|word| !word.starts_with('-') && word != TOGETHER);
    let wanted = wanted.unwrap_or_default();
    let mut failed = 0;
    for (name, case) in all.iter().filter(|(name, _)| name.contains(&wanted)) {
        let began = Instant::now();
        let passed = std::panic::catch_unwind(case).is_ok();
        failed += usize::from(!passed);
        println!("test {name} ... {} ({} ms)", if passed { "ok" } else { "FAILED" }, began.elapsed().as_millis());
    }
    stop();
    println!("contract: {failed} failed");
    std::process::exit(i32::from(failed > 0));
}

fn text_of(result: Result<impl std::fmt::Debug, ttrpc::Error>) -> String {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => status.message().to_owned(),
        other => panic!("no error status: {other:?}"),
    }
}

fn the_agent_answers_health_and_version() {
    block_on(async {
        let agent = agent().await;
        agent.health.check(context(), &CheckRequest::new()).await.expect("healthy");
        let version = agent.health.version(context(), &CheckRequest::new()).await.expect("a version");
        assert!(!version.agent_version.is_empty());
        let metrics = agent.calls.get_metrics(context(), &GetMetricsRequest::new()).await.expect("metrics");
        assert!(metrics.metrics.contains("MemTotal"));
        let details = agent.calls.get_guest_details(context(), &GuestDetailsRequest::new()).await.expect("details");
        assert!(details.agent_details.supports_seccomp);
    });
}

fn a_container_lives_from_created_to_removed() {
    block_on(async {
        let agent = agent().await;
        let id = agent.create(&spec(&["sh", "-c", "echo out; echo err >&2; exit 3"])).await.expect("created");
        assert!(text_of(agent.exec(&id, process(&["true"])).await).contains("created"));
        agent.start(&id).await.expect("started");
        assert!(text_of(agent.start(&id).await).contains("cannot start"));
        let output = agent.output(&id, "").await;
        assert_eq!((output.status, output.stdout.as_str(), output.stderr.as_str()), (3, "out\n", "err\n"));
        // The status is kept, and can be asked for again.
        assert_eq!(agent.wait(&id, "").await, 3);
        assert_eq!(agent.wait(&id, &id).await, 3);
        agent.signal(&id, "", 15).await.expect("a signal to one that ended");
        agent.remove(&id).await;
        assert!(text_of(agent.start(&id).await).contains("no container"));
    });
}

fn exit_codes_and_signals_are_told() {
    block_on(async {
        let agent = agent().await;
        for (script, status) in [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 0), ("exec cat", 0)] {
            let output = agent.script(script, |spec| {
                // Init of a pid namespace cannot kill itself.
                if script.starts_with("kill") {
                    spec["process"]["args"] = json!(["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]);
                }
                if script == "exec cat" {
                    spec["process"]["args"] = json!(["true"]);
                }
            });
            let expected = if script.starts_with("kill") { 137 } else { status };
            assert_eq!(output.await.status, expected, "{script}");
        }
        let id = agent.run(&spec(&["sleep", "1000"])).await;
        agent.signal(&id, "", 9).await.expect("killed");
        assert_eq!(agent.wait(&id, "").await, 137);
        agent.remove(&id).await;
    });
}

fn input_comes_back_as_output_byte_for_byte() {
    block_on(async {
        let agent = agent().await;
        let id = agent.run(&spec(&["cat"])).await;
        let mut seed = 1u32;
        let data: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 24) as u8
        })
        .take(8 << 20)
        .collect();
        let (_, output) = tokio::join!(
            async {
                for chunk in data.chunks(200_000) {
                    agent.write(&id, "", chunk).await.expect("written");
                }
                agent.close(&id, "").await;
            },
            agent.read_all(&id, "", false),
        );
        assert!(output == data, "{} of {} bytes", output.len(), data.len());
        assert_eq!(agent.wait(&id, "").await, 0);
        assert!(agent.write(&id, "", b"x").await.is_err());
        agent.remove(&id).await;
    });
}

fn the_process_is_set_up_as_the_specification_says() {
    block_on(async {
        let agent = agent().await;
        let script = "id -u; id -g; id -G; umask; ulimit -n; cat /proc/self/oom_score_adj; \
            grep -E 'NoNewPrivs|CapBnd|CapEff|SigIgn' /proc/self/status; pwd";
        let output = agent
            .script(script, |spec| {
                let process = &mut spec["process"];
                process["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 2000], "umask": 63});
                process["oomScoreAdj"] = json!(321);
                process["cwd"] = json!("/tmp");
            })
            .await;
        let lines: Vec<&str> = output.stdout.lines().collect();
        assert_eq!(lines[..6], ["1000", "1001", "1001 5 2000", "0077", "1000", "321"], "{}", output.stderr);
        let all = output.stdout.replace('\t', " ");
        assert!(all.contains("NoNewPrivs: 1"), "{all}");
        assert!(all.contains("CapBnd: 00000000000004e3"), "{all}");
        // SIGPIPE is ignored by Rust programs, and must not be by the container's.
        let ignored = all.lines().find_map(|line| line.strip_prefix("SigIgn: ")).expect("a mask");
        assert_eq!(u64::from_str_radix(ignored, 16).expect("a number") & 0x1000, 0, "{all}");
        assert!(all.ends_with("/tmp\n"), "{all}");
    });
}

fn the_environment_is_passed_verbatim() {
    block_on(async {
        let agent = agent().await;
        let mut spec = spec(&["cat", "/proc/self/environ"]);
        spec["process"]["env"] = json!(["PATH=/bin", "A=1=2", "A=3", "odd", "B=", "Z=z"]);
        let output = agent.run_to_end(&spec).await;
        assert_eq!(output.stdout, "PATH=/bin\0A=1=2\0A=3\0odd\0B=\0Z=z\0HOME=/root\0");
    });
}

fn a_missing_working_directory_is_made() {
    block_on(async {
        let agent = agent().await;
        let output = agent.script("pwd", |spec| spec["process"]["cwd"] = json!("/tmp/not/there")).await;
        assert_eq!(output.stdout, "/tmp/not/there\n", "{}", output.stderr);
    });
}

fn programs_that_cannot_run_are_errors_with_the_usual_texts() {
    block_on(async {
        let agent = agent().await;
        let cases: [(&[&str], &str); 4] = [
            (&["no-such-program"], "executable file not found in $PATH"),
            (&["/no/such/program"], "no such file or directory"),
            (&["/etc/passwd"], "permission denied"),
            (&["/etc"], "permission denied"),
        ];
        let running = agent.run(&spec(&["sleep", "1000"])).await;
        for (args, text) in cases {
            let mut spec = spec(args);
            spec["process"]["user"]["uid"] = json!(1000);
            let error = text_of(agent.create(&spec).await);
            assert!(error.contains(text), "create {args:?}: {error}");
            let error = text_of(agent.exec(&running, spec["process"].clone()).await);
            assert!(error.contains(text), "exec {args:?}: {error}");
        }
        agent.remove(&running).await;
        // A script without an interpreter is found, and fails only when it is run.
        let mut bad = spec(&["/tmp/x"]);
        bad["process"]["args"] = json!(["/dev/shm/bad"]);
        let error = text_of(agent.create(&bad).await);
        assert!(error.contains("no such file"), "{error}");
    });
}

fn a_process_can_be_added_and_gets_its_own_settings() {
    block_on(async {
        let agent = agent().await;
        let id = agent.run(&spec(&["sleep", "1000"])).await;
        let mut wanted =
            process(&["sh", "-c", "id -u; id -G; umask; ulimit -n; pwd; hostname; echo $HOME; cat; exit 5"]);
        wanted["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [7], "umask": 7});
        wanted["cwd"] = json!("/tmp");
        wanted["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 100, "soft": 99}]);
        let exec = agent.exec(&id, wanted).await.expect("added");
        agent.write(&id, &exec, b"input").await.expect("written");
        agent.close(&id, &exec).await;
        let output = agent.output(&id, &exec).await;
        assert_eq!(output.stdout, "1000\n1000 7\n0007\n99\n/tmp\nthe-container\n/home/bob\ninput", "{}", output.stderr);
        assert_eq!(output.status, 5);
        assert_eq!(agent.wait(&id, &exec).await, 5);
        let mut lost = process(&["true"]);
        lost["cwd"] = json!("/not/there");
        assert!(!text_of(agent.exec(&id, lost).await).is_empty());
        // The container lives on.
        let exec = agent.exec(&id, process(&["echo", "x"])).await.expect("added");
        assert_eq!(agent.output(&id, &exec).await.stdout, "x\n");
        agent.remove(&id).await;
    });
}

fn a_filter_holds_for_all_processes_of_a_container() {
    block_on(async {
        let agent = agent().await;
        for no_new_privileges in [true, false] {
            let mut spec = spec(&["sleep", "1000"]);
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
            });
            let id = agent.run(&spec).await;
            let mut wanted = process(&["sh", "-c", "mkdir /tmp/x; grep -E 'Seccomp:|CapEff' /proc/self/status"]);
            wanted["noNewPrivileges"] = json!(no_new_privileges);
            let exec = agent.exec(&id, wanted).await.expect("added");
            let output = agent.output(&id, &exec).await;
            assert!(
                output.stderr.contains("Operation not supported") || output.stderr.contains("not supported"),
                "{}",
                output.stderr
            );
            let all = output.stdout.replace('\t', " ");
            assert!(all.contains("Seccomp: 2") && all.contains("CapEff: 00000000000004e3"), "{all}");
            agent.remove(&id).await;
            spec["process"]["args"] = json!(["sh", "-c", "mkdir /tmp/x; grep -E 'Seccomp:|CapEff' /proc/self/status"]);
            let output = agent.run_to_end(&spec).await;
            assert!(output.stderr.contains("not supported"), "{}", output.stderr);
            let all = output.stdout.replace('\t', " ");
            assert!(all.contains("Seccomp: 2") && all.contains("CapEff: 00000000000004e3"), "{all}");
        }
    });
}

fn a_terminal_has_a_size_and_can_be_resized() {
    block_on(async {
        let agent = agent().await;
        let mut spec = spec(&["sh", "-c", "stty size; tty; read line; stty size; echo got $line"]);
        spec["process"]["terminal"] = json!(true);
        spec["process"]["consoleSize"] = json!({"height": 11, "width": 33});
        let id = agent.run(&spec).await;
        let resize = TtyWinResizeRequest { container_id: id.clone(), row: 55, column: 66, ..Default::default() };
        let mut seen = String::new();
        while !seen.contains("/dev/") {
            let request = ReadStreamRequest { container_id: id.clone(), len: 4096, ..Default::default() };
            let answer = agent.calls.read_stdout(context(), &request).await.expect("read");
            seen += &String::from_utf8_lossy(&answer.data);
        }
        assert!(seen.contains("11 33"), "{seen}");
        agent.calls.tty_win_resize(context(), &resize).await.expect("resized");
        agent.write(&id, "", b"hello\n").await.expect("written");
        let rest = String::from_utf8(agent.read_all(&id, "", false).await).expect("text");
        assert!(rest.contains("55 66") && rest.contains("got hello"), "{rest}");
        assert_eq!(agent.read_all(&id, "", true).await, b"");
        assert_eq!(agent.wait(&id, "").await, 0);
        agent.remove(&id).await;

        let id = agent.run(&harness::spec(&["sleep", "1000"])).await;
        let mut wanted = process(&["sh", "-c", "stty size; test -t 0 && echo terminal"]);
        wanted["terminal"] = json!(true);
        wanted["consoleSize"] = json!({"height": 12, "width": 34});
        let exec = agent.exec(&id, wanted).await.expect("added");
        let output = agent.output(&id, &exec).await;
        assert!(output.stdout.contains("12 34") && output.stdout.contains("terminal"), "{}", output.stdout);
        agent.remove(&id).await;
    });
}

fn a_child_that_keeps_the_output_open_hangs_nobody() {
    block_on(async {
        let agent = agent().await;
        let id = agent.run(&spec(&["sleep", "1000"])).await;
        let exec = agent.exec(&id, process(&["sh", "-c", "echo last; sleep 500 & exit 4"])).await.expect("added");
        let began = Instant::now();
        let output = agent.output(&id, &exec).await;
        assert_eq!((output.status, output.stdout.as_str()), (4, "last\n"));
        assert!(began.elapsed() < Duration::from_secs(20));
        agent.remove(&id).await;
    });
}

fn kill_ends_everything_in_the_container() {
    block_on(async {
        let agent = agent().await;
        let id = agent
            .run(&spec(&["sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000 & while :; do sleep 100; done"]))
            .await;
        let exec = agent.exec(&id, process(&["sleep", "1000"])).await.expect("added");
        agent.signal(&id, &exec, 15).await.expect("signalled");
        assert_eq!(agent.wait(&id, &exec).await, 143);
        let exec = agent.exec(&id, process(&["sleep", "1000"])).await.expect("added");
        agent.signal(&id, "*", 1).await.expect("signalled all");
        assert_eq!(agent.wait(&id, &exec).await, 129);
        assert!(text_of(agent.signal(&id, "", 99).await).contains("not a signal"));
        agent.signal(&id, "", 9).await.expect("killed");
        assert_eq!(agent.wait(&id, "").await, 137);
        agent.remove(&id).await;
        // One that was never started goes too.
        let id = agent.create(&spec(&["true"])).await.expect("created");
        agent.remove(&id).await;
    });
}

fn a_container_can_be_paused() {
    block_on(async {
        let agent = agent().await;
        let id = agent.run(&spec(&["cat"])).await;
        let pause = PauseContainerRequest { container_id: id.clone(), ..Default::default() };
        agent.calls.pause_container(context(), &pause).await.expect("paused");
        assert!(text_of(agent.calls.pause_container(context(), &pause).await).contains("paused"));
        assert!(text_of(agent.exec(&id, process(&["true"])).await).contains("paused"));
        let resume = ResumeContainerRequest { container_id: id.clone(), ..Default::default() };
        agent.calls.resume_container(context(), &resume).await.expect("resumed");
        agent.write(&id, "", b"alive").await.expect("written");
        agent.close(&id, "").await;
        assert_eq!(agent.read_all(&id, "", false).await, b"alive");
        agent.remove(&id).await;
        // A paused one can be killed.
        let id = agent.run(&spec(&["sleep", "1000"])).await;
        let pause = PauseContainerRequest { container_id: id.clone(), ..Default::default() };
        agent.calls.pause_container(context(), &pause).await.expect("paused");
        agent.signal(&id, "", 9).await.expect("killed");
        assert_eq!(agent.wait(&id, "").await, 137);
        agent.remove(&id).await;
    });
}

fn the_container_sees_its_own_root_and_names() {
    block_on(async {
        let agent = agent().await;
        let script = "hostname; touch /x 2>&1; head -c1 /proc/kcore | wc -c; echo 1 2>&1 >/proc/sys/kernel/hostname; \
            cat /proc/sys/kernel/shmmax; cat /proc/sys/net/core/somaxconn; echo $$; ls /dev | tr '\\n' ' '; cat /proc/self/cgroup";
        let output = agent
            .script(script, |spec| {
                spec["linux"]["sysctl"] = json!({"kernel.shmmax": "12345678", "net.core.somaxconn": "321"});
                spec["linux"]["devices"] = json!([{"path": "/dev/made", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}]);
            })
            .await;
        let lines: Vec<&str> = output.stdout.lines().collect();
        assert_eq!(lines[0], "the-container");
        assert!(lines[1].contains("Read-only file system"), "{output}", output = output.stdout);
        assert_eq!(lines[2], "0");
        assert!(
            output.stdout.contains("12345678\n321\n1\n") || output.stderr.contains("Read-only"),
            "{} {}",
            output.stdout,
            output.stderr
        );
        for device in ["made", "null", "zero", "full", "random", "urandom", "tty", "ptmx", "stdin", "fd"] {
            assert!(output.stdout.contains(device), "{device}: {}", output.stdout);
        }
        assert!(output.stdout.ends_with("0::/\n"), "{}", output.stdout);
    });
}

fn processes_are_listed() {
    block_on(async {
        let agent = agent().await;
        let id = agent.run(&spec(&["sleep", "1000"])).await;
        let request = ListProcessesRequest { container_id: id.clone(), ..Default::default() };
        let list = agent.processes.list_processes(context(), &request).await.expect("listed").processes;
        assert_eq!(list.len(), 1, "{list:?}");
        assert_eq!(list[0].args, ["sleep", "1000"]);
        assert_eq!(list[0].container_pid, 1);
        let request = StatsContainerRequest { container_id: id.clone(), ..Default::default() };
        let stats = agent.calls.stats_container(context(), &request).await.expect("figures");
        assert!(stats.network_stats.iter().any(|network| network.name == "lo"));
        agent.remove(&id).await;
    });
}

fn a_zygote_that_was_killed_is_replaced() {
    block_on(async {
        let agent = agent().await;
        // Sees all of the guest's processes, as one of them.
        let in_the_guest = |spec: &mut serde_json::Value| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list");
            namespaces.retain(|namespace| namespace["type"] != "pid");
        };
        let find = "grep -l '^stockade-zygote$' /proc/[0-9]*/comm";
        let before = agent.script(find, in_the_guest).await.stdout;
        assert_eq!(before.split_whitespace().count(), 1, "{before}");
        let kill = format!("for comm in $({find}); do kill -9 $(echo ${{comm#/proc/}} | cut -d/ -f1); done");
        assert_eq!(agent.script(&kill, in_the_guest).await.status, 0);
        let after = agent.script(find, in_the_guest).await.stdout;
        assert_eq!(after.split_whitespace().count(), 1, "{after}");
        assert_ne!(before, after);
        // And what it makes is as good.
        let id = agent.run(&spec(&["sleep", "1000"])).await;
        let exec_id = agent.exec(&id, process(&["cat", "/proc/self/environ"])).await.expect("run");
        let output = agent.output(&id, &exec_id).await;
        assert_eq!((output.status, output.stdout.as_str()), (0, "PATH=/bin:/usr/bin\0TERM=xterm\0HOME=/root\0"));
        agent.remove(&id).await;
    });
}

fn limits_are_seen_in_the_container() {
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if std::env::var_os("STOCKADE_AGENT_ADDRESS").is_none() && !controllers.contains("memory") {
        println!("(this host's cgroup v2 has no controllers: left out)");
        return;
    }
    block_on(async {
        let agent = agent().await;
        let script =
            "cd /sys/fs/cgroup; cat memory.max memory.high cpu.max cpu.weight pids.max; read x; cat memory.max";
        let mut spec = spec(&["sh", "-c", script]);
        spec["linux"]["resources"] = json!({
            "memory": {"limit": 33554432}, "cpu": {"quota": 50000, "period": 100000, "shares": 1024},
            "pids": {"limit": 50}, "unified": {"memory.high": "16777216"},
        });
        let id = agent.run(&spec).await;
        let resources = serde_json::from_value(json!({"memory": {"limit": 67108864}})).expect("resources");
        let update = UpdateContainerRequest {
            container_id: id.clone(),
            resources: Some(stockade_agent_protocol::oci_convert::resources_to_proto(&resources).expect("converts"))
                .into(),
            ..Default::default()
        };
        agent.calls.update_container(context(), &update).await.expect("updated");
        // The first lines may be read before or after the change; the last is read after it.
        agent.write(&id, "", b"\n").await.expect("written");
        let output = agent.output(&id, "").await;
        let lines: Vec<&str> = output.stdout.lines().collect();
        assert_eq!(lines[1..3], ["16777216", "50000 100000"], "{} {}", output.stdout, output.stderr);
        assert_eq!(lines[4..], ["50", "67108864"], "{}", output.stdout);
        agent.remove(&id).await;
    });
}

fn a_failed_creation_leaves_nothing() {
    block_on(async {
        let agent = agent().await;
        let id = new_id();
        let mut bad = spec(&["true"]);
        bad["mounts"].as_array_mut().expect("mounts").push(json!(
            {"destination": "/tmp/x", "type": "bind", "source": "/no/such/source", "options": ["bind"]}
        ));
        let spec: oci_spec::runtime::Spec = serde_json::from_value(bad).expect("a specification");
        let mut request = CreateContainerRequest {
            container_id: id.clone(),
            OCI: Some(stockade_agent_protocol::oci_convert::spec_to_proto(&spec).expect("converts")).into(),
            ..Default::default()
        };
        request.storages.push(Storage {
            driver: "ephemeral".to_owned(),
            mount_point: format!("/run/stockade-test/{id}"),
            ..Default::default()
        });
        let error = text_of(agent.calls.create_container(context(), &request).await);
        assert!(error.contains("/no/such/source") || error.contains("No such file"), "{error}");
        // The same id can be used again, with a storage of the same place.
        let good = serde_json::from_value(harness::spec(&["true"])).expect("a specification");
        request.OCI = Some(stockade_agent_protocol::oci_convert::spec_to_proto(&good).expect("converts")).into();
        agent.calls.create_container(context(), &request).await.expect("created");
        agent.start(&id).await.expect("started");
        assert_eq!(agent.wait(&id, "").await, 0);
        agent.remove(&id).await;
    });
}

fn ids_must_be_plain_and_new() {
    block_on(async {
        let agent = agent().await;
        let spec_message = || {
            let spec = serde_json::from_value(spec(&["true"])).expect("a specification");
            stockade_agent_protocol::oci_convert::spec_to_proto(&spec).expect("converts")
        };
        for id in ["", "../x", "a/b", ".."] {
            let request = CreateContainerRequest {
                container_id: id.to_owned(),
                OCI: Some(spec_message()).into(),
                ..Default::default()
            };
            assert!(text_of(agent.calls.create_container(context(), &request).await).contains("not a valid id"));
        }
        let id = agent.create(&spec(&["true"])).await.expect("created");
        let request =
            CreateContainerRequest { container_id: id.clone(), OCI: Some(spec_message()).into(), ..Default::default() };
        assert!(text_of(agent.calls.create_container(context(), &request).await).contains("exists already"));
        agent.remove(&id).await;
    });
}

fn containers_share_a_pid_namespace() {
    block_on(async {
        let agent = agent().await;
        let request = CreateSandboxRequest { sandbox_pidns: true, sandbox_id: "s1".to_owned(), ..Default::default() };
        agent.calls.create_sandbox(context(), &request).await.expect("created");
        let create = |args: &[&str]| {
            let spec = serde_json::from_value(spec(args)).expect("a specification");
            CreateContainerRequest {
                container_id: new_id(),
                OCI: Some(stockade_agent_protocol::oci_convert::spec_to_proto(&spec).expect("converts")).into(),
                sandbox_pidns: true,
                ..Default::default()
            }
        };
        let first = create(&["sleep", "12345"]);
        let second = create(&["ps", "-o", "args"]);
        for request in [&first, &second] {
            agent.calls.create_container(context(), request).await.expect("created");
            agent.start(&request.container_id).await.expect("started");
        }
        let output = agent.output(&second.container_id, "").await;
        assert!(output.stdout.contains("sleep 12345"), "{}", output.stdout);
        agent.remove(&second.container_id).await;
        agent.remove(&first.container_id).await;
    });
}

fn interfaces_routes_and_neighbours_are_set() {
    use stockade_agent_protocol::types::{ARPNeighbor, IPAddress, Interface, Route};
    const MAC: &str = "02:00:00:00:00:01";
    block_on(async {
        let agent = agent().await;
        let list = agent.calls.list_interfaces(context(), &ListInterfacesRequest::new()).await.expect("listed");
        if !list.Interfaces.iter().any(|interface| interface.hwAddr == MAC) {
            println!("(no interface to try it on: left out)");
            return;
        }
        let address = IPAddress { address: "10.9.0.2".to_owned(), mask: "24".to_owned(), ..Default::default() };
        let interface = Interface {
            name: "eth9".to_owned(),
            hwAddr: MAC.to_owned(),
            mtu: 1400,
            IPAddresses: vec![address.clone()],
            ..Default::default()
        };
        let request = UpdateInterfaceRequest { interface: Some(interface).into(), ..Default::default() };
        // Twice: the second time there is nothing to change.
        for _ in 0..2 {
            agent.calls.update_interface(context(), &request).await.expect("updated");
        }
        let list = agent.calls.list_interfaces(context(), &ListInterfacesRequest::new()).await.expect("listed");
        let found = list.Interfaces.iter().find(|interface| interface.name == "eth9").expect("renamed");
        assert_eq!((found.mtu, found.IPAddresses[0].address.as_str()), (1400, "10.9.0.2"));
        let route = |dest: &str, gateway: &str| Route {
            dest: dest.to_owned(),
            gateway: gateway.to_owned(),
            device: "eth9".to_owned(),
            ..Default::default()
        };
        let on_link = Route { scope: 253, ..route("10.8.0.0/16", "") };
        let routes = Routes { Routes: vec![route("", "10.8.0.1"), on_link], ..Default::default() };
        let request = UpdateRoutesRequest { routes: Some(routes).into(), ..Default::default() };
        for _ in 0..2 {
            agent.calls.update_routes(context(), &request).await.expect("updated");
        }
        let list = agent.calls.list_routes(context(), &ListRoutesRequest::new()).await.expect("listed").Routes;
        assert!(list.iter().any(|route| route.dest.is_empty() && route.gateway == "10.8.0.1"), "{list:?}");
        assert!(list.iter().any(|route| route.dest == "10.8.0.0/16"), "{list:?}");
        let neighbour = ARPNeighbor {
            toIPAddress: Some(IPAddress { address: "10.9.0.1".to_owned(), ..address }).into(),
            device: "eth9".to_owned(),
            lladdr: "02:00:00:00:00:09".to_owned(),
            state: 0x80,
            ..Default::default()
        };
        let neighbors = ARPNeighbors { ARPNeighbors: vec![neighbour], ..Default::default() };
        let request = AddARPNeighborsRequest { neighbors: Some(neighbors).into(), ..Default::default() };
        agent.calls.add_arp_neighbors(context(), &request).await.expect("added");
    });
}

fn unimplemented_calls_say_so() {
    block_on(async {
        let agent = agent().await;
        match agent.calls.set_policy(context(), &SetPolicyRequest::new()).await {
            Err(ttrpc::Error::RpcStatus(status)) => {
                assert_eq!(status.code(), ttrpc::Code::UNIMPLEMENTED);
                assert!(status.message().contains("SetPolicy"));
            }
            other => panic!("{other:?}"),
        }
    });
}

/// The last case: in a virtual machine it ends the machine, and this program with it.
fn destroying_the_sandbox_ends_the_agent() {
    block_on(async {
        let agent = agent().await;
        agent.run(&spec(&["sleep", "1000"])).await;
        agent.calls.destroy_sandbox(context(), &DestroySandboxRequest::new()).await.expect("destroyed");
        let deadline = Instant::now() + Duration::from_secs(20);
        while agent.health.check(context(), &CheckRequest::new()).await.is_ok() {
            assert!(Instant::now() < deadline, "the agent still answers");
            tokio::task::yield_now().await;
        }
    });
}
