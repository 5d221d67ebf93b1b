//! The streams of a CRI plugin's Exec and Attach: a WebSocket whose messages begin with the number of a channel
//! (Kubernetes' protocol `v4.channel.k8s.io`).

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::http::HeaderValue;
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Error, Message, WebSocket};

use super::wait;

const PROTOCOL: &str = "v4.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
/// How long output, or the end, may take.
const LIMIT: Duration = Duration::from_secs(30);
/// The longest that one read waits.
const GLANCE: Duration = Duration::from_millis(50);

/// A process whose streams are open. Dropped, they are closed.
#[derive(Debug)]
pub struct RemoteCommand {
    socket: WebSocket<MaybeTlsStream<TcpStream>>,
    received: BTreeMap<u8, Vec<u8>>,
    ended: bool,
}

impl RemoteCommand {
    /// Opens the streams at the address that the plugin answered.
    ///
    /// # Panics
    /// When the plugin's server does not take the connection.
    #[must_use]
    pub fn open(url: &str) -> Self {
        let mut request = url.replacen("http://", "ws://", 1).into_client_request().expect("an address");
        let _none = request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(PROTOCOL));
        let (socket, _response) = tungstenite::connect(request).unwrap_or_else(|error| panic!("{url}: {error}"));
        if let MaybeTlsStream::Plain(stream) = socket.get_ref() {
            stream.set_read_timeout(Some(GLANCE)).expect("a socket has time limits");
        }
        Self { socket, received: BTreeMap::new(), ended: false }
    }

    /// Writes to standard input.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn write(&mut self, text: &str) {
        self.send(STDIN, text.as_bytes());
    }

    /// Changes the terminal's size.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        self.send(RESIZE, json!({"Width": columns, "Height": rows}).to_string().as_bytes());
    }

    /// Waits until standard output has `text` in it.
    ///
    /// # Panics
    /// When it has not in time.
    pub fn expect(&mut self, text: &str) {
        self.expect_on(STDOUT, text);
    }

    /// The same for standard error.
    ///
    /// # Panics
    /// When it has not in time.
    pub fn expect_error(&mut self, text: &str) {
        self.expect_on(STDERR, text);
    }

    fn expect_on(&mut self, channel: u8, text: &str) {
        let seen = self.read_until(|command| command.text(channel).contains(text));
        assert!(seen, "no {text:?} in {:?}", self.received);
    }

    /// Waits for the end: the status that the process ended with.
    ///
    /// # Panics
    /// When it does not end in time, or its end is none that has a status.
    pub fn wait(&mut self) -> i64 {
        let ended = self.read_until(|command| command.ended);
        assert!(ended, "it does not end: {:?}", self.received);
        let text = self.text(STATUS);
        let status: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
        if status["status"] == "Success" {
            return 0;
        }
        let cause = &status["details"]["causes"][0];
        let code = cause["message"].as_str().filter(|_| cause["reason"] == "ExitCode");
        code.and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{status}"))
    }

    /// What came of standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.text(STDOUT)
    }

    /// What came of standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.text(STDERR)
    }

    fn text(&self, channel: u8) -> String {
        let bytes = self.received.get(&channel).map(Vec::as_slice).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }

    fn send(&mut self, channel: u8, bytes: &[u8]) {
        let message = [&[channel], bytes].concat();
        self.socket.send(Message::binary(message)).expect("the connection is open");
    }

    fn read_until(&mut self, wanted: impl Fn(&Self) -> bool) -> bool {
        let end = Instant::now() + wait::scaled(LIMIT);
        while !wanted(self) {
            if self.ended || Instant::now() >= end {
                return false;
            }
            match self.socket.read() {
                Ok(Message::Binary(bytes)) => {
                    if let Some((channel, data)) = bytes.split_first() {
                        self.received.entry(*channel).or_default().extend(data);
                    }
                }
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // The server closes the connection, in good form or not, after it has said the status.
                Err(_) => self.ended = true,
            }
        }
        true
    }
}
