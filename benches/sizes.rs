//! What a running container costs the host beside its guest's memory, and how large the parts are.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stockade_tests::harness::{Bundle, Stockade, guest, wait};

fn main() {
    let stockade = Stockade::new();
    let bundle = Bundle::builder().args(["/bin/sleep", "1000"]).build().expect("a bundle");
    let id = stockade.id("sizes");
    let _ = stockade.launch(&id, &bundle).ok();
    stockade.wait_status(&id, "running", Duration::from_secs(5));
    let supervisor = stockade.supervisor_pid(&id);
    println!("supervisor_private: {:.2} MiB", private(supervisor));
    let machines = stockade.monitors();
    for pid in stockade.pids("vhost-user").into_iter().filter(|pid| !machines.contains(pid)) {
        println!("devices_private: {:.2} MiB", private(pid));
    }
    let stand_in = stockade.state(&id)["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid");
    println!("stand_in_private: {:.2} MiB", private(stand_in));
    for pid in machines {
        println!("qemu_private_with_guest_memory: {:.2} MiB", private(pid));
    }
    let _ = stockade.kill(&id, "KILL").ok();
    wait::until(Duration::from_secs(10), || stockade.status(&id) == "stopped");
    let _ = stockade.delete(&id, &[]).ok();

    let program = stockade.program();
    println!("host_binary: {:.2} MiB", megabytes(program));
    let agent =
        std::env::var_os("STOCKADE_TEST_AGENT").map_or_else(|| program.with_file_name("stockade-agent"), PathBuf::from);
    println!("agent_binary: {:.2} MiB", megabytes(&agent));
    println!("initrd: {:.2} MiB", megabytes(&guest().join("initrd.img")));
}

/// The memory that would be free if the process ended, in MiB.
fn private(pid: i32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process runs");
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel has the line");
        line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).expect("a number of KiB")
    };
    (of("Private_Clean:") + of("Private_Dirty:")) / 1024.0
}

fn megabytes(path: &Path) -> f64 {
    let length = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).len();
    #[expect(clippy::cast_precision_loss, reason = "files are not that large")]
    let length = length as f64;
    length / f64::from(1 << 20)
}
