//! Under containerd, beside runc: `ctr run --rm` of `true`, `ctr task exec` of `true`, in turns, so that what else the host
//! does hits both alike; several containers at once against one; and what a supervisor costs that has nothing to do.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use stockade_tests::harness::{Backend, Containerd, RUNTIME};

const RUNC: &str = "io.containerd.runc.v2";
const IDLE: &str = "while :; do sleep 1000; done";
/// How long an idle supervisor is watched.
const WATCHED: Duration = Duration::from_secs(20);
const CALL: Duration = Duration::from_secs(600);

fn main() {
    let count =
        |name: &str, default: usize| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let containerd = Containerd::new();
    run(&containerd, count("STOCKADE_BENCH_PAIRS", 9));
    exec(&containerd, count("STOCKADE_BENCH_EXECS", 100));
    // Emulated guests beyond the host's processors only slow each other down, until some pass the limit of a boot.
    let at_a_time = if Backend::under_test() == Backend::QemuTcg { 6 } else { 20 };
    at_once(&containerd, count("STOCKADE_BENCH_PODS", at_a_time));
}

fn timed(containerd: &Containerd, words: Vec<&str>) -> Duration {
    let begin = Instant::now();
    let _ = containerd.start_ctr(words).wait(CALL).ok();
    begin.elapsed()
}

fn run(containerd: &Containerd, pairs: usize) {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        for (runtime, times) in [(RUNTIME, &mut ours), (RUNC, &mut theirs)] {
            let id = containerd.stockade().id("run");
            times.push(timed(containerd, containerd.run_args_with(runtime, &id, &["--rm"], "true")));
        }
    }
    print("ctr_run_true", &mut ours, &mut theirs);
}

fn exec(containerd: &Containerd, times: usize) {
    let ids = [RUNTIME, RUNC].map(|runtime| {
        let id = containerd.stockade().id("exec");
        let _ = containerd.ctr(containerd.run_args_with(runtime, &id, &["--detach"], IDLE)).ok();
        id
    });
    idle(containerd.task(&ids[0]).expect("a task").0);
    let mut both = [Vec::new(), Vec::new()];
    for number in 0..times {
        let exec = format!("exec{number}");
        for (id, measured) in ids.iter().zip(&mut both) {
            measured.push(timed(containerd, vec!["task", "exec", "--exec-id", &exec, id, "true"]));
        }
    }
    let [mut ours, mut theirs] = both;
    print("ctr_exec_true", &mut ours, &mut theirs);
    for id in &ids {
        let _ = containerd.ctr(["task", "delete", "--force", id]).ok();
        let _ = containerd.ctr(["container", "delete", id]).ok();
    }
}

/// What the supervisor of a container that sleeps costs: memory of its own, and how often its threads wake up.
fn idle(pid: i32) {
    // What its start leaves to do is done by then.
    thread::sleep(Duration::from_secs(5));
    let before = switches(pid);
    thread::sleep(WATCHED);
    // Threads that have ended meanwhile were not needed.
    let woken: u32 = switches(pid).iter().filter_map(|(thread, now)| now.checked_sub(*before.get(thread)?)).sum();
    let rate = f64::from(woken) / WATCHED.as_secs_f64();
    println!("idle_supervisor_wakeups_per_second: {rate:.2}");
    println!("idle_supervisor_memory: {} KiB", field(&format!("/proc/{pid}/smaps_rollup"), "Pss:"));
}

/// How often each thread of a process has gone to sleep.
fn switches(pid: i32) -> BTreeMap<String, u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the supervisor lives").flatten();
    let count = |path: String| field(&format!("{path}/status"), "voluntary_ctxt_switches:");
    threads.map(|thread| thread.path().display().to_string()).map(|path| (path.clone(), count(path))).collect()
}

fn field(path: &str, name: &str) -> u32 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value.unwrap_or_default()
}

fn at_once(containerd: &Containerd, count: usize) {
    let alone = {
        let id = containerd.stockade().id("alone");
        timed(containerd, containerd.run_args(&id, &["--rm"], "true"))
    };
    let ids: Vec<String> = (0..count).map(|_| containerd.stockade().id("many")).collect();
    let begin = Instant::now();
    let running: Vec<_> =
        ids.iter().map(|id| containerd.start_ctr(containerd.run_args(id, &["--rm"], "true"))).collect();
    for call in running {
        let _ = call.wait(CALL).ok();
    }
    let all = begin.elapsed();
    println!("at_once_count: {count}");
    println!("at_once_makespan: {:.3} s", all.as_secs_f64());
    println!("at_once_makespan_over_one: {:.2} x", all.as_secs_f64() / alone.as_secs_f64());
}

fn print(what: &str, ours: &mut [Duration], theirs: &mut [Duration]) {
    for (whose, times) in [("stockade", &mut *ours), ("runc", &mut *theirs)] {
        times.sort();
        println!("{what}_{whose}_p50: {:.3} s", at(times, 50).as_secs_f64());
        println!("{what}_{whose}_p99: {:.3} s", at(times, 99).as_secs_f64());
    }
    println!("{what}_stockade_minus_runc_p50: {:.3} s", at(ours, 50).as_secs_f64() - at(theirs, 50).as_secs_f64());
}

/// A percentile of sorted times.
fn at(times: &[Duration], percent: usize) -> Duration {
    times[(times.len() * percent / 100).min(times.len() - 1)]
}
