//! Creating a container, for `create` and `run`.
//!
//! ```text
//! bundle ─> whose sandbox? ─> stand-in ─> supervisor (a new one, or the pod's) ─> Create ─> stand-in attaches
//!                                                                                   ─> pid file ─> stand-in commits
//! ```
//! Up to the last step, whatever fails takes all of it back, and so does a signal to this process.

use super::client::{self, CallError, Connection, LONG_CALL, answer};
use super::container::{END_LIMIT, End, clean_up};
use super::globals::{Context, absolute};
use super::{console, pid_file, progress};
use crate::api::{CREATE_OPTIONS_URL, CreateOptions, descriptor_of_process};
use crate::ids::{ContainerId, SandboxId};
use crate::oci::{self, ContainerType, NetworkRequest, Spec};
use crate::stand_in::{Signals, StandIn, StandInNetwork, StandInOptions};
use crate::state::recovery::{self, Supervision};
use crate::state::{StateError, Store};

use crate::supervise::launch;
use crate::supervise::startup::{LogFormat, Startup};
use anyhow::{Context as _, bail};
use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse, DeleteRequest};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;
use stockade_config::Loaded;
use ttrpc::context::with_duration;

/// The supervisor's own limit comes first, then its rolling back.
const CREATE_MARGIN: Duration = Duration::from_secs(60);

/// Options that `create` and `run` share.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct CreationOptions {
    /// Name of the container, unique under --root
    #[arg(value_name = "CONTAINER")]
    pub id: ContainerId,
    /// Directory of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Unix socket that the master end of the container's terminal is sent to
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File that the pid of the container's stand-in is written to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// File that the steps of the creation and their times are written to, as JSON lines
    #[arg(long, value_name = "FILE")]
    pub timeline: Option<PathBuf>,
    /// Further descriptors for the container; they cannot cross into a virtual machine
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Taken for compatibility: the guest pivots into the root
    #[arg(long)]
    pub no_pivot: bool,
    /// Taken for compatibility: the guest has its own keyrings
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Taken for compatibility; ignored
    #[arg(long, hide = true)]
    pub no_subreaper: bool,
}

/// A container that is created.
#[derive(Debug)]
pub(super) struct Created {
    /// To its supervisor.
    pub connection: Connection,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// The stand-in; `None` when it has ended.
    pub stand_in: Option<Child>,
}

/// Creates the container. `detached`: its terminal goes to a console socket, not to the caller's own.
pub(super) fn create(
    context: &Context,
    options: &CreationOptions,
    detached: bool,
    signals: &Signals,
) -> anyhow::Result<Created> {
    if context.store.container(&options.id).is_ok() {
        return Err(StateError::Exists(options.id.clone()).into());
    }
    if options.preserve_fds > 0 {
        context.report.warning("--preserve-fds has no effect: descriptors cannot cross into a virtual machine");
    }
    let bundle = options
        .bundle
        .canonicalize()
        .with_context(|| format!("cannot find the bundle {}", options.bundle.display()))?;
    let spec = oci::load_spec(&bundle)?;
    let loaded = context.config()?;
    let (sandbox, new) = sandbox_of(&context.store, &options.id, &spec)?;
    let terminal = spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false);
    check_terminal(terminal, detached, options.console_socket.is_some())?;

    let slave = match &options.console_socket {
        Some(socket) => Some(console::open(socket, console_size(&spec))?),
        None => None,
    };
    let asked = oci::network_request(&spec);
    let network = match &asked {
        _ if loaded.config.runtime.disable_new_netns => StandInNetwork::Stay,
        NetworkRequest::Join(path) => StandInNetwork::Join(path),
        NetworkRequest::Create if new => StandInNetwork::New,
        NetworkRequest::Create | NetworkRequest::Host => StandInNetwork::Stay,
    };
    let mut stand_in = StandIn::spawn(StandInOptions {
        network,
        root: context.store.root(),
        sandbox: &sandbox,
        container: &options.id,
        exec: None,
        bundle: Some(&bundle),
        terminal: slave,
    })
    .context("cannot start the container's stand-in")?;
    if new {
        launch(&startup(context, &sandbox, &loaded))?;
    }
    let supervisor = End::of_supervisor(&context.store, &sandbox);
    let made = (|| {
        stand_in.wait_ready().context("the container's stand-in did not start")?;
        let request = request(context, options, &bundle, terminal, stand_in.pid())?;
        let limit = loaded.config.runtime.create_timeout + CREATE_MARGIN;
        let connection = context.runtime.block_on(call(context, &sandbox, &request, limit, signals))?;
        let settled =
            stand_in.attach().context("the container's stand-in failed").and_then(|()| match &options.pid_file {
                Some(path) => pid_file::write(path, stand_in.pid()),
                None => Ok(()),
            });
        if let Err(error) = settled {
            take_back(context, &connection, &options.id);
            return Err(error);
        }
        Ok(connection)
    })();
    match made {
        Ok(connection) => Ok(Created { connection, terminal, stand_in: stand_in.commit() }),
        Err(error) => {
            drop(stand_in);
            if new {
                see_off(context, &sandbox, supervisor);
            }
            Err(error)
        }
    }
}

