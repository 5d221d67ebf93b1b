use super::super::output::KEPT_BYTES;
use super::*;
use crate::network::NetworkNamespace;
use crate::oci::{OCI_VERSION, Status};
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Instant;

/// A directory that is the bundle, and where hooks leave what they saw.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn state(&self) -> OciState {
        OciState {
            oci_version: OCI_VERSION.to_owned(),
            id: "c1".to_owned(),
            status: Status::Creating,
            pid: Some(42),
            bundle: self.0.path().to_owned(),
            annotations: BTreeMap::from([("a".to_owned(), "1".to_owned())]),
        }
    }

    async fn run(&self, hooks: &[Hook]) -> Result<(), HookError> {
        run_hooks(Phase::CreateRuntime, hooks, &self.state(), None, CancellationToken::new()).await
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The process id that a hook wrote to the file `name`, once it has.
    async fn pid(&self, name: &str) -> i32 {
        let mut found = None;
        until("a pid file", || {
            found = self.read(name).strip_suffix('\n').and_then(|text| text.parse().ok());
            found.is_some()
        })
        .await;
        found.expect("waited for")
    }
}

fn hook(json: serde_json::Value) -> Hook {
    serde_json::from_value(json).expect("a hook")
}

fn shell(script: &str) -> Hook {
    hook(serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}))
}

fn limited(script: &str, seconds: i64) -> Hook {
    let mut hook = shell(script);
    hook.set_timeout(Some(seconds));
    hook
}

/// Waits until `holds`; there is nothing to be told by, for the processes are not our children.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// A daemon that has left its parent, session and group, and keeps standard output.
const DAEMON: &str = "(setsid sh -c 'echo $$ >daemon.tmp; mv daemon.tmp daemon; exec sleep 1000' &)
    while ! [ -e daemon ]; do sleep 0.01; done";

#[tokio::test]
async fn a_hook_gets_the_state_its_words_its_environment_its_directory_and_a_group_of_its_own() {
    let bench = Bench::new();
    let script = "cat >state; cat /proc/$$/cmdline >words; cat /proc/$$/environ >environment; pwd -P >directory
        cut -d' ' -f1,5 /proc/$$/stat >group; ls /proc/$$/fd >descriptors";
    let environment = ["PATH=/usr/bin:/bin", "A=b=c", "NOEQUALS", "A=again", "EMPTY="];
    let told = serde_json::json!({"path": "/bin/sh", "args": ["my name", "-c", script, ""], "env": environment});
    // A descriptor that is not closed on exec, as a caller may have handed us.
    let stray = nix::fcntl::open("/dev/null", OFlag::O_RDONLY, nix::sys::stat::Mode::empty()).expect("opened");
    bench.run(&[hook(told)]).await.expect("succeeds");
    nix::unistd::close(stray).expect("closed");

    let state: OciState = serde_json::from_str(&bench.read("state")).expect("the whole state");
    assert_eq!(state, bench.state());
    assert_eq!(bench.read("words"), format!("my name\0-c\0{script}\0\0"));
    assert_eq!(bench.read("environment"), environment.map(|entry| format!("{entry}\0")).concat());
    let directory = bench.0.path().canonicalize().expect("real");
    assert_eq!(bench.read("directory").trim(), directory.to_str().expect("text"));
    let group = bench.read("group");
    let (pid, group) = group.trim().split_once(' ').expect("two numbers");
    assert_eq!(pid, group, "its own process group");
    assert!(!bench.read("descriptors").lines().any(|fd| fd == stray.to_string()), "{}", bench.read("descriptors"));
}

#[tokio::test]
async fn a_hook_without_words_gets_its_path_and_one_without_environment_none() {
    let bench = Bench::new();
    let script = bench.path("hook");
    std::fs::write(
        &script,
        "#!/bin/sh\n/usr/bin/tr '\\0' '|' </proc/$$/cmdline >words\n/usr/bin/wc -c </proc/$$/environ >size\n",
    )
    .expect("written");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).expect("executable");
    bench.run(&[hook(serde_json::json!({"path": script}))]).await.expect("succeeds");
    assert_eq!(bench.read("words"), format!("/bin/sh|{}|", script.display()));
    assert_eq!(bench.read("size").trim(), "0");
}

