//! The events that matter, read without a schema: what is unknown is passed over.

use serde::Deserialize;
use serde_json::Value;

/// Why QEMU shuts the machine down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    GuestShutdown,
    GuestReset,
    GuestPanic,
    /// SIGTERM, SIGINT or SIGHUP.
    HostSignal,
    /// The monitor's `quit`.
    HostQuit,
    /// Any other reason, today's and later ones.
    Other,
}

impl Reason {
    fn from_reason(reason: &str) -> Self {
        match reason {
            "guest-shutdown" => Self::GuestShutdown,
            "guest-reset" => Self::GuestReset,
            "guest-panic" => Self::GuestPanic,
            "host-signal" => Self::HostSignal,
            "host-qmp-quit" => Self::HostQuit,
            _ => Self::Other,
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Shutdown(Reason),
    Reset { guest: bool },
    Panicked,
    DeviceDeleted(String),
    Unknown,
}

#[derive(Deserialize)]
struct Message {
    event: String,
    #[serde(default)]
    data: Value,
}

impl Event {
    /// The event that a line of the monitor is; `None`: another message.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let Message { event, data } = serde_json::from_str(line).ok()?;
        let text = |key: &str| data.get(key).and_then(Value::as_str);
        Some(match event.as_str() {
            "SHUTDOWN" => Self::Shutdown(Reason::from_reason(text("reason").unwrap_or_default())),
            "RESET" => Self::Reset { guest: data.get("guest").and_then(Value::as_bool).unwrap_or(false) },
            "GUEST_PANICKED" => Self::Panicked,
            // Without a device it tells of a part of one.
            "DEVICE_DELETED" => text("device").map_or(Self::Unknown, |id| Self::DeviceDeleted(id.to_owned())),
            _ => Self::Unknown,
        })
    }
}

/// What the events have said so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    pub(crate) shutdown: Option<Reason>,
    pub(crate) panicked: bool,
}

impl Seen {
    pub(crate) fn note(&mut self, event: &Event) {
        match event {
            // The first reason is the true one: what follows are its consequences.
            Event::Shutdown(reason) => {
                self.shutdown.get_or_insert(*reason);
            }
            // With -no-reboot a shutdown comes instead; if not, it is an exit all the same.
            Event::Reset { guest: true } => {
                self.shutdown.get_or_insert(Reason::GuestReset);
            }
            Event::Panicked => self.panicked = true,
            Event::Reset { guest: false } | Event::DeviceDeleted(_) | Event::Unknown => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_apart() {
        for (reason, expected) in [
            ("guest-shutdown", Reason::GuestShutdown),
            ("guest-reset", Reason::GuestReset),
            ("guest-panic", Reason::GuestPanic),
            ("host-signal", Reason::HostSignal),
            ("host-qmp-quit", Reason::HostQuit),
            ("subsystem-reset", Reason::Other),
            ("something-new", Reason::Other),
        ] {
            let line = format!(
                r#"{{"timestamp":{{"seconds":1,"microseconds":2}},"event":"SHUTDOWN","data":{{"guest":true,"reason":"{reason}"}}}}"#
            );
            assert_eq!(Event::parse(&line), Some(Event::Shutdown(expected)));
        }
    }

    #[test]
    fn the_first_reason_stays() {
        let mut seen = Seen::default();
        seen.note(&Event::Reset { guest: true });
        seen.note(&Event::Shutdown(Reason::HostQuit));
        assert_eq!(seen.shutdown, Some(Reason::GuestReset));
    }

    #[test]
    fn answers_are_no_events_and_odd_events_are_unknown() {
        assert_eq!(Event::parse(r#"{"return":{},"id":1}"#), None);
        assert_eq!(Event::parse("{"), None);
        assert_eq!(Event::parse(r#"{"event":7}"#), None);
        assert_eq!(Event::parse(r#"{"event":"DEVICE_DELETED","data":[]}"#), Some(Event::Unknown));
        assert_eq!(Event::parse(r#"{"event":"SHUTDOWN"}"#), Some(Event::Shutdown(Reason::Other)));
        assert_eq!(
            Event::parse(r#"{"event":"DEVICE_DELETED","data":{"device":"dev1","path":"/p"}}"#),
            Some(Event::DeviceDeleted("dev1".to_owned()))
        );
    }
}
