//! Cases that need the guest.

use super::{Fixture, exit, finish, gone, guest, started, within};
use crate::ExitCause;

pub(super) async fn the_agent_is_reached_and_reads_the_share(fixture: &dyn Fixture) {
    let (vm, _keep) = started(fixture).await;
    let mut guest = guest::connect(fixture, vm.as_ref()).await;
    assert_eq!(guest::ask(&mut guest, "echo hello").await, "hello");
    assert_eq!(guest::ask(&mut guest, "read contract hello").await, "hello from the host");
    // A second connection beside the first, and a pause that loses neither.
    let mut second = guest::connect(fixture, vm.as_ref()).await;
    within(vm.pause()).await.expect("it pauses");
    guest::tell(&mut second, "echo later").await;
    within(vm.resume()).await.expect("it resumes");
    assert_eq!(guest::ask(&mut guest, "echo again").await, "again");
    let processes = vm.processes();
    finish(vm.as_ref(), &processes).await;
    let mut rest = Vec::new();
    // The stream ends with the machine, by an end or a reset.
    let _ended = within(tokio::io::AsyncReadExt::read_to_end(&mut guest, &mut rest)).await;
}

/// Boots, tells the guest to end itself, and checks the cause.
async fn ends(fixture: &dyn Fixture, order: &str, expected: ExitCause) {
    let (vm, _keep) = started(fixture).await;
    let processes = vm.processes();
    let mut guest = guest::connect(fixture, vm.as_ref()).await;
    guest::tell(&mut guest, order).await;
    assert_eq!(exit(vm.as_ref()).await.cause, expected);
    gone(vm.as_ref(), &processes);
    assert_eq!(finish(vm.as_ref(), &processes).await.cause, expected);
}

pub(super) async fn a_guest_that_powers_off_is_a_shutdown(fixture: &dyn Fixture) {
    ends(fixture, "poweroff", ExitCause::GuestShutdown).await;
}

pub(super) async fn a_guest_that_resets_is_an_exit(fixture: &dyn Fixture) {
    ends(fixture, "reset", ExitCause::GuestReset).await;
}

pub(super) async fn a_guest_that_panics_is_a_panic(fixture: &dyn Fixture) {
    ends(fixture, "panic", ExitCause::GuestPanic).await;
}
