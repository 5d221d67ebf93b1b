//! The end of a process that is not our child.

use super::stream::register;
use super::stream::sys::pidfd_open;
use tokio::io::Interest;

/// Returns when process `pid` has ended; at once when there is none.
pub async fn process_end(pid: i32) {
    let Ok(descriptor) = pidfd_open(pid) else { return };
    match register(descriptor, Interest::READABLE) {
        // pidfd_open(2): readable once the process has terminated.
        Ok(process) => drop(process.readable().await),
        Err(error) => {
            tracing::error!(%error, pid, "cannot watch the process; its end will not be noticed");
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_noticed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        let ended = tokio::spawn(process_end(pid));
        child.kill().unwrap();
        child.wait().unwrap();
        ended.await.unwrap();
        process_end(pid).await;
    }
}
