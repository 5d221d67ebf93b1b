//! What the host does for a creation, without a virtual machine: the real actors and pipeline, a machine and an agent
//! made of code, the state in memory. Prints the median and the 90th percentile with 1, 10 and 100 sandboxes in place.

#[path = "../tests/fake/harness/mod.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod harness;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::Sandbox;
use stockade::actors::sandbox::Inspect;

/// From a supervisor's first thread to its first request: it writes its record, opens its log, binds its socket, says that it
/// is ready, and is called.
const UP: Duration = Duration::from_millis(3);

/// Creations for each number of sandboxes.
const ROUNDS: usize = 100;

fn main() {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let root = directory.path().canonicalize().expect("it exists");
    for wanted in [1, 10, 100] {
        let existing = Existing::begin(&root, wanted);
        measure(&root, wanted);
        existing.end();
    }
}

fn measure(root: &Path, existing: usize) {
    stockade::storage::private_mount_namespace().expect("a mount namespace (this needs root)");
    harness::system().block_on(async {
        let mut times = Vec::new();
        let mut steps = BTreeMap::new();
        for round in 0..ROUNDS {
            let sandbox = Sandbox::beside_others(root, &format!("measured{existing}-{round}"));
            let request = sandbox.first();
            // As a client does, which asks when the supervisor says that it is up.
            tokio::time::sleep(UP).await;
            let begin = Instant::now();
            sandbox.create(request).await.expect("created");
            times.push(begin.elapsed());
            let seen = sandbox.handle.inspect.ask(Inspect {}).await.expect("inspected");
            note_steps(&seen, &sandbox.id, &mut steps);
            sandbox.delete(&sandbox.id).await.expect("deleted");
        }
        println!("creation_p50_beside_{existing}: {:.3} ms", milliseconds(percentile(&mut times, 50)));
        println!("creation_p90_beside_{existing}: {:.3} ms", milliseconds(percentile(&mut times, 90)));
        for (name, mut times) in steps {
            let p50 = milliseconds(percentile(&mut times, 50));
            if p50 >= 0.1 {
                println!("step_{name}_p50_beside_{existing}: {p50:.3} ms");
            }
        }
    });
}

/// Sandboxes that exist meanwhile. They are where other supervisors would have them: in another mount namespace.
struct Existing {
    end: Sender<()>,
    thread: JoinHandle<()>,
}

impl Existing {
    fn begin(root: &Path, count: usize) -> Self {
        let (root, (end, ended), (ready, created)) = (root.to_owned(), channel(), channel());
        let thread = std::thread::spawn(move || {
            stockade::storage::private_mount_namespace().expect("a mount namespace (this needs root)");
            harness::system().block_on(async move {
                let mut existing = Vec::new();
                for number in 0..count {
                    let sandbox = Sandbox::beside_others(&root, &format!("existing{count}-{number}"));
                    sandbox.create(sandbox.first()).await.expect("created");
                    existing.push(sandbox);
                }
                ready.send(()).expect("somebody waits");
                tokio::task::spawn_blocking(move || ended.recv()).await.expect("no panic").expect("a word");
                for sandbox in existing {
                    sandbox.delete(&sandbox.id).await.expect("deleted");
                }
            });
        });
        created.recv().expect("they are created");
        Self { end, thread }
    }

    fn end(self) {
        self.end.send(()).expect("the thread waits");
        self.thread.join().expect("they are deleted");
    }
}

/// Adds the time of each step in a sandbox's timeline.
fn note_steps(seen: &serde_json::Value, id: &str, steps: &mut BTreeMap<String, Vec<Duration>>) {
    let timeline = seen["containers"][id]["timeline"].as_array();
    for entry in timeline.into_iter().flatten() {
        let (Some(name), Some(took)) = (entry["step"].as_str(), entry["duration_us"].as_u64()) else { continue };
        steps.entry(name.to_owned()).or_default().push(Duration::from_micros(took));
    }
}

/// The value that `percent` of them do not exceed.
fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() * percent).div_ceil(100) - 1]
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
