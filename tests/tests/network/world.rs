//! The namespaces around a sandbox, and what is seen in them.
//!
//! ```text
//!   sandbox ── veth ── outside          eth0, eth1, …: as a CNI plugin makes a veth
//!   sandbox ── macvlan, ipvlan, VLAN on up0 ── host ── veth ── outside
//! ```

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use stockade_network::{NetworkNamespace, run_in};
use stockade_tests::harness::{Bundle, BundleBuilder, Stockade, wait};

/// Set where the kernel has all kinds of links, as in a lab host: what is missing is then a failure and not left out.
const ALL_KINDS: &str = "STOCKADE_TEST_ALL_LINK_KINDS";

/// The sandbox's namespace, its host's, and one beyond.
pub(crate) struct World {
    pub(crate) sandbox: NetworkNamespace,
    pub(crate) host: NetworkNamespace,
    pub(crate) outside: NetworkNamespace,
}

impl World {
    /// Three with `lo` alone.
    pub(crate) fn new() -> Self {
        let create = || NetworkNamespace::create().expect("a network namespace (this needs root)");
        let world = Self { sandbox: create(), host: create(), outside: create() };
        for namespace in [&world.sandbox, &world.host, &world.outside] {
            // Nothing shall speak by itself: no search for routers, no wait until an address may be used.
            run_in(namespace.as_fd(), || {
                for name in ["accept_dad", "dad_transmits", "router_solicitations"] {
                    for of in ["all", "default"] {
                        std::fs::write(format!("/proc/sys/net/ipv6/conf/{of}/{name}"), "0").expect("written");
                    }
                }
            })
            .expect("entered");
        }
        world
    }

    /// Runs `ip` in the sandbox's namespace.
    pub(crate) fn ip(&self, words: &str) -> String {
        call(&self.sandbox, "ip", words)
    }

    /// Runs `ip` outside.
    pub(crate) fn ip_outside(&self, words: &str) -> String {
        call(&self.outside, "ip", words)
    }

    /// Runs `ip` in the host's namespace.
    pub(crate) fn ip_host(&self, words: &str) -> String {
        call(&self.host, "ip", words)
    }

    /// `eth{number}` in the sandbox, with `peer{number}` outside, and addresses 10.{number}.0.2 and fd00:{number}::2 of
    /// .1 and ::1 outside.
    pub(crate) fn veth(&self, number: u8, mtu: u32) {
        self.bare_veth(number, &format!("02:00:00:00:01:{number:02x}"), mtu);
        self.ip(&format!("addr add 10.{number}.0.2/24 dev eth{number}"));
        self.ip(&format!("addr add fd00:{number}::2/64 dev eth{number}"));
        self.ip_outside(&format!("addr add 10.{number}.0.1/24 dev peer{number}"));
        self.ip_outside(&format!("addr add fd00:{number}::1/64 dev peer{number}"));
    }

    /// The same without addresses.
    pub(crate) fn bare_veth(&self, number: u8, mac: &str, mtu: u32) {
        let outside = path_of(&self.outside);
        self.ip(&format!(
            "link add eth{number} address {mac} mtu {mtu} type veth peer name peer{number} mtu {mtu} netns {}",
            outside.display()
        ));
        self.ip_outside(&format!("link set peer{number} up"));
        // No link-local address: the guest makes its own of its MAC address.
        self.ip(&format!("link set eth{number} addrgenmode none"));
        self.ip(&format!("link set eth{number} up"));
    }

    /// `up0` in the host's namespace with `peer-up` outside: what macvlans and their like are made on.
    pub(crate) fn uplink(&self) {
        let outside = path_of(&self.outside);
        self.ip_host(&format!(
            "link add up0 address 02:00:00:00:02:01 type veth peer name peer-up netns {}",
            outside.display()
        ));
        self.ip_host("link set up0 up");
        self.ip_outside("link set peer-up up");
    }

    /// Makes `name` on `up0` and moves it into the sandbox's namespace; `false` where the kernel has no such kind.
    pub(crate) fn on_uplink(&self, name: &str, kind: &str) -> bool {
        let words = format!("link add {name} link up0 type {kind}");
        if !known(&self.host, &words) {
            return false;
        }
        self.ip_host(&format!("link set {name} netns {}", path_of(&self.sandbox).display()));
        self.ip(&format!("link set {name} addrgenmode none"));
        self.ip(&format!("link set {name} up"));
        true
    }

