//! What connecting endpoints costs the host: a scan, the plans and the attachment, with 1 to 16 veths in the namespace.
//! Prints the median times and the netlink round trips.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::Command;
use std::time::{Duration, Instant};

use stockade_network::{AttachOptions, GuestNetwork, Limits, Mark, Network, NetworkNamespace, endpoints, plan, run_in};

/// Measurements for each number of endpoints.
const ROUNDS: usize = 30;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for count in [1, 2, 4, 8, 16] {
        let (sandbox, _outside) = namespaces(count);
        let network = Network::new(sandbox.into_shared(), Limits::default()).expect("a namespace");
        runtime.block_on(measure(&network, count));
    }
}

/// A namespace with `count` veths, each with two addresses and one route, and the one that their other ends are in.
fn namespaces(count: usize) -> (NetworkNamespace, NetworkNamespace) {
    let sandbox = NetworkNamespace::create().expect("a network namespace (this needs root)");
    let outside = NetworkNamespace::create().expect("a network namespace");
    let elsewhere = format!("/proc/{}/fd/{}", std::process::id(), outside.as_fd().as_raw_fd());
    let ip = |words: String| {
        let mut command = Command::new("ip");
        command.args(words.split_whitespace());
        let status = run_in(sandbox.as_fd(), || command.status()).expect("entered").expect("iproute2 is installed");
        assert!(status.success(), "ip {words}");
    };
    for number in 0..count {
        ip(format!("link add eth{number} type veth peer name peer{number} netns {elsewhere}"));
        ip(format!("link set eth{number} up"));
        ip(format!("addr add 10.{number}.0.2/24 dev eth{number}"));
        ip(format!("addr add fd00:{number}::2/64 dev eth{number}"));
        ip(format!("route add 172.16.{number}.0/24 via 10.{number}.0.1"));
    }
    (sandbox, outside)
}

async fn measure(network: &Network, count: usize) {
    let options = AttachOptions::new(Mark::random().expect("random numbers"));
    let mut times = [const { Vec::new() }; 3];
    let mut trips = [0; 3];
    for _ in 0..ROUNDS {
        let (begin, before) = (Instant::now(), network.round_trips());
        let scan = network.scan().await.expect("scanned");
        let found = endpoints(&scan).expect("endpoints");
        assert_eq!(GuestNetwork::new(&scan, &found).interfaces.len(), count);
        let plans = found.iter().map(|one| plan(&scan, network.id(), one, &options).expect("a plan")).collect();
        let (scanned, middle) = (Instant::now(), network.round_trips());
        let attachments = network.attach(plans).await.expect("attached");
        let (attached, after) = (Instant::now(), network.round_trips());
        let (undos, queues): (Vec<_>, Vec<_>) =
            attachments.into_iter().map(|attachment| (attachment.undo, attachment.queues)).unzip();
        network.detach(undos).await.expect("detached");
        times[0].push(scanned - begin);
        times[1].push(attached - scanned);
        times[2].push(attached.elapsed());
        trips = [middle - before, after - middle, network.round_trips() - after];
        drop(queues);
    }
    for ((name, times), trips) in ["scan", "attach", "detach"].into_iter().zip(&mut times).zip(trips) {
        println!("{name}_p50_of_{count}: {:.3} ms, {trips} round trips", milliseconds(median(times)));
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
