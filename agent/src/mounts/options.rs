//! Mount options as flags and file system data.

use nix::mount::MsFlags;

/// What a list of mount options asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flags {
    pub(super) set: MsFlags,
    /// Options for the file system, comma separated.
    pub(super) data: String,
}

/// Sorts options into flags and data; of contradicting ones the last counts.
pub(super) fn parse_options(options: &[String]) -> Flags {
    let mut set = MsFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for option in options {
        match flag(option) {
            Some((true, flag)) => set |= flag,
            Some((false, flag)) => set &= !flag,
            None if option == "defaults" || option.is_empty() => {}
            None => data.push(option),
        }
    }
    Flags { set, data: data.join(",") }
}

fn flag(option: &str) -> Option<(bool, MsFlags)> {
    Some(match option {
        "ro" => (true, MsFlags::MS_RDONLY),
        "rw" => (false, MsFlags::MS_RDONLY),
        "nosuid" => (true, MsFlags::MS_NOSUID),
        "suid" => (false, MsFlags::MS_NOSUID),
        "nodev" => (true, MsFlags::MS_NODEV),
        "dev" => (false, MsFlags::MS_NODEV),
        "noexec" => (true, MsFlags::MS_NOEXEC),
        "exec" => (false, MsFlags::MS_NOEXEC),
        "sync" => (true, MsFlags::MS_SYNCHRONOUS),
        "async" => (false, MsFlags::MS_SYNCHRONOUS),
        "dirsync" => (true, MsFlags::MS_DIRSYNC),
        "noatime" => (true, MsFlags::MS_NOATIME),
        "atime" => (false, MsFlags::MS_NOATIME),
        "nodiratime" => (true, MsFlags::MS_NODIRATIME),
        "diratime" => (false, MsFlags::MS_NODIRATIME),
        "relatime" => (true, MsFlags::MS_RELATIME),
        "norelatime" => (false, MsFlags::MS_RELATIME),
        "strictatime" => (true, MsFlags::MS_STRICTATIME),
        "bind" => (true, MsFlags::MS_BIND),
        "rbind" => (true, MsFlags::MS_BIND.union(MsFlags::MS_REC)),
        "private" | "rprivate" => (true, MsFlags::empty()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_from_file_system_data_and_the_last_counts() {
        let options = ["ro", "nosuid", "rw", "size=64m", "mode=1777", "defaults"].map(str::to_owned);
        let flags = parse_options(&options);
        assert_eq!(flags.set, MsFlags::MS_NOSUID);
        assert_eq!(flags.data, "size=64m,mode=1777");
    }
}
