//! The devices of the built-in monitor beside those of QEMU with KVM: virtio-fs, vsock and a disk, each used by the same
//! program in the same guest. In turns, so that what else the host does hits both alike. Arguments are parts of the names
//! of what to measure; without any it is everything.
//!
//! ```text
//!   this program ── order over vsock ──▶ /init of each guest: this program too (see guest)
//!        ▲────────── "done", and what vsock itself is measured with ──┘
//! ```
//!
//! Times are the host's: from the order until its answer. The share and the disk are in TMPDIR.

mod guest;

use std::any::Any;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stockade_contract_guest::machines::small;
use stockade_hypervisor::contract::{GUEST_PORT, slowness};
use stockade_hypervisor::{AgentChannel, DeviceConfig, Hypervisor, MiB, hybrid_vsock};
use stockade_kvm::backend::{KvmBackend, KvmOptions};
use stockade_qemu::{Accelerator, MachineType, QemuBackend, QemuOptions};
use stockade_tests::harness::{Backend, program};
use tokio::runtime::Runtime;

/// An ELF file needs no unpacking.
const KERNEL: &str = "vmlinux";
/// What the disk begins with, by which the guest finds it.
const DISK: &str = "stockade-bench";

fn main() -> ExitCode {
    if std::process::id() == 1 {
        return stockade_contract_guest::init_with(guest::obey);
    }
    let count =
        |name: &str, default: u32| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (rounds, mebibytes) = (count("STOCKADE_BENCH_ROUNDS", 3), count("STOCKADE_BENCH_MIB", 16));
    let mut measures = measures(mebibytes, count("STOCKADE_BENCH_REQUESTS", 400));
    // Cargo adds `--bench`.
    let parts: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    measures.retain(|measure| parts.is_empty() || parts.iter().any(|part| measure.name.contains(part)));
    let backends: &[Backend] = match Backend::under_test() {
        Backend::QemuTcg => &[Backend::QemuTcg],
        Backend::QemuKvm | Backend::Kvm => &[Backend::Kvm, Backend::QemuKvm],
    };
    let runtime = Runtime::new().expect("a runtime starts");
    let mut guests: Vec<Guest> = backends.iter().map(|backend| Guest::boot(&runtime, *backend, mebibytes)).collect();
    let mut rates = vec![vec![Vec::new(); guests.len()]; measures.len()];
    for _ in 0..rounds {
        for (measure, rates) in measures.iter().zip(&mut rates) {
            for (guest, rates) in guests.iter_mut().zip(rates) {
                rates.push(guest.measure(measure));
            }
        }
    }
    for (Measure { name, unit, .. }, rates) in measures.iter().zip(&rates) {
        for (backend, rates) in backends.iter().zip(rates) {
            println!("{name}_{}: {:.2} {unit}", backend.name(), median(rates.clone()));
        }
    }
    for (Measure { name, .. }, rates) in measures.iter().zip(&rates) {
        if let [ours, theirs] = &rates[..] {
            let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
            println!("{name}_kvm_over_qemu: {:.3} x", median(ratios));
        }
    }
    ExitCode::SUCCESS
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Something that a guest is told to do, so many times of a unit.
struct Measure {
    name: &'static str,
    unit: &'static str,
    amount: u32,
    /// The order, which the amount is added to.
    order: &'static str,
    /// What this program does meanwhile.
    meanwhile: fn(&mut BufReader<UnixStream>, u32) -> io::Result<()>,
}

fn measures(mebibytes: u32, requests: u32) -> Vec<Measure> {
    let nothing = |_: &mut _, _| Ok(());
    let mib = |name, order| Measure { name, unit: "MiB/s", amount: mebibytes, order, meanwhile: nothing };
    let each = |name, order| Measure { name, unit: "/s", amount: requests, order, meanwhile: nothing };
    vec![
        mib("virtio_fs_write", "share-write"),
        mib("virtio_fs_read", "share-read"),
        each("virtio_fs_files_made", "share-make"),
        each("virtio_fs_read_4k", "share-read-4k"),
        Measure { meanwhile: guest::receive, ..mib("vsock_from_guest", "send") },
        Measure { meanwhile: guest::send, ..mib("vsock_to_guest", "receive") },
        Measure { meanwhile: exchange, ..each("vsock_round_trips", "send-back") },
        mib("block_read_128k", "disk-read"),
        each("block_read_4k_1_at_a_time", "disk-read-4k 1"),
        each("block_read_4k_8_at_a_time", "disk-read-4k 8"),
        each("block_write_4k_1_at_a_time", "disk-write-4k 1"),
        each("block_write_4k_8_at_a_time", "disk-write-4k 8"),
    ]
}

/// Sends messages and has each back before the next.
fn exchange(stream: &mut BufReader<UnixStream>, count: u32) -> io::Result<()> {
    let mut message = guest::MESSAGE;
    for _ in 0..count {
        stream.get_mut().write_all(&message)?;
        stream.read_exact(&mut message)?;
    }
    Ok(())
}

/// A machine that runs, and the connection to its guest.
struct Guest {
    backend: Backend,
    stream: BufReader<UnixStream>,
    _machine: Arc<dyn Hypervisor>,
    _files: Box<dyn Any + Send>,
}

impl Guest {
    /// Boots one with a share and a disk of so many MiB.
    fn boot(runtime: &Runtime, backend: Backend, mebibytes: u32) -> Self {
        let this_program = std::env::current_exe().expect("it has a name");
        let (mut config, files) = small(KERNEL, &this_program).expect("its files can be made");
        config.memory = MiB(256);
        config.max_memory = config.memory;
        let [DeviceConfig::Share { source, .. }] = &config.devices[..] else { panic!("{:?}", config.devices) };
        let mut content: Vec<u8> = DISK.bytes().collect();
        content.resize(usize::try_from(mebibytes).expect("it fits") << 20, b'x');
        fs::write(source.join(guest::FILE), &content).expect("the share can be written to");
        let disk = config.run_dir.join("disk");
        fs::write(&disk, content).expect("the directory can be written to");
        config.devices.push(DeviceConfig::Block { path: disk, read_only: false });
        let machine = machine(backend);
        let stream = runtime.block_on(async {
            machine.prepare(config).await.expect("the configuration is good");
            machine.start().await.expect("it starts");
            connect(&*machine).await
        });
        let mut guest = Self { backend, stream: BufReader::new(stream), _machine: machine, _files: files };
        let disk = guest.ask(&format!("disk {DISK}"));
        assert_eq!(guest.ask(&format!("use {disk}")), guest::DONE, "{backend:?}");
        guest
    }

    /// So many a second.
    fn measure(&mut self, measure: &Measure) -> f64 {
        assert_eq!(self.ask("forget"), guest::DONE, "{:?}", self.backend);
        let begin = Instant::now();
        let order = format!("{} {}\n", measure.order, measure.amount);
        self.stream.get_mut().write_all(order.as_bytes()).expect("the guest takes an order");
        (measure.meanwhile)(&mut self.stream, measure.amount)
            .unwrap_or_else(|error| panic!("{:?}: {}: {error}", self.backend, measure.name));
        let answer = self.answer();
        let took = begin.elapsed();
        assert_eq!(answer, guest::DONE, "{:?}: {}", self.backend, measure.name);
        f64::from(measure.amount) / took.as_secs_f64()
    }

    fn ask(&mut self, line: &str) -> String {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).expect("the guest takes an order");
        self.answer()
    }

    fn answer(&mut self) -> String {
        let mut answer = String::new();
        let _length = self.stream.read_line(&mut answer).expect("the guest answers");
        answer.trim_end().to_owned()
    }
}

