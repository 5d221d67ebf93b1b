//! `stockade kill`.

use super::client::{CallError, SHORT_CALL, answer};
use super::container::{current, supervisor_of};
use super::globals::Context;
use crate::ids::ContainerId;
use crate::oci::Status;
use anyhow::bail;
use containerd_shim_protos::api::KillRequest;
use nix::sys::signal::Signal as Known;
use std::process::ExitCode;
use std::str::FromStr;
use ttrpc::context::with_duration;

/// Send a signal to a container's process
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The container
    #[arg(value_name = "CONTAINER")]
    id: ContainerId,
    /// The signal: a number, or a name with or without SIG
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    signal: Signal,
    /// Send it to all processes of the container; a stopped container is then no error
    #[arg(short, long)]
    pub(super) all: bool,
}

/// A signal's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Signal(u32);

impl FromStr for Signal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(number) = text.parse::<u32>() {
            let most = nix::libc::SIGRTMAX().unsigned_abs();
            return if (1..=most).contains(&number) {
                Ok(Self(number))
            } else {
                Err(format!("signals have the numbers 1 to {most}"))
            };
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(number) = real_time(name) {
            return Ok(Self(number));
        }
        Known::from_str(&format!("SIG{name}"))
            .map(|signal| Self((signal as i32).unsigned_abs()))
            .map_err(|_| "it is no signal's name or number".to_owned())
    }
}

/// RTMIN, RTMIN+n, RTMAX, RTMAX-n.
fn real_time(name: &str) -> Option<u32> {
    let (low, high) = (nix::libc::SIGRTMIN().unsigned_abs(), nix::libc::SIGRTMAX().unsigned_abs());
    let offset = |text: &str, sign: char| match text {
        "" => Some(0),
        text => text.strip_prefix(sign)?.parse::<u32>().ok(),
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => low.checked_add(offset(rest, '+')?)?,
        (_, Some(rest)) => high.checked_sub(offset(rest, '-')?)?,
        _ => return None,
    };
    (low..=high).contains(&number).then_some(number)
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        let record = context.runtime.block_on(current(context, &self.id))?;
        if record.status == Status::Stopped {
            if self.all {
                return Ok(ExitCode::SUCCESS);
            }
            bail!("container not running");
        }
        let result = context.runtime.block_on(async {
            let (_, connection) = supervisor_of(context, &self.id, "kill").await?;
            let request =
                KillRequest { id: self.id.to_string(), signal: self.signal.0, all: self.all, ..KillRequest::default() };
            answer("Kill", connection.task.kill(with_duration(SHORT_CALL), &request).await)?;
            anyhow::Ok(())
        });
        match result {
            Ok(()) => Ok(ExitCode::SUCCESS),
            // Between the look and the call it may have ended.
            Err(error) if error.downcast_ref::<CallError>().is_some_and(CallError::is_not_found) => {
                if self.all {
                    Ok(ExitCode::SUCCESS)
                } else {
                    bail!("container not running")
                }
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_with_and_without_sig_and_numbers() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("TERM", 15),
            ("kill", 9),
            ("sigHup", 1),
            ("9", 9),
            ("64", 64),
            ("RTMIN", nix::libc::SIGRTMIN().unsigned_abs()),
            ("SIGRTMIN+2", nix::libc::SIGRTMIN().unsigned_abs() + 2),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(text.parse::<Signal>(), Ok(Signal(number)), "{text}");
        }
        for text in ["", "0", "65", "-9", "SIGNONE", "RTMIN+99", "RTMIN-1", "SIG"] {
            assert!(text.parse::<Signal>().is_err(), "{text}");
        }
    }
}
