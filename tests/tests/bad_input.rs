//! Wrong bundles, configurations and guests: one line that says what and where, and nothing left.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use stockade_tests::harness::{Backend, Bundle, HostState, Stockade, guest, wait};

/// Lets a creation fail. Its one-line message names each of `words`.
fn refused(stockade: &Stockade, id: &str, bundle: &Bundle, words: &[&str]) {
    let before = HostState::capture(stockade);
    let failure = stockade.create(id, bundle, &[]).failure();
    for word in words {
        assert!(failure.contains(word), "no {word:?} in: {failure}");
    }
    println!("{failure}");
    before.assert_same(stockade);
}

#[test]
fn a_wrong_bundle_is_named_with_what_is_wrong_and_where() {
    let stockade = Stockade::new();
    let id = stockade.id("bad");

    let bundle = Bundle::shell("true").unwrap();
    bundle.remove_config().unwrap();
    let config = bundle.path().join("config.json").display().to_string();
    refused(&stockade, &id, &bundle, &[&config, "No such file"]);
    bundle.overwrite_config("{\n  \"ociVersion\": \"1.0.2\",\n  broken\n}").unwrap();
    refused(&stockade, &id, &bundle, &[&config, "line 3"]);
    bundle.overwrite_config("").unwrap();
    refused(&stockade, &id, &bundle, &[&config]);
    bundle.overwrite_config(r#"{"ociVersion": "1.0.2", "process": {"args": "true", "cwd": "/"}}"#).unwrap();
    refused(&stockade, &id, &bundle, &[&config, "process.args"]);

    let bundle =
        Bundle::builder().edit(|config| drop(config.as_object_mut().unwrap().remove("linux"))).build().unwrap();
    refused(&stockade, &id, &bundle, &["linux"]);
    refused(&stockade, &id, &Bundle::builder().without_rootfs().build().unwrap(), &["rootfs", "No such file"]);
    refused(&stockade, &id, &Bundle::builder().cwd("relative").build().unwrap(), &["process.cwd", "relative"]);
    refused(&stockade, &id, &Bundle::builder().args::<&str>([]).build().unwrap(), &["process.args"]);

    let outside = tempfile::tempdir().unwrap();
    let bundle = Bundle::builder().without_rootfs().build().unwrap();
    symlink("/", bundle.rootfs()).unwrap();
    refused(&stockade, &id, &bundle, &["rootfs"]);
    fs::remove_file(bundle.rootfs()).unwrap();
    symlink(outside.path().join("missing"), bundle.rootfs()).unwrap();
    refused(&stockade, &id, &bundle, &["rootfs"]);

    let nowhere = stockade.call(["create", "--bundle", "/no/such/bundle", &id]).failure();
    assert!(nowhere.contains("/no/such/bundle"), "{nowhere}");
    for illegal in ["../up", "a/b", "", ".", "..", "a b", &"x".repeat(2000)] {
        let output = stockade.create(illegal, &Bundle::shell("true").unwrap(), &[]);
        assert!(!output.status.success() && !output.stderr.is_empty(), "{illegal:?}: {output:?}");
    }
}

#[test]
fn a_root_that_leaves_the_bundle_by_a_symlink_of_its_parent_is_refused() {
    let stockade = Stockade::new();
    let id = stockade.id("escape");
    let bundle = Bundle::builder().without_rootfs().root_path("link/etc").build().unwrap();
    symlink("/", bundle.path().join("link")).unwrap();
    refused(&stockade, &id, &bundle, &["link/etc"]);
    let bundle = Bundle::builder().without_rootfs().root_path("../../etc").build().unwrap();
    refused(&stockade, &id, &bundle, &["../../etc"]);
}

#[test]
fn a_bundle_without_resources_or_optional_sections_runs() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("bare");
    let bundle = Bundle::builder()
        .shell("echo bare")
        .edit(|config| {
            config["linux"].as_object_mut().unwrap().retain(|key, _| key == "namespaces");
            config["process"]
                .as_object_mut()
                .unwrap()
                .retain(|key, _| ["args", "cwd", "env", "user"].contains(&key.as_str()));
            config
                .as_object_mut()
                .unwrap()
                .retain(|key, _| ["ociVersion", "process", "root", "linux", "mounts"].contains(&key.as_str()));
        })
        .build()
        .unwrap();
    assert_eq!(stockade.run(&id, &bundle, &[]).ok().text(), "bare\n");
    before.assert_same(&stockade);
}