/// A new machine, made as the configuration's defaults have it.
fn machine(backend: Backend) -> Arc<dyn Hypervisor> {
    let (start_limit, answer_limit) = (Duration::from_secs(60) * slowness(), Duration::from_secs(20) * slowness());
    let accelerator = match backend {
        Backend::Kvm => {
            let options = KvmOptions { stockade_exe: program(), start_limit, answer_limit, ..KvmOptions::default() };
            return Arc::new(KvmBackend::new(options).machine());
        }
        Backend::QemuKvm => Accelerator::Kvm,
        Backend::QemuTcg => Accelerator::Tcg,
    };
    let options = QemuOptions {
        machine_type: MachineType::Pc,
        accelerator,
        stockade_exe: program(),
        start_limit,
        answer_limit,
        ..QemuOptions::default()
    };
    Arc::new(QemuBackend::new(options).expect("QEMU can be had").machine())
}

/// A connection to the guest, as soon as it listens. Plain: a runtime between would be measured too.
async fn connect(machine: &dyn Hypervisor) -> UnixStream {
    let AgentChannel::HybridVsock(path) = machine.agent_channel().expect("a running machine has a channel");
    let end = Instant::now() + Duration::from_secs(120) * slowness();
    loop {
        if let Ok(stream) = hybrid_vsock::connect(&path, GUEST_PORT).await {
            let stream = stream.into_std().expect("it is a socket");
            stream.set_nonblocking(false).expect("it is a socket");
            return stream;
        }
        assert!(Instant::now() < end, "the guest does not listen; exit: {:?}", *machine.exit().borrow());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
