//! A client of the agent under test, and a specification to start from.
//!
//! The agent is the one that STOCKADE_AGENT_ADDRESS names (its guest's root file systems below
//! STOCKADE_AGENT_ROOTFS), or one that is started here, in namespaces of its own.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stockade_agent_protocol::agent::*;
use stockade_agent_protocol::agent_ttrpc::AgentServiceClient;
use stockade_agent_protocol::health_ttrpc::HealthClient;
use stockade_agent_protocol::oci_convert::{process_to_proto, spec_to_proto};
use stockade_agent_protocol::processes_ttrpc::ProcessesClient;
use ttrpc::context::{Context, with_duration};

/// Longest time for one call.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn context() -> Context {
    with_duration(LIMIT)
}

struct Place {
    address: String,
    rootfs: PathBuf,
    _agent: Option<OwnAgent>,
}

struct OwnAgent {
    child: Child,
    dir: PathBuf,
}

fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| match std::env::var("STOCKADE_AGENT_ADDRESS") {
        Ok(address) => Place {
            address,
            rootfs: std::env::var_os("STOCKADE_AGENT_ROOTFS").expect("a root file system").into(),
            _agent: None,
        },
        Err(_) => start_agent(),
    })
}

fn start_agent() -> Place {
    let dir = std::env::temp_dir().join(format!("stockade-agent-test-{}", std::process::id()));
    let rootfs = dir.join("rootfs");
    make_rootfs(&rootfs);
    let socket = dir.join("agent.sock");
    let address = format!("unix://{}", socket.display());
    let script = "{ [ -e /sys/fs/cgroup/cgroup.controllers ] || mount -t cgroup2 none /sys/fs/cgroup; } && mount -t tmpfs none /run && \
        ip link add test0 address 02:00:00:00:00:01 type veth peer name test1 && exec \"$0\" \"$@\"";
    let child = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--net", "sh", "-c", script])
        .arg(env!("CARGO_BIN_EXE_stockade-agent"))
        .arg(format!("agent.server_addr={address}"))
        .arg("agent.log=debug")
        .stdin(Stdio::null())
        .spawn()
        .expect("unshare");
    let deadline = Instant::now() + LIMIT;
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < deadline, "the agent does not listen");
        std::thread::yield_now();
    }
    Place { address, rootfs, _agent: Some(OwnAgent { child, dir }) }
}

/// Ends the agent that was started here, if one was.
pub(crate) fn stop() {
    if let Some(agent) = &place()._agent {
        // With it ends its child, the first process of the agent's pid namespace.
        let _ = Command::new("kill").arg("-KILL").arg(agent.child.id().to_string()).status();
        let _ = std::fs::remove_dir_all(&agent.dir);
    }
}

fn make_rootfs(dir: &Path) {
    for sub in ["bin", "proc", "sys", "dev", "tmp", "etc", "root"] {
        std::fs::create_dir_all(dir.join(sub)).expect("directory");
    }
    std::fs::copy("/bin/busybox", dir.join("bin/busybox")).expect("busybox-static");
    let list = Command::new("/bin/busybox").arg("--list").output().expect("busybox").stdout;
    for applet in String::from_utf8_lossy(&list).lines().filter(|name| *name != "busybox") {
        let _ = std::os::unix::fs::symlink("busybox", dir.join("bin").join(applet));
    }
    std::fs::write(dir.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n")
        .expect("passwd");
    std::fs::write(dir.join("etc/group"), "root:x:0:\nbob:x:1000:\nextra:x:2000:\n").expect("group");
}

/// Runs a case on a runtime of its own.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(work)
}

pub(crate) struct Agent {
    pub(crate) calls: AgentServiceClient,
    pub(crate) health: HealthClient,
    pub(crate) processes: ProcessesClient,
}

pub(crate) async fn agent() -> Agent {
    let client = ttrpc::r#async::Client::connect(&place().address).await.expect("connected");
    Agent {
        calls: AgentServiceClient::new(client.clone()),
        health: HealthClient::new(client.clone()),
        processes: ProcessesClient::new(client),
    }
}

pub(crate) fn new_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("c{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A specification like runc's default one.
pub(crate) fn spec(args: &[&str]) -> Value {
    let capabilities =
        ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETUID", "CAP_SETGID"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/",
            "env": ["PATH=/bin:/usr/bin", "TERM=xterm"],
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1000}],
            "noNewPrivileges": true
        },
        "root": {"path": place().rootfs, "readonly": true},
        "hostname": "the-container",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=1777"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "network"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
}

