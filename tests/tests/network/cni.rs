//! The networks that CNI's plugins and Podman's netavark make reach the guest: ICMP, UDP and TCP, both families, large
//! frames, forwarded ports, and ways with smaller frames than the link's.
//!
//! ```text
//!   sandbox ── (what the plugin makes) ── host ── veth: up0 10.200.0.1, wan 10.200.0.2 ── outside
//! ```

use super::world::{World, able_to_ping, call, known, path_of};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;
use stockade_network::{NetworkNamespace, run_in};
use stockade_tests::harness::{Bundle, HostState, Stockade, wait};

/// Where Debian's package containernetworking-plugins puts them.
const PLUGINS: &str = "/usr/lib/cni";
/// Where Debian's package netavark puts it.
const NETAVARK: &str = "/usr/lib/podman/netavark";
/// The outside's addresses.
const WAN: &str = "10.200.0.2";
const WAN6: &str = "fd00:200::2";

/// Runs a program of networks on the host, with a document on standard input.
fn on_host(world: &World, program: &str, args: &[&str], env: &[(&str, &str)], document: &Value) -> String {
    let mut child = run_in(world.host.as_fd(), || {
        let mut command = Command::new(program);
        command
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap_or_else(|error| panic!("{program} is not installed: {error}"))
    })
    .expect("entered");
    child.stdin.take().expect("a pipe").write_all(document.to_string().as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ended");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// A CNI plugin's command.
fn cni(world: &World, command: &str, container: &str, plugin: &str, config: &Value) -> Value {
    let netns = path_of(&world.sandbox);
    let env = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", container),
        ("CNI_NETNS", netns.to_str().expect("text")),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", PLUGINS),
    ];
    let answer = on_host(world, &format!("{PLUGINS}/{plugin}"), &[], &env, config);
    serde_json::from_str(&answer).unwrap_or_default()
}

/// The addresses that a plugin gives, of both families.
fn ipam(data: &std::path::Path, v4: &str, v6: &str) -> Value {
    json!({
        "type": "host-local",
        "dataDir": data,
        "ranges": [[{"subnet": v4}], [{"subnet": v6}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    })
}

/// The host as a router to the outside.
fn router() -> World {
    let world = World::new();
    let outside = path_of(&world.outside);
    world.ip_host(&format!("link add up0 type veth peer name wan netns {}", outside.display()));
    world.ip_host("link set up0 up");
    world.ip_host("addr add 10.200.0.1/24 dev up0");
    world.ip_host("addr add fd00:200::1/64 dev up0");
    world.ip_outside("link set wan up");
    world.ip_outside(&format!("addr add {WAN}/24 dev wan"));
    world.ip_outside(&format!("addr add {WAN6}/64 dev wan"));
    world.ip_outside("route add default via 10.200.0.1");
    world.ip_outside("-6 route add default via fd00:200::1");
    run_in(world.host.as_fd(), || {
        for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{name}"), "1").expect("written");
        }
    })
    .expect("entered");
    world
}

/// A guest in the world's sandbox, in which one server answers "hello" on port 7000 of both families.
struct Guest<'a> {
    stockade: &'a Stockade,
    world: &'a World,
    id: String,
}

impl Guest<'_> {
    fn shell(&self, script: &str) -> String {
        self.stockade.exec_shell(&self.id, script).ok().text()
    }

    /// All of it: ICMP, TCP in both directions, UDP there and back; `own` is the guest's address.
    fn reaches(&self, what: &str, own: &str, outside: &str) {
        let (own_ip, outside_ip): (std::net::IpAddr, std::net::IpAddr) =
            (own.parse().expect("an address"), outside.parse().expect("an address"));
        self.world.guest_agrees(self.stockade, &self.id, what);
        let ping = self.shell(&format!("ping -c 1 -W 5 {outside} || ping -c 3 -W 5 {outside}"));
        assert!(ping.contains("bytes from"), "{what}: {ping}");
        // What masquerading hides is not reached from there: then only the host itself can.
        let (upload, bytes) = receive_all(&self.world.outside, outside_ip);
        self.shell(&format!("head -c 300000 /dev/zero | nc -w 10 {outside} {upload}"));
        assert_eq!(bytes.join().expect("received"), 300_000, "{what}: a TCP upload");
        let (port, server) = name_server(&self.world.outside, outside_ip);
        let answer = self.shell(&format!("nslookup -port={port} -type=a name.example {outside} 2>&1 || true"));
        server.join().expect("asked by UDP");
        assert!(answer.contains("192.0.2.99"), "{what}: a UDP answer: {answer}");
        assert_eq!(self.hello(&self.world.host, SocketAddr::new(own_ip, 7000)), "hello\n", "{what}: TCP from the host");
    }

    /// What the guest's server says to a client in a namespace.
    fn hello(&self, from: &NetworkNamespace, address: SocketAddr) -> String {
        let connect = || {
            let stream = run_in(from.as_fd(), || TcpStream::connect_timeout(&address, Duration::from_secs(2)));
            stream.expect("entered").ok()
        };
        let mut stream = wait::until_some(wait::scaled(Duration::from_secs(20)), connect).expect("connected");
        stream.set_read_timeout(Some(wait::scaled(Duration::from_secs(10)))).expect("set");
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    }
}

