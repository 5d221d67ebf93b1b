//! Two network namespaces for one test: the sandbox's, and one outside it that holds the other ends.

#![allow(dead_code, reason = "each test file needs a part of it")]

pub(crate) mod frames;

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stockade_network::{
    AttachOptions, Attachment, Endpoint, Limits, Mac, Mark, Network, NetworkNamespace, Plan, Scan, endpoints, plan,
    run_in,
};

/// Set where the kernel has all kinds of links: what is missing is then a failure and not left out.
const ALL_KINDS: &str = "STOCKADE_TEST_ALL_LINK_KINDS";

/// The sandbox's namespace and the one outside.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) sandbox: NetworkNamespace,
    pub(crate) outside: NetworkNamespace,
}

impl World {
    /// Two new ones with `lo` alone.
    pub(crate) fn new() -> Self {
        let world = Self {
            sandbox: NetworkNamespace::create().expect("a network namespace (this needs root)"),
            outside: NetworkNamespace::create().expect("a network namespace"),
        };
        for namespace in [&world.sandbox, &world.outside] {
            // Nothing shall speak by itself: no search for routers, no wait until an address may be used.
            inside(namespace, || {
                for name in ["accept_dad", "dad_transmits", "router_solicitations"] {
                    for of in ["all", "default"] {
                        std::fs::write(format!("/proc/sys/net/ipv6/conf/{of}/{name}"), "0").expect("written");
                    }
                }
            });
        }
        world
    }

    /// One with a veth `eth0` in the sandbox and its other end `peer0` outside, both up, with IPv4 and IPv6.
    pub(crate) fn with_veth(mtu: u32) -> Self {
        let world = Self::new();
        world.veth(0);
        world.ip(&format!("link set eth0 mtu {mtu}"));
        world.ip_outside(&format!("link set peer0 mtu {mtu}"));
        world.ip("addr add 10.0.0.2/24 dev eth0");
        world.ip("addr add fd00::2/64 dev eth0");
        world.ip("route add default via 10.0.0.1");
        world.ip_outside("addr add 10.0.0.1/24 dev peer0");
        world.ip_outside("addr add fd00::1/64 dev peer0");
        // Until no address is under way any more.
        world.picture();
        world
    }

    /// Adds `eth{number}` with `peer{number}` outside, up, with the MAC address 02:00:00:00:00:{number}.
    pub(crate) fn veth(&self, number: u8) {
        let outside = format!("/proc/{}/fd/{}", std::process::id(), self.outside.as_fd().as_raw_fd());
        self.ip(&format!(
            "link add eth{number} address 02:00:00:00:00:{number:02x} type veth peer name peer{number} netns {outside}"
        ));
        self.ip_outside(&format!("link set peer{number} up"));
        self.ip(&format!("link set eth{number} up"));
        // The kernel gives the link-local address once it has heard that both ends are up.
        wait(|| self.shows(&format!("-6 -o addr show dev eth{number} scope link"), "fe80:"));
    }

    /// Whether `ip` with these words, in the sandbox's namespace, says `wanted`.
    fn shows(&self, words: &str, wanted: &str) -> bool {
        run(&self.sandbox, "ip", words).is_ok_and(|text| text.contains(wanted))
    }

    /// Runs `ip` with these words in the sandbox's namespace.
    pub(crate) fn ip(&self, words: &str) {
        run(&self.sandbox, "ip", words).unwrap_or_else(|error| panic!("ip {words}: {error}"));
    }

    /// Runs `ip` with these words outside.
    pub(crate) fn ip_outside(&self, words: &str) {
        run(&self.outside, "ip", words).unwrap_or_else(|error| panic!("ip {words}: {error}"));
    }

    /// Runs `tc` with these words in the sandbox's namespace.
    pub(crate) fn tc(&self, words: &str) {
        run(&self.sandbox, "tc", words).unwrap_or_else(|error| panic!("tc {words}: {error}"));
    }

    /// Runs `ip` with these words; `false` where the kernel has no such kind of link.
    pub(crate) fn ip_if_known(&self, words: &str) -> bool {
        match run(&self.sandbox, "ip", words) {
            Ok(_) => true,
            Err(error) if error.contains("Unknown device type") || error.contains("not supported") => {
                assert!(std::env::var_os(ALL_KINDS).is_none(), "ip {words}: {error}");
                eprintln!("left out, since this kernel does not have it: ip {words}");
                false
            }
            Err(error) => panic!("ip {words}: {error}"),
        }
    }

    /// Everything that `ip` and `tc` say of the sandbox's namespace, when no address is under way any more.
    pub(crate) fn picture(&self) -> Picture {
        let mut picture = self.glance();
        wait(|| {
            picture = self.glance();
            !picture.contains(" tentative ")
        });
        picture
    }

