//! The OCI specification's `root`, `mounts`, `linux.maskedPaths`, `linux.readonlyPaths` and `linux.devices`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::ensure;
use serde_json::{Value, json};

use stockade_tests::harness::{Bundle, BundleBuilder, Cases, Pod, unique_id};

fn plain() -> BundleBuilder {
    Bundle::builder()
}

/// A shell function that prints the options of the last mount at a place.
const OPTIONS: &str = "o() { grep \" $1 \" /proc/self/mounts | tail -n 1 | cut -d ' ' -f 3,4; };";

fn mounted(at: &str) -> String {
    format!("{OPTIONS} o {at}")
}

#[test]
fn file_systems_are_mounted_with_their_options_and_in_order() {
    let pod = Pod::boot();
    let mut cases = Cases::new();
    let builder = plain()
        .mount("/a", "tmpfs", "tmpfs", &["size=1m", "mode=1750", "noexec", "nosuid", "nodev"])
        .mount("/b", "tmpfs", "tmpfs", &["ro"])
        .mount("/c", "tmpfs", "tmpfs", &["uid=1000", "gid=1001", "mode=0700", "noatime"])
        .mount("/d", "tmpfs", "tmpfs", &[])
        .mount("/d/e", "tmpfs", "tmpfs", &["mode=0711"])
        .mount("/d/e/f", "tmpfs", "tmpfs", &["mode=0722"])
        .mount("/g", "tmpfs", "first", &["mode=0701"])
        .mount("/g", "tmpfs", "second", &["mode=0702"])
        .mount("relative", "tmpfs", "tmpfs", &["mode=0703"])
        .mount("/p", "proc", "proc", &["ro", "nosuid"])
        .mount("/mnt/made/on/the/way", "tmpfs", "tmpfs", &["mode=0704"])
        .mount("/rw", "tmpfs", "tmpfs", &["ro", "rw"]);
    pod.table(&mut cases, "mounts", builder, &[
        ("tmpfs: size", "df -k /a | tail -n 1 | awk '{print $2}'", "1024"),
        ("tmpfs: the size holds", "dd if=/dev/zero of=/a/f bs=1k count=2000", "~No space left"),
        ("tmpfs: mode, sticky bit included", "stat -c %a /a", "1750"),
        ("noexec holds", "rm -f /a/f; cp /bin/busybox /a/busybox 2>/dev/null; /a/busybox true || cat /proc/self/mounts | grep ' /a ' | grep -o noexec", "~noexec"),
        ("noexec, nosuid, nodev are set", &format!("{} | tr ' ,' '\n\n' | grep -x 'no[a-z]*' | sort", mounted("/a")), "~nodev\nnoexec\nnosuid"),
        ("nodev holds", "mount | grep -c ' /a .*nodev'", "1"),
        ("ro holds", "touch /b/x", "~Read-only file system"),
        ("rw after ro wins", "touch /rw/x && echo ok", "ok"),
        ("tmpfs: uid, gid and mode", "stat -c '%u %g %a' /c", "1000 1001 700"),
        ("noatime", &format!("{} | grep -o noatime", mounted("/c")), "noatime"),
        ("nested mounts, the outer first", "stat -c %a /d/e /d/e/f", "711\n722"),
        ("of two at one place the later is seen", "stat -c %a /g; grep -c ' /g ' /proc/self/mounts", "702\n2"),
        ("a relative destination begins at the root", "stat -c %a /relative", "703"),
        ("a destination is made with the folders above it", "stat -c %a /mnt/made/on/the/way", "704"),
        ("proc, a second one", "readlink /p/self | grep -c .; sh -c 'echo x > /p/sys/kernel/hostname'", "~Read-only"),
        ("/proc", &format!("{} | cut -d ' ' -f 1", mounted("/proc")), "proc"),
        ("/sys is read-only", &mounted("/sys"), "~sysfs ro,nosuid,nodev,noexec"),
        ("/dev", &mounted("/dev"), "~tmpfs rw,nosuid"),
        ("/dev/pts", &mounted("/dev/pts"), "~gid=5,mode=620,ptmxmode=666"),
        ("/dev/shm has its size and mode", "df -k /dev/shm | tail -n 1 | awk '{print $2}'; stat -c %a /dev/shm", "65536\n1777"),
        ("/dev/mqueue", &format!("{} | cut -d ' ' -f 1", mounted("/dev/mqueue")), "mqueue"),
        ("/sys/fs/cgroup is cgroup2, read-only", &mounted("/sys/fs/cgroup"), "~cgroup2 ro,nosuid,nodev,noexec"),
        ("a terminal can be opened", "test -c /dev/ptmx -o -L /dev/ptmx && echo ok", "ok"),
    ]);
    cases.case("mounts: exec from a file system without noexec", || {
        let builder = plain().mount("/x", "tmpfs", "tmpfs", &["exec"]);
        let found = pod.shell(builder, "cp /bin/busybox /x/busybox && /x/busybox echo ran")?;
        ensure!(found == "ran", "{found:?}");
        Ok(())
    });
    cases.case("mounts: tmpcopyup, which begins with what the image has there", || {
        let builder = plain().mount("/etc", "tmpfs", "tmpfs", &["tmpcopyup", "nosuid"]).mount(
            "/root",
            "tmpfs",
            "tmpfs",
            &["tmpcopyup"],
        );
        let found = pod.shell(
            builder,
            "cat /etc/hosts && touch /etc/new && stat -c '%a' /root && grep -c '^tmpfs /etc ' /proc/mounts",
        )?;
        ensure!(found == "127.0.0.1 localhost\n700\n1", "{found:?}");
        Ok(())
    });
    let shut = plain().mount("/etc", "tmpfs", "tmpfs", &["tmpcopyup", "ro"]);
    cases.refused("mounts: tmpcopyup into a read-only mount", &pod, shut, &["tmpcopyup", "/etc"]);
    cases.case("mounts: none but those of the image", || {
        let found = pod.shell(plain().edit(|config| config["mounts"] = json!([])), "ls /proc | grep -c . ; echo in")?;
        ensure!(found == "0\nin", "{found:?}");
        Ok(())
    });
    let unknown = plain().mount("/x", "ext9", "none", &[]);
    cases.refused("mounts: a file system that is not there", &pod, unknown, &["ext9", "/x"]);
    let bad = plain().mount("/x", "tmpfs", "tmpfs", &["size=lots"]);
    cases.refused("mounts: an option that the file system refuses", &pod, bad, &["/x"]);
    cases.finish();
}

