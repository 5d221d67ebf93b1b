//! The agent's log: JSON lines, to the console and to those who connect to the log port.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::io::AsyncWriteExt;
use tokio::sync::broadcast;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};

/// Lines kept for a reader that connects late, and lines a slow reader may lag behind.
const KEPT_LINES: usize = 256;
/// The longest message; what is longer is cut.
const MAX_MESSAGE: usize = 4096;
/// How many may read the log at once.
const MAX_READERS: usize = 4;

/// How severe a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    /// Reads a level's name; Kata's names included.
    pub(crate) fn parse(name: &str) -> Option<Level> {
        match name {
            "trace" | "debug" => Some(Level::Debug),
            "info" => Some(Level::Info),
            "warn" | "warning" => Some(Level::Warn),
            "error" | "critical" | "off" => Some(Level::Error),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warning",
            Level::Error => "error",
        }
    }
}

struct Log {
    level: Level,
    console: Mutex<Option<File>>,
    kept: Mutex<VecDeque<String>>,
    lines: broadcast::Sender<String>,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Opens the log; later calls change nothing. Where there is no console, messages go to standard error.
pub(crate) fn start(level: Level, to_console: bool) {
    let console = to_console.then(|| OpenOptions::new().write(true).open("/dev/console").ok()).flatten();
    LOG.get_or_init(|| Log {
        level,
        console: Mutex::new(console),
        kept: Mutex::new(VecDeque::new()),
        lines: broadcast::channel(KEPT_LINES).0,
    });
}

/// Writes one message, if it is severe enough.
pub(crate) fn write(level: Level, message: fmt::Arguments<'_>) {
    let Some(log) = LOG.get() else { return };
    if level < log.level {
        return;
    }
    let line = line(level, message);
    to_console(log, &line);
    let mut kept = log.kept.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() == KEPT_LINES {
        kept.pop_front();
    }
    kept.push_back(line.clone());
    // Nobody listening is no error.
    let _ = log.lines.send(line);
}

/// Writes a bare line to the console: what whoever boots the machine waits for.
pub(crate) fn announce(line: &str) {
    if let Some(log) = LOG.get() {
        to_console(log, &format!("{line}\n"));
    }
}

fn to_console(log: &Log, line: &str) {
    let mut console = log.console.lock().unwrap_or_else(PoisonError::into_inner);
    // A console that cannot be written to has no better place to report it.
    let _ = match console.as_mut() {
        Some(console) => console.write_all(line.as_bytes()),
        None => std::io::stderr().write_all(line.as_bytes()),
    };
}

fn line(level: Level, message: fmt::Arguments<'_>) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut text = message.to_string();
    if text.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|&i| text.is_char_boundary(i));
        text.truncate(end.unwrap_or(0));
    }
    let record = Record {
        level: level.name(),
        msg: &text,
        name: "stockade-agent",
        ts: format!("{}.{:06}", now.as_secs(), now.subsec_micros()),
    };
    // Strings always have a JSON form.
    let mut line = serde_json::to_string(&record).unwrap_or_default();
    line.push('\n');
    line
}

/// One line.
#[derive(serde::Serialize)]
struct Record<'a> {
    level: &'static str,
    msg: &'a str,
    name: &'static str,
    ts: String,
}

macro_rules! debug { ($($t:tt)*) => { $crate::log::write($crate::log::Level::Debug, format_args!($($t)*)) } }
macro_rules! info { ($($t:tt)*) => { $crate::log::write($crate::log::Level::Info, format_args!($($t)*)) } }
macro_rules! warning { ($($t:tt)*) => { $crate::log::write($crate::log::Level::Warn, format_args!($($t)*)) } }
macro_rules! error { ($($t:tt)*) => { $crate::log::write($crate::log::Level::Error, format_args!($($t)*)) } }
pub(crate) use {debug, error, info, warning};

/// Serves the log on a vsock port until the listener fails.
pub(crate) async fn serve(port: u32) {
    let listener = match VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)) {
        Ok(listener) => listener,
        Err(e) => return warning!("cannot listen for log readers on vsock port {port}: {e}"),
    };
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_READERS));
    loop {
        let Ok(permit) = std::sync::Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => return warning!("the log port failed: {e}"),
        };
        tokio::spawn(async move {
            let _permit = permit;
            let Some(log) = LOG.get() else { return };
            let mut lines = log.lines.subscribe();
            let kept: Vec<String> = {
                let kept = log.kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.iter().cloned().collect()
            };
            for line in kept {
                if AsyncWriteExt::write_all(&mut stream, line.as_bytes()).await.is_err() {
                    return;
                }
            }
            loop {
                let line = match lines.recv().await {
                    Ok(line) => line,
                    // A reader too slow for the log misses lines, and the log does not wait for it.
                    Err(broadcast::error::RecvError::Lagged(_)) => continue,
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                if AsyncWriteExt::write_all(&mut stream, line.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// An error with its causes, in one line.
pub(crate) struct Causes<'a>(pub(crate) &'a (dyn std::error::Error + 'a));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            // Wrappers that show their source already would say it twice.
            if !last.contains(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_json_and_ends_once_even_if_the_message_has_newlines() {
        let text = line(Level::Warn, format_args!("a\nb \"c\""));
        assert_eq!(text.matches('\n').count(), 1);
        let record: serde_json::Value = serde_json::from_str(&text).expect("json");
        assert_eq!(record["msg"], "a\nb \"c\"");
        assert_eq!(record["level"], "warning");
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let long = "é".repeat(MAX_MESSAGE);
        let text = line(Level::Info, format_args!("{long}"));
        assert!(text.len() < MAX_MESSAGE + 200);
    }
}
