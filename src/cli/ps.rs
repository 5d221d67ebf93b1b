//! `stockade ps`.

use super::client::{SHORT_CALL, answer};
use super::container::{current, supervisor_of};
use super::globals::Context;
use super::list::ListFormat;
use super::table::{columns, print, print_json};
use crate::api::{Process, ProcessesRequest};
use crate::ids::ContainerId;
use std::process::ExitCode;
use ttrpc::context::with_duration;

/// List the processes of a container, with the pids that they have in the virtual machine
///
/// As JSON: the pid on the host of what stands in for them. Engines take these pids for the host's, whatever process that
/// would be.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The container
    #[arg(value_name = "CONTAINER")]
    id: ContainerId,
    /// Form of the list; json: pids of the host only
    #[arg(short, long, value_enum, default_value_t)]
    format: ListFormat,
    /// Options of ps(1); taken for compatibility: the columns are fixed
    #[arg(value_name = "PS_OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    ps_options: Vec<String>,
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        if !self.ps_options.is_empty() {
            context.report.debug("options of ps have no effect: the columns are fixed");
        }
        if self.format == ListFormat::Json {
            let record = context.runtime.block_on(async {
                supervisor_of(context, &self.id, "list the processes of").await?;
                anyhow::Ok(current(context, &self.id).await?)
            })?;
            print_json(&record.stand_in.iter().map(|process| process.pid).collect::<Vec<_>>())?;
            return Ok(ExitCode::SUCCESS);
        }
        let response = context.runtime.block_on(async {
            let (_, connection) = supervisor_of(context, &self.id, "list the processes of").await?;
            let request = ProcessesRequest { id: self.id.to_string(), ..ProcessesRequest::default() };
            let result = connection.supervisor.processes(with_duration(SHORT_CALL), &request).await;
            anyhow::Ok(answer("Processes", result)?)
        })?;
        print(&table(&response.processes))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn table(processes: &[Process]) -> String {
    let head = ["UID", "PID", "PPID", "STATE", "CMD"].map(str::to_owned).to_vec();
    let rows = processes.iter().map(|process| {
        vec![
            process.uid.to_string(),
            process.pid.to_string(),
            process.ppid.to_string(),
            clean(&process.state),
            clean(&process.command),
        ]
    });
    columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// A command line comes from the guest: it must not steer the reader's terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_command_line_cannot_steer_the_terminal() {
        let process = Process { pid: 7, command: "sh\u{1b}[2J\nx".into(), state: "S".into(), ..Process::default() };
        assert_eq!(table(&[process]), "UID   PID   PPID   STATE   CMD\n0     7     0      S       sh?[2J?x");
    }
}
