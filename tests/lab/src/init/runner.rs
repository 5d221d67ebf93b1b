//! Takes jobs from the port and reports on them, one at a time, until the other end is gone.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stockade_lab::process;
use stockade_lab::wire::{ALIVE_SECONDS, Job, PORT, Report};

pub(crate) fn serve() -> Result<()> {
    let port = open_port()?;
    let writer = Mutex::new(port.try_clone().context("cannot copy the port's descriptor")?);
    let say = |report: &Report| -> Result<()> {
        let mut line = serde_json::to_vec(report).context("cannot write JSON")?;
        line.push(b'\n');
        let mut writer = writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        writer.write_all(&line).context("cannot write to the port")
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) && say(&Report::Alive).is_ok() {
                std::thread::sleep(Duration::from_secs(ALIVE_SECONDS));
            }
        });
        let result = say(&Report::Ready).and_then(|()| jobs(BufReader::new(port), &say));
        done.store(true, Ordering::Relaxed);
        result
    })
}

fn jobs(reader: BufReader<File>, say: &dyn Fn(&Report) -> Result<()>) -> Result<()> {
    for line in reader.lines() {
        let job: Job =
            serde_json::from_str(&line.context("cannot read the port")?).context("a line of the port is no job")?;
        let mut said = Ok(());
        let end = process::run(&job, |bytes| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            if said.is_ok() {
                said = say(&Report::Output { id: job.id, text });
            }
        });
        said?;
        // What a job leaves behind must not bear on the next one. The caller and process 1 are spared; everything else
        // in this machine is a job's.
        let _none_left = kill(Pid::from_raw(-1), Signal::SIGKILL);
        say(&Report::Ended { id: job.id, end })?;
    }
    Ok(())
}

fn open_port() -> Result<File> {
    let folder = "/sys/class/virtio-ports";
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {folder}"))? {
        let entry = entry.with_context(|| format!("cannot list {folder}"))?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT {
            let path = format!("/dev/{}", entry.file_name().to_string_lossy());
            return File::options().read(true).write(true).open(&path).with_context(|| format!("cannot open {path}"));
        }
    }
    anyhow::bail!("there is no virtio port named {PORT}")
}
