//! The OCI specification's `process`: each of its fields, in the container's first process and in one of `exec`.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

use stockade_tests::harness::{Bundle, BundleBuilder, Cases, Pod, unique_id, wait};

fn plain() -> BundleBuilder {
    Bundle::builder()
}

fn same<T: PartialEq + std::fmt::Debug>(found: &T, wanted: &T) -> Result<()> {
    ensure!(found == wanted, "found {found:?}, not {wanted:?}");
    Ok(())
}

/// A program that prints its arguments, each between brackets.
const PRINT_ARGS: &str = "#!/bin/sh\nfor a in \"$@\"; do printf '[%s]' \"$a\"; done\n";

#[test]
fn arguments_environment_and_directory_are_as_given() {
    let pod = Pod::boot();
    let mut cases = Cases::new();

    cases.case("args: spaces, line breaks, quotes, empty ones and other alphabets reach the program", || {
        let odd = ["", "a b", "c\nd", "'\"$HOME\\", "-", "--", "*", "grüße ✓", ""];
        let bundle = pod.bundle(plain().args(["/bin/args"].iter().chain(&odd)))?;
        let program = bundle.rootfs().join("bin/args");
        fs::write(&program, PRINT_ARGS)?;
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let output = pod.stockade().run(&unique_id("c"), &bundle, &[]).ok();
        let wanted: String = odd.iter().map(|arg| format!("[{arg}]")).collect();
        same(&output.text(), &wanted)
    });
    cases.case("args: a hundred kilobytes", || {
        let long = "x".repeat(100_000);
        let output = pod.run(plain().args(["sh", "-c", "echo ${#1}", "sh", &long]))?.ok();
        same(&output.text().trim().to_owned(), &"100000".to_owned())
    });
    cases.case("env: order, duplicates, entries without '=' and empty values are verbatim", || {
        let wanted = ["PATH=/bin", "A=1", "A=2", "NOEQUALS", "EMPTY=", "=x", "B=c=d", "L=a\nb", "HOME=/h"];
        let builder = plain().process("env", wanted.to_vec()).args(["/bin/cat", "/proc/self/environ"]);
        let output = pod.run(builder)?.ok();
        let found: Vec<String> = output.text().split_terminator('\0').map(str::to_owned).collect();
        same(&found, &wanted.map(str::to_owned).to_vec())
    });
    cases.case("env: HOME comes from the container's passwd when it is not given", || {
        let found = pod.shell(plain().user(1000, 1000), "echo $HOME")?;
        same(&found, &"/home/user".to_owned())
    });
    cases.case("env: HOME is / for a user whom no passwd names", || {
        let bundle = pod.bundle(plain().user(4242, 4242).shell("echo $HOME; id -u; id -g"))?;
        fs::remove_file(bundle.rootfs().join("etc/passwd"))?;
        let output = pod.stockade().run(&unique_id("c"), &bundle, &[]).ok();
        same(&output.text(), &"/\n4242\n4242\n".to_owned())
    });
    cases.case("env: none at all", || {
        let builder = plain().process("env", json!([])).args(["/bin/cat", "/proc/self/environ"]);
        same(&pod.run(builder)?.ok().text(), &"HOME=/root\0".to_owned())
    });
    cases.case("cwd: one that exists", || same(&pod.shell(plain().cwd("/tmp"), "pwd")?, &"/tmp".to_owned()));
    cases.case("cwd: one that does not exist is made", || {
        same(&pod.shell(plain().cwd("/made/for this/dir"), "pwd; stat -c %a .")?, &"/made/for this/dir\n755".to_owned())
    });
    cases.case("cwd: one below a mount", || {
        let builder = plain().cwd("/mnt/deep/er").mount("/mnt", "tmpfs", "tmpfs", &[]);
        same(&pod.shell(builder, "pwd")?, &"/mnt/deep/er".to_owned())
    });
    cases.refused("cwd: a relative one", &pod, plain().cwd("tmp"), &["process.cwd", "not an absolute path"]);
    cases.refused("cwd: a file", &pod, plain().cwd("/etc/hosts"), &["/etc/hosts"]);
    cases.refused("args: none", &pod, plain().process("args", json!([])), &["process.args"]);
    cases.finish();
}