#[test]
fn folders_and_files_of_the_host_are_bound() {
    let pod = Pod::boot();
    let mut cases = Cases::new();
    let host = pod.stockade().folder().join("host");
    fs::create_dir_all(host.join("dir/sub")).expect("a temporary folder");
    fs::write(host.join("dir/file"), "content\n").expect("a temporary folder");
    fs::write(host.join("file"), "single\n").expect("a temporary folder");
    fs::write(host.join("tool"), "#!/bin/sh\necho ran\n").expect("a temporary folder");
    fs::set_permissions(host.join("tool"), fs::Permissions::from_mode(0o755)).expect("a temporary folder");
    symlink("dir", host.join("link")).expect("a temporary folder");
    let dir = host.join("dir");
    let bind = |to: &str, options: &[&str]| plain().bind(&dir, to, options);

    pod.table(
        &mut cases,
        "bind",
        bind("/v", &["rw"]).bind(&host.join("file"), "/etc/one", &[]),
        &[
            ("a folder", "cat /v/file", "content"),
            ("written by the container", "echo new > /v/made && cat /v/made", "new"),
            ("renamed and removed", "mv /v/made /v/moved && rm /v/moved && echo ok", "ok"),
            ("a file, to a place that is not there", "cat /etc/one", "single"),
            ("a file, written", "echo changed > /etc/one && cat /etc/one", "changed"),
            ("modes and owners are the host's", "stat -c '%a %u' /v/sub", "755 0"),
        ],
    );
    cases.case("bind: what the container wrote is on the host", || {
        let text = fs::read_to_string(host.join("file"))?;
        ensure!(text == "changed\n", "{text:?}");
        Ok(())
    });
    cases.case("bind: what the host wrote is in the container", || {
        fs::write(dir.join("from host"), "hello")?;
        let found = pod.shell(bind("/v", &[]), "cat '/v/from host'")?;
        ensure!(found == "hello", "{found:?}");
        Ok(())
    });
    let builder = bind("/v", &["ro", "noexec", "nosuid", "nodev"]).bind(&host.join("tool"), "/ro-file", &["ro"]);
    pod.table(
        &mut cases,
        "bind, read-only",
        builder,
        &[
            ("a folder can be read", "cat /v/file", "content"),
            ("a folder cannot be written", "touch /v/x", "~Read-only file system"),
            ("a file cannot be written", "echo x > /ro-file", "~Read-only file system"),
            ("a file can be executed", "/ro-file", "ran"),
            (
                "noexec, nosuid, nodev are set",
                &format!("{} | tr ' ,' '\n\n' | grep -x 'no[a-z]*' | sort", mounted("/v")),
                "~nodev\nnoexec\nnosuid",
            ),
        ],
    );
    pod.table(
        &mut cases,
        "bind",
        plain().bind(&host.join("link"), "/v", &[]),
        &[("a symbolic link's target", "cat /v/file", "content")],
    );
    pod.table(
        &mut cases,
        "bind",
        plain().bind(&host.join("tool"), "/bin/new/tool", &[]),
        &[("a program", "/bin/new/tool", "ran")],
    );
    pod.table(
        &mut cases,
        "bind",
        bind("/etc", &[]),
        &[("over what the image has", "ls /etc | grep -c hosts; cat /etc/file", "0\ncontent")],
    );
    let nested =
        bind("/v", &[]).mount("/v/sub", "tmpfs", "tmpfs", &["mode=0707"]).bind(&host.join("file"), "/v/sub/deep", &[]);
    pod.table(
        &mut cases,
        "bind",
        nested,
        &[("mounts inside it", "stat -c %a /v/sub; cat /v/sub/deep", "707\nchanged")],
    );
    pod.table(
        &mut cases,
        "bind",
        plain().mount("/v", "bind", &dir.to_string_lossy(), &["bind"]),
        &[("not recursive", "cat /v/file", "content")],
    );
    pod.table(
        &mut cases,
        "bind",
        plain().mount("/v", "none", &dir.to_string_lossy(), &["rbind"]),
        &[("named by an option only", "cat /v/file", "content")],
    );
    pod.table(
        &mut cases,
        "bind",
        plain().mount("/v/proc", "bind", "/proc", &["rbind"]),
        &[("of /proc is the guest's", "test -d /v/proc/1 && echo ok", "ok")],
    );
    for option in ["rprivate", "rslave", "rshared"] {
        let script = "grep ' /v ' /proc/self/mountinfo | grep -c -e shared: -e master:";
        let topic = format!("bind, {option}");
        pod.table(
            &mut cases,
            &topic,
            bind("/v", &[option]),
            &[("it is bound", "cat /v/file", "content"), ("inside the guest it is private", script, "0")],
        );
    }
    cases.case("bind: a source relative to the bundle", || {
        let bundle = pod.bundle(plain().mount("/v", "bind", "beside", &["rbind"]).shell("cat /v/f"))?;
        fs::create_dir(bundle.path().join("beside"))?;
        fs::write(bundle.path().join("beside/f"), "here")?;
        let output = pod.stockade().run(&unique_id("c"), &bundle, &[]).ok();
        ensure!(output.text() == "here", "{:?}", output.text());
        Ok(())
    });
    cases.case("bind: a destination that is a link of the image stays in the root", || {
        let bundle =
            pod.bundle(bind("/escape/inner", &[]).shell("cat /inner/file; test -e /escape/inner/file && echo linked"))?;
        symlink("/", bundle.rootfs().join("escape"))?;
        let output = pod.stockade().run(&unique_id("c"), &bundle, &[]).ok();
        ensure!(output.text() == "content\nlinked\n", "{:?}", output.text());
        Ok(())
    });
    cases.refused(
        "bind: a source that is not there",
        &pod,
        plain().bind(Path::new("/no/such/place"), "/v", &[]),
        &["/no/such/place", "/v"],
    );
    cases.refused("bind: no source", &pod, plain().mount("/v", "bind", "", &["bind"]), &["/v"]);
    cases.refused(
        "bind: a block device of the host",
        &pod,
        plain().bind(Path::new("/dev/loop-control"), "/v", &[]),
        &["/dev/loop-control"],
    );
    let mapped = plain().edit(|config| {
        let mount = json!({"destination": "/v", "type": "bind", "source": "/tmp", "options": ["bind", "idmap"]});
        config["mounts"].as_array_mut().expect("a list").push(mount);
    });
    cases.refused("bind: with an id mapping", &pod, mapped, &["id mapping", "/v"]);
    cases.finish();
}

