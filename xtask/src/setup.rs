//! The Debian packages that the tasks need, and why.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::command;

/// What a machine is prepared for. Later ones include the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Compiling, and making the initrd guest.
    Build,
    /// Running containers.
    Run,
    /// Making the disk image too.
    Image,
    /// All tests.
    Test,
    /// All benchmarks.
    Bench,
}

impl Purpose {
    pub(crate) fn guest(image: bool) -> Self {
        if image { Self::Image } else { Self::Build }
    }
}

#[derive(Debug)]
struct Package {
    name: &'static str,
    since: Purpose,
    reason: &'static str,
}

const fn package(name: &'static str, since: Purpose, reason: &'static str) -> Package {
    Package { name, since, reason }
}

const PACKAGES: &[Package] = &[
    package("gcc", Purpose::Build, "links Rust programs"),
    package("libc6-dev", Purpose::Build, "the static C library that every program contains"),
    package("libseccomp-dev", Purpose::Build, "system call filters of containers and of the jailed helpers"),
    package("libcap-ng-dev", Purpose::Build, "capabilities of the file server (virtiofsd)"),
    package("pkg-config", Purpose::Build, "finds those two libraries"),
    package("qemu-system-x86", Purpose::Run, "runs the virtual machines of the QEMU backend"),
    package("busybox-static", Purpose::Run, "the root file system of the demonstration's and the tests' containers"),
    package("mmdebstrap", Purpose::Image, "makes the Debian of the disk image"),
    package("erofs-utils", Purpose::Image, "makes the disk image's file system"),
    package("containerd", Purpose::Test, "the tests run containers by it; each starts one of its own"),
    package("podman", Purpose::Test, "drives the program as its OCI runtime"),
    package("containernetworking-plugins", Purpose::Test, "the tests make sandboxes' networks with CNI's plugins"),
    package("netavark", Purpose::Test, "the tests make sandboxes' networks as Podman does"),
    package("iptables", Purpose::Test, "the ports that both of them publish"),
    package("iproute2", Purpose::Test, "the tests look at links and network namespaces with it"),
    package("iperf3", Purpose::Bench, "measures the network of a guest"),
];

/// Installs what is missing for `purpose`. Nothing is asked and, when nothing is missing, nothing is done.
///
/// # Errors
/// When something is missing and cannot be installed; the error lists what to install by hand.
pub(crate) fn install(purpose: Purpose) -> Result<()> {
    let wanted: Vec<&Package> = PACKAGES.iter().filter(|package| package.since <= purpose).collect();
    let missing: Vec<&Package> = wanted.into_iter().filter(|package| !is_installed(package.name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing what is missing:");
    for package in &missing {
        eprintln!("  {:<18} {}", package.name, package.reason);
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    // A fresh machine has no lists or old ones, which name files that the archive no longer has.
    if apt_get(&["install"], &names).is_err() {
        update()?;
        apt_get(&["install"], &names)
            .with_context(|| format!("install by hand, as root: apt-get install {}", names.join(" ")))?;
    }
    Ok(())
}

/// Fetches apt's package lists anew.
pub(crate) fn update() -> Result<()> {
    apt_get(&["update"], &[])
}

fn apt_get(verb: &[&str], names: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).arg("--quiet=2").args(verb);
    if !names.is_empty() {
        command.args(["--yes", "--no-install-recommends", "--option", "Dpkg::Use-Pty=0"]).args(names);
    }
    // apt's chatter belongs on stderr: stdout is for the task's result.
    command.stdout(std::io::stderr());
    let status = command::status(&mut command)?;
    if !status.success() {
        bail!("apt-get {} failed: {status}", verb.join(" "));
    }
    Ok(())
}

fn is_installed(name: &str) -> bool {
    // One call a package: dpkg-query fails as a whole when it does not know one of several names.
    let status =
        command::output(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}\\n", name]));
    status.is_ok_and(|text| text.lines().any(|line| line == "installed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_does_not_exist_is_not_installed() {
        assert!(!is_installed("stockade-no-such-package"));
        assert!(is_installed("dpkg"));
    }

    #[test]
    fn preparing_for_benchmarks_includes_everything() {
        assert!(PACKAGES.iter().all(|package| package.since <= Purpose::Bench));
    }
}
