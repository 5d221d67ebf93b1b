//! The sandbox as a whole.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use stockade_agent_protocol::agent::{CreateSandboxRequest, KernelModule, OOMEvent};
use ttrpc::Code;

use super::error::{RpcError, io_failure};
use crate::mounts;
use crate::sandbox::{Sandbox, write_resolv_conf};

pub(super) async fn create(sandbox: Arc<Sandbox>, request: CreateSandboxRequest) -> Result<(), RpcError> {
    if !request.hostname.is_empty() {
        nix::unistd::sethostname(&request.hostname).map_err(|errno| io_failure("set the host name")(errno.into()))?;
    }
    for module in &request.kernel_modules {
        load_module(&sandbox, module).await?;
    }
    if !request.dns.is_empty() {
        let file = write_resolv_conf(&request.dns).map_err(io_failure("write resolv.conf"))?;
        sandbox.change_surroundings(|surroundings| surroundings.resolv_conf = Some(file));
    }
    if !request.guest_hook_path.is_empty() {
        let dir = PathBuf::from(&request.guest_hook_path);
        sandbox.change_surroundings(|surroundings| surroundings.guest_hooks = Some(dir));
    }
    if request.sandbox_pidns {
        sandbox.share_pid_namespace().await.map_err(io_failure("make the shared pid namespace"))?;
    }
    let limit = sandbox.options.hotplug_timeout;
    mounts::add_all(&sandbox.storages, &request.storages, limit).await?;
    crate::log::info!("sandbox {:?} created", request.sandbox_id);
    Ok(())
}

/// Answers, then ends the machine.
pub(super) async fn destroy(sandbox: Arc<Sandbox>) -> Result<(), RpcError> {
    let torn_down = sandbox.tear_down().await;
    nix::unistd::sync();
    sandbox.ended.notify_one();
    Ok(torn_down?)
}

pub(super) async fn oom_event(sandbox: &Sandbox) -> Result<OOMEvent, RpcError> {
    let event = sandbox.oom_events.lock().await.recv().await;
    let container_id = event.ok_or_else(|| RpcError::new(Code::CANCELLED, "the sandbox ends"))?;
    Ok(OOMEvent { container_id, ..Default::default() })
}

async fn load_module(sandbox: &Sandbox, module: &KernelModule) -> Result<(), RpcError> {
    let known = module.name.replace('-', "_");
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if known.is_empty() || !known.chars().all(plain) {
        return Err(RpcError::new(Code::INVALID_ARGUMENT, format!("{:?} is not a module's name", module.name)));
    }
    if PathBuf::from("/sys/module").join(&known).exists() {
        return Ok(());
    }
    let modprobe = Command::new("/sbin/modprobe")
        .arg("--")
        .arg(&module.name)
        .args(&module.parameters)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(io_failure(format_args!("load module {:?} with /sbin/modprobe", module.name)))?;
    let mut exit = sandbox.reaper.register(modprobe.id().cast_signed());
    match crate::reaper::wait(&mut exit).await {
        0 => Ok(()),
        status => {
            Err(RpcError::new(Code::INTERNAL, format!("modprobe of {:?} ended with status {status}", module.name)))
        }
    }
}