#[test]
fn users_limits_and_privileges_are_as_given() {
    let pod = Pod::boot();
    let mut cases = Cases::new();
    let status = |name: &str| format!("sed -n 's/^{name}:[[:space:]]*//p' /proc/self/status");

    let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 2000], "umask": 0o027});
    pod.table(
        &mut cases,
        "user",
        plain().process("user", user),
        &[
            ("uid, all four", "sed -n 's/^Uid:[[:space:]]*//p' /proc/self/status", "1000\t1000\t1000\t1000"),
            ("gid, all four", "sed -n 's/^Gid:[[:space:]]*//p' /proc/self/status", "1001\t1001\t1001\t1001"),
            ("additionalGids, and no other", &status("Groups"), "5 2000"),
            ("umask", "umask", "0027"),
            ("no capability is effective", &status("CapEff"), "0000000000000000"),
            ("its own streams can be opened", "echo x >/dev/stdout", "x"),
        ],
    );
    pod.table(
        &mut cases,
        "user",
        plain(),
        &[
            ("umask is 0022 when none is given", "umask", "0022"),
            ("no groups when none are given", &status("Groups"), ""),
        ],
    );
    let user = json!({"uid": 0, "gid": 0, "umask": 0});
    pod.table(&mut cases, "user", plain().process("user", user), &[("umask of zero", "umask", "0000")]);

    let limits = [
        ("RLIMIT_AS", 1 << 32, 1 << 33, "Max address space"),
        ("RLIMIT_CORE", 0, 1 << 20, "Max core file size"),
        ("RLIMIT_CPU", 100, 200, "Max cpu time"),
        ("RLIMIT_DATA", 1 << 30, 1 << 31, "Max data size"),
        ("RLIMIT_FSIZE", 1 << 30, 1 << 31, "Max file size"),
        ("RLIMIT_LOCKS", 10, 20, "Max file locks"),
        ("RLIMIT_MEMLOCK", 1 << 16, 1 << 17, "Max locked memory"),
        ("RLIMIT_MSGQUEUE", 1000, 2000, "Max msgqueue size"),
        ("RLIMIT_NICE", 3, 4, "Max nice priority"),
        ("RLIMIT_NOFILE", 100, 200, "Max open files"),
        ("RLIMIT_NPROC", 200, 300, "Max processes"),
        ("RLIMIT_RSS", 1 << 24, 1 << 25, "Max resident set"),
        ("RLIMIT_RTPRIO", 1, 2, "Max realtime priority"),
        ("RLIMIT_RTTIME", 1000, 2000, "Max realtime timeout"),
        ("RLIMIT_SIGPENDING", 50, 60, "Max pending signals"),
        ("RLIMIT_STACK", 1 << 22, 1 << 23, "Max stack size"),
    ];
    let builder = limits.iter().fold(plain(), |builder, (kind, soft, hard, _)| builder.rlimit(kind, *soft, *hard));
    let lines: Vec<(String, String, String)> = limits
        .iter()
        .map(|(kind, soft, hard, name)| {
            let command = format!("sed -n 's/^{name} *\\([0-9]*\\) *\\([0-9]*\\) .*/\\1 \\2/p' /proc/self/limits");
            ((*kind).to_owned(), command, format!("{soft} {hard}"))
        })
        .collect();
    let table: Vec<(&str, &str, &str)> = lines.iter().map(|(a, b, c)| (a.as_str(), b.as_str(), c.as_str())).collect();
    pod.table(&mut cases, "rlimits", builder, &table);
    let unlimited = plain().rlimit("RLIMIT_CORE", u64::MAX, u64::MAX);
    pod.table(&mut cases, "rlimits", unlimited, &[("infinity", "ulimit -c; ulimit -H -c", "unlimited\nunlimited")]);
    cases.refused(
        "rlimits: soft above hard",
        &pod,
        plain().rlimit("RLIMIT_NOFILE", 2, 1),
        &["process.rlimits", "RLIMIT_NOFILE"],
    );
    let twice = json!([{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}, {"type": "RLIMIT_CPU", "soft": 2, "hard": 2}]);
    cases.refused("rlimits: one twice", &pod, plain().process("rlimits", twice), &["RLIMIT_CPU", "twice"]);
    let unknown = json!([{"type": "RLIMIT_NONE", "soft": 1, "hard": 1}]);
    cases.refused("rlimits: an unknown one", &pod, plain().process("rlimits", unknown), &["RLIMIT_NONE"]);

    let sets = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_KILL"],
        "inheritable": ["CAP_CHOWN"],
        "ambient": ["CAP_CHOWN"],
    });
    // As another user than root, for whom the kernel gives no capability at execution but the ambient ones.
    let builder = plain().user(1000, 1000).process("capabilities", sets.clone());
    pod.table(
        &mut cases,
        "capabilities of a user",
        builder,
        &[
            ("bounding", &status("CapBnd"), "0000000000002021"),
            ("inheritable", &status("CapInh"), "0000000000000001"),
            ("ambient", &status("CapAmb"), "0000000000000001"),
            ("permitted after execution", &status("CapPrm"), "0000000000000001"),
            ("effective after execution", &status("CapEff"), "0000000000000001"),
        ],
    );
    // With no_new_privs root would not get what the bounding set leaves.
    pod.table(
        &mut cases,
        "capabilities of root",
        plain().process("capabilities", sets).process("noNewPrivileges", false),
        &[
            ("bounding", &status("CapBnd"), "0000000000002021"),
            ("permitted", &status("CapPrm"), "0000000000002021"),
            ("effective", &status("CapEff"), "0000000000002021"),
        ],
    );
    let none = json!({"bounding": [], "permitted": [], "effective": [], "inheritable": [], "ambient": []});
    pod.table(
        &mut cases,
        "no capabilities",
        plain().process("capabilities", none),
        &[
            ("bounding", &status("CapBnd"), "0000000000000000"),
            ("effective", &status("CapEff"), "0000000000000000"),
            ("root may not change an owner", "chown 1:1 /etc/hosts", "~not permitted"),
        ],
    );
    let left_out = plain().edit(|config| {
        config["process"].as_object_mut().expect("an object").remove("capabilities");
    });
    pod.table(
        &mut cases,
        "capabilities left out",
        left_out,
        &[("none is effective", &status("CapEff"), "0000000000000000")],
    );
    cases.case("capabilities: an unknown one is left out with a warning", || {
        let builder = plain().process("capabilities", json!({"bounding": ["CAP_FLY", "CAP_KILL"]}));
        same(&pod.shell(builder, &status("CapBnd"))?, &"0000000000000020".to_owned())?;
        ensure!(pod.stockade().log().contains("CAP_FLY"), "the log does not name it");
        Ok(())
    });

    for (name, value, wanted) in [("true", Some(true), "1"), ("false", Some(false), "0"), ("left out", None, "0")] {
        let builder = plain().edit(|config| {
            let process = config["process"].as_object_mut().expect("an object");
            process.remove("noNewPrivileges");
            if let Some(value) = value {
                process.insert("noNewPrivileges".into(), Value::from(value));
            }
        });
        pod.table(
            &mut cases,
            &format!("noNewPrivileges {name}"),
            builder,
            &[("in the process", &status("NoNewPrivs"), wanted)],
        );
    }
    for score in [-500, 0, 777] {
        pod.table(
            &mut cases,
            "oomScoreAdj",
            plain().process("oomScoreAdj", score),
            &[(&score.to_string(), "cat /proc/self/oom_score_adj", &score.to_string())],
        );
    }
    cases.refused("oomScoreAdj: too high", &pod, plain().process("oomScoreAdj", 1001), &["oomScoreAdj", "1001"]);
    cases.finish();
}