#[test]
fn the_root_and_its_hidden_places_are_as_given() {
    let pod = Pod::boot();
    let mut cases = Cases::new();
    pod.table(
        &mut cases,
        "root",
        plain(),
        &[
            ("it can be written", "echo x > /made && cat /made", "x"),
            ("it is /", "ls -d /bin/busybox; ls /.. | grep -c rootfs", "/bin/busybox\n0"),
            ("nothing of the guest's root is seen", "ls -d /init /modules /run/kata-containers", "~No such file"),
        ],
    );
    let readonly = plain().readonly(true).mount("/mnt", "tmpfs", "tmpfs", &[]);
    pod.table(
        &mut cases,
        "root, read-only",
        readonly,
        &[
            ("it cannot be written", "touch /made", "~Read-only file system"),
            ("it cannot be mounted again", "mount -o remount,rw /", "~"),
            ("a mount in it can", "touch /mnt/x && echo ok", "ok"),
            ("/dev can", "touch /dev/shm/x && echo ok", "ok"),
        ],
    );
    cases.case("root: what is written is in the bundle", || {
        let bundle = pod.bundle(plain().shell("echo kept > /kept"))?;
        let _ = pod.stockade().run(&unique_id("c"), &bundle, &[]).ok();
        let text = fs::read_to_string(bundle.rootfs().join("kept"))?;
        ensure!(text == "kept\n", "{text:?}");
        Ok(())
    });
    cases.case("root: an absolute path", || {
        let other = pod.bundle(plain())?;
        let builder = plain().root_path(&other.rootfs().to_string_lossy()).without_rootfs();
        let found = pod.shell(builder, "echo ok")?;
        ensure!(found == "ok", "{found:?}");
        Ok(())
    });
    cases.refused("root: not there", &pod, plain().root_path("nothing"), &["nothing"]);

    let masked = json!(["/etc/hosts", "/home", "/proc/kcore", "/no/such/path"]);
    let readonly = json!(["/etc/group", "/var", "/proc/sys", "/no/such/path"]);
    let builder = plain().linux("maskedPaths", masked).linux("readonlyPaths", readonly);
    pod.table(
        &mut cases,
        "maskedPaths",
        builder.clone(),
        &[
            ("a file is empty", "cat /etc/hosts | wc -c", "0"),
            ("a file cannot be written through", "stat -c %F /etc/hosts", "~character special"),
            ("a folder is empty", "ls -A /home | wc -l", "0"),
            ("a folder cannot be written", "touch /home/x", "~Read-only file system"),
            ("a file of /proc", "cat /proc/kcore | wc -c", "0"),
            ("what is not there is no error", "echo ok", "ok"),
        ],
    );
    pod.table(
        &mut cases,
        "readonlyPaths",
        builder,
        &[
            ("a file can be read", "grep -c root /etc/group", "1"),
            ("a file cannot be written", "echo x >> /etc/group", "~Read-only file system"),
            ("a folder", "touch /var/x", "~Read-only file system"),
            ("a folder of /proc", "echo x > /proc/sys/kernel/domainname", "~Read-only file system"),
        ],
    );
    cases.finish();
}

