use super::*;
use std::process::{Child, Command, Stdio};

/// A made-up hierarchy in a directory.
fn fake(root: &Path, name: &str) -> Hierarchy {
    let mount_point = root.join(name);
    fs::create_dir_all(&mount_point).expect("made");
    Hierarchy { name: name.to_owned(), mount_point }
}

fn directory(path: &str, explicit: bool) -> Place {
    Place::Directory { path: path.into(), explicit }
}

fn sleeper() -> Child {
    Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("sleep starts")
}

/// The control groups of each hierarchy that are called `name`.
fn named(name: &str) -> Vec<PathBuf> {
    let hierarchies = hierarchy::mounted().expect("mounts");
    hierarchies.iter().map(|found| found.mount_point.join(name)).filter(|path| path.exists()).collect()
}

#[test]
fn a_plan_names_only_what_is_not_there_and_our_own_parent() {
    let root = tempfile::tempdir().expect("temporary directory");
    let hierarchies = vec![fake(root.path(), "memory"), fake(root.path(), "unified")];
    fs::create_dir_all(root.path().join("memory/pods")).expect("made");
    fs::create_dir_all(root.path().join("unified/stockade")).expect("made");
    let names = |place| {
        let plan = CgroupPlace { place, hierarchies: hierarchies.clone() }.plan();
        let relative = plan.directories().iter().map(|path| path.strip_prefix(root.path()).expect("below").to_owned());
        relative.map(|path| path.display().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(directory("pods/c1", true)), ["memory/pods/c1", "unified/pods", "unified/pods/c1"]);
    assert_eq!(
        names(directory("stockade/c1", false)),
        ["memory/stockade", "memory/stockade/c1", "unified/stockade", "unified/stockade/c1"]
    );
    let scope = Place::Scope { slice: "a-b.slice".to_owned(), unit: "x-c1.scope".to_owned() };
    assert_eq!(names(scope), ["unified/a.slice/a-b.slice/x-c1.scope"]);
}

#[test]
fn a_hierarchy_that_cannot_be_written_is_skipped_and_leaves_nothing() {
    let root = tempfile::tempdir().expect("temporary directory");
    let good = fake(root.path(), "memory");
    // A file where a directory should be refuses every directory, also root's.
    let bad = Hierarchy { name: "cpu".to_owned(), mount_point: root.path().join("cpu") };
    fs::write(&bad.mount_point, "").expect("made");
    let plan = CgroupPlace { place: directory("a/c1", true), hierarchies: vec![bad.clone(), good.clone()] }.plan();
    let group = plan.create().expect("made").expect("one hierarchy works");
    assert_eq!(group.directories(), [good.mount_point.join("a"), good.mount_point.join("a/c1")]);
    group.remove().expect("removed");
    assert!(!good.mount_point.join("a").exists());

    let none =
        |explicit| CgroupPlace { place: directory("a/c1", explicit), hierarchies: vec![bad.clone()] }.plan().create();
    assert_eq!(none(false).expect("no error when nobody asked"), None);
    let error = none(true).expect_err("asked for");
    assert_eq!(error.to_string(), "control group \"/a/c1\" cannot be made in any hierarchy");
}

#[test]
fn a_cpuset_group_of_version_1_gets_its_parents_lists() {
    let root = tempfile::tempdir().expect("temporary directory");
    let inner = root.path().join("inner");
    fs::create_dir(&inner).expect("made");
    fs::write(root.path().join("cpuset.cpus"), "0-1\n").expect("written");
    fs::write(root.path().join("cpuset.mems"), "0\n").expect("written");
    fs::write(inner.join("cpuset.cpus"), "\n").expect("written");
    fs::write(inner.join("cpuset.mems"), "3\n").expect("written");
    inherit_cpuset(&inner).expect("inherited");
    assert_eq!(fs::read_to_string(inner.join("cpuset.cpus")).expect("read"), "0-1");
    assert_eq!(fs::read_to_string(inner.join("cpuset.mems")).expect("read"), "3\n");
}

#[test]
fn a_real_group_takes_processes_and_goes_without_a_trace() {
    let id = format!("test-{}-real", std::process::id());
    let plan = SandboxCgroup::place(&id, None, false).expect("allowed").plan();
    let Some(group) = plan.create().expect("made") else { return };
    let mut child = sleeper();
    let pid = child.id().cast_signed();
    group.add_process(pid).expect("joined");
    assert_eq!(group.processes(), BTreeSet::from([pid]));
    group.kill();
    child.wait().expect("reaped");
    group.remove().expect("removed");
    group.remove().expect("again");
    assert_eq!(named(&format!("stockade/{id}")), Vec::<PathBuf>::new());
    let error = group.add_process(pid).expect_err("gone");
    assert!(matches!(error, CgroupError::Join { .. }), "{error}");
}

#[test]
fn a_group_has_all_controllers_of_its_host_and_counts_memory() {
    let path = PathBuf::from(format!("/test-{}-controllers/inner/leaf", std::process::id()));
    let plan = SandboxCgroup::place("unused", Some(&path), false).expect("allowed").plan();
    let mounts = plan.hierarchies.clone();
    // Where no control group can be made at all, an explicit path is an error.
    let Ok(Some(group)) = plan.create() else { return };
    let controllers = |group: &Path| fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for leaf in &group.leaves {
        let mount = mounts.iter().find(|mount| leaf.starts_with(&mount.mount_point)).expect("a hierarchy has it");
        assert_eq!(controllers(leaf), controllers(&mount.mount_point), "{}", leaf.display());
    }
    let counted = mounts.iter().any(|mount| {
        mount.name.split(',').any(|name| name == "memory") || controllers(&mount.mount_point).contains("memory")
    });
    assert_eq!(group.memory_procs().len(), usize::from(counted));
    group.remove().expect("removed");
}

#[test]
fn removal_waits_for_the_last_process_to_end() {
    let id = format!("test-{}-wait", std::process::id());
    let Some(group) = SandboxCgroup::place(&id, None, false).expect("allowed").plan().create().expect("made") else {
        return;
    };
    let mut child = sleeper();
    group.add_process(child.id().cast_signed()).expect("joined");
    let removing = std::thread::spawn({
        let group = group.clone();
        move || group.remove()
    });
    child.kill().expect("killed");
    child.wait().expect("reaped");
    removing.join().expect("no panic").expect("removed");
    assert_eq!(named(&format!("stockade/{id}")), Vec::<PathBuf>::new());
}

#[test]
fn many_sandboxes_at_once_make_and_remove_the_same_parent() {
    let parent = format!("test-{}-many", std::process::id());
    let work = |number: usize| {
        for round in 0..5 {
            let path = PathBuf::from(format!("/{parent}/c{number}-{round}"));
            let plan = SandboxCgroup::place("unused", Some(&path), false).expect("allowed").plan();
            // Where no control group can be made at all, an explicit path is an error.
            let Ok(Some(group)) = plan.create() else { return };
            group.remove().expect("removed");
        }
    };
    std::thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || work(number));
        }
    });
    for leaf in named(&parent) {
        // A parent that two sandboxes found absent is removed by the last of them; nothing is in it in any case.
        assert!(!fs::read_dir(&leaf).expect("listed").flatten().any(|entry| entry.path().is_dir()), "{leaf:?}");
        remove_directories(&[leaf]).expect("removed");
    }
}
