//! The network namespace that a sandbox joins is its guest's network, and is afterwards as it was before.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use stockade_network::{NetworkNamespace, run_in};
use stockade_tests::harness::{Bundle, BundleBuilder, HostState, Stockade, wait};

/// A namespace for a sandbox, as a CNI plugin makes it: `eth0` is a veth, whose other end is outside.
struct Prepared {
    sandbox: NetworkNamespace,
    outside: NetworkNamespace,
}

impl Prepared {
    fn new() -> Self {
        let sandbox = NetworkNamespace::create().expect("a network namespace (this needs root)");
        let outside = NetworkNamespace::create().expect("a network namespace");
        let prepared = Self { sandbox, outside };
        let elsewhere = path_of(&prepared.outside);
        prepared.inside(
            "ip",
            &format!(
                "link add eth0 address 02:00:00:00:00:07 mtu 1400 type veth peer name peer0 netns {}",
                elsewhere.display()
            ),
        );
        for words in ["addr add 10.9.0.1/24 dev peer0", "link set peer0 mtu 1400 up"] {
            call(&prepared.outside, "ip", words);
        }
        for words in [
            "link set eth0 addrgenmode none",
            "link set eth0 up",
            "addr add 10.9.0.2/24 dev eth0",
            "addr add fd09::2/64 dev eth0 nodad",
            "route add default via 10.9.0.1 metric 30",
        ] {
            prepared.inside("ip", words);
        }
        prepared
    }

    fn inside(&self, program: &str, words: &str) -> String {
        call(&self.sandbox, program, words)
    }

    /// All that `ip` and `tc` tell, but for the operational state, which the kernel tells late.
    fn picture(&self) -> Vec<String> {
        let mut text = String::new();
        for words in ["-d -o link", "-o addr", "route show table all", "-6 route show table all"] {
            text += &self.inside("ip", words);
        }
        text += &self.inside("tc", "-d qdisc show");
        text += &self.inside("tc", "-d filter show dev eth0 ingress");
        text.lines().map(|line| line.replace(" state UP ", " ").replace(" state LOWERLAYERDOWN ", " ")).collect()
    }

    fn bundle(&self) -> BundleBuilder {
        // As containerd and Podman let a container ping.
        let capabilities = json!(["CAP_NET_RAW", "CAP_NET_BIND_SERVICE", "CAP_KILL"]);
        let sets = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
        Bundle::builder().process("capabilities", sets).namespace("network", Some(&path_of(&self.sandbox)))
    }
}

fn path_of(namespace: &NetworkNamespace) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd()).into()
}

fn call(namespace: &NetworkNamespace, program: &str, words: &str) -> String {
    let output = run_in(namespace.as_fd(), || Command::new(program).args(words.split_whitespace()).output());
    let output = output.expect("entered").expect("iproute2 is installed");
    assert!(output.status.success(), "{program} {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_container_pings_and_is_reached_by_tcp_and_the_namespace_is_left_as_it_was() {
    let stockade = Stockade::new();
    let prepared = Prepared::new();
    let picture = prepared.picture();
    let before = HostState::capture(&stockade);
    let id = stockade.id("network");
    let script = "ip addr show dev eth0; ip route; ping -c 2 10.9.0.1 && echo pinged; echo hello | nc -l -p 7000";
    let bundle = prepared.bundle().shell(script).build().unwrap();
    let running = stockade.start_run(&id, &bundle, &[]);
    let said = || running.text();
    assert!(wait::until(wait::scaled(Duration::from_secs(60)), || said().contains("pinged")), "{}", said());
    let text = said();
    for wanted in [
        "mtu 1400",
        "02:00:00:00:00:07",
        "inet 10.9.0.2/24",
        "inet6 fd09::2/64",
        "default via 10.9.0.1 dev eth0",
        "10.9.0.0/24 dev eth0",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in: {text}");
    }
    let address = SocketAddr::from(([10, 9, 0, 2], 7000));
    let connect = || {
        let stream = run_in(prepared.outside.as_fd(), || TcpStream::connect_timeout(&address, Duration::from_secs(2)));
        stream.expect("entered").ok()
    };
    let mut stream = wait::until_some(wait::scaled(Duration::from_secs(20)), connect).expect("connected");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    assert_eq!(answer, "hello\n");
    // It ends when both ends have said all.
    drop(stream);
    let _ = running.wait(wait::scaled(Duration::from_secs(30))).ok();
    let _ = stockade.delete(&id, &["--force"]);
    before.assert_same(&stockade);
    assert_as_before(&picture, &prepared.picture());
}

#[test]
fn a_supervisor_that_is_killed_leaves_a_namespace_that_is_cleaned_up() {
    let stockade = Stockade::new();
    let prepared = Prepared::new();
    let picture = prepared.picture();
    let before = HostState::capture(&stockade);
    let id = stockade.id("orphaned");
    let bundle = prepared.bundle().shell("while :; do sleep 1; done").build().unwrap();
    let _ = stockade.launch(&id, &bundle).ok();
    assert_ne!(prepared.picture(), picture, "it is connected");
    let supervisor = nix::unistd::Pid::from_raw(stockade.supervisor_pid(&id));
    nix::sys::signal::kill(supervisor, nix::sys::signal::Signal::SIGKILL).unwrap();
    let _ = stockade.delete(&id, &["--force"]).ok();
    before.assert_same(&stockade);
    assert_as_before(&picture, &prepared.picture());
}

fn assert_as_before(before: &[String], after: &[String]) {
    let only = |these: &[String], others: &[String]| {
        these.iter().filter(|line| !others.contains(line)).cloned().collect::<Vec<_>>().join("\n")
    };
    assert!(before == after, "gone:\n{}\nnew:\n{}", only(before, after), only(after, before));
}