#[test]
fn devices_are_made_as_listed() {
    let pod = Pod::boot();
    let mut cases = Cases::new();
    let devices = json!([
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 1000, "gid": 1001},
        {"path": "/dev/all", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666},
        {"path": "/dev/sub/block", "type": "b", "major": 7, "minor": 0, "fileMode": 0o600},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o622},
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
        {"path": "/dev/unbuffered", "type": "u", "major": 1, "minor": 3},
    ]);
    pod.table(
        &mut cases,
        "devices",
        plain().linux("devices", devices),
        &[
            (
                "a character device: kind, numbers, mode, owner",
                "stat -c '%F %t:%T %a %u %g' /dev/mine",
                "character special file 1:5 640 1000 1001",
            ),
            ("it works", "head -c 3 /dev/all | od -An -tx1 | tr -d ' '", "000000"),
            (
                "a block device in a folder of its own",
                "stat -c '%F %t:%T %a' /dev/sub/block",
                "block special file 7:0 600",
            ),
            ("a named pipe", "stat -c '%F %a' /dev/pipe", "fifo 622"),
            ("type u is a character device", "stat -c '%F %t:%T' /dev/unbuffered", "character special file 1:3"),
            ("one of the host's engines", "stat -c '%F %t:%T' /dev/fuse", "character special file a:e5"),
        ],
    );
    let mut lines: Vec<(String, String, String)> = Vec::new();
    for (name, numbers) in
        [("null", "1:3"), ("zero", "1:5"), ("full", "1:7"), ("random", "1:8"), ("urandom", "1:9"), ("tty", "5:0")]
    {
        lines.push((
            format!("/dev/{name}"),
            format!("stat -c '%F %t:%T %a' /dev/{name}"),
            format!("character special file {numbers} 666"),
        ));
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        lines.push((format!("/dev/{name}"), format!("readlink /dev/{name}"), format!("~{target}")));
    }
    let table: Vec<(&str, &str, &str)> = lines.iter().map(|(a, b, c)| (a.as_str(), b.as_str(), c.as_str())).collect();
    pod.table(&mut cases, "default devices", plain(), &table);
    pod.table(
        &mut cases,
        "default devices",
        plain(),
        &[
            ("/dev/full is full", "echo x > /dev/full", "~No space left"),
            ("/dev/null swallows", "echo x > /dev/null && wc -c < /dev/null", "0"),
            ("/dev/urandom gives bytes", "head -c 8 /dev/urandom | wc -c", "8"),
        ],
    );
    let bad = plain().linux("devices", json!([{"path": "/dev/x", "type": "z", "major": 1, "minor": 1}]));
    cases.refused("devices: an unknown type", &pod, bad, &["z"]);
    let nodev: Value = json!([]);
    pod.table(
        &mut cases,
        "devices",
        plain().linux("devices", nodev),
        &[("none listed", "test -c /dev/null && echo ok", "ok")],
    );
    cases.finish();
}