/// A server outside that counts what one client sends: its port, and the count.
fn receive_all(namespace: &NetworkNamespace, address: std::net::IpAddr) -> (u16, JoinHandle<usize>) {
    let listener = run_in(namespace.as_fd(), || TcpListener::bind((address, 0))).expect("entered").expect("bound");
    let port = listener.local_addr().expect("bound").port();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.set_read_timeout(Some(wait::scaled(Duration::from_secs(20)))).expect("set");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("received");
        bytes.len()
    });
    (port, thread)
}

/// A name server outside that answers one question with 192.0.2.99: its port.
fn name_server(namespace: &NetworkNamespace, address: std::net::IpAddr) -> (u16, JoinHandle<()>) {
    let socket = run_in(namespace.as_fd(), || UdpSocket::bind((address, 0))).expect("entered").expect("bound");
    let port = socket.local_addr().expect("bound").port();
    socket.set_read_timeout(Some(wait::scaled(Duration::from_secs(20)))).expect("set");
    let thread = std::thread::spawn(move || {
        let mut question = [0; 512];
        let (length, from) = socket.recv_from(&mut question).expect("a question");
        let mut answer = question[..length].to_vec();
        // A response without an error, with one answer: the name of the question, type A, class IN.
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        answer[6..8].copy_from_slice(&[0, 1]);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 99]);
        socket.send_to(&answer, from).expect("answered");
    });
    (port, thread)
}

