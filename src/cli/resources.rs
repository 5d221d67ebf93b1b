//! New limits of a container, from a document and from options.

use anyhow::{Context as _, bail};
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};
use std::io::Read;
use std::path::PathBuf;

/// The largest document that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// What can be changed.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Changes {
    /// File with the OCI's LinuxResources as JSON, or - for standard input; options override it
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Memory limit, such as 512M; -1: none
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = bytes)]
    pub memory: Option<i64>,
    /// Limit of memory and swap together; -1: none
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = bytes)]
    pub memory_swap: Option<i64>,
    /// Memory that is kept for the container
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = bytes)]
    pub memory_reservation: Option<i64>,
    /// Share of the processors, relative to others
    #[arg(long, visible_alias = "cpu-share", value_name = "N")]
    pub cpu_shares: Option<u64>,
    /// Time on processors in each period, in microseconds; -1: no limit
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// The period, in microseconds
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<u64>,
    /// Processors that may be used, such as 0-2,7
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that may be used
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Most processes; -1: no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Share of the disks' time, 10 to 1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
}

impl Changes {
    /// The document for the supervisor.
    pub(super) fn document(&self) -> anyhow::Result<Vec<u8>> {
        let mut document = match &self.resources {
            Some(path) => read(path)?,
            None => Map::new(),
        };
        let mut set = |table: &str, key: &str, value: Option<Value>| {
            if let Some(value) = value {
                let table = document.entry(table).or_insert_with(|| json!({}));
                if !table.is_object() {
                    *table = json!({});
                }
                table[key] = value;
            }
        };
        set("memory", "limit", self.memory.map(Value::from));
        set("memory", "swap", self.memory_swap.map(Value::from));
        set("memory", "reservation", self.memory_reservation.map(Value::from));
        set("cpu", "shares", self.cpu_shares.map(Value::from));
        set("cpu", "quota", self.cpu_quota.map(Value::from));
        set("cpu", "period", self.cpu_period.map(Value::from));
        set("cpu", "cpus", self.cpuset_cpus.clone().map(Value::from));
        set("cpu", "mems", self.cpuset_mems.clone().map(Value::from));
        set("pids", "limit", self.pids_limit.map(Value::from));
        set("blockIO", "weight", self.blkio_weight.map(Value::from));
        if document.is_empty() {
            bail!("there is nothing to change: give --resources or one of the other options");
        }
        let value = Value::Object(document);
        let typed: LinuxResources = serde_json::from_value(value).context("these are no OCI resources")?;
        Ok(serde_json::to_vec(&typed)?)
    }
}

fn read(path: &std::path::Path) -> anyhow::Result<Map<String, Value>> {
    let mut text = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(LARGEST).read_to_end(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(LARGEST).read_to_end(&mut text))
    };
    read.with_context(|| format!("cannot read the resources from {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} holds no JSON object", path.display()))
}

/// Bytes, with K, M, G or T (of 1024) behind the number, and B or iB behind that; -1 for no limit.
fn bytes(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is no size, such as 512M, or -1");
    if text == "-1" {
        return Ok(-1);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.to_ascii_lowercase();
    let shift = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit) {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(wrong()),
    };
    number.parse::<i64>().ok().and_then(|number| number.checked_mul(1 << shift)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, number) in [
            ("0", 0),
            ("-1", -1),
            ("4096", 4096),
            ("1k", 1024),
            ("512M", 512 << 20),
            ("2GiB", 2 << 30),
            ("1tb", 1 << 40),
        ] {
            assert_eq!(bytes(text), Ok(number), "{text}");
        }
        for text in ["", "-2", "M", "1.5G", "1x", "9999999999T", "1 G"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn options_override_the_document_and_leave_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resources.json");
        std::fs::write(&path, r#"{"memory":{"limit":1,"swap":2},"cpu":{"shares":3}}"#).unwrap();
        let changes =
            Changes { resources: Some(path.clone()), memory: Some(5), pids_limit: Some(-1), ..Changes::default() };
        let value: Value = serde_json::from_slice(&changes.document().unwrap()).unwrap();
        assert_eq!(value["memory"], json!({"limit": 5, "swap": 2}));
        assert_eq!((&value["cpu"]["shares"], &value["pids"]["limit"]), (&json!(3), &json!(-1)));
        std::fs::write(&path, r#"{"memory":{"limit":"x"}}"#).unwrap();
        assert!(Changes { resources: Some(path), ..Changes::default() }.document().is_err());
        assert!(Changes::default().document().is_err());
    }
}
