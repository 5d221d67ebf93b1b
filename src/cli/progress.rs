//! What a person at a terminal sees while a creation takes its time.

use super::client::Connection;
use crate::api::InspectRequest;
use crate::ids::ContainerId;
use serde_json::Value;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};
use ttrpc::context::with_duration;

/// A creation that is quicker shows nothing.
const PATIENCE: Duration = Duration::from_millis(700);
/// How often the line is written anew.
const PERIOD: Duration = Duration::from_millis(300);

/// Shows the step that runs, and for how long, in one line of standard error that is gone in the end. Never returns: it is
/// dropped when there is news. Where standard error is no terminal it shows nothing.
pub(super) async fn show(connection: &Connection, id: &ContainerId) -> std::convert::Infallible {
    if !io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let begin = Instant::now();
    tokio::time::sleep(PATIENCE).await;
    let _line = Line;
    loop {
        let request = InspectRequest::default();
        if let Ok(answer) = connection.supervisor.inspect(with_duration(PERIOD * 4), &request).await
            && let Ok(document) = serde_json::from_str(&answer.json)
            && let Some(step) = running_step(&document, id)
        {
            Line::write(&format!("{id}: {} ({:.1} s)", in_words(step), begin.elapsed().as_secs_f64()));
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// The line on the terminal; dropping it wipes it.
struct Line;

impl Line {
    /// Nobody is hurt when the terminal is gone.
    fn write(text: &str) {
        let _ = write!(io::stderr(), "\r\x1b[K{text}");
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        Self::write("");
    }
}

/// The step of the container's creation that has begun and not ended.
fn running_step<'a>(document: &'a Value, id: &ContainerId) -> Option<&'a str> {
    let timeline = document["containers"][id.as_str()]["timeline"].as_array()?;
    timeline.iter().rev().find(|entry| entry["duration_us"].is_null())?["step"].as_str()
}

fn in_words(step: &str) -> &str {
    match step {
        "hooks" => "running hooks",
        "machine" => "starting the virtual machine",
        "agent" => "the guest boots",
        "share-files" => "sharing files",
        "container" => "the guest makes the container",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_step_that_runs_is_the_last_without_an_end() {
        let id: ContainerId = "c".parse().unwrap();
        let document = json!({"containers": {"c": {"timeline": [
            {"step": "bundle", "start_us": 1, "duration_us": 5, "ok": true},
            {"step": "agent", "start_us": 6, "duration_us": null, "ok": null},
        ]}}});
        assert_eq!(running_step(&document, &id), Some("agent"));
        assert_eq!(running_step(&json!({"containers": {}}), &id), None);
        let done = json!({"containers": {"c": {"timeline": [{"step": "bundle", "duration_us": 5}]}}});
        assert_eq!(running_step(&done, &id), None);
    }
}