/// The sandbox that the container belongs to, and whether it must be made.
fn sandbox_of(store: &Store, id: &ContainerId, spec: &Spec) -> anyhow::Result<(SandboxId, bool)> {
    match oci::container_type(spec.annotations().as_ref())? {
        ContainerType::Sandbox => Ok((id.clone().into(), true)),
        ContainerType::Container { sandbox_id } => {
            let sandbox: SandboxId = sandbox_id.parse().context("the annotated sandbox id")?;
            if recovery::supervision(store, &sandbox)? == Supervision::Dead {
                bail!("container {id} belongs to sandbox {sandbox}, which does not exist or has ended");
            }
            Ok((sandbox, false))
        }
    }
}

fn check_terminal(terminal: bool, detached: bool, socket: bool) -> anyhow::Result<()> {
    match (terminal, detached, socket) {
        (true, true, false) => bail!("process.terminal is set: a detached container needs --console-socket"),
        (true, false, true) => bail!("--console-socket is for a detached container"),
        (false, _, true) => bail!("--console-socket is given, but process.terminal is not set"),
        _ => Ok(()),
    }
}

fn console_size(spec: &Spec) -> Option<(u16, u16)> {
    let size = spec.process().as_ref()?.console_size()?;
    Some((u16::try_from(size.width()).ok()?, u16::try_from(size.height()).ok()?))
}

fn startup(context: &Context, sandbox: &SandboxId, loaded: &Loaded) -> Startup {
    let globals = &context.globals;
    // An engine that wants JSON takes the whole of its log for the one error of a failed verb.
    let shared_log = globals.debug || globals.log_format() == LogFormat::Text;
    Startup {
        root: globals.root.clone(),
        sandbox: sandbox.clone(),
        config: loaded.clone(),
        // The stand-in makes it, meanwhile.
        new_netns: false,
        log: globals.supervisor_log.clone().or_else(|| globals.log.clone().filter(|_| shared_log)),
        log_format: globals.log_format(),
        debug: globals.debug,
        inject_failure: globals.inject_failure.clone(),
        containerd: None,
    }
}

fn request(
    context: &Context,
    options: &CreationOptions,
    bundle: &Path,
    terminal: bool,
    stand_in: i32,
) -> anyhow::Result<CreateTaskRequest> {
    let timeline = match &options.timeline {
        Some(path) => absolute(path)?.to_str().context("--timeline must be UTF-8")?.to_owned(),
        None => String::new(),
    };
    let create_options = CreateOptions {
        stand_in_pid: stand_in,
        systemd_cgroup: context.globals.systemd_cgroup,
        timeline,
        ..CreateOptions::default()
    };
    let value = create_options.write_to_bytes()?;
    let stderr = if terminal { String::new() } else { descriptor_of_process(stand_in, 2) };
    Ok(CreateTaskRequest {
        id: options.id.to_string(),
        bundle: bundle.to_str().context("the bundle's path must be UTF-8")?.to_owned(),
        terminal,
        stdin: descriptor_of_process(stand_in, 0),
        stdout: descriptor_of_process(stand_in, 1),
        stderr,
        options: MessageField::some(Any { type_url: CREATE_OPTIONS_URL.to_owned(), value, ..Any::default() }),
        ..CreateTaskRequest::default()
    })
}

