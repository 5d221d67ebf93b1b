//! `stockade exec`.

use super::client::{Connection, LONG_CALL, SHORT_CALL, answer};
use super::container::{current, supervisor_of};
use super::foreground::{start, start_and_attend, status_of};
use super::globals::Context;
use super::process::{Overrides, build};
use super::{console, pid_file};
use crate::api::descriptor_of_process;
use crate::ids::{ContainerId, ExecId};
use crate::oci::{self, Process, Status};
use crate::stand_in::{Signals, StandIn, StandInNetwork, StandInOptions, Subject};
use crate::state::ContainerRecord;
use anyhow::{Context as _, bail};
use containerd_shim_protos::api::{DeleteRequest, ExecProcessRequest};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};
use ttrpc::context::with_duration;

/// What containerd names an OCI process in an `Any`.
const PROCESS_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Run a further process in a running container
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The container
    #[arg(value_name = "CONTAINER")]
    id: ContainerId,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// File with the process as JSON, in place of the command and what describes it
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Give the process a terminal
    #[arg(short, long)]
    tty: bool,
    /// Return when the process is started
    #[arg(short, long)]
    detach: bool,
    /// File that the pid of the process' stand-in is written to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Unix socket that the master end of the process' terminal is sent to
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    /// Further descriptors for the process; they cannot cross into a virtual machine
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Taken for compatibility: the guest labels nothing
    #[arg(long, value_name = "LABEL", hide = true)]
    process_label: Option<String>,
    /// Taken for compatibility: the guest has no profiles
    #[arg(long, value_name = "PROFILE", hide = true)]
    apparmor: Option<String>,
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        self.exec(context).context("exec failed")
    }

    fn exec(self, context: &Context) -> super::Outcome {
        if self.preserve_fds > 0 {
            context.report.warning("--preserve-fds has no effect: descriptors cannot cross into a virtual machine");
        }
        let record = context.runtime.block_on(current(context, &self.id))?;
        match record.status {
            Status::Running | Status::Created => {}
            Status::Paused => bail!("cannot exec in a paused container"),
            Status::Creating => bail!("cannot exec in a container that is being created"),
            Status::Stopped => bail!("cannot exec in a stopped container"),
        }
        let process = self.process(&record)?;
        let terminal = process.terminal().unwrap_or(false);
        self.check_terminal(terminal)?;
        let (_, connection) = context.runtime.block_on(supervisor_of(context, &self.id, "exec in"))?;
        let subject = Subject { container: self.id.clone(), exec: Some(new_exec_id()?) };
        if self.detach {
            self.detached(context, &record, &connection, &subject, &process)
        } else {
            self.attached(context, &connection, &subject, &process)
        }
    }

    fn process(&self, record: &ContainerRecord) -> anyhow::Result<Process> {
        let mut process = match &self.process {
            Some(path) => oci::load_process(path)?,
            None => {
                let own = oci::load_spec(&record.bundle)?.process().clone();
                let own = own.context("the container's config.json has no process to go by; give --process")?;
                build(own, &self.command, self.tty, &self.overrides)?
            }
        };
        if self.tty {
            process.set_terminal(Some(true));
        }
        oci::validate_process(&process)?;
        Ok(process)
    }

    fn check_terminal(&self, terminal: bool) -> anyhow::Result<()> {
        match (terminal, self.detach, &self.console_socket) {
            (true, true, None) => bail!("a detached process with a terminal needs --console-socket"),
            (_, false, Some(_)) => bail!("--console-socket is for a detached process"),
            (false, _, Some(_)) => bail!("--console-socket is given, but the process has no terminal"),
            _ => Ok(()),
        }
    }

    /// This process holds the descriptors and waits.
    fn attached(
        &self,
        context: &Context,
        connection: &Connection,
        subject: &Subject,
        process: &Process,
    ) -> super::Outcome {
        let signals = Signals::block()?;
        let pid = std::process::id().cast_signed();
        context.runtime.block_on(add(connection, subject, process, pid))?;
        if let Some(path) = &self.pid_file
            && let Err(error) = pid_file::write(path, pid)
        {
            context.runtime.block_on(remove(context, connection, subject));
            return Err(error);
        }
        let terminal = process.terminal().unwrap_or(false);
        let outcome = start_and_attend(context, connection, subject, terminal, signals);
        context.runtime.block_on(remove(context, connection, subject));
        Ok(ExitCode::from(status_of(outcome?)))
    }

    /// A stand-in does.
    fn detached(
        &self,
        context: &Context,
        record: &ContainerRecord,
        connection: &Connection,
        subject: &Subject,
        process: &Process,
    ) -> super::Outcome {
        // The stand-in is to inherit it, so that no signal ends it before the process has it.
        let _signals = Signals::block()?;
        let terminal = match &self.console_socket {
            Some(socket) => {
                let size = process.console_size();
                let size = size.and_then(|size| Some((size.width().try_into().ok()?, size.height().try_into().ok()?)));
                Some(console::open(socket, size)?)
            }
            None => None,
        };
        let mut stand_in = StandIn::spawn(StandInOptions {
            root: context.store.root(),
            sandbox: &record.sandbox,
            container: &subject.container,
            exec: subject.exec.as_ref(),
            bundle: None,
            network: StandInNetwork::Stay,
            terminal,
        })
        .and_then(|mut stand_in| stand_in.wait_ready().map(|()| stand_in))
        .context("cannot start the process' stand-in")?;
        context.runtime.block_on(add(connection, subject, process, stand_in.pid()))?;
        let started = stand_in
            .attach()
            .context("the process' stand-in ended at once")
            .and_then(|()| context.runtime.block_on(start(connection, subject)))
            .and_then(|()| match &self.pid_file {
                Some(path) => pid_file::write(path, stand_in.pid()),
                None => Ok(()),
            });
        if let Err(error) = started {
            context.runtime.block_on(remove(context, connection, subject));
            return Err(error);
        }
        if process.terminal().unwrap_or(false) {
            // It may have been too young to take the terminal's size before. The stand-in may have ended with it.
            let _ = kill(Pid::from_raw(stand_in.pid()), Signal::SIGWINCH);
        }
        stand_in.commit();
        Ok(ExitCode::SUCCESS)
    }
}

