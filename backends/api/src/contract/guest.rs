//! Talking to the contract's guest.

use super::{Fixture, GUEST_PORT};
use crate::{AgentChannel, Hypervisor, hybrid_vsock};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Connects as soon as the guest listens.
///
/// # Panics
/// It does not within the fixture's limit.
pub async fn connect(fixture: &dyn Fixture, vm: &dyn Hypervisor) -> BufReader<UnixStream> {
    let AgentChannel::HybridVsock(path) = vm.agent_channel().expect("a running machine has a channel");
    let limit = fixture.boot_limit() * super::slowness();
    let attempts = async {
        loop {
            match hybrid_vsock::connect(&path, GUEST_PORT).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    match tokio::time::timeout(limit, attempts).await {
        Ok(stream) => BufReader::new(stream),
        Err(_) => {
            panic!("the guest does not listen on port {GUEST_PORT} within {limit:?}; exit: {:?}", *vm.exit().borrow())
        }
    }
}

/// Sends a line.
///
/// # Panics
/// The connection is gone.
pub async fn tell(guest: &mut BufReader<UnixStream>, line: &str) {
    guest.write_all(format!("{line}\n").as_bytes()).await.expect("the guest takes a line");
}

/// Sends a line and reads one.
///
/// # Panics
/// The connection is gone, or there is no answer in time.
pub async fn ask(guest: &mut BufReader<UnixStream>, line: &str) -> String {
    tell(guest, line).await;
    let mut answer = String::new();
    super::within(guest.read_line(&mut answer)).await.expect("the guest answers");
    answer.trim_end().to_owned()
}
