//! `cargo xtask install`: copies everything to where an installed Stockade looks for it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::{build, command, setup};

/// The shells that get a file of completions: its name, and the folder under the prefix.
const SHELLS: &[(&str, &str, &str)] = &[
    ("bash", "share/bash-completion/completions", "stockade"),
    ("zsh", "share/zsh/site-functions", "_stockade"),
    ("fish", "share/fish/vendor_completions.d", "stockade.fish"),
];

/// Builds and installs under `destdir` + `prefix`. Files that are there already are replaced, each at once.
pub(crate) fn run(prefix: &Path, destdir: &Path, image: bool) -> Result<ExitCode> {
    setup::install(setup::Purpose::guest(image))?;
    let binaries = build::binaries()?;
    let guest = build::guest(&binaries, build::guest_kind(image))?;
    let root = below(destdir, prefix);

    install(&binaries.stockade, &root.join("bin/stockade"), 0o755)?;
    link("stockade", &root.join("bin/containerd-shim-stockade-v2"))?;
    install(&binaries.agent, &root.join("libexec/stockade/stockade-agent"), 0o755)?;
    install(&command::repository().join("config/stockade.toml"), &root.join("share/stockade/stockade.toml"), 0o644)?;
    let folder = guest.vmlinuz.parent().context("the guest has no folder")?;
    for name in guest.manifest.files.keys().map(String::as_str).chain(["manifest.json"]) {
        install(&folder.join(name), &root.join("share/stockade/guest").join(name), 0o644)?;
    }
    for (shell, folder, name) in SHELLS {
        let text = command::output(Command::new(&binaries.stockade).args(["completions", shell]))?;
        write(&root.join(folder).join(name), text.as_bytes(), 0o644)?;
    }
    let pages = root.join("share/man/man1");
    create(&pages)?;
    command::run(Command::new(&binaries.stockade).args(["man"]).arg(&pages))?;
    println!("installed under {}", root.display());
    Ok(ExitCode::SUCCESS)
}

/// `prefix` below `destdir`; the prefix's leading slash does not make it absolute again.
fn below(destdir: &Path, prefix: &Path) -> PathBuf {
    if destdir.as_os_str().is_empty() {
        return prefix.to_owned();
    }
    destdir.join(prefix.strip_prefix("/").unwrap_or(prefix))
}

fn install(source: &Path, target: &Path, mode: u32) -> Result<()> {
    let bytes = fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
    write(target, &bytes, mode)
}

/// A program that runs cannot be written to, only replaced.
fn write(target: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let folder = target.parent().unwrap_or_else(|| Path::new("/"));
    create(folder)?;
    let context = || format!("cannot write {}", target.display());
    let partial = tempfile::NamedTempFile::new_in(folder).with_context(context)?;
    fs::write(partial.path(), bytes).with_context(context)?;
    fs::set_permissions(partial.path(), fs::Permissions::from_mode(mode)).with_context(context)?;
    partial.persist(target).with_context(context)?;
    Ok(())
}

fn link(text: &str, target: &Path) -> Result<()> {
    if target.is_symlink() {
        fs::remove_file(target).with_context(|| format!("cannot remove {}", target.display()))?;
    }
    symlink(text, target).with_context(|| format!("cannot create {}", target.display()))
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destdir_comes_before_the_prefix() {
        assert_eq!(below(Path::new("/tmp/package"), Path::new("/usr")), Path::new("/tmp/package/usr"));
        assert_eq!(below(Path::new(""), Path::new("/usr")), Path::new("/usr"));
    }

    #[test]
    fn writing_replaces_what_is_there_and_sets_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a/b");
        write(&target, b"old", 0o644).unwrap();
        write(&target, b"new", 0o755).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o755);
        link("b", &dir.path().join("a/c")).unwrap();
        link("b", &dir.path().join("a/c")).unwrap();
    }
}