/// Makes the process known; its standard streams are the descriptors 0, 1 and 2 of process `pid`.
async fn add(connection: &Connection, subject: &Subject, process: &Process, pid: i32) -> anyhow::Result<()> {
    let terminal = process.terminal().unwrap_or(false);
    let value = serde_json::to_vec(process)?;
    let request = ExecProcessRequest {
        id: subject.container.to_string(),
        exec_id: subject.exec_id(),
        terminal,
        stdin: descriptor_of_process(pid, 0),
        stdout: descriptor_of_process(pid, 1),
        stderr: if terminal { String::new() } else { descriptor_of_process(pid, 2) },
        spec: MessageField::some(Any { type_url: PROCESS_URL.to_owned(), value, ..Any::default() }),
        ..ExecProcessRequest::default()
    };
    answer("Exec", connection.task.exec(with_duration(LONG_CALL), &request).await)?;
    Ok(())
}

/// Forgets a process that has ended or never began.
async fn remove(context: &Context, connection: &Connection, subject: &Subject) {
    let request =
        DeleteRequest { id: subject.container.to_string(), exec_id: subject.exec_id(), ..DeleteRequest::default() };
    if let Err(error) = answer("Delete", connection.task.delete(with_duration(SHORT_CALL), &request).await)
        && !error.is_not_found()
        && !error.is_gone()
    {
        context.report.debug(&format!("cannot forget the process {}: {error}", subject.exec_id()));
    }
}

/// An id that no other process of the container has: this process' number, and the time for when that comes again.
fn new_exec_id() -> anyhow::Result<ExecId> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(format!("exec-{}-{}", std::process::id(), now.as_nanos()).parse()?)
}