#[test]
fn what_cni_plugins_and_netavark_make_reaches_the_guest() {
    let stockade = Stockade::new();
    let world = router();
    let before = HostState::capture(&stockade);
    let id = stockade.id("cni");
    let script = "while :; do echo hello | nc -l -p 7000; done";
    let bundle = able_to_ping(Bundle::builder()).shell(script).namespace("network", Some(&path_of(&world.sandbox)));
    let bundle = bundle.build().unwrap();
    let _ = stockade.launch(&id, &bundle);
    let guest = Guest { stockade: &stockade, world: &world, id: id.clone() };
    let data = tempfile::tempdir().unwrap();
    let gone = |what: &str| world.guest_agrees(&stockade, &id, &format!("{what}, gone"));

    // A bridge with large frames, addresses of both families, masquerading, and a port of the host.
    let bridge = json!({
        "cniVersion": "0.4.0", "name": "pods", "type": "bridge", "bridge": "cni0", "mtu": 9000,
        "isGateway": true, "ipMasq": true, "ipam": ipam(data.path(), "10.22.0.0/24", "fd00:22::/64"),
    });
    let made = cni(&world, "ADD", &id, "bridge", &bridge);
    let mut portmap = json!({
        "cniVersion": "0.4.0", "name": "pods", "type": "portmap", "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 7000, "protocol": "tcp"}]},
    });
    portmap["prevResult"] = made.clone();
    cni(&world, "ADD", &id, "portmap", &portmap);
    guest.reaches("bridge", &address_of(&made, "4"), WAN);
    guest.reaches("bridge, IPv6", &address_of(&made, "6"), WAN6);
    assert_eq!(guest.hello(&world.outside, "10.200.0.1:8080".parse().unwrap()), "hello\n", "portmap");
    world.guest_agrees(&stockade, &id, "bridge");
    let large = guest.shell("ping -c 2 -W 5 -s 8900 10.22.0.1");
    assert!(large.contains("8908 bytes from"), "{large}");
    // The way beyond the host takes 1500: the guest learns that, and sends smaller packets.
    let smaller = guest.shell(&format!("ping -c 4 -W 2 -s 4000 {WAN}"));
    assert!(smaller.contains("4008 bytes from"), "{smaller}");
    cni(&world, "DEL", &id, "portmap", &portmap);
    cni(&world, "DEL", &id, "bridge", &bridge);
    gone("bridge");

    let ptp = json!({
        "cniVersion": "0.4.0", "name": "ptp", "type": "ptp", "ipMasq": true, "mtu": 1400,
        "ipam": ipam(data.path(), "10.23.0.0/24", "fd00:23::/64"),
    });
    let made = cni(&world, "ADD", &id, "ptp", &ptp);
    guest.reaches("ptp", &address_of(&made, "4"), WAN);
    guest.reaches("ptp, IPv6", &address_of(&made, "6"), WAN6);
    cni(&world, "DEL", &id, "ptp", &ptp);
    gone("ptp");

    // They do not reach their own host, so their neighbour is outside.
    world.ip_outside("addr add 10.24.0.1/24 dev wan");
    for (kind, mode) in [("macvlan", "bridge"), ("ipvlan", "l2")] {
        if !known(&world.host, &format!("link add tried link up0 type {kind}")) {
            continue;
        }
        world.ip_host("link del tried");
        let config = json!({
            "cniVersion": "0.4.0", "name": kind, "type": kind, "master": "up0", "mode": mode,
            "ipam": {"type": "static", "addresses": [{"address": "10.24.0.2/24", "gateway": "10.24.0.1"}],
                "routes": [{"dst": "0.0.0.0/0"}]},
        });
        cni(&world, "ADD", &id, kind, &config);
        world.guest_agrees(&stockade, &id, kind);
        world.pings(&stockade, &id, "10.24.0.2", "10.24.0.1", 1400);
        assert_eq!(guest.hello(&world.outside, "10.24.0.2:7000".parse().unwrap()), "hello\n", "{kind}");
        cni(&world, "DEL", &id, kind, &config);
        gone(kind);
        // The next one has another MAC address.
        world.ip_outside("neigh flush dev wan");
    }

    // As Podman calls it.
    let netavark = json!({
        "container_id": id, "container_name": "c",
        "networks": {"podman": {"interface_name": "eth0", "static_ips": ["10.25.0.5"]}},
        "network_info": {"podman": {
            "name": "podman", "id": "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9",
            "driver": "bridge", "network_interface": "podman9",
            "subnets": [{"subnet": "10.25.0.0/24", "gateway": "10.25.0.1"}],
            "ipv6_enabled": false, "internal": false, "dns_enabled": false, "ipam_options": {"driver": "host-local"},
        }},
        "port_mappings": [
            {"container_port": 7000, "host_port": 8081, "host_ip": "", "protocol": "tcp", "range": 1},
        ],
    });
    let netns = path_of(&world.sandbox);
    let netns = netns.to_str().expect("text");
    on_host(&world, NETAVARK, &["setup", netns], &[], &netavark);
    guest.reaches("netavark", "10.25.0.5", WAN);
    assert_eq!(guest.hello(&world.outside, "10.200.0.1:8081".parse().unwrap()), "hello\n", "netavark's port");
    on_host(&world, NETAVARK, &["teardown", netns], &[], &netavark);
    gone("netavark");

    let _ = stockade.delete(&id, &["--force"]).ok();
    before.assert_same(&stockade);
    let qdiscs = call(&world.sandbox, "tc", "qdisc show");
    assert!(!qdiscs.contains("ingress"), "{qdiscs}");
}

/// The address of a family in a plugin's result.
fn address_of(result: &Value, version: &str) -> String {
    let ips = result["ips"].as_array().expect("addresses");
    let of = |ip: &&Value| ip["version"] == version;
    let address = ips.iter().find(of).and_then(|ip| ip["address"].as_str()).expect("an address of the family");
    address.split('/').next().unwrap_or_default().to_owned()
}
