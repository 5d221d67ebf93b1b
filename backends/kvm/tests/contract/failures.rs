//! Devices that the guest breaks.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stockade_hypervisor::ExitCause;
use stockade_hypervisor::contract::{guest, slowness, started};

use crate::fixture::Monitor;
use crate::slots::{disk, file, plug};

/// What the supervisor's side has logged.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn lines_with(&self, words: &str) -> Vec<String> {
        let bytes = self.0.lock().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        text.lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_the_guest_breaks_over_and_over_is_logged_a_few_times_and_the_end_is_still_told() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    let (machine, _keep) = started(&Monitor).await;
    let mut guest = guest::connect(&Monitor, machine.as_ref()).await;
    let directory = tempfile::tempdir().unwrap();
    let device = plug(machine.as_ref(), file(&directory, "fragile")).await.unwrap();
    let disk = disk(&mut guest, "fragile").await;
    assert_eq!(log.lines_with("has failed"), [""; 0]);

    assert_eq!(guest::ask(&mut guest, &format!("break {disk}")).await, "broken");
    guest::tell(&mut guest, "poweroff").await;
    let mut exit = machine.exit();
    let limit = Duration::from_secs(60) * slowness();
    let exit = tokio::time::timeout(limit, exit.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    assert_eq!(exit.unwrap().cause, ExitCause::GuestShutdown);

    let told = log.lines_with("has failed");
    assert_eq!(told.len(), 4, "{told:?}");
    for line in &told {
        let name = format!("device={:?}", device.0);
        assert!(line.contains(&name) && line.contains("Block device: queue 0 of the guest is broken: "), "{line}");
    }
    assert!(told[3].contains("no more is told of this device"), "{told:?}");
}
