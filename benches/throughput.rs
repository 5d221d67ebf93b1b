//! How fast a container's output reaches its front door, and how fast it reads its root file system: the first time, when
//! the guest has nothing of the file, and again. The host has the file in memory both times.

use std::fs;
use std::io::Read as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use stockade_tests::harness::{Bundle, Stockade};

/// What is written and read, in MiB, unless STOCKADE_BENCH_MIB says.
const AMOUNT: u32 = 200;

fn main() {
    let amount: u32 = std::env::var("STOCKADE_BENCH_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(AMOUNT);
    // The guest keeps the whole file, so that the second reading shows its own cache.
    let stockade = Stockade::with_config("default_memory = 512", "");
    let bundle = Bundle::builder().args(["/bin/sleep", "1000"]).build().expect("a bundle");
    let block: Vec<u8> = (0..1 << 20).map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let content: Vec<u8> = (0..amount).flat_map(|_| block.iter().copied()).collect();
    fs::write(bundle.rootfs().join("file"), &content).expect("the root file system can be written to");
    drop(content);
    let id = stockade.id("throughput");
    let _ = stockade.launch(&id, &bundle).ok();
    stockade.wait_status(&id, "running", Duration::from_secs(5));

    println!("virtio_fs_read_cold: {:.0} MiB/s", f64::from(amount) / read(&stockade, &id));
    println!("virtio_fs_read_warm: {:.0} MiB/s", f64::from(amount) / read(&stockade, &id));
    println!("stdout: {:.1} MiB/s", output(&stockade, &id, amount));
    let _ = stockade.delete(&id, &["--force"]).ok();
}

/// The seconds that the guest needs for the file, by its own clock.
fn read(stockade: &Stockade, id: &str) -> f64 {
    let script =
        "read a _ </proc/uptime; dd if=/file of=/dev/null bs=1M 2>/dev/null; read b _ </proc/uptime; echo $a $b";
    let said = stockade.exec_shell(id, script).ok().text();
    let times: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [begin, end] = times[..] else { panic!("the guest said {said:?}") };
    // The clock has hundredths.
    (end - begin).max(0.01)
}

/// MiB/s of a process's output from its first byte to its last.
fn output(stockade: &Stockade, id: &str, amount: u32) -> f64 {
    let count = format!("count={amount}");
    let mut command = stockade.cmd(["exec", id, "dd", "if=/dev/zero", "bs=1M", &count]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("exec starts");
    let mut stream = child.stdout.take().expect("it is piped");
    let mut buffer = vec![0; 1 << 20];
    let mut begin = None;
    let mut bytes = 0;
    loop {
        let read = stream.read(&mut buffer).expect("the pipe can be read");
        if read == 0 {
            break;
        }
        begin.get_or_insert_with(Instant::now);
        bytes += read;
    }
    let took = begin.expect("there was output").elapsed();
    assert!(child.wait().expect("it ends").success());
    assert_eq!(bytes, usize::try_from(amount).expect("it fits") << 20);
    f64::from(amount) / took.as_secs_f64()
}
