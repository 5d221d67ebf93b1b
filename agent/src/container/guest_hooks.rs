//! The guest image's own hooks that run once a container has started and once it is gone (`guest_hook_path`). Those of
//! `prestart` are libcontainer's to run, see [`super::spec`].

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::time::timeout;

use crate::reaper::Reaper;

/// The longest that one may take; then its process group is killed.
const LIMIT: Duration = Duration::from_secs(10);
/// The most state that is told: a pipe takes it without anybody reading.
const MOST_STATE: usize = 64 << 10;

/// When hooks run; also the name of their directory and their only argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Prestart,
    Poststart,
    Poststop,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// The executable files in the directory of a kind, in the order of their names.
pub(crate) fn hooks_in(dir: &Path, kind: Kind) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir.join(kind.as_str()))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| crate::sys::may_execute(path).is_ok() && path.is_file())
        .collect();
    paths.sort_unstable();
    paths
}

/// Runs those of a kind, one after the other, with the OCI state on standard input. By the OCI runtime specification a
/// failure of these kinds is logged, and life goes on.
pub(crate) async fn run(reaper: &Reaper, dir: &Path, kind: Kind, state: &serde_json::Value) {
    let document = state.to_string();
    for path in hooks_in(dir, kind) {
        if let Err(problem) = run_one(reaper, &path, kind, document.as_bytes()).await {
            crate::log::warning!("the guest's {} hook {path:?} {problem}", kind.as_str());
        }
    }
}

async fn run_one(reaper: &Reaper, path: &Path, kind: Kind, state: &[u8]) -> Result<(), String> {
    let mut command = Command::new(path);
    command.arg(kind.as_str()).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|e| format!("cannot be started: {e}"))?;
    let pid = child.id().cast_signed();
    let mut exit = reaper.register(pid);
    if let Some(mut input) = child.stdin.take() {
        // One that does not read it may do so.
        let _ = input.write_all(&state[..state.len().min(MOST_STATE)]);
    }
    match timeout(LIMIT, crate::reaper::wait(&mut exit)).await {
        Ok(0) => Ok(()),
        Ok(status) => Err(format!("ended with status {status}")),
        Err(_) => {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            crate::reaper::wait(&mut exit).await;
            Err(format!("was killed: it was not done after {LIMIT:?}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn script(path: &Path, mode: u32, text: &str) {
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a file");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    }

    #[tokio::test]
    async fn those_of_the_kind_run_in_order_with_the_state_and_a_failure_stops_nothing() {
        let dir = std::env::temp_dir().join(format!("stockade-agent-hooks-{}", std::process::id()));
        let out = dir.join("out");
        let write = |name: &str, mode, text: String| {
            script(&dir.join("poststart").join(name), mode, &format!("#!/bin/sh\n{text}"));
        };
        write("20-second", 0o755, format!("echo second $1 >>{}; cat >>{0}", out.display()));
        write("10-first", 0o755, format!("echo first >>{}; exit 3", out.display()));
        write("30-plain", 0o644, format!("echo plain >>{}", out.display()));
        script(&dir.join("poststop/10-other"), 0o755, "#!/bin/sh\nexit 1\n");
        let reaper = Reaper::default();
        let reaping = tokio::spawn(reaper.clone().run());
        run(&reaper, &dir, Kind::Poststart, &serde_json::json!({"id": "c1"})).await;
        reaping.abort();
        let written = fs::read_to_string(out).expect("written");
        fs::remove_dir_all(&dir).expect("removed");
        assert_eq!(written, "first\nsecond poststart\n{\"id\":\"c1\"}");
        run(&reaper, Path::new("/no/such"), Kind::Poststop, &serde_json::json!({})).await;
    }
}