/// Makes the call. A signal that asks for an end, and the end of our patience, delete what was begun.
async fn call(
    context: &Context,
    sandbox: &SandboxId,
    request: &CreateTaskRequest,
    limit: Duration,
    signals: &Signals,
) -> anyhow::Result<Connection> {
    let connection = client::connect(&context.store, sandbox).await?;
    let signals = signals.reader()?;
    let mut creating =
        Box::pin(async { answer("Create", connection.task.create(with_duration(limit), request).await) });
    let id: ContainerId = request.id.parse()?;
    let created: Result<CreateTaskResponse, CallError> = tokio::select! {
        created = &mut creating => created,
        never = progress::show(&connection, &id) => match never {},
        signal = signals.next_ending() => {
            let signal = signal?;
            context.report.debug(&format!("{signal} ends the creation"));
            let (_created, deleted) = tokio::join!(creating, delete(&connection, &id));
            return match deleted {
                Err(error) if !error.is_not_found() => Err(error).context(format!("{signal} came during the creation, which could not be taken back")),
                _ => bail!("{signal} ended the creation of container {id}; it was rolled back"),
            };
        }
    };
    drop(creating);
    if let Err(CallError::Deadline { .. }) = &created {
        take_back_async(context, &connection, &id).await;
    }
    created?;
    Ok(connection)
}

async fn delete(connection: &Connection, id: &ContainerId) -> Result<(), CallError> {
    let request = DeleteRequest { id: id.to_string(), ..DeleteRequest::default() };
    answer("Delete", connection.task.delete(with_duration(LONG_CALL), &request).await).map(drop)
}

fn take_back(context: &Context, connection: &Connection, id: &ContainerId) {
    context.runtime.block_on(take_back_async(context, connection, id));
}

async fn take_back_async(context: &Context, connection: &Connection, id: &ContainerId) {
    match delete(connection, id).await {
        Err(error) if !error.is_not_found() => {
            context.report.warning(&format!("cannot take back container {id}: {error}"))
        }
        _ => {}
    }
}

/// Waits until the supervisor of a sandbox that failed has ended, and cleans up if it did not do so itself.
fn see_off(context: &Context, sandbox: &SandboxId, supervisor: Option<End>) {
    if let Some(end) = supervisor
        && !end.wait(END_LIMIT)
    {
        context.report.warning(&format!("the supervisor of sandbox {sandbox} still rolls back"));
        return;
    }
    if context.store.sandbox_dir(sandbox).exists()
        && recovery::supervision(&context.store, sandbox).is_ok_and(|is| is == Supervision::Dead)
        && let Err(error) = clean_up(context, sandbox)
    {
        context.report.warning(&format!("{error:#}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_needs_a_console_socket_exactly_when_detached() {
        for (terminal, detached, socket, ok) in [
            (true, true, true, true),
            (true, true, false, false),
            (true, false, false, true),
            (true, false, true, false),
            (false, true, false, true),
            (false, true, true, false),
            (false, false, false, true),
        ] {
            assert_eq!(check_terminal(terminal, detached, socket).is_ok(), ok, "{terminal} {detached} {socket}");
        }
    }

    #[test]
    fn a_container_of_a_pod_needs_the_pods_sandbox() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        let id: ContainerId = "c".parse().unwrap();
        let spec = |annotations: &str| {
            let text = format!(r#"{{"ociVersion":"1.2.0","annotations":{annotations}}}"#);
            serde_json::from_str::<Spec>(&text).unwrap()
        };
        assert_eq!(sandbox_of(&store, &id, &spec("{}")).unwrap(), (id.clone().into(), true));
        let pod = r#"{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"pod"}"#;
        let error = sandbox_of(&store, &id, &spec(pod)).unwrap_err();
        assert!(error.to_string().contains("sandbox pod"), "{error}");
    }
}
