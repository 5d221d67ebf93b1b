//! Step 1: the bundle, the annotations and the configuration become one validated plan. A bad spec ends here: nothing
//! was made.

use crate::error::{ErrorKind, OpError};
use crate::oci::{
    ContainerType, GuestSpec, GuestSpecOptions, Hook, NetworkRequest, RealHostFiles, Spec, container_type, guest_spec,
    load_spec, network_request, sandbox_dns, sandbox_shm_bytes, validate,
};
use crate::pipeline::{Step, UndoStack};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

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
    /// The time limit of hooks that name none; zero: none.
    pub hook_timeout: Duration,
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
    /// The sandbox's name servers, as lines of resolv.conf.
    pub dns: Vec<String>,
}

impl Step for ReadBundle {
    type Output = Bundle;
    const NAME: &'static str = "bundle";

    async fn run(self, _: &mut UndoStack) -> Result<Bundle, OpError> {
        let failed = |error| {
            let what = format!("cannot use the bundle {}", self.bundle.display());
            OpError::because(ErrorKind::InvalidArgument, what, error)
        };
        let mut spec = load_spec(&self.bundle).map_err(failed)?;
        validate(&spec, &self.bundle).map_err(failed)?;
        limit_hooks(&mut spec, self.hook_timeout);
        let options = GuestSpecOptions {
            seccomp: self.seccomp,
            vcpus: self.vcpus,
            ..GuestSpecOptions::new(&self.id, &self.bundle)
        };
        let guest = guest_spec(&spec, &options, &RealHostFiles).map_err(failed)?;
        for warning in &guest.warnings {
            tracing::warn!("{warning}");
        }
        let dns = sandbox_dns(&spec, &self.bundle).unwrap_or_else(|error| {
            tracing::warn!(%error, "the guest itself gets no name servers: cannot read the resolv.conf of config.json");
            Vec::new()
        });
        Ok(Bundle {
            dns,
            kind: container_type(spec.annotations().as_ref()).map_err(failed)?,
            network: network_request(&spec),
            shm_bytes: sandbox_shm_bytes(&spec, &self.bundle, &RealHostFiles),
            annotations: spec.annotations().clone().unwrap_or_default().into_iter().collect(),
            guest,
            spec,
        })
    }
}

/// Gives hooks that name no time limit the configured one.
fn limit_hooks(spec: &mut Spec, limit: Duration) {
    let Some(seconds) = i64::try_from(limit.as_secs()).ok().filter(|seconds| *seconds > 0) else { return };
    let Some(hooks) = spec.hooks_mut() else { return };
    let limited = |list: &Option<Vec<Hook>>| -> Option<Vec<Hook>> {
        let mut list = list.clone()?;
        for hook in list.iter_mut().filter(|hook| hook.timeout().is_none()) {
            hook.set_timeout(Some(seconds));
        }
        Some(list)
    };
    #[allow(deprecated, reason = "the OCI runtime specification still has prestart hooks, and engines use them")]
    let prestart = limited(hooks.prestart());
    hooks.set_prestart(prestart);
    hooks.set_create_runtime(limited(hooks.create_runtime()));
    hooks.set_create_container(limited(hooks.create_container()));
    hooks.set_start_container(limited(hooks.start_container()));
    hooks.set_poststart(limited(hooks.poststart()));
    hooks.set_poststop(limited(hooks.poststop()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_without_a_time_limit_get_the_configured_one_and_the_others_keep_theirs() {
        let hook = serde_json::json!([{"path": "/a"}, {"path": "/b", "timeout": 5}]);
        let kinds = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
        let hooks: serde_json::Map<_, _> = kinds.iter().map(|kind| ((*kind).to_owned(), hook.clone())).collect();
        let spec: Spec = serde_json::from_value(serde_json::json!({"ociVersion": "1.0.2", "hooks": hooks})).unwrap();
        for (limit, wanted) in [(60, serde_json::json!(60)), (0, serde_json::Value::Null)] {
            let mut spec = spec.clone();
            limit_hooks(&mut spec, Duration::from_secs(limit));
            let hooks = serde_json::to_value(spec.hooks()).unwrap();
            for kind in kinds {
                assert_eq!(hooks[kind][0]["timeout"], wanted, "{kind}");
                assert_eq!(hooks[kind][1]["timeout"], 5, "{kind}");
            }
        }
    }
}
