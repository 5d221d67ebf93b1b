//! A `stockade` with a state root and a configuration of its own.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::host_state::{SHORTEST_MARK, processes_of};
use super::{Backend, Bundle, unique_id, wait};

/// How long a verb may take; a boot under emulation on a busy machine included.
const CALL: Duration = Duration::from_secs(90);
/// How much of the supervisor's log a failure prints, in bytes.
const LOG_TAIL: i64 = 24 << 10;

/// A state root, a configuration that names the guest under test, and the program, all in a temporary folder. Dropped,
/// it deletes what it created; when the test has failed, it prints the supervisors' log, the guest's console in it.
#[derive(Debug)]
pub struct Stockade {
    folder: TempDir,
    program: PathBuf,
    ids: RefCell<BTreeSet<String>>,
    calls: Cell<u32>,
}

/// What a call printed and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote until it ended.
    pub stdout: Vec<u8>,
    /// What it wrote until it ended.
    pub stderr: Vec<u8>,
    /// The file that a container made by `create`, or detached, goes on writing to.
    pub stdout_path: PathBuf,
}

impl Output {
    /// The status as a shell shows it: 128 + the signal for a process that a signal ended.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }

    /// Standard output, as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error, as text.
    #[must_use]
    pub fn error(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("no JSON: {error}: {self:?}"))
    }

    /// Itself, if it succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[must_use]
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "{} ended with {}: {}", self.command, self.code(), self.error());
        self
    }

    /// Its error message, which must be the only line on standard error.
    ///
    /// # Panics
    /// When it succeeded, or said nothing, or more than a line.
    #[must_use]
    pub fn failure(&self) -> String {
        assert!(!self.status.success(), "{} succeeded: {}", self.command, self.text());
        let error = self.error();
        assert_eq!(error.trim_end().lines().count(), 1, "{}: not one line: {error}", self.command);
        error.trim_end().to_owned()
    }
}

