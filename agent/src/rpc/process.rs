//! Processes of containers and their streams.

use std::sync::Arc;

use stockade_agent_protocol::agent::{
    CloseStdinRequest, ExecProcessRequest, ReadStreamRequest, ReadStreamResponse, SignalProcessRequest,
    TtyWinResizeRequest, WaitProcessRequest, WaitProcessResponse, WriteStreamRequest, WriteStreamResponse,
};
use stockade_agent_protocol::oci_convert::process_from_proto;
use ttrpc::Code;

use super::error::{RpcError, io_failure};
use crate::container::Process;
use crate::sandbox::Sandbox;
use crate::stdio::StreamError;

/// In place of a process's id: every process of the container. No id looks like this.
const EVERY_PROCESS: &str = "*";

fn find(sandbox: &Sandbox, container_id: &str, exec_id: &str) -> Result<Arc<Process>, RpcError> {
    Ok(sandbox.container(container_id)?.process(exec_id)?)
}

pub(super) async fn exec(sandbox: Arc<Sandbox>, request: ExecProcessRequest) -> Result<(), RpcError> {
    if request.stdin_port != 0 || request.stdout_port != 0 || request.stderr_port != 0 {
        return Err(RpcError::new(Code::UNIMPLEMENTED, "streams over ports are not implemented by this agent"));
    }
    let missing = || RpcError::new(Code::INVALID_ARGUMENT, "the request has no process");
    let process = process_from_proto(request.process.as_ref().ok_or_else(missing)?)?;
    let container = sandbox.container(&request.container_id)?;
    container
        .exec(&sandbox.launcher, &request.exec_id, process, request.string_user.as_ref(), sandbox.options.pipe_size)
        .await?;
    Ok(())
}

pub(super) fn signal(sandbox: &Sandbox, request: &SignalProcessRequest) -> Result<(), RpcError> {
    let bad = || RpcError::new(Code::INVALID_ARGUMENT, format!("{} is not a signal", request.signal));
    let signal = i32::try_from(request.signal).map_err(|_| bad())?;
    if !(0..=64).contains(&signal) {
        return Err(bad());
    }
    let container = sandbox.container(&request.container_id)?;
    if request.exec_id == EVERY_PROCESS {
        return Ok(container.signal_all(signal)?);
    }
    let names_init = request.exec_id.is_empty() || request.exec_id == request.container_id;
    if names_init && signal == libc::SIGKILL {
        // Also what would outlive init, in a pid namespace that it shares with others.
        return Ok(container.kill()?);
    }
    Ok(container.process(&request.exec_id)?.signal(signal)?)
}

pub(super) async fn wait(sandbox: &Sandbox, request: &WaitProcessRequest) -> Result<WaitProcessResponse, RpcError> {
    let process = find(sandbox, &request.container_id, &request.exec_id)?;
    let status = crate::reaper::wait(&mut process.exit.clone()).await;
    Ok(WaitProcessResponse { status, ..Default::default() })
}

pub(super) async fn write(sandbox: &Sandbox, request: WriteStreamRequest) -> Result<WriteStreamResponse, RpcError> {
    let process = find(sandbox, &request.container_id, &request.exec_id)?;
    process.stdin.write(&request.data, &process.exit).await?;
    let len = u32::try_from(request.data.len()).unwrap_or(u32::MAX);
    Ok(WriteStreamResponse { len, ..Default::default() })
}

/// Which output.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

pub(super) async fn read(
    sandbox: &Sandbox,
    request: &ReadStreamRequest,
    stream: Stream,
) -> Result<ReadStreamResponse, RpcError> {
    let process = find(sandbox, &request.container_id, &request.exec_id)?;
    let output = match stream {
        Stream::Stdout => process.stdout.as_ref(),
        Stream::Stderr => process.stderr.as_ref(),
    };
    // A terminal has one output only: the other has ended before it began.
    let output = output.ok_or(StreamError::End)?;
    let len = usize::try_from(request.len).unwrap_or(usize::MAX);
    let data = output.read(len, &process.exit).await?;
    Ok(ReadStreamResponse { data, ..Default::default() })
}

pub(super) async fn close(sandbox: &Sandbox, request: &CloseStdinRequest) -> Result<(), RpcError> {
    find(sandbox, &request.container_id, &request.exec_id)?.stdin.close().await;
    Ok(())
}

pub(super) fn resize(sandbox: &Sandbox, request: &TtyWinResizeRequest) -> Result<(), RpcError> {
    let process = find(sandbox, &request.container_id, &request.exec_id)?;
    let no_terminal = || RpcError::new(Code::FAILED_PRECONDITION, "the process has no terminal");
    let terminal = process.terminal.as_ref().ok_or_else(no_terminal)?;
    let size = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    crate::sys::set_window_size(terminal.fd(), size(request.row), size(request.column))
        .map_err(|errno| io_failure("resize the terminal")(errno.into()))
}