pub(crate) struct Output {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Agent {
    pub(crate) async fn create(&self, spec: &Value) -> Result<String, ttrpc::Error> {
        let id = new_id();
        let spec = serde_json::from_value(spec.clone()).expect("a specification");
        let request = CreateContainerRequest {
            container_id: id.clone(),
            OCI: Some(spec_to_proto(&spec).expect("converts")).into(),
            ..Default::default()
        };
        self.calls.create_container(context(), &request).await.map(|_| id)
    }

    pub(crate) async fn start(&self, id: &str) -> Result<(), ttrpc::Error> {
        let request = StartContainerRequest { container_id: id.to_owned(), ..Default::default() };
        self.calls.start_container(context(), &request).await.map(drop)
    }

    pub(crate) async fn run(&self, spec: &Value) -> String {
        let id = self.create(spec).await.expect("created");
        self.start(&id).await.expect("started");
        id
    }

    pub(crate) async fn remove(&self, id: &str) {
        let request = RemoveContainerRequest { container_id: id.to_owned(), ..Default::default() };
        self.calls.remove_container(context(), &request).await.expect("removed");
    }

    pub(crate) async fn exec(&self, id: &str, process: Value) -> Result<String, ttrpc::Error> {
        let exec_id = new_id();
        let process = serde_json::from_value(process).expect("a process");
        let request = ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.clone(),
            process: Some(process_to_proto(&process).expect("converts")).into(),
            ..Default::default()
        };
        self.calls.exec_process(context(), &request).await.map(|_| exec_id)
    }

    pub(crate) async fn wait(&self, id: &str, exec_id: &str) -> i32 {
        let request =
            WaitProcessRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned(), ..Default::default() };
        self.calls.wait_process(context(), &request).await.expect("waited").status
    }

    pub(crate) async fn signal(&self, id: &str, exec_id: &str, signal: u32) -> Result<(), ttrpc::Error> {
        let request = SignalProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            signal,
            ..Default::default()
        };
        self.calls.signal_process(context(), &request).await.map(drop)
    }

    async fn read(&self, id: &str, exec_id: &str, stderr: bool) -> Result<Vec<u8>, ttrpc::Error> {
        let request = ReadStreamRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            len: 1 << 20,
            ..Default::default()
        };
        let answer = if stderr {
            self.calls.read_stderr(context(), &request).await
        } else {
            self.calls.read_stdout(context(), &request).await
        };
        answer.map(|answer| answer.data)
    }

    /// All output until its end, which must be the agreed error.
    pub(crate) async fn read_all(&self, id: &str, exec_id: &str, stderr: bool) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.read(id, exec_id, stderr).await {
                Ok(data) => {
                    assert!(!data.is_empty(), "an answer without data");
                    all.extend(data);
                }
                Err(ttrpc::Error::RpcStatus(status)) => {
                    assert_eq!(status.code(), ttrpc::Code::OUT_OF_RANGE, "{status:?}");
                    return all;
                }
                Err(e) => panic!("{e}"),
            }
        }
    }

    pub(crate) async fn write(&self, id: &str, exec_id: &str, data: &[u8]) -> Result<(), ttrpc::Error> {
        let request = WriteStreamRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            data: data.to_vec(),
            ..Default::default()
        };
        self.calls.write_stdin(context(), &request).await.map(drop)
    }

    pub(crate) async fn close(&self, id: &str, exec_id: &str) {
        let request =
            CloseStdinRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned(), ..Default::default() };
        self.calls.close_stdin(context(), &request).await.expect("closed");
    }

    pub(crate) async fn output(&self, id: &str, exec_id: &str) -> Output {
        let (stdout, stderr) = tokio::join!(self.read_all(id, exec_id, false), self.read_all(id, exec_id, true));
        Output {
            status: self.wait(id, exec_id).await,
            stdout: String::from_utf8(stdout).expect("text"),
            stderr: String::from_utf8(stderr).expect("text"),
        }
    }

    /// Runs a container to its end and removes it.
    pub(crate) async fn run_to_end(&self, spec: &Value) -> Output {
        let id = self.run(spec).await;
        let output = self.output(&id, "").await;
        self.remove(&id).await;
        output
    }

    /// Runs a shell script in a container made from `change`d defaults.
    pub(crate) async fn script(&self, script: &str, change: impl FnOnce(&mut Value)) -> Output {
        let mut spec = spec(&["sh", "-c", script]);
        change(&mut spec);
        self.run_to_end(&spec).await
    }
}

/// A process for exec, from the container's own.
pub(crate) fn process(args: &[&str]) -> Value {
    spec(args)["process"].clone()
}
