//! The role of the server: from the process's start to the machine's end.

use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::container::launch::Launcher;
use crate::container::zygote;
use crate::kernel_params::Options;
use crate::reaper::Reaper;
use crate::sandbox::Sandbox;
use crate::{init, log, network, rpc};

/// Open files of the agent: three streams and more for each of many processes.
const OPEN_FILES: u64 = 65_536;
/// How long the last answer may take to leave the guest before it ends.
const FAREWELL: std::time::Duration = std::time::Duration::from_millis(100);

/// Serves calls until the sandbox is destroyed.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let is_init = std::process::id() == 1 && Path::new("/proc/self/exe").symlink_metadata().is_err();
    let problems = if is_init { Some(init::prepare()) } else { None };
    // Before there are threads.
    let Some(zygote) = zygote::fork()? else { return Ok(()) };
    // A guest's kernel command line is its configuration; elsewhere arguments of the same form are.
    let in_guest = is_init || arguments.is_empty();
    let command_line =
        if in_guest { std::fs::read_to_string("/proc/cmdline").unwrap_or_default() } else { arguments.join(" ") };
    let (options, odd) = Options::parse(&command_line);
    log::start(options.log_level, is_init);
    // A guest whose agent is broken must end, not linger; the kernel's panic ends it.
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        log::error!("panic: {info}");
        default_hook(info);
        std::process::abort();
    }));
    for word in odd {
        log::warning!("option {word:?} is not understood");
    }
    for problem in problems.transpose()?.into_iter().flatten() {
        log::error!("{problem}");
    }
    let _ = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES.max(524_288));
    if !is_init {
        nix::sys::prctl::set_child_subreaper(true).context("cannot become the reaper of orphans")?;
        if let Err(e) = crate::cgroup::enable_controllers() {
            log::error!("cgroup controllers: {e}");
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Blocking work is short; threads cost the guest memory.
        .max_blocking_threads(16)
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(options, is_init, zygote))?;
    // Blocking work that hangs must not keep the machine.
    runtime.shutdown_background();
    if is_init {
        init::power_off();
    }
    Ok(())
}

async fn serve(options: Options, is_init: bool, zygote: UnixStream) -> Result<()> {
    let reaper = Reaper::default();
    tokio::spawn(reaper.clone().run());
    if is_init && let Err(e) = network::bring_up_loopback().await {
        log::error!("{}", log::Causes(&e));
    }
    let address = options.server_address.clone();
    if address.starts_with("vsock://") && options.log_port != 0 {
        tokio::spawn(log::serve(options.log_port));
    }
    if options.debug_console {
        log::warning!("this agent offers no debug console");
    }
    let launcher = Launcher::new(reaper.clone(), zygote).context("cannot watch the zygote")?;
    let sandbox = Sandbox::new(options, reaper, launcher, is_init);
    let mut server =
        ttrpc::r#async::Server::new().bind(&address).with_context(|| format!("cannot listen on {address}"))?;
    for service in rpc::services(&sandbox) {
        server = server.register_service(service);
    }
    server.start().await.with_context(|| format!("cannot serve calls on {address}"))?;
    log::announce(stockade_agent_protocol::READY);

    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    tokio::select! {
        () = sandbox.ended.notified() => tokio::time::sleep(FAREWELL).await,
        // What failed is in the log.
        _ = terminate.recv(), if !is_init => drop(sandbox.tear_down().await),
    }
    Ok(())
}
