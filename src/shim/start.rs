//! `start`: a supervisor for the container, and its address.

use super::bootstrap::{Bootstrap, MAX_INPUT, answer, socket_path};
use super::{Arguments, Place};
use crate::events::Target;
use crate::ids::{ContainerId, SandboxId};
use crate::oci::{self, ContainerType, NetworkRequest, Spec};
use crate::state::Store;
use crate::state::recovery::{self, Supervision};
use crate::supervise::launch;
use crate::supervise::startup::{Containerd, LogFormat, Startup};
use anyhow::{Context as _, bail};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use stockade_config::{Config, Lookup};

/// Starts a supervisor, or finds the pod's. Returns what containerd reads.
pub(super) fn start(arguments: &Arguments) -> anyhow::Result<Vec<u8>> {
    let mut input = Vec::new();
    std::io::stdin().take(MAX_INPUT).read_to_end(&mut input).context("cannot read containerd's input for the shim")?;
    let bootstrap = Bootstrap::parse(&input, arguments)?;
    let place = Place::of(&arguments.namespace)?;
    let id: ContainerId = arguments.id.parse()?;
    let bundle = std::env::current_dir().context("the bundle, which is the working directory, does not exist")?;
    let spec = oci::load_spec(&bundle)?;
    let link = match oci::container_type(spec.annotations().as_ref())? {
        ContainerType::Container { sandbox_id } => of_pod(&place, &id, &sandbox_id)?,
        ContainerType::Sandbox => of_its_own(&place, arguments, &bootstrap, &id, &bundle, &spec)?,
    };
    // What a containerd that comes back reads, up to 1.7.
    crate::state::write_atomically(&bundle.join("address"), format!("unix://{}", link.display()).as_bytes())
        .context("cannot write the address into the bundle")?;
    Ok(answer(&link, std::env::var("MAX_SHIM_VERSION").ok().as_deref()).into_bytes())
}

/// A pod's further container is in its sandbox's supervisor.
fn of_pod(place: &Place, id: &ContainerId, sandbox: &str) -> anyhow::Result<PathBuf> {
    let sandbox: SandboxId = sandbox.parse().context("the annotated sandbox id")?;
    if recovery::supervision(&place.store(), &sandbox)? == Supervision::Dead {
        bail!("container {id} belongs to sandbox {sandbox}, which does not exist or has ended");
    }
    Ok(place.socket_link(&sandbox))
}

fn of_its_own(
    place: &Place,
    arguments: &Arguments,
    bootstrap: &Bootstrap,
    id: &ContainerId,
    bundle: &Path,
    spec: &Spec,
) -> anyhow::Result<PathBuf> {
    let (sandbox, store) = (SandboxId::from(id.clone()), place.store());
    let link = place.socket_link(&sandbox);
    if recovery::supervision(&store, &sandbox)? == Supervision::Alive {
        // containerd asks again when it lost the answer.
        return Ok(link);
    }
    remove_remains(&store, &sandbox)?;
    let config = Config::load(&Lookup::from_process(bootstrap.options.config.clone()))?;
    launch(&Startup {
        root: store.root().to_owned(),
        sandbox,
        config,
        new_netns: oci::network_request(spec) == NetworkRequest::Create,
        log: log_pipe(bundle),
        log_format: LogFormat::Text,
        debug: arguments.debug,
        inject_failure: None,
        containerd: Some(Containerd {
            namespace: arguments.namespace.clone(),
            link: link.clone(),
            events: events_target(arguments, bootstrap),
        }),
    })?;
    Ok(link)
}

/// What a supervisor left that was killed before containerd could have it cleaned up, perhaps with containerd itself.
fn remove_remains(store: &Store, sandbox: &SandboxId) -> anyhow::Result<()> {
    if !store.sandbox_dir(sandbox).exists() {
        return Ok(());
    }
    let leftovers = recovery::clean_up(store, sandbox)?;
    match leftovers.first() {
        None => Ok(()),
        Some(first) => bail!("an earlier sandbox {sandbox} cannot be cleaned up: {first}: {}", first.source),
    }
}

/// The pipe in the bundle whose other end containerd copies into its own log.
fn log_pipe(bundle: &Path) -> Option<PathBuf> {
    let path = bundle.join("log");
    let is_pipe = std::fs::symlink_metadata(&path).is_ok_and(|data| data.file_type().is_fifo());
    is_pipe.then_some(path)
}

fn events_target(arguments: &Arguments, bootstrap: &Bootstrap) -> Option<Target> {
    let given = bootstrap.ttrpc_address.clone().or_else(|| std::env::var("TTRPC_ADDRESS").ok());
    if let Some(path) = given.as_deref().and_then(socket_path) {
        return Some(Target::Socket(path));
    }
    let program = arguments.publish_binary.clone().filter(|path| path.is_absolute())?;
    Some(Target::Program { program, address: arguments.address.clone() })
}
