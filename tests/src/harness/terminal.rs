//! Terminals as a person has them: one to run a command in, and what is seen on one.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::pty::{OpenptyResult, Winsize, openpty};

use super::wait;

/// A terminal of the test.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    slave: OwnedFd,
}

impl Terminal {
    /// A new one of this size.
    ///
    /// # Panics
    /// When the host has none to give.
    #[must_use]
    pub fn open(columns: u16, rows: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).expect("a terminal");
        Self { master: master.into(), slave }
    }

    /// The end where the person is.
    #[must_use]
    pub fn master(&self) -> &File {
        &self.master
    }

    /// The end where a command is.
    ///
    /// # Panics
    /// When there are too many descriptors.
    #[must_use]
    pub fn end(&self) -> Stdio {
        self.slave.try_clone().expect("a descriptor can be copied").into()
    }

    /// `command` in a session with this terminal, so that the terminal's signals reach it.
    #[must_use]
    pub fn session(&self, command: &Command) -> Command {
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg("--wait").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => session.env(name, value),
                None => session.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            session.current_dir(folder);
        }
        session.stdin(self.end());
        session
    }

    /// Types.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn write(&self, text: &str) {
        (&self.master).write_all(text.as_bytes()).expect("a terminal takes what is typed");
    }

    /// Sets its size, at once as a person's terminal does: of two changes in a row conmon, Podman's monitor, may lose one.
    ///
    /// # Panics
    /// When that fails.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.master, size).expect("a terminal's size can be set");
    }
}

/// What comes out of a terminal, collected by a thread that ends with it.
#[derive(Debug)]
pub struct Screen(Arc<Mutex<Vec<u8>>>);

impl Screen {
    /// Of the terminal with this master.
    ///
    /// # Panics
    /// When there are too many descriptors.
    #[must_use]
    pub fn of(master: &File) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut master, writer) = (master.try_clone().expect("a descriptor can be copied"), Arc::clone(&seen));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = master.read(&mut buffer) {
                if count == 0 {
                    break;
                }
                writer.lock().expect("nobody panics with the lock").extend_from_slice(&buffer[..count]);
            }
        });
        Self(seen)
    }

    /// All that has been on it.
    ///
    /// # Panics
    /// Never, unless the collecting thread did.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("nobody panics with the lock")).into_owned()
    }

    /// Waits until `text` has been on it.
    ///
    /// # Panics
    /// When it has not been within `limit`, [scaled](wait::scaled).
    pub fn wait_for(&self, text: &str, limit: Duration) {
        assert!(wait::until(limit, || self.text().contains(text)), "no {text:?} on the screen: {:?}", self.text());
    }
}
