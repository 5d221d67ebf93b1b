//! The OCI specification's `hostname`, `domainname`, and of `linux`: namespaces, sysctl and seccomp.

use std::path::Path;

use anyhow::ensure;
use serde_json::{Value, json};

use stockade_tests::harness::{Bundle, BundleBuilder, Cases, Pod, unique_id};

fn plain() -> BundleBuilder {
    Bundle::builder()
}

fn without_namespace(kind: &str) -> BundleBuilder {
    plain().edit(|config| {
        let list = config.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut).expect("a list");
        list.retain(|namespace| namespace["type"] != kind);
    })
}

/// The system calls of a shell that starts a program.
const NEEDED: &[&str] = &[
    "access",
    "arch_prctl",
    "brk",
    "capget",
    "capset",
    "chdir",
    "clone",
    "clone3",
    "close",
    "dup",
    "dup2",
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fcntl",
    "fork",
    "fstat",
    "fstatfs",
    "futex",
    "getcwd",
    "getegid",
    "geteuid",
    "getgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getrandom",
    "getuid",
    "ioctl",
    "lseek",
    "lstat",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "newfstatat",
    "open",
    "openat",
    "pipe",
    "pipe2",
    "poll",
    "prctl",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "set_robust_list",
    "set_tid_address",
    "setgid",
    "setgroups",
    "setresgid",
    "setresuid",
    "setuid",
    "sigaltstack",
    "stat",
    "statx",
    "sysinfo",
    "tgkill",
    "umask",
    "uname",
    "vfork",
    "wait4",
    "write",
    "writev",
];

const LINKS: &str = "for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done";

#[test]
fn names_and_namespaces_are_the_containers_own() {
    let pod = Pod::boot_with(Bundle::builder().hostname("the-pod"), "");
    let mut cases = Cases::new();
    let named = plain().hostname("a-container").edit(|config| config["domainname"] = json!("example.test"));
    pod.table(
        &mut cases,
        "names",
        named,
        &[
            ("hostname", "hostname", "a-container"),
            ("domainname", "cat /proc/sys/kernel/domainname", "example.test"),
            ("the pod's stays", "echo", ""),
        ],
    );
    cases.case("names: the sandbox's own container keeps its hostname", || {
        let found = pod.stockade().exec_shell(pod.id(), "hostname").ok().text();
        ensure!(found == "the-pod\n", "{found:?}");
        Ok(())
    });
    let long = "h".repeat(65);
    cases.refused("names: a hostname of 65 bytes", &pod, plain().hostname(&long), &["hostname", "65"]);

    let sandbox = pod.stockade().exec_shell(pod.id(), LINKS).ok().text();
    let sandbox: Vec<&str> = sandbox.lines().collect();
    cases.case("namespaces: new ones of each kind listed; network and user are the guest's", || {
        let own = pod.shell(plain(), LINKS)?;
        let own: Vec<&str> = own.lines().collect();
        ensure!(own.len() == sandbox.len(), "{own:?}");
        for (own, sandbox) in own.iter().zip(&sandbox) {
            let shared = own.starts_with("net:") || own.starts_with("user:");
            ensure!((own == sandbox) == shared, "{own} in the container, {sandbox} in the sandbox");
        }
        Ok(())
    });
    pod.table(
        &mut cases,
        "namespaces",
        plain(),
        &[
            ("pid: the process is number 1", "echo $$", "1"),
            ("pid: no other is seen", "ls /proc | grep -c '^[0-9]*$' | awk '{print ($1 < 6)}'", "1"),
            ("mount: no mount of the guest is seen", "grep -c kata /proc/self/mounts", "0"),
            ("ipc: nothing in it", "tail -n +2 /proc/sysvipc/shm | wc -l", "0"),
            ("cgroup: it begins at the container's", "cat /proc/self/cgroup", "0::/"),
            ("network: the pod's, with its loopback up", "cat /sys/class/net/lo/flags", "0x9"),
        ],
    );
    cases.case("namespaces: a pid namespace of the sandbox's process is the pod's, shared", || {
        let state = pod.stockade().state(pod.id());
        let path = format!("/proc/{}/ns/pid", state["pid"]);
        let found = pod.shell(plain().namespace("pid", Some(Path::new(&path))), "test $$ -ne 1 && cat /proc/1/comm")?;
        ensure!(!found.is_empty(), "{found:?}");
        Ok(())
    });
    for (kind, index) in [("ipc", 1), ("uts", 6), ("cgroup", 0)] {
        cases.case(&format!("namespaces: {kind} not listed is the guest's own"), || {
            let own = pod.shell(without_namespace(kind).hostname(""), LINKS)?;
            let found = own.lines().nth(index).unwrap_or_default().to_owned();
            ensure!(found.starts_with(kind) && found != sandbox[index], "{found} in both");
            Ok(())
        });
    }
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let user = plain().namespace("user", None).linux("uidMappings", maps.clone()).linux("gidMappings", maps);
    let script = "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; id -u";
    let wanted = " 0 100000 65536\n 0 100000 65536\n0";
    cases.case("namespaces: user, with its mappings", || {
        let found = pod.shell(user.clone(), script)?;
        ensure!(found == wanted, "{found:?}");
        Ok(())
    });
    cases.case("namespaces: user, without a /sys", || {
        let builder = user.clone().edit(|config| {
            let mounts = config["mounts"].as_array_mut().expect("a list");
            mounts.retain(|mount| !mount["destination"].as_str().unwrap_or_default().starts_with("/sys"));
        });
        let found = pod.shell(builder, script)?;
        ensure!(found == wanted, "{found:?}");
        Ok(())
    });
    cases.refused("namespaces: user without mappings", &pod, plain().namespace("user", None), &["linux.uidMappings"]);
    let twice = plain().edit(|config| {
        config
            .pointer_mut("/linux/namespaces")
            .and_then(Value::as_array_mut)
            .expect("a list")
            .push(json!({"type": "ipc"}));
    });
    cases.refused("namespaces: one twice", &pod, twice, &["linux.namespaces", "ipc"]);
    let unknown = plain().edit(|config| {
        config
            .pointer_mut("/linux/namespaces")
            .and_then(Value::as_array_mut)
            .expect("a list")
            .push(json!({"type": "moon"}));
    });
    cases.refused("namespaces: an unknown kind", &pod, unknown, &["moon"]);
    cases.finish();
}

