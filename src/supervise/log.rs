//! The supervisor's log: one file, text or JSON lines, each with the sandbox's id and the spans it was written in. The
//! guest's console and the agent's log are in the same stream (targets `guest` and `agent`).

use super::startup::LogFormat;
use crate::ids::SandboxId;
use serde_json::{Map, Value};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// Starts logging to `path`, which is appended to. When it is a pipe, as containerd gives one, what nobody reads in time
/// is lost: a supervisor does not wait for the reader of its log.
///
/// # Errors
/// The file cannot be opened, or logging was started before.
pub(super) fn start(path: &Path, format: LogFormat, level: Level, sandbox: &SandboxId) -> io::Result<()> {
    let file = open(path)?;
    let lines = Lines { format, sandbox: sandbox.to_string() };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::sync::Mutex::new(file))
        .with_ansi(false)
        .event_format(lines)
        .try_init()
        .map_err(io::Error::other)
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    if std::fs::metadata(path).is_ok_and(|data| data.file_type().is_fifo()) {
        // To read as well, so that opening waits for nobody and writing survives the reader (Linux allows it).
        return options.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    }
    options.append(true).create(true).mode(0o600).open(path)
}

struct Lines {
    format: LogFormat,
    sandbox: String,
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.to_owned());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.others.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.others.insert(field.name().into(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.others.insert(field.name().into(), value.into());
    }
}

impl Fields {
    fn set(&mut self, field: &Field, text: String) {
        if field.name() == "message" {
            self.message = text;
        } else {
            self.others.insert(field.name().into(), text.into());
        }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let mut spans = Vec::new();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let inside = extensions.get::<FormattedFields<N>>().map(|fields| fields.as_str()).unwrap_or_default();
            let inside = inside.strip_prefix("name=").unwrap_or(inside).trim_matches('"');
            spans.push(format!("{}:{}", span.name(), inside));
        }
        let level = metadata.level().as_str().to_ascii_lowercase();
        match self.format {
            LogFormat::Json => {
                let mut line = Map::new();
                // runc's keys, which Podman and others read.
                line.insert("level".into(), level.into());
                line.insert("msg".into(), fields.message.into());
                line.insert("time".into(), crate::state::now().into());
                line.insert("sandbox".into(), self.sandbox.clone().into());
                line.insert("target".into(), metadata.target().into());
                if !spans.is_empty() {
                    line.insert("spans".into(), spans.into());
                }
                line.extend(fields.others);
                writeln!(writer, "{}", Value::Object(line))
            }
            LogFormat::Text => {
                write!(writer, "{} {level:5} sandbox={}", crate::state::now(), self.sandbox)?;
                if !spans.is_empty() {
                    write!(writer, " [{}]", spans.join(" "))?;
                }
                write!(writer, " {}: {}", metadata.target(), one_line(&fields.message))?;
                for (name, value) in &fields.others {
                    match value {
                        Value::String(text) => write!(writer, " {name}={:?}", text)?,
                        other => write!(writer, " {name}={other}")?,
                    }
                }
                writeln!(writer)
            }
        }
    }
}

/// A line of the log stays one line, whatever the guest prints.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_pipe_without_a_reader_takes_what_fits_and_blocks_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut log = open(&path).unwrap();
        log.write_all(b"a line\n").unwrap();
        let mut reader = File::open(&path).unwrap();
        let mut line = [0; 7];
        reader.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"a line\n");
        let full = (0..100_000).map(|_| log.write_all(&[b'x'; 1024])).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }
}
