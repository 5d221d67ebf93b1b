//! Step 1: the bundle, the annotations and the configuration become one validated plan. A bad spec ends here: nothing
//! was made.

use crate::error::{ErrorKind, OpError};
use crate::oci::{
    ContainerType, GuestSpec, GuestSpecOptions, NetworkRequest, RealHostFiles, Spec, container_type, guest_spec,
    load_spec, network_request, sandbox_shm_bytes, validate,
};
use crate::pipeline::{Step, UndoStack};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Reads and checks it.
#[derive(Debug)]
pub struct ReadBundle {
    /// The container's id.
    pub id: String,
    /// The bundle.
    pub bundle: PathBuf,
    /// Whether the guest applies seccomp profiles.
    pub seccomp: bool,
    /// How many CPUs the guest has, where that is known already.
    pub vcpus: Option<u32>,
}

/// A bundle that has been checked.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The host's specification.
    pub spec: Spec,
    /// The guest's, with what must be done for its mounts.
    pub guest: GuestSpec,
    /// Its annotations, sorted.
    pub annotations: BTreeMap<String, String>,
    /// A sandbox of its own, or one of a pod's containers.
    pub kind: ContainerType,
    /// The network that it asks for.
    pub network: NetworkRequest,
    /// The size of the sandbox's /dev/shm in bytes.
    pub shm_bytes: u64,
}

impl Step for ReadBundle {
    type Output = Bundle;
    const NAME: &'static str = "bundle";

    async fn run(self, _: &mut UndoStack) -> Result<Bundle, OpError> {
        let failed = |error| {
            let what = format!("cannot use the bundle {}", self.bundle.display());
            OpError::because(ErrorKind::InvalidArgument, what, error)
        };
        let spec = load_spec(&self.bundle).map_err(failed)?;
        validate(&spec, &self.bundle).map_err(failed)?;
        let options = GuestSpecOptions {
            seccomp: self.seccomp,
            vcpus: self.vcpus,
            ..GuestSpecOptions::new(&self.id, &self.bundle)
        };
        let guest = guest_spec(&spec, &options, &RealHostFiles).map_err(failed)?;
        for warning in &guest.warnings {
            tracing::warn!("{warning}");
        }
        Ok(Bundle {
            kind: container_type(spec.annotations().as_ref()).map_err(failed)?,
            network: network_request(&spec),
            shm_bytes: sandbox_shm_bytes(&spec, &self.bundle, &RealHostFiles),
            annotations: spec.annotations().clone().unwrap_or_default().into_iter().collect(),
            guest,
            spec,
        })
    }
}
