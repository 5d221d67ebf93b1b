//! OCI hooks: their order, what they read and where they run.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};
use stockade_tests::harness::{Bundle, BundleBuilder, HostState, Stockade, unique_id, wait};

/// A hook that writes down its phase, the state it reads, and its network namespace.
fn witness(builder: BundleBuilder, phase: &str, folder: &Path) -> BundleBuilder {
    let folder = folder.display();
    let script = format!(
        "cat >{folder}/{phase}.json; readlink /proc/self/ns/net >{folder}/{phase}.ns; echo {phase} >>{folder}/order"
    );
    builder.shell_hook(phase, &script)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A kind of hook, in the order of a container's life.
struct Kind {
    /// The specification's word; `guest ` before it: one of the guest's own, of `guest_hook_path`.
    name: &'static str,
    /// Where it runs.
    place: Place,
    /// What the state must say; empty where the specification leaves it open.
    status: &'static str,
    /// After which verb it must have run.
    verb: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On the host, in the sandbox's network namespace.
    Host,
    /// In the guest, by a path of the guest's.
    Guest,
    /// In the guest, in the container's namespaces, by a path of the container's.
    Container,
}

const KINDS: [Kind; 9] = [
    Kind { name: "prestart", place: Place::Host, status: "creating", verb: "create" },
    Kind { name: "createRuntime", place: Place::Host, status: "creating", verb: "create" },
    Kind { name: "guest prestart", place: Place::Guest, status: "", verb: "create" },
    Kind { name: "createContainer", place: Place::Guest, status: "creating", verb: "create" },
    Kind { name: "startContainer", place: Place::Container, status: "created", verb: "start" },
    Kind { name: "guest poststart", place: Place::Guest, status: "running", verb: "start" },
    Kind { name: "poststart", place: Place::Host, status: "running", verb: "start" },
    Kind { name: "guest poststop", place: Place::Guest, status: "stopped", verb: "delete" },
    Kind { name: "poststop", place: Place::Host, status: "stopped", verb: "delete" },
];

/// Each hook writes what it reads, and where it runs, into the container's root, which host and guest share.
#[test]
fn hooks_of_every_kind_run_in_the_specifications_order_and_places_with_the_whole_state() {
    let id = unique_id("test-hooks");
    let root = format!("/run/kata-containers/shared/containers/{id}/rootfs");
    let stockade = Stockade::with_config(&format!("guest_hook_path = \"{root}/guest-hooks\""), "");
    let before = HostState::capture(&stockade);
    let script = |kind: &Kind, root: &str, tool: &str| {
        let name = kind.name.replace(' ', "-");
        format!(
            "{tool} cat >{root}/{name}.json; {tool} readlink /proc/self/ns/net >{root}/{name}.ns; {tool} readlink /proc/self/ns/mnt >>{root}/{name}.ns; \
             echo \"$H:$1\" >{root}/{name}.env; echo {} >>{root}/order",
            kind.name
        )
    };
    let bundle = Bundle::builder().shell("readlink /proc/self/ns/mnt >/own.ns; while :; do sleep 1; done");
    // The host's hooks must know where the bundle will be: theirs are added once it is.
    let bundle = bundle.annotation("a.b", "c").build().unwrap();
    let busybox = format!("{root}/bin/busybox");
    let mut config = bundle.config().clone();
    for kind in &KINDS {
        let host_root = bundle.rootfs().display().to_string();
        let (path, args) = match kind.place {
            Place::Host => ("/bin/sh".to_owned(), json!(["sh", "-c", script(kind, &host_root, ""), "sh", "word"])),
            Place::Guest => (busybox.clone(), json!(["sh", "-c", script(kind, &root, &busybox), "sh", "word"])),
            Place::Container => ("/bin/sh".into(), json!(["sh", "-c", script(kind, "", ""), "sh", "word"])),
        };
        match kind.name.strip_prefix("guest ") {
            None => {
                config["hooks"][kind.name] = json!([{"path": path, "args": args, "env": ["PATH=/usr/bin:/bin", "H=h"]}])
            }
            Some(word) => {
                let folder = bundle.rootfs().join("guest-hooks").join(word);
                fs::create_dir_all(&folder).unwrap();
                let file = folder.join("10-witness");
                fs::write(&file, format!("#!{busybox} sh\n{}\n", script(kind, &root, &busybox))).unwrap();
                fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
    }
    bundle.overwrite_config(&config.to_string()).unwrap();
    let at = |name: &str| bundle.rootfs().join(name);
    let order = || read(&at("order")).lines().map(str::to_owned).collect::<Vec<_>>();
    let until = |verbs: &[&str]| {
        let kinds = KINDS.iter().filter(|kind| verbs.contains(&kind.verb));
        kinds.map(|kind| kind.name.to_owned()).collect::<Vec<_>>()
    };

    let _ = stockade.create(&id, &bundle, &[]).ok();
    assert_eq!(order(), until(&["create"]));
    let pid = stockade.state(&id)["pid"].clone();
    let _ = stockade.start(&id).ok();
    assert_eq!(order(), until(&["create", "start"]), "the poststart hooks have run when start returns");
    let started = wait::until(std::time::Duration::from_secs(20), || !read(&at("own.ns")).is_empty());
    assert!(started, "the container's process runs");
    let _ = stockade.delete(&id, &["--force"]).ok();
    assert_eq!(order(), until(&["create", "start", "delete"]));

    let own = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    for kind in &KINDS {
        let name = kind.name.replace(' ', "-");
        let text = read(&at(&format!("{name}.json")));
        let state: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}: {text}"));
        assert_eq!(state["id"], id, "{name}");
        assert!(state["ociVersion"].is_string() && state["bundle"].is_string(), "{name}: {state}");
        assert_eq!(state["annotations"]["a.b"], "c", "{name}");
        if !kind.status.is_empty() {
            assert_eq!(state["status"], kind.status, "{name}");
        }
        if !kind.name.starts_with("guest ") {
            assert_eq!(read(&at(&format!("{name}.env"))), "h:word\n", "{name}");
        }
        let namespaces = read(&at(&format!("{name}.ns")));
        let (net, mount) = namespaces.split_once('\n').unwrap_or_default();
        match kind.place {
            Place::Host => {
                assert_eq!(state["bundle"], bundle.path().to_str().unwrap(), "{name}");
                assert!(net.starts_with("net:[") && net != own, "{name} ran in {net}");
                assert_eq!(net, read(&at("prestart.ns")).lines().next().unwrap_or_default(), "{name}");
                if kind.name != "poststop" {
                    assert_eq!(state["pid"], pid, "{name}");
                }
            }
            Place::Container => assert_eq!(mount.trim(), read(&at("own.ns")).trim(), "{name}"),
            Place::Guest => {}
        }
    }
    let created = read(&at("createContainer.ns"));
    let inside = read(&at("own.ns"));
    assert!(
        created.lines().any(|line| line == inside.trim()),
        "createContainer runs in the container's mounts: {created}"
    );
    before.assert_same(&stockade);
}

#[test]
fn a_failing_prestart_hook_fails_the_creation_and_poststop_hooks_run() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("failing");
    let builder = Bundle::builder().shell("true").shell_hook("prestart", "echo no such bridge >&2; exit 3");
    let bundle = witness(witness(builder, "createRuntime", stockade.folder()), "poststop", stockade.folder());
    let failure = stockade.create(&id, &bundle.build().unwrap(), &[]).failure();
    for word in ["hook", "prestart", "no such bridge", "3"] {
        assert!(failure.contains(word), "{failure}");
    }
    assert_eq!(read(&stockade.folder().join("order")), "poststop\n");
    before.assert_same(&stockade);
}

#[test]
fn a_hook_that_takes_too_long_fails_the_creation_and_leaves_no_process() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("slow");
    let mark = stockade.folder().join("mark");
    let script = format!("sleep 600 & echo {} >/dev/null; wait", mark.display());
    let hook = serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1});
    let failure = stockade.create(&id, &Bundle::builder().hook("prestart", hook).build().unwrap(), &[]).failure();
    assert!(failure.contains("prestart") && failure.contains("1 s"), "{failure}");
    before.assert_same(&stockade);
}

#[test]
fn failing_poststart_and_poststop_hooks_stop_nothing() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("warned");
    let builder =
        Bundle::builder().shell("echo done").shell_hook("poststart", "exit 1").shell_hook("poststop", "exit 1");
    assert_eq!(stockade.run(&id, &builder.build().unwrap(), &[]).ok().text(), "done\n");
    before.assert_same(&stockade);
}