#[tokio::test]
async fn a_hook_runs_in_the_sandboxs_network_namespace_and_the_caller_stays_in_its_own() {
    let bench = Bench::new();
    let namespace = NetworkNamespace::create().expect("created");
    let hooks = [shell("readlink /proc/$$/ns/net >inside")];
    run_hooks(Phase::Prestart, &hooks, &bench.state(), Some(namespace.as_fd()), CancellationToken::new())
        .await
        .expect("succeeds");
    let (_, inode) = namespace.identity().expect("identity");
    assert_eq!(bench.read("inside").trim(), format!("net:[{inode}]"));
    let own = std::fs::read_link("/proc/thread-self/ns/net").expect("own");
    assert_ne!(own, Path::new(&format!("net:[{inode}]")));
}

#[tokio::test]
async fn hooks_run_in_order_and_stop_at_the_first_that_fails() {
    let bench = Bench::new();
    let hooks = [
        shell("echo one >>order"),
        shell("echo two >>order; echo what is; echo ' wrong' >&2; exit 3"),
        shell("echo three >>order"),
    ];
    let error = bench.run(&hooks).await.expect_err("the second fails");
    assert_eq!(bench.read("order"), "one\ntwo\n");
    assert_eq!(error.to_string(), "createRuntime hook \"/bin/sh\" ended with status 3: what is; wrong");
}

#[tokio::test]
async fn what_cannot_run_is_refused_with_the_reason() {
    let bench = Bench::new();
    let file = |name: &str, mode: u32| {
        std::fs::write(bench.path(name), "no program\n").expect("written");
        std::fs::set_permissions(bench.path(name), std::fs::Permissions::from_mode(mode)).expect("set");
        bench.path(name)
    };
    let cases = [
        (bench.path("no"), "cannot be found"),
        (bench.path("."), "is not an executable file"),
        (file("plain", 0o600), "is not an executable file"),
        (file("noformat", 0o700), "cannot start it"),
        (PathBuf::from("/bin/a\0b"), "cannot be found"),
    ];
    for (path, wanted) in cases {
        let error = bench.run(&[hook(serde_json::json!({"path": path}))]).await.expect_err(wanted);
        assert!(error.to_string().contains(wanted), "{error}");
        assert!(std::error::Error::source(&error).is_some() || wanted.starts_with("is not"), "{error:?}");
    }
    let error = bench.run(&[hook(serde_json::json!({"path": "/bin/true", "env": ["A=\0"]}))]).await;
    assert!(matches!(error, Err(HookError::ZeroByte { .. })), "{error:?}");
}

#[tokio::test]
async fn a_signal_that_ends_a_hook_is_named() {
    let error = Bench::new().run(&[shell("kill -9 $$")]).await.expect_err("killed");
    assert_eq!(error.to_string(), "createRuntime hook \"/bin/sh\" was ended by signal 9");
}

#[tokio::test]
async fn a_hook_that_reads_nothing_succeeds_whatever_the_state_holds() {
    let bench = Bench::new();
    let mut state = bench.state();
    state.annotations.insert("large".to_owned(), "x".repeat(1 << 20));
    let hooks = [shell("exit 0"), shell("exec <&-; sleep 0.05"), shell("wc -c >size")];
    run_hooks(Phase::Poststart, &hooks, &state, None, CancellationToken::new()).await.expect("succeeds");
    let size = serde_json::to_vec(&state).expect("serialises").len();
    assert_eq!(bench.read("size").trim(), size.to_string(), "one that reads gets all of it");
}

#[tokio::test]
async fn a_hooks_flood_of_output_neither_blocks_it_nor_is_kept() {
    let error = Bench::new()
        .run(&[shell("head -c 5000000 /dev/zero | tr '\\0' x; echo; echo the end; exit 1")])
        .await
        .expect_err("fails");
    let text = error.to_string();
    assert!(text.ends_with("xxx; the end") && text.len() < KEPT_BYTES / 16, "{}", text.len());
}

