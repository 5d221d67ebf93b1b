//! The suite that every backend runs: what the [`Hypervisor`] trait promises, as cases.
//!
//! A backend's tests implement [`Fixture`] and call [`hypervisor_contract!`](crate::hypervisor_contract), which makes
//! one test of each case of [`CASES`]. A case panics when a promise is broken.
//!
//! The guest of a fixture listens on vsock port [`GUEST_PORT`] and obeys lines: `echo <text>` is answered by `<text>`,
//! `remember <text>` by `yes`, and `recall` by what it shall remember; `poweroff`, `reset` and `panic` are done, and `read <tag> <name>` is answered by the first line of the file `name` in
//! the share `tag`. Real backends boot such a guest; the fake one plays it.

mod boot;
mod configuration;
mod devices;
pub mod guest;
mod life;
mod snapshots;

use crate::{Hypervisor, HypervisorError, StopDeadlines, VmConfig, VmExit, VmProcess};
use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// The port that the contract's guest listens on.
pub const GUEST_PORT: u32 = 1024;

/// How many times longer than on an ordinary machine everything may take here: STOCKADE_TEST_SLOWNESS, or 1.
///
/// # Panics
/// When the variable holds no number from 1 on.
#[must_use]
pub fn slowness() -> u32 {
    let Ok(text) = std::env::var("STOCKADE_TEST_SLOWNESS") else { return 1 };
    let number = text.parse().ok().filter(|number| *number >= 1);
    number.unwrap_or_else(|| panic!("STOCKADE_TEST_SLOWNESS is {text:?}, not a number from 1 on"))
}

/// How long anything but a boot may take before a case fails.
fn limit() -> Duration {
    Duration::from_secs(20) * slowness()
}

/// A fresh machine for a case.
pub struct Machine {
    /// In state new.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// A valid configuration for it, with a run directory of its own and one share `contract`, in which the file
    /// `hello` holds the line `hello from the host`.
    pub config: VmConfig,
    /// Kept until the case ends: what the configuration names.
    pub keep: Box<dyn Any + Send>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("hypervisor", &self.hypervisor).finish_non_exhaustive()
    }
}

/// What a backend's tests provide.
pub trait Fixture: Send + Sync {
    /// A fresh machine.
    fn machine(&self) -> Machine;

    /// Whether a running machine has host processes.
    fn has_processes(&self) -> bool;

    /// Makes the configuration one whose start fails after the checks of `prepare`; `false`: this backend has none.
    fn break_start(&self, machine: &mut Machine) -> bool;

    /// How long a boot may take until the guest listens, on an ordinary machine.
    fn boot_limit(&self) -> Duration;
}

/// A case under way.
pub type CaseFuture<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A case by its name.
pub type Case = (&'static str, for<'a> fn(&'a dyn Fixture) -> CaseFuture<'a>);

macro_rules! cases {
    ($($module:ident: $($case:ident)*;)*) => {
        /// Every case.
        pub const CASES: &[Case] = &[$($((stringify!($case), |fixture| Box::pin($module::$case(fixture)))),*),*];

        /// Makes one test of each case: `hypervisor_contract!(expression of a fixture)`.
        #[macro_export]
        macro_rules! hypervisor_contract {
            ($fixture:expr) => {
                $($(
                    #[::tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn $case() {
                        $crate::contract::run(stringify!($case), &$fixture).await;
                    }
                )*)*
            };
        }
    };
}

cases! {
    life: every_operation_in_a_wrong_state_is_refused
        stop_before_the_start_says_that_it_never_ran
        stop_of_a_new_machine_says_that_it_never_ran
        stop_is_idempotent
        stop_cuts_a_start_short
        concurrent_stops_agree
        pause_and_resume_are_idempotent
        a_second_start_is_refused
        the_exit_is_told_once_and_stays
        a_killed_process_is_the_cause
        a_stop_beside_a_kill_ends_with_one_cause
        a_dropped_machine_leaves_no_process
        processes_and_metrics_are_those_of_the_run
        a_failed_start_leaves_nothing;
    configuration: bad_configurations_are_refused_by_name
        a_refused_configuration_may_be_followed_by_a_good_one
        capabilities_are_sensible;
    devices: unknown_devices_are_refused
        devices_come_and_go_before_the_start
        what_capabilities_deny_is_unsupported
        devices_plug_as_capabilities_say
        a_resize_beyond_the_ceiling_is_refused;
    boot: the_agent_is_reached_and_reads_the_share
        a_guest_that_powers_off_is_a_shutdown
        a_guest_that_resets_is_an_exit
        a_guest_that_panics_is_a_panic;
    snapshots: a_saved_machine_goes_on_in_others
        a_machine_is_saved_to_an_empty_directory_only
        a_machine_that_was_not_saved_or_is_another_is_not_taken_on;
}

/// Runs the case called `name`.
///
/// # Panics
/// When the case does, or there is none of that name.
pub async fn run(name: &str, fixture: &dyn Fixture) {
    let Some((_, case)) = CASES.iter().find(|(known, _)| *known == name) else {
        panic!("there is no case {name}");
    };
    case(fixture).await;
}

/// A machine of `fixture` that is prepared.
async fn prepared(fixture: &dyn Fixture) -> (Arc<dyn Hypervisor>, Box<dyn Any + Send>) {
    let Machine { hypervisor, config, keep } = fixture.machine();
    within(hypervisor.prepare(config)).await.expect("a good configuration is taken");
    (hypervisor, keep)
}

/// A machine of `fixture` that runs, and what it needs to stay.
///
/// # Panics
/// When it does not start.
pub async fn started(fixture: &dyn Fixture) -> (Arc<dyn Hypervisor>, Box<dyn Any + Send>) {
    let (hypervisor, keep) = prepared(fixture).await;
    within(hypervisor.start()).await.expect("a prepared machine starts");
    (hypervisor, keep)
}

/// Waits for `future`, which must not take longer than [`limit`].
async fn within<T>(future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit(), future).await {
        Ok(value) => value,
        Err(_) => panic!("an operation took longer than {:?}", limit()),
    }
}

/// Waits for the machine's exit event.
async fn exit(hypervisor: &dyn Hypervisor) -> VmExit {
    let mut exit = hypervisor.exit();
    let told = within(exit.wait_for(Option::is_some)).await.expect("the machine lives").clone();
    told.expect("it was waited for")
}

/// Ends a machine at once and checks that nothing of it is left.
async fn finish(hypervisor: &dyn Hypervisor, processes: &[VmProcess]) -> VmExit {
    let exit = within(hypervisor.stop(StopDeadlines::NOW)).await.expect("a machine can be stopped");
    gone(hypervisor, processes);
    exit
}

/// Checks that the machine reports no process and that those it had have ended and are reaped.
fn gone(hypervisor: &dyn Hypervisor, processes: &[VmProcess]) {
    assert_eq!(hypervisor.processes(), [], "a machine that has ended has no processes");
    for process in processes {
        assert!(!alive(process), "{process:?} is still there");
    }
}

/// Whether this very process, not another of its id, exists; a zombie does.
fn alive(process: &VmProcess) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)) else { return false };
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    fields.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok()) == Some(process.start_time)
}

fn is_wrong_state<T>(result: &Result<T, HypervisorError>) -> bool {
    matches!(result, Err(HypervisorError::WrongState { .. }))
}