    /// All that `ip` and `tc` tell of the sandbox's namespace, but for the operational state, which comes late, when no
    /// address is under way any more.
    pub(crate) fn picture(&self) -> Vec<String> {
        let mut lines = Vec::new();
        wait::until(Duration::from_secs(10), || {
            lines = self.glance();
            !lines.iter().any(|line| line.contains(" tentative "))
        });
        lines
    }

    fn glance(&self) -> Vec<String> {
        let mut text = String::new();
        for words in [
            "-d -o link",
            "-o addr",
            "route show table all",
            "-6 route show table all",
            "rule",
            "neigh show nud permanent",
        ] {
            text += &self.ip(words);
        }
        text += &call(&self.sandbox, "tc", "-d qdisc show");
        for name in self.links() {
            // A tap of ours may be about to go.
            text += &attempt(&self.sandbox, "tc", &format!("-d filter show dev {name} ingress")).unwrap_or_default();
        }
        let mut lines: Vec<String> = text.lines().map(without_state).collect();
        // Routes of IPv6 that are alike stand in the order in which their links came up.
        lines.sort();
        lines
    }

    fn links(&self) -> Vec<String> {
        let links = self.ip("-o link");
        links.lines().filter_map(|line| line.split([':', '@']).nth(1)).map(|name| name.trim().to_owned()).collect()
    }

    /// What a guest with this namespace's network must have.
    pub(crate) fn view(&self) -> BTreeSet<String> {
        let all = |query: &str| self.ip(query);
        view(&all)
    }

    /// A bundle in this namespace whose container can ping.
    pub(crate) fn bundle(&self) -> BundleBuilder {
        able_to_ping(Bundle::builder()).namespace("network", Some(&path_of(&self.sandbox)))
    }

    /// Waits until the guest has exactly what the namespace has.
    ///
    /// # Panics
    /// When it has not in time, with what differs.
    #[track_caller]
    pub(crate) fn guest_agrees(&self, stockade: &Stockade, id: &str, what: &str) {
        let mut guest = BTreeSet::new();
        let mut wanted = BTreeSet::new();
        let agrees = wait::until(wait::scaled(Duration::from_secs(20)), || {
            (guest, wanted) = (guest_view(stockade, id), self.view());
            guest == wanted
        });
        let only = |these: &BTreeSet<String>, others: &BTreeSet<String>| {
            these.difference(others).cloned().collect::<Vec<_>>().join("\n  ")
        };
        assert!(
            agrees,
            "{what}\nthe guest lacks: {}\nand has besides: {}",
            only(&wanted, &guest),
            only(&guest, &wanted)
        );
    }

    /// Pings between the guest and the outside, in both directions.
    ///
    /// # Panics
    /// When no answer comes.
    #[track_caller]
    pub(crate) fn pings(&self, stockade: &Stockade, id: &str, guest: &str, outside: &str, bytes: u32) {
        let out = stockade
            .exec_shell(id, &format!("ping -c 1 -W 5 -s {bytes} {outside} || ping -c 2 -W 5 -s {bytes} {outside}"));
        assert_eq!(out.code(), 0, "the guest pings {outside}: {}{}", out.text(), out.error());
        call(&self.outside, "/bin/busybox", &format!("ping -c 2 -W 5 -s {bytes} {guest}"));
    }
}

/// As containerd and Podman let a container ping.
pub(crate) fn able_to_ping(builder: BundleBuilder) -> BundleBuilder {
    let capabilities = json!(["CAP_NET_RAW", "CAP_NET_BIND_SERVICE", "CAP_KILL"]);
    builder.process(
        "capabilities",
        json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities}),
    )
}

pub(crate) fn path_of(namespace: &NetworkNamespace) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd()).into()
}

/// Runs a program in a namespace; it must succeed.
#[track_caller]
pub(crate) fn call(namespace: &NetworkNamespace, program: &str, words: &str) -> String {
    attempt(namespace, program, words).unwrap_or_else(|error| panic!("{program} {words}: {error}"))
}

