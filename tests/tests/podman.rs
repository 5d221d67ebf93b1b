//! The program as Podman's OCI runtime: real commands of Podman, real virtual machines.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use stockade_tests::harness::{HostState, Podman, Screen, Terminal, wait};

const SOON: Duration = Duration::from_secs(30);
const BOOT: Duration = Duration::from_secs(90);
/// Waits to be killed, and is by SIGTERM, which a first process otherwise ignores.
const IDLE: &str = "trap 'echo told; exit 5' TERM; echo up; while :; do sleep 1; done";

/// Nothing is left but what Podman itself keeps.
fn assert_nothing_left(podman: &Podman, before: &HostState) {
    // Podman mounts its store while a command of it is at work, and where two of them end at once, as the one that it leaves to
    // clean up does, the mount stays until the next.
    before.assert_same_as(|| {
        assert_eq!(podman.call(["ps", "--all", "--quiet"]).ok().text(), "");
        podman.host_state()
    });
}

#[test]
fn a_container_has_the_streams_limits_user_and_volumes_of_the_command_line() {
    let podman = Podman::new();
    let before = podman.host_state();
    let volume = podman.folder().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "of the host\n").unwrap();
    fs::write(podman.folder().join("input"), "typed\n").unwrap();
    let script = "cat; cat /rw/file; echo written > /rw/new
        for file in /ro/x /x /named/x /scratch/x /tmp/x; do touch $file 2>/dev/null && echo can $file; done
        cat /ro/file; echo $COLOR; pwd; hostname; id -u; id -g; stat -c %a /tmp; cat /etc/hosts | grep -c own-name
        cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max; uname -r >&2; exit 7";
    let volume = volume.display();
    let (rw, ro) = (format!("{volume}:/rw"), format!("{volume}:/ro:ro"));
    let options = [
        "--rm",
        "--interactive",
        "--read-only",
        "--tmpfs",
        "/scratch",
        "--volume",
        &rw,
        "--volume",
        &ro,
        "--volume",
        "kept:/named",
        "--cgroupns",
        "private",
        "--memory",
        "64m",
        "--cpus",
        "0.5",
        "--user",
        "root:user",
        "--env",
        "COLOR=green",
        "--workdir",
        "/home/user",
        "--hostname",
        "own-name",
        "--add-host",
        "own-name:127.0.0.1",
    ];
    let mut command = podman.cmd(podman.container("run", "whole", &options, &["sh", "-c", script]));
    command.stdin(File::open(podman.folder().join("input")).unwrap());
    let output = podman.stockade().spawn(command).wait(BOOT);
    assert_eq!(output.code(), 7, "{output:?}");
    let wanted = "typed\nof the host\ncan /named/x\ncan /scratch/x\ncan /tmp/x\nof the host\ngreen\n/home/user\nown-name\n0\n1000\n\
                  1777\n1\n67108864\n50000 100000\n";
    assert_eq!(output.text(), wanted, "{}", output.error());
    assert_ne!(output.error().trim(), nix::sys::utsname::uname().unwrap().release().to_str().unwrap());
    assert_eq!(fs::read_to_string(podman.folder().join("volume/new")).unwrap(), "written\n");
    let kept = podman.call(["volume", "inspect", "--format", "{{.Mountpoint}}", "kept"]).ok().text();
    assert!(Path::new(kept.trim()).join("x").exists());
    assert_nothing_left(&podman, &before);
}

