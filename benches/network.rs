//! A guest's network through a veth, by each backend that this host can run, beside a process in the namespace itself: TCP
//! with one stream and with four, both ways, packets of UDP, and the time of a round trip. In turns, so that what else
//! the host does hits all alike.
//!
//! ```text
//!   outside: iperf3, ping ── veth ── sandbox: iperf3 -s, or the guest that has it
//! ```

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use stockade_network::{NetworkNamespace, run_in};
use stockade_tests::harness::{Backend, Bundle, Stockade, wait};

const SERVER: &str = "10.1.0.2";
const PING: &str = "ping -q -c 50 -i 0.02 10.1.0.2";
/// What is measured, and the words of iperf3 for it.
const MEASURES: [(&str, &str); 4] =
    [("tcp_1_to_guest", ""), ("tcp_4_to_guest", "-P 4"), ("tcp_1_from_guest", "-R"), ("udp_64_bytes", "-u -b 0 -l 64")];

fn main() {
    let count =
        |name: &str, default: u32| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (rounds, seconds) = (count("STOCKADE_BENCH_ROUNDS", 3), count("STOCKADE_BENCH_SECONDS", 3));
    let backends: &[Backend] = match Backend::under_test() {
        Backend::QemuTcg => &[Backend::QemuTcg],
        Backend::QemuKvm | Backend::Kvm => &[Backend::Kvm, Backend::QemuKvm],
    };
    let mut places = vec![Place::plain()];
    places.extend(backends.iter().map(|backend| Place::guest(*backend)));
    for _ in 0..rounds {
        for place in &mut places {
            place.measure(seconds);
        }
    }
    let figures: Vec<Vec<f64>> = places.iter_mut().map(Place::medians).collect();
    for (place, medians) in places.iter().zip(&figures) {
        for ((what, unit), value) in units().iter().zip(medians) {
            println!("network_{what}_{}: {value:.2} {unit}", place.name);
        }
    }
    // Of a time, less is more.
    let ratio = |what: &str, ours: f64, theirs: f64| if what == "round_trip" { theirs / ours } else { ours / theirs };
    for (index, (what, _)) in units().iter().enumerate() {
        for (place, medians) in places.iter().zip(&figures).skip(1) {
            let plain = ratio(what, medians[index], figures[0][index]);
            println!("network_{what}_{}_over_plain: {plain:.3} x", place.name);
        }
        if let [_, ours, theirs] = &figures[..] {
            println!("network_{what}_kvm_over_qemu: {:.3} x", ratio(what, ours[index], theirs[index]));
        }
    }
}

/// The names and units of what [`Place::measure`] measures, in its order.
fn units() -> Vec<(&'static str, &'static str)> {
    let unit = |what: &str| if what.starts_with("udp") { "packets/s" } else { "MiB/s" };
    MEASURES.iter().map(|(what, _)| (*what, unit(what))).chain([("round_trip", "ms")]).collect()
}

/// Where the server is.
struct Place {
    name: &'static str,
    outside: NetworkNamespace,
    figures: Vec<Vec<f64>>,
    /// What runs the server, for as long as it is measured.
    _server: Server,
}

enum Server {
    Process { _namespace: NetworkNamespace, child: std::process::Child },
    Guest { _namespace: NetworkNamespace, stockade: Stockade, id: String, _bundle: Bundle },
}

impl Drop for Server {
    fn drop(&mut self) {
        match self {
            Self::Process { child, .. } => {
                let _gone = child.kill();
                let _ended = child.wait();
            }
            Self::Guest { stockade, id, .. } => drop(stockade.delete(id, &["--force"])),
        }
    }
}

impl Place {
    fn plain() -> Self {
        let (sandbox, outside) = namespaces();
        let mut command = Command::new("iperf3");
        command.args(["-s"]).stdout(Stdio::null());
        let child = run_in(sandbox.as_fd(), || command.spawn()).expect("entered").expect("iperf3 is installed");
        Self::new("plain", outside, Server::Process { _namespace: sandbox, child })
    }

    fn guest(backend: Backend) -> Self {
        let (sandbox, outside) = namespaces();
        let stockade = Stockade::with_backend(backend, "", "");
        let bundle = Bundle::builder().args(["/bin/iperf3", "-s"]).namespace("network", Some(&path_of(&sandbox)));
        let bundle = bundle.build().expect("a bundle");
        copy_program("iperf3", &bundle.rootfs());
        let id = stockade.id("network");
        let _started = stockade.launch(&id, &bundle).ok();
        Self::new(backend.name(), outside, Server::Guest { _namespace: sandbox, stockade, id, _bundle: bundle })
    }