#[test]
fn a_terminal_has_its_size_and_its_names() {
    let pod = Pod::boot();
    let mut cases = Cases::new();
    let folder = pod.stockade().folder().to_owned();

    cases.case("terminal: the streams are one terminal of the size given, with its name in /dev", || {
        let script = "tty; stty size; ls -l /dev/console | cut -c1; test -t 0 && test -t 1 && test -t 2 && echo all; \
                      ps -o pid,tty | sed -n 's/^ *1 //p'; stat -c 'uid %u' $(tty)";
        let builder = plain().tty(true).process("consoleSize", json!({"height": 33, "width": 111})).user(1000, 1000);
        let bundle = pod.bundle(builder.shell(script))?;
        let socket = folder.join("console");
        let listener = std::os::unix::net::UnixListener::bind(&socket)?;
        let id = unique_id("tty");
        let option = format!("--console-socket={}", socket.display());
        let created = pod.stockade().create(&id, &bundle, &[&option]);
        ensure!(created.status.success(), "create: {}", created.error());
        let master = received(&listener)?;
        let started = pod.stockade().start(&id);
        ensure!(started.status.success(), "start: {}", started.error());
        let text = read_terminal(master, "uid 1000\r\n", Duration::from_secs(30))?;
        let _ = pod.stockade().delete(&id, &["--force"]).ok();
        for part in ["/dev/pts/0\r\n", "33 111\r\n", "c\r\n", "all\r\n", "uid 1000\r\n"] {
            ensure!(text.contains(part), "the terminal showed {text:?}, which lacks {part:?}");
        }
        Ok(())
    });
    cases.case("terminal: none, and a size is no error", || {
        let builder = plain().process("consoleSize", json!({"height": 33, "width": 111}));
        same(&pod.shell(builder, "test -t 0 || test -t 1 || echo none")?, &"none".to_owned())
    });
    cases.finish();
}