#[test]
fn a_wrong_configuration_is_named_with_its_file_and_the_key_that_was_meant() {
    let bundle = Bundle::shell("true").unwrap();
    for (text, words) in [
        ("[runtime\n", &["stockade.toml", "1"][..]),
        ("[runtime]\nhypervisr = \"qemu\"\n", &["stockade.toml", "hypervisr", "hypervisor"]),
        ("[runtime]\nhypervisor = \"qemuu\"\n", &["stockade.toml", "qemuu", "qemu"]),
        ("[hypervisor.qemu]\ndefault_memroy = 1\n", &["default_memroy", "default_memory"]),
        ("[hypervisor.qemu]\ndefault_memory = \"much\"\n", &["default_memory"]),
        ("[hypervisor.qemu]\nkernel = \"relative/vmlinuz\"\n", &["kernel", "relative/vmlinuz"]),
    ] {
        let stockade = Stockade::with_toml(text);
        let id = stockade.id("toml");
        refused(&stockade, &id, &bundle, words);
    }
    let missing = Stockade::new();
    fs::remove_file(missing.config()).unwrap();
    let id = missing.id("toml");
    refused(&missing, &id, &bundle, &["stockade.toml", "No such file"]);
}

#[test]
fn a_program_or_guest_file_that_is_missing_is_named() {
    let bundle = Bundle::shell("true").unwrap();
    let program = ("path = \"/nowhere/qemu\"", "/nowhere/qemu");
    // The built-in monitor is no program of its own.
    let program = (Backend::under_test().section() == "qemu").then_some(program);
    for (line, path) in program.into_iter().chain([
        ("kernel = \"/nowhere/vmlinuz\"", "/nowhere/vmlinuz"),
        ("initrd = \"/nowhere/initrd.img\"", "/nowhere/initrd.img"),
        ("kernel = \"/etc/passwd\"", "/etc/passwd"),
    ]) {
        let stockade = Stockade::with_config(line, "");
        let id = stockade.id("missing");
        refused(&stockade, &id, &bundle, &[path]);
    }
}

/// An entry of a cpio archive as the kernel reads it (`newc`).
fn cpio_entry(archive: &mut Vec<u8>, name: &str, mode: usize, data: &[u8]) {
    let numbers = [0, mode, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
    archive.extend_from_slice(b"070701");
    for number in numbers {
        archive.extend_from_slice(format!("{number:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// An initrd whose init runs a line of shell.
fn initrd(at: &Path, script: &str) {
    let mut archive = Vec::new();
    cpio_entry(&mut archive, "bin", 0o040_755, b"");
    cpio_entry(&mut archive, "bin/busybox", 0o100_755, &fs::read("/bin/busybox").unwrap());
    cpio_entry(&mut archive, "init", 0o100_755, format!("#!/bin/busybox sh\n{script}\n").as_bytes());
    cpio_entry(&mut archive, "TRAILER!!!", 0, b"");
    fs::write(at, archive).unwrap();
}

/// Lets a creation fail with a guest of busybox, and returns how long it took.
fn refused_with_init(script: &str, limit: Duration, words: &[&str]) -> Duration {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("initrd.img");
    initrd(&path, script);
    let agent = format!("[agent.kata]\nreconnect_timeout_ms = {}\n", limit.as_millis());
    let stockade = Stockade::with_config(&format!("initrd = {path:?}\nboot_timeout = 5"), &agent);
    let id = stockade.id("guest");
    let begin = Instant::now();
    refused(&stockade, &id, &Bundle::shell("true").unwrap(), words);
    begin.elapsed()
}

#[test]
fn a_guest_that_never_answers_fails_the_creation_in_time() {
    let limit = Duration::from_secs(15);
    let script = "/bin/busybox echo silence; /bin/busybox sleep 1000";
    let took = refused_with_init(script, limit, &["agent", "did not answer within 15s"]);
    println!("a silent guest was given up after {took:?}");
    assert!(took < wait::scaled(2 * limit), "{took:?}");
}

#[test]
fn a_guest_that_dies_at_boot_fails_the_creation_at_once() {
    // Far more than a boot takes: that its end is what failed the creation shows in the message.
    let limit = wait::scaled(Duration::from_secs(70));
    for (script, end) in [("exit 1", "panicked"), ("/bin/busybox poweroff -f", "powered off")] {
        let took = refused_with_init(script, limit, &["agent", end]);
        println!("a guest that {end} was given up after {took:?}");
        assert!(took < limit, "{took:?}");
    }
}

#[test]
fn an_initrd_that_is_none_fails_the_creation() {
    let stockade = Stockade::with_config(
        &format!("initrd = {:?}\nboot_timeout = 5", guest().join("vmlinuz")),
        "[agent.kata]\nreconnect_timeout_ms = 15000\n",
    );
    let id = stockade.id("initrd");
    refused(&stockade, &id, &Bundle::shell("true").unwrap(), &["agent"]);
}
