//! `stockade run` of `true`, end to end, beside a bare boot of the same kernel and initrd by the same QEMU with the same
//! arguments, up to the agent's word that it is ready. In turns, so that what else the host does hits both alike. With the
//! default configuration: the tests' own has the guest's kernel and the agent write all that they do to the console.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use stockade_agent_protocol::READY;
use stockade_tests::harness::{Bundle, Stockade};

/// How often each is measured, unless STOCKADE_BENCH_PAIRS says.
const PAIRS: usize = 9;

fn main() {
    let pairs = std::env::var("STOCKADE_BENCH_PAIRS").ok().and_then(|text| text.parse().ok()).unwrap_or(PAIRS);
    let stockade = Stockade::with_config("default_memory = 512", "[runtime]\nenable_debug = false");
    let bundle = Bundle::builder().args(["/bin/true"]).build().expect("a bundle");
    let mut command = stockade.cmd(["--debug", "run", "--bundle"]);
    command.arg(bundle.path()).arg(stockade.id("arguments"));
    let _ = stockade.spawn(command).wait(Duration::from_secs(60)).ok();
    let (program, arguments) = bare(&stockade.log());
    let (mut runs, mut boots) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        let id = stockade.id("run");
        let begin = Instant::now();
        let _ = stockade.run(&id, &bundle, &[]).ok();
        runs.push(begin.elapsed());
        boots.push(boot(&program, &arguments));
    }
    let mut ratios: Vec<f64> =
        runs.iter().zip(&boots).map(|(run, boot)| run.as_secs_f64() / boot.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    let (run, boot) = (median(&mut runs), median(&mut boots));
    println!("run_true_median: {:.3} s", run.as_secs_f64());
    println!("bare_boot_median: {:.3} s", boot.as_secs_f64());
    println!("run_over_bare_boot: {:.3} x", run.as_secs_f64() / boot.as_secs_f64());
    println!("run_over_bare_boot_of_each_pair_median: {:.3} x", ratios[ratios.len() / 2]);
    println!("run_true_spread: {:.3} s", (runs[runs.len() - 1] - runs[0]).as_secs_f64());
    println!("bare_boot_spread: {:.3} s", (boots[boots.len() - 1] - boots[0]).as_secs_f64());
}

/// QEMU's program and arguments from the supervisor's log, without what a supervisor serves: the monitor, the virtio-fs
/// and vsock devices, the pipe that it waits for. The console goes to standard output.
fn bare(log: &str) -> (String, Vec<String>) {
    let line = log.lines().find(|line| line.contains("starting QEMU")).expect("the log has QEMU's arguments");
    let field = |name: &str| {
        let text = &line[line.find(&format!(" {name}=\"")).expect("the field") + name.len() + 2..];
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<String>();
        values.next().expect("a value").expect("a quoted string")
    };
    let arguments: Vec<String> = serde_json::from_str(&field("args")).expect("a list of strings");
    let mut kept = Vec::new();
    let mut rest = arguments.into_iter().peekable();
    while let Some(argument) = rest.next() {
        let value = rest.next_if(|value| !value.starts_with('-'));
        let of_the_supervisor = match (argument.as_str(), value.as_deref()) {
            ("-chardev", Some(value)) => value.starts_with("socket,"),
            ("-device", Some(value)) => value.starts_with("vhost-user-"),
            ("-mon" | "-serial" | "-readconfig", _) => true,
            _ => false,
        };
        if !of_the_supervisor {
            kept.push(argument);
            kept.extend(value);
        }
    }
    kept.extend(["-serial".to_owned(), "stdio".to_owned()]);
    (field("program"), kept)
}

/// The time from QEMU's start to the agent's word.
fn boot(program: &str, arguments: &[String]) -> Duration {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let begin = Instant::now();
    let mut qemu = command.spawn().expect("QEMU starts");
    let output = qemu.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
    let ready = lines.find(|line| String::from_utf8_lossy(line).contains(READY)).map(|_| begin.elapsed());
    let _ = qemu.kill();
    let _ = qemu.wait();
    ready.expect("the agent becomes ready")
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}
