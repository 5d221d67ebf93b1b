//! `stockade guest`.

use super::globals::Context;
use super::table::print;
use anyhow::{Context as _, bail};
use clap::Subcommand;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use stockade_guest::{BuildOptions, DEFAULT_GUEST_DIR, DEFAULT_KERNEL_PACKAGE, GuestKind};

/// Where an installed agent lies, seen from the program's directory: beside it in a build, in libexec when installed.
const AGENT_PLACES: [&str; 2] = ["stockade-agent", "../libexec/stockade/stockade-agent"];

/// Make the guest that the virtual machines run
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Build(Build),
}

/// Make the guest's kernel and initrd, or disk image, from Debian's packages and the agent
#[derive(Debug, clap::Args)]
struct Build {
    /// Directory that the guest is written to
    #[arg(short, long, value_name = "DIR", default_value = DEFAULT_GUEST_DIR)]
    output: PathBuf,
    /// The agent's program; by default the one that is installed with this program
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// What the guest boots from; an image holds a Debian with systemd
    #[arg(long, value_enum, default_value_t)]
    kind: Kind,
    /// The kernel's package, or one that depends on it
    #[arg(long, value_name = "PACKAGE", default_value = DEFAULT_KERNEL_PACKAGE)]
    kernel_package: String,
    /// Directory that keeps downloaded packages
    #[arg(long, value_name = "DIR", default_value = "/var/cache/stockade")]
    cache: PathBuf,
    /// Make it even if it is there already, from the same parts
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Kind {
    /// An initrd with the agent as init.
    #[default]
    Initrd,
    /// A disk image with systemd.
    Image,
    /// Both.
    Both,
}

impl Arguments {
    pub(super) fn run(self, context: &Context) -> super::Outcome {
        match self.verb {
            Verb::Build(build) => build.run(context),
        }
    }
}

impl Build {
    fn run(self, context: &Context) -> super::Outcome {
        let agent = match self.agent {
            Some(agent) => agent,
            None => installed_agent()?,
        };
        let mut options = BuildOptions::new(self.output, agent, self.cache);
        options.kernel_package = self.kernel_package;
        options.kind = match self.kind {
            Kind::Initrd => GuestKind::Initrd,
            Kind::Image => GuestKind::Image,
            Kind::Both => GuestKind::Both,
        };
        if !self.force && stockade_guest::is_current(&options) {
            print(&format!("{} is up to date", options.out_dir.display()))?;
            return Ok(ExitCode::SUCCESS);
        }
        let report = context.report.clone();
        options.progress = Some(Arc::new(move |step: &str| report.step(step)));
        let guest = stockade_guest::build(&options).context("cannot make the guest")?;
        for (name, file) in &guest.manifest.files {
            print(&format!("{} ({} KiB)", options.out_dir.join(name).display(), file.size / 1024))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn installed_agent() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let directory = program.parent().context("this program has no directory")?;
    let places: Vec<PathBuf> = AGENT_PLACES.iter().map(|place| directory.join(place)).collect();
    match places.iter().find(|place| place.is_file()) {
        Some(place) => Ok(place.clone()),
        None => bail!("there is no agent at {} or {}: give --agent", places[0].display(), places[1].display()),
    }
}
