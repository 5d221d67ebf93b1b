//! The command line, with runc's conventions. One file a verb; each translates to calls of a supervisor, or to the state
//! on disk when there is none, and does nothing else.
//!
//! ```text
//! create, run, exec ── creation, process ─┐
//! start, kill, delete, state, …  ─────────┼─ client ──> the sandbox's supervisor
//! list, gc, config, spec, …               └─ state, config, oci
//! ```

pub(crate) mod client;

mod check;
mod completions;
mod config;
mod console;
mod container;
mod create;
mod creation;
mod delete;
mod env;
mod events;
mod exec;
mod features;
mod foreground;
mod gc;
mod globals;
mod guest;
mod inspect;
mod kill;
mod list;
mod man;
mod metrics;
mod pause;
mod pid_file;
mod process;
mod progress;
mod ps;
mod report;
mod resources;
mod run;
mod spec;
mod start;
mod state;
mod table;
mod update;
mod version;

pub(crate) use container::End;

use crate::ids::ContainerId;
use crate::state::Store;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use globals::{Context, Globals};
use report::Reporter;
use std::ffi::OsString;
use std::process::ExitCode;

/// What a verb returns: the exit status, or why it failed.
type Outcome = anyhow::Result<ExitCode>;

/// Runs OCI containers and pods, each in its own virtual machine.
#[derive(Debug, Parser)]
#[command(name = "stockade", version = version::SHORT, long_version = version::long(), disable_help_subcommand = true)]
// An engine adds options of its own to those that it was told to give: the last one counts.
#[command(max_term_width = 120, args_override_self = true)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(create::Arguments),
    Start(start::Arguments),
    State(state::Arguments),
    Kill(kill::Arguments),
    Delete(delete::Arguments),
    Run(run::Arguments),
    Exec(exec::Arguments),
    Ps(ps::Arguments),
    List(list::Arguments),
    Pause(pause::PauseArguments),
    Resume(pause::ResumeArguments),
    Update(update::Arguments),
    Events(events::Arguments),
    Spec(spec::Arguments),
    Features(features::Arguments),
    Check(check::Arguments),
    Env(env::Arguments),
    Config(config::Arguments),
    Inspect(inspect::Arguments),
    Metrics(metrics::Arguments),
    Gc(gc::Arguments),
    Guest(guest::Arguments),
    Completions(completions::Arguments),
    #[command(hide = true)]
    Man(man::Arguments),
    Version(version::Arguments),
}

impl Verb {
    fn run(self, context: &Context) -> Outcome {
        match self {
            Self::Create(arguments) => arguments.run(context),
            Self::Start(arguments) => arguments.run(context),
            Self::State(arguments) => arguments.run(context),
            Self::Kill(arguments) => arguments.run(context),
            Self::Delete(arguments) => arguments.run(context),
            Self::Run(arguments) => arguments.run(context),
            Self::Exec(arguments) => arguments.run(context),
            Self::Ps(arguments) => arguments.run(context),
            Self::List(arguments) => arguments.run(context),
            Self::Pause(arguments) => arguments.run(context),
            Self::Resume(arguments) => arguments.run(context),
            Self::Update(arguments) => arguments.run(context),
            Self::Events(arguments) => arguments.run(context),
            Self::Spec(arguments) => arguments.run(),
            Self::Features(arguments) => arguments.run(),
            Self::Check(arguments) => arguments.run(context),
            Self::Env(arguments) => arguments.run(context),
            Self::Config(arguments) => arguments.run(context),
            Self::Inspect(arguments) => arguments.run(context),
            Self::Metrics(arguments) => arguments.run(context),
            Self::Gc(arguments) => arguments.run(context),
            Self::Guest(arguments) => arguments.run(context),
            Self::Completions(arguments) => arguments.run(),
            Self::Man(arguments) => arguments.run(),
            Self::Version(arguments) => arguments.run(),
        }
    }

    /// The exit status of a verb that failed: `exec` and `run` keep the small ones for the process that they start.
    fn failure(&self) -> u8 {
        match self {
            Self::Exec(_) => 255,
            _ => 1,
        }
    }
}

/// Runs the command line `arguments`, the program's name first.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done about a closed standard error.
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(u8::from(!asked));
        }
    };
    let reporter = Reporter::new(&cli.globals);
    let failure = cli.verb.failure();
    let result = Context::new(cli.globals, reporter.clone()).and_then(|context| cli.verb.run(&context));
    match result {
        Ok(code) => code,
        Err(error) => {
            reporter.error(&format!("{error:#}"));
            ExitCode::from(failure)
        }
    }
}

/// Deletes a container as `delete --force` does, for the other front door.
pub(crate) fn delete_by_force(store: &Store, id: &ContainerId) -> anyhow::Result<()> {
    let globals = Globals { root: store.root().to_owned(), ..Globals::default() };
    let reporter = Reporter::new(&globals);
    delete::delete(&Context::new(globals, reporter)?, id, true)
}

/// The whole command line, for completions and manual pages.
fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn what_podman_and_conmon_call_is_understood() {
        for line in [
            "stockade --version",
            "stockade --systemd-cgroup --log-format=json --log /l/oci-log create --bundle /b --pid-file /p c",
            "stockade --log-format=json --log /l create --bundle /b --pid-file /p --console-socket /c --no-pivot \
             --no-new-keyring --preserve-fds 1 c",
            "stockade --systemd-cgroup start c",
            "stockade --root /a --log /b --root /c --log /d --log-format text --log-format json start c",
            "stockade kill c 15",
            "stockade kill --all c 9",
            "stockade delete --force c",
            "stockade pause c",
            "stockade resume c",
            "stockade state c",
            "stockade --log /l --log-format json exec --pid-file /p --process /f --detach --tty --console-socket /s c",
        ] {
            let result = parsed(line);
            assert!(
                result.as_ref().map_or_else(|error| error.kind() == ErrorKind::DisplayVersion, |_| true),
                "{line}: {result:?}"
            );
        }
    }

    #[test]
    fn options_are_taken_after_the_id_and_globals_after_the_verb() {
        let cli = parsed("stockade kill c --all KILL --root /r --debug").unwrap();
        assert_eq!(cli.globals.root, std::path::Path::new("/r"));
        assert!(cli.globals.debug);
        let Verb::Kill(kill) = cli.verb else { panic!("kill") };
        assert!(kill.all);
    }

    #[test]
    fn an_illegal_id_is_refused_before_anything_happens() {
        for line in ["stockade start ../c", "stockade create", "stockade delete a/b"] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
