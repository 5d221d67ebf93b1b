//! Step 9, the host's part: the share, and the container's root and volumes in it.

use super::Rootfs;
use crate::error::OpError;
use crate::oci::{BindShare, MountKind, MountPlan, VolumePlan};
use crate::pipeline::{Step, UndoStack};
use crate::state::UndoRecord;
use crate::storage::{MountFlags, bind, prepare_share};
use std::path::PathBuf;
use stockade_agent_protocol::agent::{FSGroup, Storage};

/// Makes the sandbox's share, before the machine that serves it.
#[derive(Debug)]
pub struct MakeShare {
    /// Where: in the sandbox's directory.
    pub directory: PathBuf,
}

impl Step for MakeShare {
    type Output = PathBuf;
    const NAME: &'static str = "share";

    async fn run(self, undo: &mut UndoStack) -> Result<PathBuf, OpError> {
        undo.push(UndoRecord::Unmount { path: self.directory.clone() })?;
        prepare_share(&self.directory)?;
        Ok(self.directory)
    }
}

/// Binds a container's root and volumes into the share.
#[derive(Debug)]
pub struct ShareFiles {
    /// The share on the host.
    pub share: PathBuf,
    /// The container's id.
    pub id: String,
    /// Its root.
    pub rootfs: Rootfs,
    /// Its mounts.
    pub mounts: Vec<MountPlan>,
}

/// What the agent mounts for the container.
#[derive(Debug)]
pub struct SharedContainer {
    /// In the order of the mounts.
    pub storages: Vec<Storage>,
}

impl Step for ShareFiles {
    type Output = SharedContainer;
    const NAME: &'static str = "share-files";

    async fn run(self, undo: &mut UndoStack) -> Result<SharedContainer, OpError> {
        let directory = self.share.join(&self.id);
        undo.push(UndoRecord::RemoveTree { path: directory.clone() })?;
        let root = directory.join("rootfs");
        undo.push(UndoRecord::Unmount { path: root.clone() })?;
        bind(&self.rootfs.path, &root, MountFlags::empty())?;
        let mut storages = Vec::new();
        for plan in self.mounts {
            match plan.kind {
                MountKind::GuestFilesystem | MountKind::GuestPath | MountKind::SandboxShm { .. } => {}
                MountKind::Bind(share) => {
                    let target = self.share.join(&share.share_name);
                    undo.push(UndoRecord::RemoveTree { path: target.clone() })?;
                    bind(&share.source, &target, flags(&share))?;
                }
                MountKind::Ephemeral(volume) => storages.push(ephemeral(&volume)),
                MountKind::Local(volume) => storages.push(local(&volume)),
            }
        }
        Ok(SharedContainer { storages })
    }
}

fn flags(share: &BindShare) -> MountFlags {
    // The guest's own options are applied in the guest; read-only holds here too, whatever a hostile guest does.
    if share.read_only { MountFlags::MS_RDONLY } else { MountFlags::empty() }
}

/// A tmpfs in the guest, made once for the pod (Kata's driver `ephemeral`).
fn ephemeral(volume: &VolumePlan) -> Storage {
    let mut storage = Storage::new();
    storage.driver = "ephemeral".into();
    storage.source = "tmpfs".into();
    storage.fstype = "tmpfs".into();
    storage.mount_point = volume.guest_path.display().to_string();
    if volume.bytes > 0 {
        storage.options.push(format!("size={}", volume.bytes));
    }
    storage.fs_group = group(volume);
    storage
}

/// A directory in the guest, made once for the pod (Kata's driver `local`).
fn local(volume: &VolumePlan) -> Storage {
    let mut storage = Storage::new();
    storage.driver = "local".into();
    storage.source = "local".into();
    storage.fstype = "local".into();
    storage.mount_point = volume.guest_path.display().to_string();
    storage.options.push("mode=0777".into());
    storage.fs_group = group(volume);
    storage
}

fn group(volume: &VolumePlan) -> protobuf::MessageField<FSGroup> {
    volume.gid.map_or_else(protobuf::MessageField::none, |gid| {
        let mut group = FSGroup::new();
        group.group_id = gid;
        protobuf::MessageField::some(group)
    })
}

/// The pod's shared memory, once for the sandbox.
pub(in crate::pipeline) fn sandbox_shm(bytes: u64) -> Storage {
    let mut storage = Storage::new();
    storage.driver = "ephemeral".into();
    storage.source = "shm".into();
    storage.fstype = "tmpfs".into();
    storage.options = ["noexec", "nosuid", "nodev", "mode=1777"]
        .map(str::to_owned)
        .into_iter()
        .chain([format!("size={bytes}")])
        .collect();
    storage.mount_point = "/run/kata-containers/sandbox/shm".into();
    storage
}

/// The share itself, mounted by the agent.
pub(in crate::pipeline) fn guest_share() -> Storage {
    let mut storage = Storage::new();
    storage.driver = "virtio-fs".into();
    storage.source = crate::storage::SHARE_TAG.into();
    storage.fstype = "virtiofs".into();
    storage.mount_point = crate::storage::GUEST_SHARE.into();
    storage
}
