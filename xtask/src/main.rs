//! The project's tasks. Each installs what it needs first, so that a machine with Debian, Rust and root is enough.

mod bench;
mod build;
mod command;
mod demo;
mod fuzz;
mod install;
mod lab;
mod setup;
mod test;
mod timeline;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Builds, tries, tests and installs Stockade.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run a container in a virtual machine and show its output and how long each step of its creation took
    Run(RunArgs),
    /// Run all tests
    Test(TestArgs),
    /// Run the tests that need KVM, or a command, on a host that has it: this one, or an emulated one
    Lab(lab::LabArgs),
    /// Run the benchmarks
    Bench(BenchArgs),
    /// Run the property tests for as long as it is given
    Fuzz(FuzzArgs),
    /// Make the guest's kernel and initrd in build/guest
    Guest(GuestArgs),
    /// Build everything and copy it to where an installed Stockade looks for it
    Install(InstallArgs),
    /// Install the Debian packages that the other tasks need
    Setup,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The command to run in the container instead of the built-in one
    #[arg(trailing_var_arg = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
struct TestArgs {
    /// Given to `cargo nextest run`, for example a filter
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Args)]
struct BenchArgs {
    /// Only the benchmarks whose name contains this
    filter: Option<String>,
    /// Given to each benchmark
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Args)]
struct FuzzArgs {
    /// How long all tests take together; each gets the same share
    #[arg(long, default_value_t = 15)]
    minutes: u32,
    /// Only the tests whose name contains this
    filter: Option<String>,
}

#[derive(Debug, Args)]
struct GuestArgs {
    /// Make the disk image with systemd as well
    #[arg(long)]
    image: bool,
}

#[derive(Debug, Args)]
struct InstallArgs {
    /// Where the system finds programs and shared files
    #[arg(long, default_value = "/usr")]
    prefix: PathBuf,
    /// Put before every path, for making a package
    #[arg(long, default_value = "")]
    destdir: PathBuf,
    /// Install the disk image with systemd as well
    #[arg(long)]
    image: bool,
}

fn main() -> ExitCode {
    run(Cli::parse().task).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(task: Task) -> anyhow::Result<ExitCode> {
    match task {
        Task::Run(arguments) => demo::run(&arguments.command),
        Task::Test(arguments) => test::run(&arguments.arguments),
        Task::Lab(arguments) => lab::run(&arguments),
        Task::Bench(arguments) => bench::run(arguments.filter.as_deref(), &arguments.arguments),
        Task::Fuzz(arguments) => fuzz::run(arguments.minutes, arguments.filter.as_deref()),
        Task::Guest(arguments) => {
            setup::install(setup::Purpose::guest(arguments.image))?;
            let binaries = build::binaries()?;
            build::guest(&binaries, build::guest_kind(arguments.image))?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Install(arguments) => install::run(&arguments.prefix, &arguments.destdir, arguments.image),
        Task::Setup => {
            setup::install(setup::Purpose::Test)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
