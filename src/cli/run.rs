//! `stockade run`.

use super::creation::{Created, CreationOptions, create};
use super::delete::delete;
use super::foreground::{start, start_and_attend, status_of};
use super::globals::Context;
use crate::stand_in::{Signals, Subject};
use std::process::ExitCode;

/// Create and start a container; unless detached, wait for its end and delete it
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    options: CreationOptions,
    /// Return when the container's process is started
    #[arg(short, long)]
    detach: bool,
    /// Do not delete the container at its end
    #[arg(long)]
    keep: bool,
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        let signals = Signals::block()?;
        let Created { connection, terminal, stand_in } = create(context, &self.options, self.detach, &signals)?;
        let subject = Subject { container: self.options.id.clone(), exec: None };
        if self.detach {
            if let Err(error) = context.runtime.block_on(start(&connection, &subject)) {
                self.remove(context);
                return Err(error);
            }
            return Ok(ExitCode::SUCCESS);
        }
        let outcome = start_and_attend(context, &connection, &subject, terminal, signals);
        drop(connection);
        if outcome.is_err() || !self.keep {
            self.remove(context);
        }
        if let Some(mut child) = stand_in {
            // It has the same news as we, and is reaped so that no zombie of ours stays.
            child.wait()?;
        }
        Ok(ExitCode::from(status_of(outcome?)))
    }

    /// What goes wrong here must not hide the container's status.
    fn remove(&self, context: &Context) {
        if let Err(error) = delete(context, &self.options.id, true) {
            context.report.error(&format!("cannot delete container {}: {error:#}", self.options.id));
        }
    }
}