#[test]
fn a_detached_container_is_driven_through_its_life() {
    let podman = Podman::new();
    let before = podman.host_state();
    let check = ["--health-cmd", "test ! -e /tmp/ill", "--health-interval", "disable", "--health-retries", "1"];
    let id = podman.detached("life", &check, &["sh", "-c", IDLE]);
    assert!(wait::until(SOON, || podman.call(["logs", "life"]).ok().text() == "up\n"));
    assert_eq!(podman.inspect("life", "{{.State.Status}} {{.OCIRuntime}}"), "running stockade");
    let pid = podman.pid("life");
    assert_eq!(podman.stockade().state(&id)["pid"], pid);

    // Processes beside the first one.
    let exec = podman.call([
        "exec",
        "--env",
        "A=1 2",
        "--user",
        "user",
        "--workdir",
        "/tmp",
        "life",
        "sh",
        "-c",
        "echo \"$A\"; pwd; id -u; echo err >&2; exit 3",
    ]);
    assert_eq!(
        (exec.code(), exec.text().as_str(), exec.error().contains("err\n")),
        (3, "1 2\n/tmp\n1000\n", true),
        "{exec:?}"
    );
    assert_eq!(podman.call(["exec", "life", "nosuch"]).code(), 127);
    assert_eq!(podman.call(["exec", "life", "/etc"]).code(), 126);
    let _ = podman.call(["exec", "--detach", "life", "sh", "-c", "echo done > /tmp/detached"]).ok();
    assert!(wait::until(SOON, || podman.call(["exec", "life", "cat", "/tmp/detached"]).text() == "done\n"));
    let top = podman.call(["top", "life", "-o", "pid,args"]).ok().text();
    assert!(top.lines().any(|line| line.trim_start().starts_with("1 sh -c")), "{top}");
    assert!(!top.contains("conmon"), "{top}");

    // What is seen of it from the host.
    let stats = podman.call(["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "life"]).ok().text();
    let (used, processes) =
        (stats.split_whitespace().next().unwrap_or_default(), stats.split_whitespace().last().unwrap_or_default());
    assert!(used.ends_with("MB") && processes.parse::<u32>().is_ok_and(|count| count > 1), "{stats}");
    for group in fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .unwrap()
        .lines()
        .filter(|line| line.contains("memory") || line.starts_with("0::/libpod"))
    {
        assert!(group.contains(&id), "{group}");
    }

    // Files go in and out, and never to the host, whose paths they could be.
    let (host, name) = (podman.folder().join("copied"), format!("/tmp/{id}"));
    fs::write(&host, "copied\n").unwrap();
    let _ = podman.call(["cp", host.to_str().unwrap(), &format!("life:{name}")]).ok();
    assert!(!Path::new(&name).exists(), "podman cp has written to the host");
    assert_eq!(podman.call(["exec", "life", "cat", &name]).text(), "copied\n");
    let _ = podman.call(["exec", "life", "sh", "-c", "echo inside > /etc/only-here"]).ok();
    let _ = podman.call(["cp", "life:/etc/only-here", host.to_str().unwrap()]).ok();
    assert_eq!(fs::read_to_string(&host).unwrap(), "inside\n");
    assert!(
        !podman.call(["cp", &format!("life:{}", host.display()), "-"]).status.success(),
        "a file of the host was read"
    );

    assert_eq!(podman.call(["healthcheck", "run", "life"]).code(), 0);
    let _ = podman.call(["exec", "life", "touch", "/tmp/ill"]).ok();
    assert_eq!(podman.call(["healthcheck", "run", "life"]).code(), 1);
    assert_eq!(podman.inspect("life", "{{.State.Health.Status}}"), "unhealthy");

    let _ = podman.call(["pause", "life"]).ok();
    assert_eq!(podman.inspect("life", "{{.State.Status}}"), "paused");
    assert_eq!(podman.stockade().status(&id), "paused");
    let _ = podman.call(["unpause", "life"]).ok();

    let waiting = podman.start_call(["wait", "life"]);
    let begin = Instant::now();
    let _ = podman.call(["stop", "--time", "60", "life"]).ok();
    assert!(begin.elapsed() < wait::scaled(SOON), "the container did not hear SIGTERM: {:?}", begin.elapsed());
    assert_eq!(waiting.wait(SOON).text(), "5\n");
    assert_eq!(podman.inspect("life", "{{.State.Status}} {{.State.ExitCode}}"), "exited 5");
    assert_eq!(podman.call(["logs", "life"]).ok().text(), "up\ntold\n");
    let _ = podman.call(["rm", "life"]).ok();
    assert_nothing_left(&podman, &before);
}

#[test]
fn a_terminal_works_in_run_and_in_exec() {
    let podman = Podman::new();
    let before = podman.host_state();
    let terminal = Terminal::open(100, 30);
    let screen = Screen::of(terminal.master());
    let options = ["--rm", "--interactive", "--tty", "--env", "PS1=prompt: "];
    let run = podman.cmd(podman.container("run", "terminal", &options, &["sh"]));
    let running = podman.stockade().spawn_with(terminal.session(&run), terminal.end(), terminal.end());
    screen.wait_for("prompt: ", BOOT);
    terminal.write("echo $((6*7)); tty\n");
    screen.wait_for("\r\n42\r\n/dev/pts/0\r\n", SOON);
    terminal.resize(120, 40);
    let resized = || {
        terminal.write("stty size\n");
        wait::until(Duration::from_secs(1), || screen.text().contains("\r\n40 120\r\n"))
    };
    assert!(wait::until(SOON, resized), "{:?}", screen.text());

    let second = Terminal::open(90, 20);
    let seen = Screen::of(second.master());
    let exec = podman.cmd(["exec", "--interactive", "--tty", "--env", "PS1=second: ", "terminal", "sh"]);
    let executing = podman.stockade().spawn_with(second.session(&exec), second.end(), second.end());
    seen.wait_for("second: ", SOON);
    second.write("test -t 0 && stty size; exit 4\n");
    seen.wait_for("\r\n20 90\r\n", SOON);
    assert_eq!(executing.wait(SOON).code(), 4);

    terminal.write("sleep 1000\n");
    screen.wait_for("sleep 1000\r\n", SOON);
    assert!(wait::until(SOON, || podman.call(["exec", "terminal", "ps"]).text().contains("sleep 1000")));
    terminal.write("\x03");
    screen.wait_for("^C", SOON);
    terminal.write("exit 9\n");
    assert_eq!(running.wait(SOON).code(), 9);
    assert_nothing_left(&podman, &before);
}

#[test]
fn what_cannot_start_has_the_exit_status_of_its_kind_and_leaves_nothing() {
    let podman = Podman::new();
    let before = podman.host_state();
    for (command, status, words) in
        [("nosuch", 127, "executable file not found in $PATH"), ("/etc", 126, "permission denied")]
    {
        let output = podman.run(&["--rm"], &[command]);
        assert_eq!(output.code(), status, "{output:?}");
        assert!(output.error().contains(words), "{output:?}");
        assert_nothing_left(&podman, &before);
    }
    let config = fs::read_to_string(podman.stockade().config()).unwrap();
    fs::write(podman.stockade().config(), format!("{config}\n[runtime.surprise]\n")).unwrap();
    let output = podman.run(&["--rm"], &["true"]);
    assert!([125, 126].contains(&output.code()) && output.error().contains("surprise"), "{output:?}");
    assert_nothing_left(&podman, &before);
}

#[test]
fn a_created_container_is_started_attached_and_gets_podmans_signals() {
    let podman = Podman::new();
    let before = podman.host_state();
    let script = format!("cat; {IDLE}");
    let _ = podman.call(podman.container("create", "later", &["--interactive"], &["sh", "-c", &script])).ok();
    assert_eq!(podman.inspect("later", "{{.State.Status}}"), "created");
    fs::write(podman.folder().join("input"), "given\n").unwrap();
    let mut command = podman.cmd(["start", "--attach", "--interactive", "later"]);
    command.stdin(File::open(podman.folder().join("input")).unwrap());
    let running = podman.stockade().spawn(command);
    assert!(wait::until(BOOT, || running.text() == "given\nup\n"), "{}", running.text());
    running.signal(Signal::SIGTERM);
    let output = running.wait(SOON);
    assert_eq!((output.code(), output.text().as_str()), (5, "given\nup\ntold\n"), "{output:?}");

    // The same container again, in a new machine; ended by force.
    let _ = podman.call(["start", "later"]).ok();
    let first = podman.pid("later");
    let _ = podman.call(["kill", "later"]).ok();
    assert_eq!(podman.call(["wait", "later"]).ok().text(), "137\n");
    assert!(!Path::new(&format!("/proc/{first}")).exists());
    let _ = podman.call(["start", "later"]).ok();
    let _ = podman.call(["rm", "--force", "--time", "0", "later"]).ok();
    assert_nothing_left(&podman, &before);
}

#[test]
fn the_end_of_a_killed_supervisor_is_the_end_of_its_container() {
    let podman = Podman::new();
    let before = podman.host_state();
    let id = podman.detached("killed", &[], &["sh", "-c", IDLE]);
    let supervisor = podman.stockade().supervisor_pid(&id);
    nix::sys::signal::kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
    assert_eq!(podman.call(["wait", "killed"]).ok().text(), "137\n");
    assert_eq!(podman.inspect("killed", "{{.State.Status}}"), "exited");
    let _ = podman.call(["rm", "killed"]).ok();
    assert_nothing_left(&podman, &before);
}

#[test]
fn a_container_in_podmans_own_network_reaches_out_and_is_reached_at_its_port() {
    let podman = Podman::new();
    let before = podman.host_state();
    // What netavark asks the kernel for, which that of a lab host has not.
    let masquerading = podman.script_in_own_network("iptables --table nat --append POSTROUTING --jump MASQUERADE");
    if !masquerading.status.success() {
        println!("not tried, as no network of Podman's can be made on this kernel: {}", masquerading.error());
        return;
    }
    let output = podman.script_in_own_network(
        r#"
        "$@" run --detach --name web --publish 8080:80 localhost/busybox \
            sh -c 'echo served > /tmp/index.html; exec httpd -f -p 80 -h /tmp' > /dev/null
        "$@" exec web ping -c 1 -w 20 10.88.0.1 > /dev/null
        echo "the guest reaches the host"
        "$@" exec web ip -o -4 addr show eth0 | grep -o '10\.88\.[0-9.]*/16'
        "$@" inspect --format '{{.NetworkSettings.IPAddress}}/16' web
        for at in 10.88.0.1:8080 $("$@" inspect --format '{{.NetworkSettings.IPAddress}}' web); do
            busybox timeout 30 busybox wget -q -O - "http://$at/index.html"
        done
        "$@" rm --force --time 0 web > /dev/null
        ls /run/netns
        "#,
    );
    let text = output.ok().text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], &lines[3..]), ("the guest reaches the host", &["served", "served"][..]), "{text}");
    assert!(lines[1].starts_with("10.88.") && lines[1] == lines[2], "{text}");
    assert_nothing_left(&podman, &before);
}