    fn glance(&self) -> Picture {
        let show = |program, words: &str| {
            run(&self.sandbox, program, words).unwrap_or_else(|error| panic!("{program} {words}: {error}"))
        };
        let mut text = String::new();
        for words in [
            "-d -o link",
            "-o addr",
            "-4 route show table all",
            "-6 route show table all",
            "rule",
            "-6 rule",
            "neigh show nud permanent",
        ] {
            let mut lines: Vec<String> = show("ip", words).lines().map(str::to_owned).collect();
            // Routes of IPv6 that are alike stand in the order in which their links came up.
            if words.starts_with("-6 route") {
                lines.sort();
            }
            lines.push(String::new());
            text += &lines.join("\n");
        }
        text += &show("tc", "-d qdisc show");
        let links = show("ip", "-o link");
        for name in links.lines().filter_map(|line| line.split([':', '@']).nth(1)) {
            text += &show("tc", &format!("-d filter show dev {} ingress", name.trim()));
        }
        // The kernel tells the operational state late, and after a MAC address in the order of their numbers.
        let without_state = |line: &str| {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            if let Some(at) = words.iter().position(|word| *word == "state") {
                words.drain(at..at + 2);
            }
            words.join(" ")
        };
        Picture(text.lines().map(without_state).collect())
    }

    /// Whether the other end has an entry for this address and MAC address.
    pub(crate) fn outside_knows(&self, address: Ipv4Addr, mac: Mac) -> bool {
        let shown = run(&self.outside, "ip", &format!("neigh show {address}")).expect("shown");
        shown.contains(&mac.to_string())
    }

    /// A socket outside, which waits ten seconds at most.
    pub(crate) fn udp_outside(&self, address: Ipv4Addr, port: u16) -> UdpSocket {
        let socket = inside(&self.outside, || UdpSocket::bind((address, port)).expect("bound"));
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        socket
    }

    /// The namespace as the library has it.
    pub(crate) fn network(&self) -> Network {
        Network::new(self.sandbox.clone().into_shared(), Limits::default()).expect("a namespace")
    }
}

/// What a namespace looks like, line by line.
#[derive(Clone, PartialEq)]
pub(crate) struct Picture(Vec<String>);

impl Picture {
    pub(crate) fn contains(&self, text: &str) -> bool {
        self.0.iter().any(|line| line.contains(text))
    }

    /// Fails with the lines that differ.
    #[track_caller]
    pub(crate) fn must_be(&self, before: &Self, what: &str) {
        let only = |these: &Self, others: &Self| {
            these.0.iter().filter(|line| !others.0.contains(line)).cloned().collect::<Vec<_>>().join("\n  ")
        };
        let order = self.0.iter().zip(&before.0).find(|(now, before)| now != before);
        assert!(
            self == before,
            "{what}\nnow: {}\nbefore: {}\nfirst difference: {order:?}",
            only(self, before),
            only(before, self)
        );
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// The options that a test begins with.
pub(crate) fn options() -> AttachOptions {
    AttachOptions::new(Mark::random().expect("random numbers"))
}

/// Plans for all endpoints of a scan.
pub(crate) fn plans(network: &Network, scan: &Scan, options: &AttachOptions) -> Vec<Plan> {
    let all: Vec<Endpoint> = endpoints(scan).expect("endpoints");
    all.iter().map(|endpoint| plan(scan, network.id(), endpoint, options).expect("a plan")).collect()
}

/// Scans and connects all endpoints.
pub(crate) async fn attach(network: &Network, options: &AttachOptions) -> Vec<Attachment> {
    let scan = network.scan().await.expect("scanned");
    network.attach(plans(network, &scan, options)).await.expect("attached")
}

/// Runs `work` in a namespace, on a thread that ends.
pub(crate) fn inside<T: Send>(namespace: &NetworkNamespace, work: impl FnOnce() -> T + Send) -> T {
    run_in(namespace.as_fd(), work).expect("entered")
}

fn run(namespace: &NetworkNamespace, program: &str, words: &str) -> Result<String, String> {
    let output = inside(namespace, || {
        Command::new(program).args(words.split_whitespace()).output().expect("iproute2 is installed")
    });
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// A namespace that several threads hold.
pub(crate) fn shared(namespace: &NetworkNamespace) -> Arc<std::os::fd::OwnedFd> {
    namespace.clone().into_shared()
}

/// Waits until something is so.
pub(crate) fn wait(mut wanted: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !wanted() {
        assert!(Instant::now() < deadline, "it did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The length of the next datagram. Children that end interrupt the wait.
pub(crate) fn receive(socket: &UdpSocket) -> usize {
    loop {
        match socket.recv(&mut [0; 2000]) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result.expect("received"),
        }
    }
}
