//! `cargo xtask install`: copies everything to where an installed Stockade looks for it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::{build, command, setup};

/// The shells that get a file of completions: its name, and the folder under the prefix.
const SHELLS: &[(&str, &str, &str)] = &[
    ("bash", "share/bash-completion/completions", "stockade"),
    ("zsh", "share/zsh/site-functions", "_stockade"),
    ("fish", "share/fish/vendor_completions.d", "stockade.fish"),
];

/// What tells engines of Stockade; each says where to copy it. Their programs' paths are those of the prefix /usr.
const ENGINES: &[&str] = &["containerd.toml", "crio.conf", "docker-daemon.json", "podman.conf", "runtimeclass.yaml"];
/// Where programs and shared files are when nothing says otherwise; the program's own defaults name it.
const USUAL: &str = "/usr";
/// The names of what is installed, one a line, below the prefix.
const LIST: &str = "share/stockade/installed-files";

/// Builds and installs under `destdir` + `prefix`. Files that are there already are replaced, each at once.
pub(crate) fn run(prefix: &Path, destdir: &Path, image: bool) -> Result<ExitCode> {
    ensure!(prefix.is_absolute(), "--prefix must be an absolute path, not {}", prefix.display());
    setup::install(setup::Purpose::guest(image))?;
    let binaries = build::binaries()?;
    let guest = build::guest(&binaries, build::guest_kind(image))?;
    let mut target = Target { prefix, destdir, installed: Vec::new() };

    target.copy(&binaries.stockade, "bin/stockade", 0o755)?;
    target.link("stockade", "bin/containerd-shim-stockade-v2")?;
    target.copy(&binaries.agent, "libexec/stockade/stockade-agent", 0o755)?;
    let config = command::repository().join("config");
    target.copy(&config.join("stockade.toml"), "share/stockade/stockade.toml", 0o644)?;
    let folder = guest.vmlinuz.parent().context("the guest has no folder")?;
    for name in guest.manifest.files.keys().map(String::as_str).chain(["manifest.json"]) {
        target.copy(&folder.join(name), &format!("share/stockade/guest/{name}"), 0o644)?;
    }
    for (shell, folder, name) in SHELLS {
        let text = command::output(Command::new(&binaries.stockade).args(["completions", shell]))?;
        target.write(&format!("{folder}/{name}"), text.as_bytes())?;
    }
    let pages = tempfile::tempdir().context("cannot create a temporary folder")?;
    command::run(Command::new(&binaries.stockade).args(["man"]).arg(pages.path()))?;
    for entry in fs::read_dir(pages.path()).context("cannot read the manual pages")? {
        let page = entry.context("cannot read the manual pages")?;
        target.copy(&page.path(), &format!("share/man/man1/{}", page.file_name().display()), 0o644)?;
    }
    for name in ENGINES {
        let path = config.join("engines").join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        target.write(&format!("share/stockade/engines/{name}"), for_prefix(&text, prefix).as_bytes())?;
    }
    if prefix != Path::new(USUAL) {
        target.write("/etc/stockade/stockade.d/00-prefix.toml", guest_of_prefix(prefix)?.as_bytes())?;
    }
    target.finish()?;
    println!("installed under {}", below(destdir, prefix).display());
    Ok(ExitCode::SUCCESS)
}

/// Where things go, and what went there.
struct Target<'a> {
    prefix: &'a Path,
    destdir: &'a Path,
    installed: Vec<PathBuf>,
}

impl Target<'_> {
    /// Notes `name`, below the prefix unless it is absolute, as installed; returns where it goes now.
    fn place(&mut self, name: &str) -> PathBuf {
        let path = self.prefix.join(name);
        let place = below(self.destdir, &path);
        self.installed.push(path);
        place
    }

    fn copy(&mut self, source: &Path, name: &str, mode: u32) -> Result<()> {
        install(source, &self.place(name), mode)
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        write(&self.place(name), bytes, 0o644)
    }

    fn link(&mut self, text: &str, name: &str) -> Result<()> {
        link(text, &self.place(name))
    }

    /// Writes the list of what is installed, itself in it.
    fn finish(mut self) -> Result<()> {
        let place = self.place(LIST);
        self.installed.sort();
        let lines: String = self.installed.iter().map(|path| format!("{}\n", path.display())).collect();
        write(&place, lines.as_bytes(), 0o644)
    }
}

