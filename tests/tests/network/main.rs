//! The network namespace that a sandbox joins is its guest's network, and is afterwards as it was before.

mod cni;
mod engines;
mod table;
mod world;

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use stockade_network::run_in;
use stockade_tests::harness::{HostState, Stockade, wait};
use world::{World, assert_as_before};

/// `eth0` as a CNI plugin makes it.
fn prepared() -> World {
    let world = World::new();
    world.bare_veth(0, "02:00:00:00:00:07", 1400);
    world.ip("addr add 10.9.0.2/24 dev eth0");
    world.ip("addr add fd09::2/64 dev eth0 nodad");
    world.ip_outside("addr add 10.9.0.1/24 dev peer0");
    world.ip("route add default via 10.9.0.1 metric 30");
    world
}

#[test]
fn a_container_pings_and_is_reached_by_tcp_and_the_namespace_is_left_as_it_was() {
    let stockade = Stockade::new();
    let prepared = prepared();
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
    let prepared = prepared();
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