/// A call that is under way. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// The process id of the call itself.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it has written by now.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stdout).unwrap_or_default()).into_owned()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has ended.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("a call under way can be signalled");
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end within `limit`, [scaled](wait::scaled); it is killed first.
    pub fn wait(mut self, limit: Duration) -> Output {
        let status = wait::until_some(limit, || self.child.try_wait().expect("a child can be waited for"));
        let read = |path: &Path| fs::read(path).unwrap_or_default();
        let Some(status) = status else {
            let said = String::from_utf8_lossy(&read(&self.stderr)).into_owned();
            panic!("{} did not end within {limit:?}; it said: {said}", self.command);
        };
        Output {
            command: self.command.clone(),
            status,
            stdout: read(&self.stdout),
            stderr: read(&self.stderr),
            stdout_path: self.stdout.clone(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Default for Stockade {
    fn default() -> Self {
        Self::new()
    }
}

impl Stockade {
    /// With the default configuration of the tests: 256 MiB, and the [backend under test](Backend::under_test).
    ///
    /// # Panics
    /// When the program or the guest is not there: `cargo xtask test` makes both.
    #[must_use]
    pub fn new() -> Self {
        Self::with_config("", "")
    }

    /// With keys of the configuration that are laid over those: in the backend's section, and in any.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn with_config(machine: &str, rest: &str) -> Self {
        Self::with_backend(Backend::under_test(), machine, rest)
    }

    /// The same with a backend that need not be the one under test: benchmarks compare several.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn with_backend(backend: Backend, machine: &str, rest: &str) -> Self {
        let machine = format!("[hypervisor.{}]\n{machine}", backend.section());
        let mut config = base_config(backend);
        for layer in [&machine, rest] {
            merge(&mut config, toml::from_str(layer).expect("a test's configuration is TOML"));
        }
        Self::with_toml(&toml::to_string(&config).expect("a table is TOML"))
    }

    /// With any text as its configuration.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn with_toml(text: &str) -> Self {
        let program = program();
        let folder = tempfile::Builder::new().prefix("stockade-test-").tempdir().expect("a temporary folder");
        fs::write(folder.path().join("stockade.toml"), text).expect("a temporary folder can be written to");
        fs::create_dir(folder.path().join("calls")).expect("a temporary folder can be written to");
        Self { folder, program, ids: RefCell::default(), calls: Cell::new(0) }
    }

    /// The program under test.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// What --root names.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// The temporary folder that all of it is in; a test may put files there.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What --config names.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("stockade.toml")
    }

    /// What --log names.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What the supervisors, and the guests' consoles, have said.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// A container id that no other test uses.
    #[must_use]
    pub fn id(&self, prefix: &str) -> String {
        let id = unique_id(&format!("test-{prefix}"));
        self.ids.borrow_mut().insert(id.clone());
        id
    }

    /// Takes an id as this test's, if it is one of [`unique_id`]: what a test makes up may be anything, "" or "." too, and
    /// what carries an id of ours is killed in the end.
    fn note(&self, id: &str) {
        if id.len() >= SHORTEST_MARK && id.contains(&format!("-{}-", std::process::id())) {
            self.ids.borrow_mut().insert(id.to_owned());
        }
    }

    /// Takes an id that somebody else has made for a container of this test's; by it the container's remains are known.
    ///
    /// # Panics
    /// When it is too short to be unique.
    pub fn note_foreign(&self, id: &str) {
        assert!(id.len() >= SHORTEST_MARK, "{id:?} is no unique id");
        self.ids.borrow_mut().insert(id.to_owned());
    }

    /// What tells this test's processes, mounts and files from others'.
    #[must_use]
    pub fn marks(&self) -> Vec<String> {
        let mut marks: Vec<String> = self.ids.borrow().iter().cloned().collect();
        marks.push(self.folder.path().display().to_string());
        marks
    }

    /// The program with the options of this root, and nothing on standard input.
    pub fn cmd<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.root()).arg("--config").arg(self.config()).arg("--log").arg(self.log_path());
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        // For whoever looks for this test's processes.
        command.env("STOCKADE_TEST_FOLDER", self.folder.path());
        command
    }

    /// Starts `command` with its output in files.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&self, mut command: Command) -> Running {
        let number = self.calls.get();
        self.calls.set(number + 1);
        let path = |kind: &str| self.folder.path().join("calls").join(format!("{number}.{kind}"));
        let (stdout, stderr) = (path("stdout"), path("stderr"));
        let create = |path: &Path| File::create(path).expect("a temporary folder can be written to");
        command.stdout(create(&stdout)).stderr(create(&stderr));
        Self::spawned(command, stdout, stderr)
    }

    /// Starts `command` with its output where the caller wants it; [`Output`] has none of it then.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn_with(&self, mut command: Command, stdout: Stdio, stderr: Stdio) -> Running {
        command.stdout(stdout).stderr(stderr);
        Self::spawned(command, PathBuf::new(), PathBuf::new())
    }

    fn spawned(mut command: Command, stdout: PathBuf, stderr: PathBuf) -> Running {
        // The first options are the same for every call.
        let words: Vec<_> = command.get_args().skip(6).map(|word| word.to_string_lossy()).collect();
        let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy();
        let words = format!("{program} {}", words.join(" "));
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {words}: {error}"));
        Running { child, command: words, stdout, stderr }
    }

    /// Starts a call and does not wait for its end.
    pub fn start_call<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Running {
        self.spawn(self.cmd(args))
    }

    /// Makes a call and waits for its end, ninety seconds ([scaled](wait::scaled)) at most.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn call<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.start_call(args).wait(CALL)
    }

    /// [`Self::call`] with `input` on standard input.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn call_with_input<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>, input: &[u8]) -> Output {
        let mut file = tempfile::tempfile_in(self.folder.path()).expect("a temporary file");
        std::io::Write::write_all(&mut file, input).expect("a temporary file can be written to");
        file.seek(SeekFrom::Start(0)).expect("a file can be rewound");
        let mut command = self.cmd(args);
        command.stdin(file);
        self.spawn(command).wait(CALL)
    }

    fn verb(&self, verb: &str, before: &[&str], id: &str, after: &[&str]) -> Output {
        self.call([verb].iter().chain(before).chain(&[id]).chain(after))
    }

    fn bundle_args<'a>(&self, verb: &'a str, id: &'a str, bundle: &'a Bundle, args: &'a [&'a str]) -> Vec<&'a OsStr> {
        self.note(id);
        let mut all: Vec<&OsStr> = vec![verb.as_ref(), "--bundle".as_ref(), bundle.path().as_os_str()];
        all.extend(args.iter().map(OsStr::new));
        all.push(id.as_ref());
        all
    }

    /// `stockade run`; `args` are options of it.
    pub fn run(&self, id: &str, bundle: &Bundle, args: &[&str]) -> Output {
        self.call(self.bundle_args("run", id, bundle, args))
    }

    /// `stockade run` that is not waited for.
    pub fn start_run(&self, id: &str, bundle: &Bundle, args: &[&str]) -> Running {
        self.start_call(self.bundle_args("run", id, bundle, args))
    }

    /// The command of `stockade run`, to be changed and given to [`Self::spawn`].
    pub fn run_cmd(&self, id: &str, bundle: &Bundle, args: &[&str]) -> Command {
        self.cmd(self.bundle_args("run", id, bundle, args))
    }

    /// `stockade create`; `args` are options of it. The container's output goes to [`Output::stdout_path`].
    pub fn create(&self, id: &str, bundle: &Bundle, args: &[&str]) -> Output {
        self.call(self.bundle_args("create", id, bundle, args))
    }

    /// `stockade create` that is not waited for.
    pub fn start_create(&self, id: &str, bundle: &Bundle, args: &[&str]) -> Running {
        self.start_call(self.bundle_args("create", id, bundle, args))
    }

    /// The command of `stockade create`.
    pub fn create_cmd(&self, id: &str, bundle: &Bundle, args: &[&str]) -> Command {
        self.cmd(self.bundle_args("create", id, bundle, args))
    }

    /// `create` and `start`, both of which must succeed.
    ///
    /// # Panics
    /// When one of them fails.
    pub fn launch(&self, id: &str, bundle: &Bundle) -> Output {
        let created = self.create(id, bundle, &[]).ok();
        let _ = self.start(id).ok();
        created
    }

    /// `stockade start`.
    pub fn start(&self, id: &str) -> Output {
        self.verb("start", &[], id, &[])
    }

    /// `stockade state`, which must succeed, as JSON.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn state(&self, id: &str) -> Value {
        self.verb("state", &[], id, &[]).ok().json()
    }

    /// The word in the state: "created", "running", …; "none" when there is no such container.
    #[must_use]
    pub fn status(&self, id: &str) -> String {
        let output = self.verb("state", &[], id, &[]);
        if !output.status.success() {
            return "none".into();
        }
        output.json()["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the container has the status.
    ///
    /// # Panics
    /// When it has another one after `limit`, [scaled](wait::scaled).
    pub fn wait_status(&self, id: &str, status: &str, limit: Duration) -> Duration {
        let begin = Instant::now();
        let mut last = String::new();
        let reached = wait::until(limit, || {
            last = self.status(id);
            last == status
        });
        assert!(reached, "container {id} is {last}, not {status}, after {limit:?}");
        begin.elapsed()
    }

    /// `stockade kill`.
    pub fn kill(&self, id: &str, signal: &str) -> Output {
        self.verb("kill", &[], id, &[signal])
    }

    /// `stockade delete`; `args` are options of it.
    pub fn delete(&self, id: &str, args: &[&str]) -> Output {
        self.verb("delete", args, id, &[])
    }

    /// `stockade exec` of `command`; `args` are options of it.
    pub fn exec(&self, id: &str, args: &[&str], command: &[&str]) -> Output {
        self.verb("exec", args, id, command)
    }

    /// `stockade exec` of a line of shell.
    pub fn exec_shell(&self, id: &str, script: &str) -> Output {
        self.exec(id, &[], &["sh", "-c", script])
    }

    /// The record of the sandbox's supervisor: its pid.
    ///
    /// # Panics
    /// When there is no such sandbox.
    #[must_use]
    pub fn supervisor_pid(&self, id: &str) -> i32 {
        let path = self.root().join("sandboxes").join(id).join("sandbox.json");
        let text = fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        let record: Value = serde_json::from_slice(&text).expect("a record is JSON");
        find_pid(&record).unwrap_or_else(|| panic!("no supervisor in {record}"))
    }

    /// Pids of the processes that run this test's machines.
    #[must_use]
    pub fn monitors(&self) -> Vec<i32> {
        self.pids(Backend::under_test().monitor_process())
    }

    /// Pids of this test's processes whose command line contains `text`.
    #[must_use]
    pub fn pids(&self, text: &str) -> Vec<i32> {
        processes_of(&self.marks()).into_iter().filter(|(_, line)| line.contains(text)).map(|(pid, _)| pid).collect()
    }

    fn log_tail(&self) -> String {
        let tail = || -> std::io::Result<String> {
            let mut file = File::open(self.log_path())?;
            let length = i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX);
            file.seek(SeekFrom::End(-length.min(LOG_TAIL)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        tail().unwrap_or_else(|error| format!("no log: {error}"))
    }
}

fn find_pid(record: &Value) -> Option<i32> {
    let body = record.pointer("/supervisor/pid").or_else(|| record.pointer("/data/supervisor/pid"))?;
    body.as_i64().and_then(|pid| i32::try_from(pid).ok())
}

impl Drop for Stockade {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of the supervisors and consoles of their guests\n{}\n----", self.log_tail());
        }
        let records = fs::read_dir(self.root().join("containers")).into_iter().flatten().flatten();
        let mut ids: Vec<String> =
            records.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json").map(str::to_owned)).collect();
        // A pod's sandbox is deleted after its further containers; their names say nothing, so twice round does it.
        ids.extend(ids.clone());
        for id in ids {
            let deleting = self.cmd(["delete", "--force", &id]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            if let Ok(mut child) = deleting {
                wait::until(Duration::from_secs(30), || !matches!(child.try_wait(), Ok(None)));
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        // Also what a test started that is not in a record any more.
        for pid in processes_of(&self.marks()).into_keys() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        wait::until(Duration::from_secs(5), || processes_of(&self.marks()).is_empty());
    }
}

/// The default configuration of the tests. Time limits are the product's own, as long as this machine needs them.
fn base_config(backend: Backend) -> toml::Table {
    let guest = guest();
    let limit = |default: u32| default * wait::slowness();
    let mut config = toml::toml! {
        [runtime]
        enable_debug = true
    };
    let mut machine = toml::Table::new();
    machine.insert("kernel".into(), guest.join("vmlinux").display().to_string().into());
    machine.insert("initrd".into(), guest.join("initrd.img").display().to_string().into());
    machine.insert("default_memory".into(), 256.into());
    for (key, default) in [("boot_timeout", 30), ("stop_timeout", 3), ("quit_timeout", 2), ("term_timeout", 2)] {
        machine.insert(key.into(), limit(default).into());
    }
    if let Some(accelerator) = backend.accelerator() {
        machine.insert("accelerator".into(), accelerator.into());
    }
    let section = |entries: &[(&str, u32)]| -> toml::Table {
        entries.iter().map(|(key, default)| ((*key).to_owned(), limit(*default).into())).collect()
    };
    let mut runtime = section(&[("create_timeout", 120), ("default_hook_timeout", 60)]);
    runtime.insert("hypervisor".into(), backend.section().into());
    let kata = section(&[("reconnect_timeout_ms", 60_000), ("create_container_timeout", 60), ("request_timeout", 30)]);
    let one = |key: &str, table: toml::Table| toml::Table::from_iter([(key.to_owned(), table.into())]);
    merge(&mut config, one("runtime", runtime));
    merge(&mut config, one("hypervisor", one(backend.section(), machine)));
    merge(&mut config, one("agent", one("kata", kata)));
    config
}

/// Lays `layer` over `config`, key by key.
fn merge(config: &mut toml::Table, layer: toml::Table) {
    for (key, value) in layer {
        match (config.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => merge(below, above),
            (_, value) => {
                config.insert(key, value);
            }
        }
    }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the repository")
}

/// The program: STOCKADE_TEST_BIN, a file or its folder; else what `cargo xtask` or cargo made.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("STOCKADE_TEST_BIN") {
        let path = PathBuf::from(named);
        let path = if path.is_dir() { path.join("stockade") } else { path };
        assert!(path.is_file(), "STOCKADE_TEST_BIN names {}, which is no file", path.display());
        return path;
    }
    let places =
        ["build/bin/stockade", "target/x86_64-unknown-linux-gnu/release/stockade"].map(|at| repository().join(at));
    places
        .iter()
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("there is no {}: `cargo xtask test` builds it", places[0].display()))
        .clone()
}

/// The folder of the guest: STOCKADE_TEST_GUEST, else build/guest.
///
/// # Panics
/// When kernel or initrd is not there.
#[must_use]
pub fn guest() -> PathBuf {
    let folder =
        std::env::var_os("STOCKADE_TEST_GUEST").map_or_else(|| repository().join("build/guest"), PathBuf::from);
    for name in ["vmlinuz", "initrd.img"] {
        let path = folder.join(name);
        assert!(path.is_file(), "there is no {}: `cargo xtask test` makes the guest", path.display());
    }
    folder
}
