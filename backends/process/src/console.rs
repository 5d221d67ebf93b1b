//! The guest's console: lines for the sink, raw bytes for the log file. The guest writes it, so everything is bounded.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use stockade_hypervisor::ConsoleSink;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// The longest line that the sink is given, in bytes; a longer one comes in pieces.
const LINE_LIMIT: usize = 4096;
/// How much the log file takes, in bytes.
const LOG_LIMIT: usize = 1 << 20;
/// What Linux writes when it panics. Told by the console, a panic is known without a device and before any driver.
const PANIC: &str = "Kernel panic - not syncing";

/// Where the console's bytes go.
pub struct Console {
    sink: ConsoleSink,
    line: Vec<u8>,
    log: Option<File>,
    log_left: usize,
    panicked: Arc<AtomicBool>,
}

impl Console {
    /// `panicked` is set when the guest's kernel says that it panics.
    pub fn new(sink: ConsoleSink, log: Option<File>, panicked: Arc<AtomicBool>) -> Self {
        Self { sink, line: Vec::new(), log, log_left: LOG_LIMIT, panicked }
    }

    /// Reads until the other end is closed.
    pub async fn read(mut self, mut stream: UnixStream) {
        let mut buffer = vec![0; LINE_LIMIT];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            self.take(buffer.get(..count).unwrap_or_default());
        }
        if !self.line.is_empty() {
            self.emit();
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let logged = bytes.get(..bytes.len().min(self.log_left)).unwrap_or_default();
        if let Some(log) = &mut self.log
            && !logged.is_empty()
        {
            match log.write_all(logged) {
                Ok(()) => self.log_left = self.log_left.saturating_sub(logged.len()),
                Err(e) => {
                    tracing::warn!(error = %e, "the console's log takes no more");
                    self.log = None;
                }
            }
        }
        for byte in bytes {
            if *byte == b'\n' {
                self.emit();
            } else {
                self.line.push(*byte);
                if self.line.len() == LINE_LIMIT {
                    self.emit();
                }
            }
        }
    }

    fn emit(&mut self) {
        let text = String::from_utf8_lossy(&self.line);
        let clean: String = text
            .trim_end_matches('\r')
            .chars()
            .map(|c| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c })
            .collect();
        self.line.clear();
        if clean.contains(PANIC) {
            self.panicked.store(true, Ordering::Release);
        }
        // Replacement characters are longer than what they replace.
        let end = (0..=LINE_LIMIT.min(clean.len())).rev().find(|end| clean.is_char_boundary(*end)).unwrap_or(0);
        (self.sink.0)(clean.get(..end).unwrap_or_default());
    }
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("log_left", &self.log_left).finish_non_exhaustive()
    }
}

/// Makes the log file, readable by its owner alone.
///
/// # Errors
/// It cannot be made.
pub fn create_log(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn lines(input: &[u8]) -> (Vec<String>, bool) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = ConsoleSink(Arc::new({
            let seen = Arc::clone(&seen);
            move |line: &str| seen.lock().unwrap().push(line.to_owned())
        }));
        let panicked = Arc::new(AtomicBool::new(false));
        Console::new(sink, None, Arc::clone(&panicked)).take(input);
        let seen = seen.lock().unwrap().clone();
        (seen, panicked.load(Ordering::Acquire))
    }

    #[test]
    fn lines_lose_their_ends_and_control_characters() {
        assert_eq!(lines(b"one\r\n\x1b[31mred\nrest").0, ["one", "\u{fffd}[31mred"]);
    }

    #[test]
    fn a_line_without_end_comes_in_bounded_pieces() {
        let (lines, _) = lines(&[0xff; 3 * LINE_LIMIT]);
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| line.len() <= LINE_LIMIT));
    }

    #[test]
    fn a_panic_is_noticed() {
        assert!(lines(b"[    1.0] Kernel panic - not syncing: No working init found.\n").1);
        assert!(!lines(b"all is well\n").1);
    }

    #[tokio::test]
    async fn the_log_takes_a_mebibyte_and_no_more() {
        let path = std::env::temp_dir().join(format!("stockade-console-{}", std::process::id()));
        let log = create_log(&path).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let console = Console::new(ConsoleSink(Arc::new(|_| {})), Some(log), Arc::default());
        let reader = tokio::spawn(console.read(ours));
        tokio::io::AsyncWriteExt::write_all(&mut theirs, &vec![b'x'; LOG_LIMIT + 100]).await.unwrap();
        drop(theirs);
        reader.await.unwrap();
        let size = std::fs::metadata(&path).unwrap().len();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(size, LOG_LIMIT as u64);
    }
}
