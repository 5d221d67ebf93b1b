//! Builds the programs and the guest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use stockade_guest::{BuildOptions, GuestAssets, GuestKind};

use crate::{command, setup};

/// The programs that a task works with.
#[derive(Debug)]
pub(crate) struct Binaries {
    pub(crate) stockade: PathBuf,
    pub(crate) agent: PathBuf,
    pub(crate) lab_init: PathBuf,
}

/// Builds the programs, optimised, and copies them to build/bin: a later build of the tests may replace those in cargo's
/// folder by others with more features, and the guest must not change with that.
pub(crate) fn binaries() -> Result<Binaries> {
    // The whole workspace, as the tests are: so each dependency has one set of features and is compiled once.
    command::run(command::cargo().args(["build", "--release", "--workspace", "--bins"]))?;
    // Once more for the guest, where size counts (see [profile.agent]).
    command::run(command::cargo().args(["build", "--profile", "agent", "--package", "stockade-agent"]))?;
    let made = target_dir()?;
    let folder = command::build_dir().join("bin");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let copy = |profile: &str, name: &str| -> Result<PathBuf> {
        let made = made.join(profile).join(name);
        let target = folder.join(name);
        let partial = folder.join(format!("{name}.partial-{}", std::process::id()));
        fs::copy(&made, &partial)
            .and_then(|_| fs::rename(&partial, &target))
            .with_context(|| format!("cannot copy {} to {}", made.display(), target.display()))?;
        Ok(target)
    };
    Ok(Binaries {
        stockade: copy("release", "stockade")?,
        agent: copy("agent", "stockade-agent")?,
        lab_init: copy("release", "stockade-lab-init")?,
    })
}

/// What tells tests and benchmarks what to work with.
pub(crate) fn test_environment(binaries: &Binaries, guest: &GuestAssets) -> Result<BTreeMap<String, String>> {
    let guest = guest.vmlinuz.parent().context("the guest has no folder")?;
    let entries = [
        ("STOCKADE_TEST_BIN", binaries.stockade.as_path()),
        ("STOCKADE_TEST_AGENT", &binaries.agent),
        ("STOCKADE_TEST_GUEST", guest),
    ];
    Ok(entries.into_iter().map(|(name, path)| (name.to_owned(), path.display().to_string())).collect())
}

/// Where cargo puts what it builds, a folder a profile.
fn target_dir() -> Result<PathBuf> {
    let text = command::output(command::cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("cannot read cargo's metadata")?;
    let target = metadata["target_directory"].as_str().context("cargo's metadata names no target folder")?;
    Ok(Path::new(target).join("x86_64-unknown-linux-gnu"))
}

pub(crate) fn guest_kind(image: bool) -> GuestKind {
    if image { GuestKind::Both } else { GuestKind::Initrd }
}

/// Makes the guest in build/guest, unless it is there already and made from the same agent and kernel.
pub(crate) fn guest(binaries: &Binaries, kind: GuestKind) -> Result<GuestAssets> {
    let folder = command::build_dir();
    let mut options = BuildOptions::new(folder.join("guest"), &binaries.agent, folder.join("cache"));
    options.kind = kind;
    options.progress = Some(Arc::new(|step: &str| eprintln!("guest: {step}")));
    if stockade_guest::is_current(&options) {
        return GuestAssets::open(&options.out_dir).context("cannot open the guest");
    }
    match stockade_guest::build(&options) {
        Ok(guest) => Ok(guest),
        Err(error) => {
            // apt's lists may be missing or name files that the archive has replaced since.
            eprintln!("guest: {error}; fetching apt's lists and trying again");
            setup::update()?;
            stockade_guest::build(&options).context("cannot make the guest")
        }
    }
}
