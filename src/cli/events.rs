//! `stockade events`.

use super::client::{Connection, SHORT_CALL, answer};
use super::container::{current, supervisor_of};
use super::globals::Context;
use super::table::print;
use crate::api::ContainerStatsRequest;
use crate::ids::ContainerId;
use crate::oci::Status;
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use ttrpc::context::with_duration;

/// Print counters of a container, one JSON object a line
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The container
    #[arg(value_name = "CONTAINER")]
    id: ContainerId,
    /// Print them once
    #[arg(long)]
    stats: bool,
    /// Time from one to the next: seconds, or a number with ms, s, m or h
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = interval)]
    interval: Duration,
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        context.runtime.block_on(async {
            let (_, connection) = supervisor_of(context, &self.id, "watch").await?;
            if self.stats {
                print(&event(&self.id, &stats(&connection, &self.id).await?))?;
                return Ok(ExitCode::SUCCESS);
            }
            let mut ticks = tokio::time::interval(self.interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                match stats(&connection, &self.id).await {
                    Ok(data) => print(&event(&self.id, &data))?,
                    // The end of the container is the end of its events.
                    Err(error) => match current(context, &self.id).await {
                        Ok(record) if record.status != Status::Stopped => return Err(error),
                        _ => return Ok(ExitCode::SUCCESS),
                    },
                }
            }
        })
    }
}

async fn stats(connection: &Connection, id: &ContainerId) -> anyhow::Result<Value> {
    let request = ContainerStatsRequest { id: id.to_string(), ..ContainerStatsRequest::default() };
    let response = answer("Stats", connection.supervisor.stats(with_duration(SHORT_CALL), &request).await)?;
    let data = serde_json::from_str(&response.json).context("the supervisor's answer is not JSON")?;
    if matches!(data, Value::Null) {
        bail!("container {id} has no counters");
    }
    Ok(data)
}

fn event(id: &ContainerId, data: &Value) -> String {
    json!({"type": "stats", "id": id.as_str(), "data": data}).to_string()
}

fn interval(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("{unit:?} is no unit of time: ms, s, m or h")),
    };
    let number = number.parse::<u64>().ok().and_then(|number| number.checked_mul(milliseconds));
    match number {
        Some(number) if number > 0 => Ok(Duration::from_millis(number)),
        _ => Err(format!("{text:?} is no time above 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_runcs_shape() {
        let event: Value =
            serde_json::from_str(&event(&"c".parse().unwrap(), &json!({"pids": {"current": 1}}))).unwrap();
        assert_eq!(event, json!({"type": "stats", "id": "c", "data": {"pids": {"current": 1}}}));
    }

    #[test]
    fn an_interval_has_a_unit_or_is_in_seconds() {
        assert_eq!(interval("5"), Ok(Duration::from_secs(5)));
        assert_eq!(interval("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(interval("2m"), Ok(Duration::from_secs(120)));
        for text in ["", "0", "0s", "1d", "s", "-1", "99999999999999999999h"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