fn for_prefix(text: &str, prefix: &Path) -> String {
    text.replace(&format!("{USUAL}/bin/"), &format!("{}/", prefix.join("bin").display()))
}

/// The configuration's layer that names the guest where the program would not look for it.
fn guest_of_prefix(prefix: &Path) -> Result<String> {
    let guest = prefix.join("share/stockade/guest");
    let mut machine = toml::Table::new();
    for (key, file) in [("kernel", "vmlinux"), ("initrd", "initrd.img")] {
        machine.insert(key.into(), guest.join(file).display().to_string().into());
    }
    machine.insert("valid_guest_paths".into(), vec![guest.join("*").display().to_string()].into());
    let machines: toml::Table =
        ["kvm", "qemu"].map(|name| (name.to_owned(), machine.clone().into())).into_iter().collect();
    let config: toml::Table = [("hypervisor".to_owned(), machines.into())].into_iter().collect();
    toml::to_string(&config).context("cannot write TOML")
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
    create(target.parent().unwrap_or_else(|| Path::new("/")))?;
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
    fn what_is_installed_is_listed_by_the_names_that_it_will_have() {
        let dir = tempfile::tempdir().unwrap();
        let mut target = Target { prefix: Path::new("/opt/s"), destdir: dir.path(), installed: Vec::new() };
        target.write("bin/stockade", b"").unwrap();
        target.write("/etc/stockade/stockade.d/00-prefix.toml", b"").unwrap();
        target.link("stockade", "bin/other").unwrap();
        target.finish().unwrap();
        let list = fs::read_to_string(dir.path().join("opt/s").join(LIST)).unwrap();
        let names: Vec<&str> = list.lines().collect();
        let etc = "/etc/stockade/stockade.d/00-prefix.toml";
        assert_eq!(names, [etc, "/opt/s/bin/other", "/opt/s/bin/stockade", "/opt/s/share/stockade/installed-files"]);
        for name in names {
            assert!(below(dir.path(), Path::new(name)).symlink_metadata().is_ok(), "{name}");
        }
    }

    #[test]
    fn another_prefix_changes_the_paths_of_programs_and_of_the_guest() {
        let prefix = Path::new("/opt/s");
        assert_eq!(for_prefix("path = \"/usr/bin/stockade\"", prefix), "path = \"/opt/s/bin/stockade\"");
        let config: toml::Table = guest_of_prefix(prefix).unwrap().parse().unwrap();
        assert_eq!(config["hypervisor"]["kvm"]["kernel"].as_str(), Some("/opt/s/share/stockade/guest/vmlinux"));
        let path = tempfile::NamedTempFile::new().unwrap();
        fs::write(path.path(), guest_of_prefix(prefix).unwrap()).unwrap();
        let lookup = stockade_config::Lookup::from_process(Some(path.path().to_owned()));
        stockade_config::Config::load(&lookup).unwrap();
    }

    #[test]
    fn each_file_for_an_engine_is_installed_and_in_its_own_language() {
        let folder = command::repository().join("config/engines");
        let mut names: Vec<String> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ENGINES);
        for name in names {
            let text = fs::read_to_string(folder.join(&name)).unwrap();
            match name.rsplit('.').next() {
                Some("toml" | "conf") => drop(text.parse::<toml::Table>().unwrap()),
                Some("json") => drop(serde_json::from_str::<serde_json::Value>(&text).unwrap()),
                // One document of plain keys, as kubectl reads it; its own test is a cluster's.
                _ => assert!(
                    text.contains("kind: RuntimeClass\n") && text.contains("podFixed:\n") && !text.contains('\t')
                ),
            }
        }
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