/// The descriptor that comes over the console socket. It stays open until the test ends.
fn received(listener: &std::os::unix::net::UnixListener) -> Result<i32> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
    use std::os::fd::AsRawFd as _;
    let (stream, _) = listener.accept()?;
    let mut name = [0; 4096];
    let mut parts = [std::io::IoSliceMut::new(&mut name)];
    let mut space = nix::cmsg_space!(i32);
    let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control
            && let Some(number) = numbers.first()
        {
            return Ok(*number);
        }
    }
    anyhow::bail!("no descriptor came over the console socket")
}

/// What a terminal shows until its last line, or its end, has come.
fn read_terminal(master: i32, last: &str, limit: Duration) -> Result<String> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut text = Vec::new();
    wait::until(limit, || {
        let mut chunk = [0; 4096];
        match nix::unistd::read(master, &mut chunk) {
            Ok(count) => text.extend_from_slice(&chunk[..count]),
            Err(nix::errno::Errno::EAGAIN) => return false,
            // The other end is gone.
            Err(_) => return true,
        }
        String::from_utf8_lossy(&text).contains(last)
    });
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_process_of_exec_has_the_same_fields() {
    let pod = Pod::boot();
    let mut cases = Cases::new();
    let id = unique_id("exec");
    let bundle = pod.bundle(plain().args(["sleep", "1000"])).expect("a bundle can be written");
    let _ = pod.stockade().launch(&id, &bundle);
    let exec = |process: Value| {
        let file = pod.stockade().folder().join("process.json");
        fs::write(&file, process.to_string()).expect("a file can be written");
        pod.stockade().call(["exec".as_ref(), "--process".as_ref(), file.as_os_str(), id.as_ref()])
    };
    let script = "sed -n 's/^Uid:[[:space:]]*//p;s/^Gid:[[:space:]]*//p;s/^Groups:[[:space:]]*//p;\
        s/^CapBnd:[[:space:]]*//p;s/^NoNewPrivs:[[:space:]]*//p' /proc/self/status; umask; pwd; ulimit -n; ulimit -H -n; \
        cat /proc/self/oom_score_adj; echo \"$A|$1|$2\"";
    let output = exec(json!({
        "user": {"uid": 1000, "gid": 1001, "additionalGids": [7], "umask": 0o077}, "cwd": "/home/user",
        "args": ["sh", "-c", script, "sh", "x y", ""], "env": ["PATH=/bin", "A=b=c"],
        "capabilities": {"bounding": ["CAP_KILL"]}, "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 55, "hard": 66}],
        "noNewPrivileges": true, "oomScoreAdj": 300,
    }));
    let text = output.text();
    let found: Vec<&str> = text.lines().collect();
    let wanted = [
        ("uid", "1000\t1000\t1000\t1000"),
        ("gid", "1001\t1001\t1001\t1001"),
        ("additionalGids", "7 "),
        ("bounding capabilities", "0000000000000020"),
        ("noNewPrivileges", "1"),
        ("umask", "0077"),
        ("cwd", "/home/user"),
        ("rlimit, soft", "55"),
        ("rlimit, hard", "66"),
        ("oomScoreAdj", "300"),
        ("env and args", "b=c|x y|"),
    ];
    for (index, (name, wanted)) in wanted.iter().enumerate() {
        cases.case(&format!("exec --process: {name}"), || {
            ensure!(found.get(index) == Some(wanted), "{:?}, not {wanted:?}: {}", found.get(index), output.error());
            Ok(())
        });
    }
    let process = |args: Value| json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args, "env": ["PATH=/bin"]});
    cases.case("exec --process: the status is the process's", || {
        same(&exec(process(json!(["sh", "-c", "exit 42"]))).code(), &42)
    });
    cases.case("exec: the status of one that a signal ended is 128 and the signal", || {
        same(&pod.stockade().exec_shell(&id, "kill -9 $$").code(), &137)
    });
    cases.case("exec: a program that is not there", || {
        let output = exec(process(json!(["nosuch"])));
        ensure!(output.error().contains("executable file not found in $PATH"), "{}", output.error());
        ensure!(!output.status.success(), "it succeeded");
        Ok(())
    });
    cases.case("exec: a working directory that is not there is an error that names it, as with runc", || {
        let mut process = process(json!(["pwd"]));
        process["cwd"] = json!("/new/dir");
        let output = exec(process);
        ensure!(!output.status.success(), "it succeeded: {}", output.text());
        ensure!(output.error().contains("/new/dir"), "{}", output.error());
        Ok(())
    });
    cases.case("exec --process: without capabilities it has the container's", || {
        let script = "sed -n 's/^Cap\\(Bnd\\|Eff\\):[[:space:]]*//p' /proc/self/status";
        let output = exec(process(json!(["sh", "-c", script])));
        same(&output.text(), &"0000000020000420\n0000000020000420\n".to_owned())
    });
    cases.case("exec: --user, --cwd, --env and --additional-gids", || {
        let options = ["--user", "1000:1001", "--cwd", "/tmp", "--env", "X=1 2", "--additional-gids", "9"];
        let output = pod.stockade().exec(&id, &options, &["sh", "-c", "id -u; id -g; id -G; pwd; echo $X"]).ok();
        same(&output.text(), &"1000\n1001\n1001 9\n/tmp\n1 2\n".to_owned())
    });
    cases.case("exec: it is in the container's namespaces and cgroup", || {
        let script = "for n in mnt pid ipc uts cgroup net; do \
                      test \"$(readlink /proc/1/ns/$n)\" = \"$(readlink /proc/self/ns/$n)\" || echo $n; done; \
                      cmp /proc/1/cgroup /proc/self/cgroup && echo same";
        same(&pod.stockade().exec_shell(&id, script).text(), &"same\n".to_owned())
    });
    cases.case("exec: the container's own process lives on", || {
        same(&pod.stockade().status(&id), &"running".to_owned())
    });
    cases.finish();
}
