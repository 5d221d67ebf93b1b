//! Life and limits of containers.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use stockade_agent_protocol::agent::{
    CreateContainerRequest, PauseContainerRequest, RemoveContainerRequest, ResumeContainerRequest,
    StartContainerRequest, UpdateContainerRequest,
};
use stockade_agent_protocol::oci_convert::{resources_from_proto, spec_from_proto};
use tokio::io::Interest;
use ttrpc::Code;

use super::error::RpcError;
use crate::cgroup::pairs;
use crate::container::guest_hooks::Kind;
use crate::container::{self, Container, spec};
use crate::mounts;
use crate::sandbox::Sandbox;

pub(super) async fn create(sandbox: Arc<Sandbox>, request: CreateContainerRequest) -> Result<(), RpcError> {
    let id = request.container_id.clone();
    sandbox.reserve(&id)?;
    match try_create(&sandbox, request).await {
        Ok(container) => {
            tokio::spawn(watch_memory(Arc::clone(&sandbox), Arc::clone(&container)));
            sandbox.insert(container);
            Ok(())
        }
        Err(e) => {
            sandbox.forget(&id);
            Err(e)
        }
    }
}

async fn try_create(sandbox: &Sandbox, request: CreateContainerRequest) -> Result<Arc<Container>, RpcError> {
    if request.stdin_port != 0 || request.stdout_port != 0 || request.stderr_port != 0 {
        return Err(RpcError::new(Code::UNIMPLEMENTED, "streams over ports are not implemented by this agent"));
    }
    if !request.shared_mounts.is_empty() {
        return Err(RpcError::new(Code::UNIMPLEMENTED, "shared mounts are not implemented by this agent"));
    }
    let missing = || RpcError::new(Code::INVALID_ARGUMENT, "the request has no OCI specification");
    let specification = spec_from_proto(request.OCI.as_ref().ok_or_else(missing)?)?;
    let limit = sandbox.options.hotplug_timeout;
    for device in request.devices.iter().filter(|device| !device.vm_path.is_empty()) {
        mounts::wait_for_device(Path::new(&device.vm_path), limit).await?;
    }
    let storages = mounts::add_all(&sandbox.storages, &request.storages, limit).await?;
    let release = || {
        let mut mounted = sandbox.storages.lock().unwrap_or_else(PoisonError::into_inner);
        storages.iter().rev().for_each(|point| mounted.release(point));
    };
    let cgroup = crate::cgroup::Cgroup::of_container(&request.container_id);
    let prepared = spec::prepare(
        specification,
        &cgroup,
        request.string_user.as_ref(),
        &request.devices,
        &sandbox.surroundings(request.sandbox_pidns),
    )
    .inspect_err(|_| release())?;
    let pipe_size = sandbox.options.pipe_size;
    container::create(&sandbox.launcher, &request.container_id, prepared, storages.clone(), pipe_size)
        .await
        .inspect_err(|_| release())
        .map_err(RpcError::from)
}

pub(super) async fn start(sandbox: Arc<Sandbox>, request: StartContainerRequest) -> Result<(), RpcError> {
    let container = sandbox.container(&request.container_id)?;
    container.start().await?;
    sandbox.run_guest_hooks(Kind::Poststart, &container).await;
    Ok(())
}

pub(super) async fn remove(sandbox: Arc<Sandbox>, request: RemoveContainerRequest) -> Result<(), RpcError> {
    let container = sandbox.container(&request.container_id)?;
    let limit = (request.timeout > 0).then(|| Duration::from_secs(request.timeout.into()));
    container.remove(limit).await?;
    sandbox.run_guest_hooks(Kind::Poststop, &container).await;
    let mut mounted = sandbox.storages.lock().unwrap_or_else(PoisonError::into_inner);
    container.storages.iter().rev().for_each(|point| mounted.release(point));
    drop(mounted);
    sandbox.forget(&request.container_id);
    Ok(())
}

pub(super) async fn update(sandbox: &Sandbox, request: &UpdateContainerRequest) -> Result<(), RpcError> {
    let container = sandbox.container(&request.container_id)?;
    let missing = || RpcError::new(Code::INVALID_ARGUMENT, "the request has no resources");
    let resources = resources_from_proto(request.resources.as_ref().ok_or_else(missing)?)?;
    Ok(container.update(resources).await?)
}

pub(super) async fn pause(sandbox: Arc<Sandbox>, request: PauseContainerRequest) -> Result<(), RpcError> {
    Ok(sandbox.container(&request.container_id)?.pause().await?)
}

pub(super) async fn resume(sandbox: Arc<Sandbox>, request: ResumeContainerRequest) -> Result<(), RpcError> {
    Ok(sandbox.container(&request.container_id)?.resume().await?)
}

/// Tells of processes that the kernel kills for want of memory, as long as the container lives.
async fn watch_memory(sandbox: Arc<Sandbox>, container: Arc<Container>) {
    if let Err(e) = try_watch_memory(&sandbox, &container).await {
        crate::log::debug!("memory shortages of container {:?} are not watched: {e}", container.id);
    }
}

async fn try_watch_memory(sandbox: &Sandbox, container: &Container) -> std::io::Result<()> {
    let file = File::open(container.cgroup.file("memory.events"))?;
    let file = crate::sys::watch_changes(file.into())?;
    // Reading it takes the news away, so it is this descriptor that must be read.
    let killed = || {
        let mut text = [0; 4096];
        let length = nix::sys::uio::pread(file.get_ref(), &mut text, 0).unwrap_or(0);
        let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
        pairs(&text).find(|(key, _)| *key == "oom_kill").map_or(0, |(_, count)| count)
    };
    let (mut known, mut ended) = (0, false);
    let mut exit = container.init.exit.clone();
    loop {
        let now = killed();
        if now > known {
            known = now;
            // With nobody fetching, the oldest events are kept.
            let _ = sandbox.oom_sender.try_send(container.id.clone());
        }
        if ended {
            return Ok(());
        }
        ended = tokio::select! {
            changed = file.ready(Interest::PRIORITY) => { changed?.clear_ready(); false }
            _ = crate::reaper::wait(&mut exit) => true,
        };
    }
}
