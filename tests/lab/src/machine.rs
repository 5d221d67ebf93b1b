//! A lab host: a machine that QEMU emulates together with a processor's virtualisation (AMD's, with nested paging), so
//! that a stock kernel in it has a KVM that works.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::assets::Assets;
use crate::pool::{Host, Lost};
use crate::wire::{End, Job, OUT_TAG, OUT_VARIABLE, PORT, ROOT_TAG, Report};

/// How long a lab host may take until it takes jobs: some six seconds on an idle machine.
const BOOT: Duration = Duration::from_secs(180);
/// A runner that has said nothing for so long, though it should every five seconds, hangs.
const SILENCE: Duration = Duration::from_secs(90);
/// What the runner may need beyond a job's own limit.
const MARGIN: Duration = Duration::from_secs(60);
/// How long it may take to switch itself off.
const END: Duration = Duration::from_secs(10);
/// How much of the host's console an error shows, in bytes.
const TAIL: usize = 4 << 10;

/// How a lab host is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its memory, in MiB.
    pub memory: u32,
    /// Its processors. Two hosts of one do more than one of two.
    pub processors: u32,
    /// One processor whose clock counts instructions, one a nanosecond: times repeat, whatever else this machine does.
    pub count: bool,
    /// The folder that it may write to, at the same path; made when it does not exist.
    pub out: PathBuf,
    /// Where its console and QEMU's messages go; made when it does not exist.
    pub logs: PathBuf,
}

/// A lab host that takes jobs. Dropped, it is switched off.
#[derive(Debug)]
pub struct LabHost {
    qemu: Child,
    reports: Receiver<Report>,
    writer: UnixStream,
    logs: PathBuf,
}

impl LabHost {
    /// Boots a lab host.
    ///
    /// # Errors
    /// When QEMU does not start, or the host does not take jobs within three minutes; the error has its console's end.
    pub fn boot(assets: &Assets, options: &Options) -> Result<Self> {
        for folder in [&options.out, &options.logs] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let folder = tempfile::Builder::new().prefix("stockade-lab-").tempdir().context("cannot create a folder")?;
        let socket = folder.path().join("port");
        let listener = UnixListener::bind(&socket).context("cannot make a socket")?;
        let messages = options.logs.join("qemu.log");
        let messages = File::create(&messages).with_context(|| format!("cannot create {}", messages.display()))?;
        let mut command = command(assets, options, &socket);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(messages);
        let qemu = command.spawn().context("cannot start setpriv (util-linux) with qemu-system-x86_64")?;
        let (sender, reports) = channel();
        let writer = match connection(listener) {
            Ok(stream) => stream,
            Err(error) => {
                // Dropping it ends QEMU.
                let (writer, _) = UnixStream::pair().context("cannot make a socket")?;
                let host = Self { qemu, reports, writer, logs: options.logs.clone() };
                bail!("the lab host did not start: {error:#}\n{}", host.console());
            }
        };
        let reader = writer.try_clone().context("cannot copy a socket")?;
        std::thread::spawn(move || forward(reader, &sender));
        let host = Self { qemu, reports, writer, logs: options.logs.clone() };
        let end = Instant::now() + BOOT;
        loop {
            match host.reports.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Report::Ready) => return Ok(host),
                Ok(_) => {}
                Err(_) => bail!("the lab host did not boot:\n{}", host.console()),
            }
        }
    }

    fn lost(&self, what: &str) -> Lost {
        Lost(format!("{what}; its console ends with:\n{}", self.console()))
    }

    /// The end of its console, and what QEMU said.
    fn console(&self) -> String {
        let tail = |name: &str| {
            let bytes = fs::read(self.logs.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL)..]).into_owned()
        };
        format!("{}{}", tail("console.log"), tail("qemu.log"))
    }
}

