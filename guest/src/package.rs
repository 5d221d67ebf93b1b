//! Debian packages: found by apt, fetched into a cache, checked against apt's signed lists, unpacked.

use std::fs;
use std::path::{Path, PathBuf};

use crate::GuestError;
use crate::digest::sha256_file;
use crate::tool::Tool;

/// One version of one package, as apt's lists describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    architecture: String,
    sha256: String,
}

impl Package {
    /// The version of `name` that apt would install.
    ///
    /// # Errors
    /// When apt knows no such package.
    pub(crate) fn candidate(name: &str) -> Result<Self, GuestError> {
        let record = Tool::new("apt-cache", "apt").arg("show").arg("--no-all-versions").arg(name).run()?;
        let field = |wanted: &'static str| {
            control_field(&record, wanted)
                .map(str::to_owned)
                .ok_or_else(|| GuestError::PackageField { package: name.to_owned(), field: wanted })
        };
        Ok(Self {
            name: field("Package")?,
            version: field("Version")?,
            architecture: field("Architecture")?,
            sha256: field("SHA256")?,
        })
    }

    /// The package's file in `cache`, downloaded unless it is there already and whole.
    pub(crate) fn download(&self, cache: &Path) -> Result<PathBuf, GuestError> {
        fs::create_dir_all(cache).map_err(GuestError::file("create", cache))?;
        let path = cache.join(self.file_name());
        if !path.exists() || sha256_file(&path)? != self.sha256 {
            Tool::new("apt-get", "apt")
                // As root, apt would drop to a user that may not write to the cache.
                .arg("-o")
                .arg("APT::Sandbox::User=root")
                .arg("download")
                .arg(format!("{}={}", self.name, self.version))
                .current_dir(cache)
                .run()?;
        }
        let actual = sha256_file(&path)?;
        if actual != self.sha256 {
            return Err(GuestError::PackageHash { path, expected: self.sha256.clone(), actual });
        }
        Ok(path)
    }

    /// The folder in `cache` that holds the package's files, unpacked unless it is there already.
    pub(crate) fn unpacked(&self, cache: &Path) -> Result<PathBuf, GuestError> {
        let tree = cache.join(format!("{}_{}", self.name, self.sha256.get(..16).unwrap_or(&self.sha256)));
        if tree.exists() {
            return Ok(tree);
        }
        let file = self.download(cache)?;
        // The folder takes its name only when it is whole: an interrupted run leaves nothing that looks finished.
        let partial = cache.join(format!("{}.partial-{}", self.name, std::process::id()));
        Tool::new("dpkg-deb", "dpkg").arg("-x").arg(&file).arg(&partial).run()?;
        match fs::rename(&partial, &tree) {
            Ok(()) => {}
            // Another run was faster: its folder has the same files.
            Err(_) if tree.exists() => {
                fs::remove_dir_all(&partial).map_err(GuestError::file("remove", &partial))?;
            }
            Err(source) => return Err(GuestError::file("rename", &partial)(source)),
        }
        Ok(tree)
    }

    fn file_name(&self) -> String {
        format!("{}_{}_{}.deb", self.name, self.version.replace(':', "%3a"), self.architecture)
    }
}

/// The real kernel package behind `name`: the one that a package such as `linux-image-cloud-amd64` depends on, or
/// `name` itself when it is a real one.
///
/// # Errors
/// When apt lists neither.
pub(crate) fn kernel_package(name: &str) -> Result<Package, GuestError> {
    let unknown = || GuestError::NoKernelPackage { package: name.to_owned() };
    if is_real_kernel(name) {
        return Package::candidate(name).map_err(|_| unknown());
    }
    let listing = Tool::new("apt-cache", "apt").arg("depends").arg(name).run().map_err(|error| match error {
        GuestError::ToolFailed { .. } => unknown(),
        other => other,
    })?;
    let real = kernel_dependency(&listing).ok_or_else(unknown)?;
    Package::candidate(real)
}

/// The first versioned kernel image among the dependencies that `apt-cache depends` printed.
fn kernel_dependency(listing: &str) -> Option<&str> {
    listing
        .lines()
        .filter_map(|line| line.trim().trim_start_matches('|').strip_prefix("Depends:"))
        .map(str::trim)
        .find(|name| is_real_kernel(name))
}

fn is_real_kernel(name: &str) -> bool {
    name.strip_prefix("linux-image-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The value of a one-line field in the first paragraph of a Debian control record.
fn control_field<'a>(record: &'a str, name: &str) -> Option<&'a str> {
    record
        .lines()
        .take_while(|line| !line.is_empty())
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_found_by_the_dependency_with_a_version() {
        let listing = "linux-image-cloud-amd64\n  Depends: linux-base\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(kernel_dependency(listing), Some("linux-image-6.1.0-56-cloud-amd64"));
    }

    #[test]
    fn a_listing_without_a_kernel_finds_none() {
        assert_eq!(kernel_dependency("linux-image-cloud-amd64\n"), None);
    }

    #[test]
    fn a_field_is_read_from_the_first_paragraph_only() {
        let record = "Package: a\nVersion: 1:2\n\nPackage: b\nSHA256: 00\n";
        assert_eq!(control_field(record, "Version"), Some("1:2"));
        assert_eq!(control_field(record, "SHA256"), None);
    }

    #[test]
    fn an_epoch_is_escaped_in_the_file_name_as_apt_does() {
        let package =
            Package { name: "a".into(), version: "1:2".into(), architecture: "amd64".into(), sha256: String::new() };
        assert_eq!(package.file_name(), "a_1%3a2_amd64.deb");
    }

    #[test]
    fn an_unknown_kernel_package_is_an_error_that_names_the_remedy() {
        let error = kernel_package("linux-image-999-stockade-none").unwrap_err();
        assert!(error.to_string().contains("apt-get update"), "{error}");
    }
}