/// Runs a program in a namespace; what it printed, or its error.
pub(crate) fn attempt(namespace: &NetworkNamespace, program: &str, words: &str) -> Result<String, String> {
    let output = run_in(namespace.as_fd(), || Command::new(program).args(words.split_whitespace()).output());
    let output = output.expect("entered").unwrap_or_else(|error| panic!("{program} is not installed: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stdout) + &text(&output.stderr)) }
}

/// Runs `ip` with these words; `false` where the kernel has no such kind of link.
pub(crate) fn known(namespace: &NetworkNamespace, words: &str) -> bool {
    match attempt(namespace, "ip", words) {
        Ok(_) => true,
        Err(error) if error.contains("Unknown device type") || error.contains("not supported") => {
            assert!(std::env::var_os(ALL_KINDS).is_none(), "ip {words}: {error}");
            eprintln!("left to the lab, since this kernel does not have it: ip {words}");
            false
        }
        Err(error) => panic!("ip {words}: {error}"),
    }
}

/// The guest's links, addresses, routes and neighbours.
pub(crate) fn guest_view(stockade: &Stockade, id: &str) -> BTreeSet<String> {
    const MARK: &str = "@@";
    let script: String = QUERIES.iter().map(|query| format!("echo {MARK}; ip {query}; ")).collect();
    let output = stockade.exec_shell(id, &script).ok().text();
    let mut answers = output.split(MARK).skip(1).map(str::to_owned);
    let answers: Vec<(&str, String)> =
        QUERIES.iter().map(|query| (*query, answers.next().unwrap_or_default())).collect();
    view(&|query| {
        answers.iter().find(|(asked, _)| *asked == query).map(|(_, answer)| answer.clone()).unwrap_or_default()
    })
}

const QUERIES: [&str; 5] = ["-o link", "-o addr", "route", "-6 route", "neigh"];

/// A line a thing, in one form for `ip` of iproute2 and of busybox. Loopback, our taps and what each kernel makes of a MAC
/// address are left out.
fn view(ask: &dyn Fn(&str) -> String) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let after = |words: &[&str], key: &str| {
        let at = words.iter().position(|word| *word == key)?;
        words.get(at + 1).map(|word| (*word).trim_end_matches('\\').to_owned())
    };
    let ours =
        |name: &str| name == "lo" || name.starts_with("stk") || name.starts_with("sit") || name.starts_with("tunl");
    for line in ask(QUERIES[0]).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(name) = words.get(1).map(|name| name.trim_end_matches(':').split('@').next().unwrap_or_default())
        else {
            continue;
        };
        if ours(name) {
            continue;
        }
        let (mtu, mac) = (after(&words, "mtu"), after(&words, "link/ether"));
        let no_arp = if line.contains("NOARP") { " noarp" } else { "" };
        lines.insert(format!("link {name} mtu {} mac {}{no_arp}", mtu.unwrap_or_default(), mac.unwrap_or_default()));
    }
    for line in ask(QUERIES[1]).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(name) = words.get(1).filter(|name| !ours(name)) else { continue };
        let address = after(&words, "inet").or_else(|| after(&words, "inet6")).unwrap_or_default();
        if !address.is_empty() && !address.starts_with("fe80:") {
            lines.insert(format!("address {name} {address}"));
        }
    }
    for (family, query) in [("4", QUERIES[2]), ("6", QUERIES[3])] {
        for line in ask(query).lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let Some(to) = words.first().filter(|to| !to.starts_with("fe80:") && !to.starts_with("ff00:")) else {
                continue;
            };
            let device = after(&words, "dev").unwrap_or_default();
            if ours(&device) || ["unreachable", "multicast"].contains(to) {
                continue;
            }
            let mut route = format!("route{family} {to}");
            // Busybox shows no MTU of a route.
            for key in ["via", "dev", "src", "metric"] {
                if let Some(value) = after(&words, key) {
                    route += &format!(" {key} {value}");
                }
            }
            if words.contains(&"onlink") {
                route += " onlink";
            }
            lines.insert(route);
        }
    }
    for line in ask(QUERIES[4]).lines().filter(|line| line.contains("PERMANENT")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let part = |key| after(&words, key).unwrap_or_default();
        lines.insert(format!(
            "neighbour {} dev {} lladdr {}",
            words.first().unwrap_or(&""),
            part("dev"),
            part("lladdr")
        ));
    }
    lines
}

/// The kernel tells the operational state late.
fn without_state(line: &str) -> String {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    if let Some(at) = words.iter().position(|word| *word == "state") {
        words.drain(at..(at + 2).min(words.len()));
    }
    let text = words.join(" ");
    text.replace(",LOWER_UP", "").replace("NO-CARRIER,", "")
}

/// Fails with what differs between two [pictures](World::picture).
#[track_caller]
pub(crate) fn assert_as_before(before: &[String], after: &[String]) {
    let only = |these: &[String], others: &[String]| {
        these.iter().filter(|line| !others.contains(line)).cloned().collect::<Vec<_>>().join("\n")
    };
    assert!(before == after, "gone:\n{}\nnew:\n{}", only(before, after), only(after, before));
}
