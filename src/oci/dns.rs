//! The sandbox's name servers, for the guest itself and for containers that bring no resolv.conf of their own.

use oci_spec::runtime::Spec;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The most of a file that is read, in bytes. glibc reads three name servers and six search domains.
const LIMIT: u64 = 64 << 10;

/// The lines of the resolv.conf that the engine mounts into the sandbox's first container, as Kata has it; none where it
/// mounts none. Comments and empty lines are left out.
///
/// # Errors
/// The file cannot be read, is no regular file, or is longer than 64 KiB.
pub fn sandbox_dns(spec: &Spec, bundle: &Path) -> io::Result<Vec<String>> {
    let mount = spec.mounts().iter().flatten().find(|mount| mount.destination() == Path::new("/etc/resolv.conf"));
    let Some(source) = mount.and_then(|mount| mount.source().as_deref()) else { return Ok(Vec::new()) };
    // What is there may be a pipe, whose opening would wait for a writer.
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(bundle.join(source))?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    if file.take(LIMIT + 1).read_to_end(&mut bytes)? as u64 > LIMIT {
        return Err(io::Error::other("it is longer than 64 KiB"));
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';']));
    Ok(lines.filter(|line| !line.contains(char::is_control)).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(source: Option<&Path>) -> Spec {
        let mounts: Vec<_> = source
            .iter()
            .map(|source| serde_json::json!({"destination": "/etc/resolv.conf", "type": "bind", "source": source}))
            .collect();
        serde_json::from_value(serde_json::json!({"ociVersion": "1.0.2", "mounts": mounts})).expect("a specification")
    }

    #[test]
    fn the_mounted_files_lines_are_the_sandboxs_name_servers() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, "# by an engine\n\nnameserver 10.0.0.1 \nsearch a.b\n;c\nnameserver \u{1}\n")
            .expect("file");
        for source in [path.as_path(), Path::new("resolv.conf")] {
            let lines = sandbox_dns(&spec(Some(source)), dir.path()).expect("read");
            assert_eq!(lines, ["nameserver 10.0.0.1", "search a.b"]);
        }
        assert!(sandbox_dns(&spec(None), dir.path()).expect("nothing to read").is_empty());
    }

    #[test]
    fn what_is_no_small_file_is_an_error() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("large"), vec![b'#'; 70_000]).expect("file");
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("pipe");
        for (name, wanted) in [("large", "64 KiB"), ("pipe", "regular file"), (".", "regular file"), ("no", "No such")]
        {
            let error = sandbox_dns(&spec(Some(Path::new(name))), dir.path()).expect_err(name).to_string();
            assert!(error.contains(wanted), "{name}: {error}");
        }
    }
}
