//! Where a sandbox's control group shall be, from the bundle's `linux.cgroupsPath`.

use super::CgroupError;
use std::path::{Component, Path, PathBuf};

/// The directory that holds the groups of sandboxes whose bundle names none.
pub(super) const DEFAULT_PARENT: &str = "stockade";

/// A sandbox's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Below the root of each hierarchy.
    Directory {
        /// Relative, at least one name, no `..`.
        path: PathBuf,
        /// Whether the bundle named it.
        explicit: bool,
    },
    /// A scope that systemd makes.
    Scope {
        /// As `system.slice`.
        slice: String,
        /// As `prefix-name.scope`.
        unit: String,
    },
}

impl Place {
    /// Reads `given`; a relative path begins at the root, as an absolute one does.
    pub(super) fn parse(id: &str, given: Option<&Path>, systemd: bool) -> Result<Self, CgroupError> {
        let given = given.filter(|path| !path.as_os_str().is_empty());
        if systemd {
            return Self::scope(id, given);
        }
        let Some(given) = given else {
            return Ok(Self::Directory { path: Path::new(DEFAULT_PARENT).join(id), explicit: false });
        };
        let refused = |reason| CgroupError::Path { path: given.to_owned(), reason };
        let mut path = PathBuf::new();
        for part in given.components() {
            match part {
                Component::Normal(name) => path.push(name),
                Component::ParentDir => return Err(refused("it must not contain \"..\"")),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        if path.as_os_str().is_empty() {
            return Err(refused("it is the root"));
        }
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(refused("it contains a zero byte"));
        }
        Ok(Self::Directory { path, explicit: true })
    }

    fn scope(id: &str, given: Option<&Path>) -> Result<Self, CgroupError> {
        let Some(given) = given else {
            return Ok(Self::Scope { slice: "system.slice".to_owned(), unit: format!("{DEFAULT_PARENT}-{id}.scope") });
        };
        let refused = || CgroupError::SystemdForm { path: given.to_owned() };
        let parts: Vec<&str> = given.to_str().ok_or_else(refused)?.split(':').collect();
        let [slice, prefix, name] = parts[..] else { return Err(refused()) };
        let slice = if slice.is_empty() { "system.slice" } else { slice };
        let plain = |text: &str| !text.contains(['/', '\0']);
        if name.is_empty() || !slice.ends_with(".slice") || ![slice, prefix, name].into_iter().all(plain) {
            return Err(refused());
        }
        let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        Ok(Self::Scope { slice: slice.to_owned(), unit })
    }
}

/// The directory of a slice, relative to the hierarchy's root: each `-` in its name is a slice around it, so that
/// `a-b.slice` is `a.slice/a-b.slice`; `-.slice` is the root.
pub(super) fn slice_directory(slice: &str) -> PathBuf {
    let stem = slice.strip_suffix(".slice").unwrap_or(slice);
    let mut directory = PathBuf::new();
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    for end in ends.filter(|end| *end > 0 && stem != "-") {
        directory.push(format!("{}.slice", &stem[..end]));
    }
    directory
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(given: Option<&str>) -> Result<Place, String> {
        Place::parse("c1", given.map(Path::new), false).map_err(|error| error.to_string())
    }

    #[test]
    fn a_path_is_taken_from_the_root_and_never_leaves_it() {
        let at = |path: &str, explicit| Ok(Place::Directory { path: path.into(), explicit });
        let cases = [
            (None, at("stockade/c1", false)),
            (Some(""), at("stockade/c1", false)),
            (Some("/kubepods/pod1/c1"), at("kubepods/pod1/c1", true)),
            (Some("user/./c1//"), at("user/c1", true)),
            (Some("a:b:c"), at("a:b:c", true)),
            (Some("/"), Err("linux.cgroupsPath \"/\" is not allowed: it is the root".to_owned())),
            (
                Some("a/../../b"),
                Err("linux.cgroupsPath \"a/../../b\" is not allowed: it must not contain \"..\"".to_owned()),
            ),
        ];
        for (given, wanted) in cases {
            assert_eq!(directory(given), wanted, "{given:?}");
        }
    }

    #[test]
    fn systemds_form_names_a_slice_and_a_scope() {
        let scope = |given: Option<&str>| match Place::parse("c1", given.map(Path::new), true) {
            Ok(Place::Scope { slice, unit }) => Ok((slice, unit)),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        };
        let at = |slice: &str, unit: &str| Ok((slice.to_owned(), unit.to_owned()));
        assert_eq!(scope(None), at("system.slice", "stockade-c1.scope"));
        assert_eq!(scope(Some("machine.slice:libpod:abc")), at("machine.slice", "libpod-abc.scope"));
        assert_eq!(scope(Some(":cri:abc")), at("system.slice", "cri-abc.scope"));
        assert_eq!(scope(Some("machine.slice::abc")), at("machine.slice", "abc.scope"));
        for wrong in ["/a/b", "a.slice:b", "a.slice:b:", "a:b:c", "a.slice:b/../x:c", "a.slice:b:c:d"] {
            let error = scope(Some(wrong)).expect_err(wrong);
            assert!(error.contains("is not of the form slice:prefix:name"), "{error}");
        }
    }

    #[test]
    fn a_slices_directory_holds_it_in_the_slices_around_it() {
        let cases = [
            ("system.slice", "system.slice"),
            (
                "kubepods-besteffort-podx.slice",
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podx.slice",
            ),
            ("-.slice", ""),
        ];
        for (slice, wanted) in cases {
            assert_eq!(slice_directory(slice), Path::new(wanted), "{slice}");
        }
    }
}
