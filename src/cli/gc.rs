//! `stockade gc`.

use super::container::report_leftovers;
use super::globals::Context;
use super::table::print;
use crate::state::recovery;
use std::process::ExitCode;

/// Remove what belongs to no living sandbox
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        let (removed, leftovers) = recovery::collect_garbage(&context.store)?;
        for what in removed {
            print(&format!("removed {what}"))?;
        }
        Ok(ExitCode::from(u8::from(report_leftovers(context, &leftovers) > 0)))
    }
}