    /// Waits until the server answers.
    fn new(name: &'static str, outside: NetworkNamespace, server: Server) -> Self {
        let place = Self { name, outside, figures: vec![Vec::new(); units().len()], _server: server };
        let answers = wait::until(Duration::from_secs(30), || place.iperf("-n 1K").is_some());
        assert!(answers, "{name}: the server does not answer");
        place
    }

    fn measure(&mut self, seconds: u32) {
        for (index, (what, words)) in MEASURES.iter().enumerate() {
            let end = self.iperf(&format!("-t {seconds} {words}")).unwrap_or_else(|| panic!("{}: {what}", self.name));
            let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{}: {what}: {end}", self.name));
            let figure = if what.starts_with("udp") {
                (number(&end["sum"]["packets"]) - number(&end["sum"]["lost_packets"])) / number(&end["sum"]["seconds"])
            } else {
                number(&end["sum_received"]["bits_per_second"]) / 8.0 / f64::from(1 << 20)
            };
            self.figures[index].push(figure);
        }
        let said = self.outside("/bin/busybox", PING).expect("the server answers pings");
        // "round-trip min/avg/max = 0.1/0.2/0.3 ms"
        let average = said.rsplit_once(" = ").and_then(|(_, times)| times.split('/').nth(1)?.parse().ok());
        self.figures[MEASURES.len()].push(average.unwrap_or_else(|| panic!("{said}")));
    }

    fn medians(&mut self) -> Vec<f64> {
        let median = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        self.figures.iter_mut().map(median).collect()
    }

    /// The end of iperf3's report. A server that still ends the last test refuses the next.
    fn iperf(&self, words: &str) -> Option<Value> {
        for _ in 0..10 {
            if let Some(text) = self.outside("iperf3", &format!("-J --connect-timeout 2000 -c {SERVER} {words}")) {
                let report: Value = serde_json::from_str(&text).expect("iperf3 reports JSON");
                return Some(report["end"].clone());
            }
            thread::sleep(Duration::from_millis(300));
        }
        None
    }

    /// What a program prints that runs outside, when it succeeds.
    fn outside(&self, program: &str, words: &str) -> Option<String> {
        let mut command = Command::new(program);
        command.args(words.split_whitespace());
        let output = run_in(self.outside.as_fd(), || command.output()).expect("entered");
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The sandbox's, with a veth as CNI's plugins make it, and the one of its other end.
fn namespaces() -> (NetworkNamespace, NetworkNamespace) {
    let create = || NetworkNamespace::create().expect("a network namespace (this needs root)");
    let (sandbox, outside) = (create(), create());
    let ip = |namespace: &NetworkNamespace, words: &str| {
        let mut command = Command::new("ip");
        command.args(words.split_whitespace());
        let status = run_in(namespace.as_fd(), || command.status()).expect("entered").expect("iproute2 is installed");
        assert!(status.success(), "ip {words}");
    };
    ip(&sandbox, &format!("link add eth0 type veth peer name peer0 netns {}", path_of(&outside).display()));
    ip(&sandbox, "link set eth0 up");
    ip(&sandbox, "addr add 10.1.0.2/24 dev eth0");
    ip(&outside, "link set peer0 up");
    ip(&outside, "addr add 10.1.0.1/24 dev peer0");
    (sandbox, outside)
}

fn path_of(namespace: &NetworkNamespace) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd()).into()
}

/// Puts a program of the host's, with the libraries that it loads, into a root file system.
fn copy_program(name: &str, root: &Path) {
    let program = PathBuf::from(format!("/usr/bin/{name}"));
    let said = Command::new("ldd").arg(&program).output().expect("ldd is there");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let libraries = said.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    for library in libraries {
        let to = root.join(library.strip_prefix("/").expect("it begins so"));
        fs::create_dir_all(to.parent().expect("it is in a folder")).expect("the root can be written to");
        let _bytes = fs::copy(&library, to).unwrap_or_else(|error| panic!("{}: {error}", library.display()));
    }
    let _bytes = fs::copy(&program, root.join("bin").join(name)).expect("it is installed");
}