#[test]
fn kernel_parameters_and_system_call_filters_are_set() {
    let pod = Pod::boot();
    let mut cases = Cases::new();
    let builder = plain().linux(
        "sysctl",
        json!({"net.ipv4.ip_forward": "1", "net/core/somaxconn": "77", "kernel.shmmax": "12345678",
            "kernel.msgmax": "4000", "fs.mqueue.msg_max": "9"}),
    );
    pod.table(
        &mut cases,
        "sysctl",
        builder,
        &[
            ("net.*, which is the pod's network", "cat /proc/sys/net/ipv4/ip_forward", "1"),
            ("with slashes", "cat /proc/sys/net/core/somaxconn", "77"),
            ("kernel.shmmax", "cat /proc/sys/kernel/shmmax", "12345678"),
            ("kernel.msgmax", "cat /proc/sys/kernel/msgmax", "4000"),
            ("fs.mqueue.*", "cat /proc/sys/fs/mqueue/msg_max", "9"),
        ],
    );
    cases.refused(
        "sysctl: one that is not there",
        &pod,
        plain().linux("sysctl", json!({"kernel.no_such_thing": "1"})),
        &["no_such_thing"],
    );
    cases.refused(
        "sysctl: a value that the kernel refuses",
        &pod,
        plain().linux("sysctl", json!({"kernel.shmmax": "many"})),
        &["shmmax"],
    );
    cases.refused(
        "sysctl: a name that leaves its folder",
        &pod,
        plain().linux("sysctl", json!({"net/../../x": "1"})),
        &["sysctl"],
    );

    let architectures = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    let profile = |default: &str, calls: Value| json!({"defaultAction": default, "architectures": architectures, "syscalls": calls});
    let filtered = |profile: &Value, no_new_privileges: bool| {
        plain().linux("seccomp", profile.clone()).process("noNewPrivileges", no_new_privileges)
    };
    let calls = json!([
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["rmdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
        {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95,
            "args": [{"index": if cfg!(target_arch = "x86_64") { 1 } else { 2 }, "value": 0o700, "op": "SCMP_CMP_EQ"}]},
        {"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["no_such_call_at_all"], "action": "SCMP_ACT_ERRNO"},
    ]);
    let deny = profile("SCMP_ACT_ALLOW", calls);
    for (name, no_new_privileges) in [("noNewPrivileges", true), ("without noNewPrivileges", false)] {
        pod.table(
            &mut cases,
            &format!("seccomp, {name}"),
            filtered(&deny, no_new_privileges),
            &[
                ("a filter is loaded", "sed -n 's/^Seccomp:[[:space:]]*//p' /proc/self/status", "2"),
                ("SCMP_ACT_ERRNO is EPERM", "mkdir /tmp/x", "~Operation not permitted"),
                ("errnoRet", "rmdir /tmp", "~No space left"),
                ("an argument that matches", "touch /tmp/f; chmod 700 /tmp/f", "~not supported"),
                ("an argument that does not match", "chmod 711 /tmp/f && echo ok", "ok"),
                ("SCMP_ACT_KILL_PROCESS", "ln -s a /tmp/l; echo $?", "~159"),
                ("all others are allowed", "mv /tmp/f /tmp/g && echo ok", "ok"),
            ],
        );
    }
    cases.case("seccomp: capabilities are as without a filter", || {
        let found =
            pod.shell(filtered(&deny, false), "sed -n 's/^Cap\\(Eff\\|Bnd\\):[[:space:]]*//p' /proc/self/status")?;
        ensure!(found == "0000000020000420\n0000000020000420", "{found:?}");
        Ok(())
    });
    cases.case("seccomp: a process of exec has the container's filter", || {
        let id = unique_id("filtered");
        let bundle = pod.bundle(filtered(&deny, true).args(["sleep", "1000"]))?;
        let _ = pod.stockade().launch(&id, &bundle);
        let output = pod.stockade().exec_shell(&id, "mkdir /tmp/x");
        let _ = pod.stockade().delete(&id, &["--force"]).ok();
        ensure!(output.error().contains("Operation not permitted"), "{}{}", output.text(), output.error());
        Ok(())
    });
    cases.case("seccomp: defaultErrnoRet", || {
        let mut profile = profile("SCMP_ACT_ERRNO", json!([{"names": NEEDED, "action": "SCMP_ACT_ALLOW"}]));
        profile["defaultErrnoRet"] = json!(28);
        let output = pod.run(filtered(&profile, true).shell("echo alive; mkdir /tmp/x"))?;
        ensure!(output.text() == "alive\n", "{:?}: {}", output.text(), output.error());
        ensure!(output.error().contains("No space left"), "{}", output.error());
        Ok(())
    });
    let notify = profile("SCMP_ACT_NOTIFY", json!([]));
    cases.refused(
        "seccomp: notification, which no listener in the guest gets",
        &pod,
        filtered(&notify, true),
        &["SCMP_ACT_NOTIFY"],
    );
    let unknown = profile("SCMP_ACT_SING", json!([]));
    cases.refused("seccomp: an unknown action", &pod, filtered(&unknown, true), &["SCMP_ACT_SING"]);
    cases.finish();
}