impl Host for LabHost {
    fn run(&mut self, job: &Job, output: &mut dyn FnMut(&str)) -> Result<End, Lost> {
        let mut line = serde_json::to_vec(job).map_err(|error| Lost(format!("cannot write a job: {error}")))?;
        line.push(b'\n');
        let end = Instant::now() + Duration::from_millis(job.limit) + MARGIN;
        if let Err(error) = self.writer.write_all(&line) {
            return Err(self.lost(&format!("it takes no job: {error}")));
        }
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.reports.recv_timeout(left.min(SILENCE)) {
                Ok(Report::Output { id, text }) if id == job.id => output(&text),
                Ok(Report::Ended { id, end }) if id == job.id => return Ok(end),
                Ok(_) if left > Duration::ZERO => {}
                Ok(_) => return Err(self.lost("it did not end a test at its limit")),
                Err(RecvTimeoutError::Timeout) => return Err(self.lost("it hangs")),
                Err(RecvTimeoutError::Disconnected) => return Err(self.lost("it died")),
            }
        }
    }
}

impl Drop for LabHost {
    fn drop(&mut self) {
        // The runner sees the end of the port and switches the host off.
        let _closed = self.writer.shutdown(std::net::Shutdown::Both);
        let end = Instant::now() + END;
        while Instant::now() < end {
            if !matches!(self.qemu.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _gone = self.qemu.kill();
        let _reaped = self.qemu.wait();
    }
}

fn command(assets: &Assets, options: &Options, socket: &Path) -> Command {
    // Ends with the thread that started it, so with whoever is killed while a lab runs.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    let processors = if options.count { 1 } else { options.processors };
    if options.count {
        command.args(["-accel", "tcg", "-icount", "shift=0"]);
    } else {
        command.args(["-accel", if processors == 1 { "tcg,thread=single" } else { "tcg,thread=multi" }]);
    }
    // vgif: with it a guest hung about once in a hundred boots.
    command.args(["-cpu", "max,+svm,+npt,-vgif", "-smp", &processors.to_string(), "-m", &options.memory.to_string()]);
    command.args(["-display", "none", "-no-reboot", "-nodefaults", "-no-user-config"]);
    command.arg("-serial").arg(joined("file:", &options.logs.join("console.log")));
    command.arg("-kernel").arg(&assets.kernel).arg("-initrd").arg(&assets.initrd);
    // QEMU's emulation loses an interrupt now and then: a guest's entry and exit (VMRUN) change the list of those that are pending
    // while another thread does. All that follow it then wait for a next one, and a host that sets its timer for one
    // interrupt at a time has none. A timer that ticks by itself gets them all going again.
    let timer = if options.count { "" } else { "highres=off nohz=off " };
    command.arg("-append").arg(format!(
        "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off {timer}{OUT_VARIABLE}={}",
        options.out.display()
    ));
    let share = format!("local,mount_tag={ROOT_TAG},security_model=none,readonly=on,multidevs=remap,path=/");
    command.arg("-virtfs").arg(share);
    let share = format!("local,mount_tag={OUT_TAG},security_model=none,path=");
    command.arg("-virtfs").arg(joined(&share, &options.out));
    command.args(["-device", "virtio-serial-pci", "-chardev"]).arg(joined("socket,id=lab,path=", socket));
    command.args(["-device", &format!("virtserialport,chardev=lab,name={PORT}")]);
    command
}

/// A path in one of QEMU's option lists, where a comma is doubled.
fn joined(before: &str, path: &Path) -> String {
    format!("{before}{}", path.display().to_string().replace(',', ",,"))
}

/// QEMU's end of the socket: it connects as it starts.
fn connection(listener: UnixListener) -> Result<UnixStream> {
    listener.set_nonblocking(true).context("cannot set up a socket")?;
    let end = Instant::now() + END;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).context("cannot set up a socket")?;
                return Ok(stream);
            }
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                return Err(error).context("cannot accept QEMU's connection");
            }
            Err(_) if Instant::now() >= end => bail!("QEMU did not connect within {END:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Reads reports until the host is gone. What is none (a line cut short) is left out: its job then runs into a limit.
fn forward(reader: UnixStream, sender: &Sender<Report>) {
    for line in BufReader::new(reader).lines() {
        let Ok(line) = line else { return };
        if let Ok(report) = serde_json::from_str(&line)
            && sender.send(report).is_err()
        {
            return;
        }
    }
}