#[tokio::test]
async fn a_daemon_of_a_hook_that_succeeds_lives_on_and_holds_up_nobody() {
    let bench = Bench::new();
    bench.run(&[shell(DAEMON)]).await.expect("succeeds");
    let daemon = bench.pid("daemon").await;
    assert!(lives(daemon));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), nix::sys::signal::Signal::SIGKILL).expect("killed");
}

#[tokio::test]
async fn a_hook_that_is_late_is_killed_with_the_daemons_that_it_started() {
    let bench = Bench::new();
    let begun = Instant::now();
    let late = limited(&format!("{DAEMON}\n echo waiting; echo $$ >self; sleep 1000"), 1);
    let error = bench.run(&[late]).await.expect_err("late");
    assert_eq!(error.to_string(), "createRuntime hook \"/bin/sh\" was killed: it was not done after 1 s: waiting");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    for name in ["daemon", "self"] {
        let pid = bench.pid(name).await;
        until("its end", || !lives(pid)).await;
    }
}

#[tokio::test]
async fn the_daemons_of_a_hook_that_fails_are_killed() {
    let bench = Bench::new();
    let error = bench.run(&[shell(&format!("{DAEMON}\n exit 4"))]).await.expect_err("fails");
    assert!(matches!(error, HookError::Failed { status: 4, .. }), "{error}");
    let daemon = bench.pid("daemon").await;
    until("its end", || !lives(daemon)).await;
}

#[tokio::test]
async fn a_cancelled_hook_is_killed_with_its_descendants_and_the_next_does_not_begin() {
    let bench = Bench::new();
    let cancel = CancellationToken::new();
    let hooks = [shell(&format!("{DAEMON}\n sleep 1000")), shell("touch next")];
    let state = bench.state();
    let running = run_hooks(Phase::CreateRuntime, &hooks, &state, None, cancel.clone());
    let cancelling = async {
        let daemon = bench.pid("daemon").await;
        cancel.cancel();
        daemon
    };
    let (result, daemon) = tokio::join!(running, cancelling);
    assert!(matches!(result, Err(HookError::Cancelled { .. })), "{result:?}");
    until("its end", || !lives(daemon)).await;
    assert!(!bench.path("next").exists());
    let again = run_hooks(Phase::CreateRuntime, &hooks[1..], &state, None, cancel).await;
    assert!(matches!(again, Err(HookError::Cancelled { .. })), "{again:?}");
}

#[tokio::test]
async fn a_dropped_run_leaves_no_hook_behind() {
    let bench = Bench::new();
    let state = bench.state();
    let hooks = [shell("echo $$ >self.tmp; mv self.tmp self; sleep 1000")];
    let running = run_hooks(Phase::CreateRuntime, &hooks, &state, None, CancellationToken::new());
    let pid = tokio::select! {
        result = running => panic!("ended: {result:?}"),
        pid = bench.pid("self") => pid,
    };
    until("its end", || !lives(pid)).await;
}

#[tokio::test]
async fn poststop_hooks_all_run_even_when_one_fails_and_the_bundle_is_gone() {
    let bench = Bench::new();
    let mut state = bench.state();
    state.bundle = bench.path("gone");
    let mark = bench.path("mark").display().to_string();
    let hooks = [shell("exit 1"), shell(&format!("pwd >{mark}"))];
    run_poststop_blocking(&hooks, &state).expect("run");
    assert_eq!(bench.read("mark"), "/\n");
}

#[test]
fn only_what_comes_after_the_start_or_the_end_is_not_fatal() {
    let fatal = [Phase::Prestart, Phase::CreateRuntime, Phase::CreateContainer, Phase::StartContainer];
    assert!(fatal.into_iter().all(Phase::is_fatal));
    assert!(![Phase::Poststart, Phase::Poststop].into_iter().any(Phase::is_fatal));
}
