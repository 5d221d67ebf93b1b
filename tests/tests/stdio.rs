//! Standard streams and terminals of containers.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use sha2::{Digest as _, Sha256};
use stockade_tests::harness::{Bundle, HostState, Running, Screen, Stockade, Terminal, wait};

const SOON: Duration = Duration::from_secs(20);
const BOOT: Duration = Duration::from_secs(90);

const MIB: usize = 1 << 20;
const SIZE: usize = 200 * MIB;

/// Bytes that do not repeat, the same each time.
fn block(number: usize) -> Vec<u8> {
    let mut state = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..MIB / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect()
}

#[test]
fn two_hundred_mib_through_a_container_come_out_as_they_went_in() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("bytes");
    let bundle = Bundle::builder().args(["cat"]).build().unwrap();
    let mut command = stockade.run_cmd(&id, &bundle, &[]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = thread::spawn(move || {
        let mut hash = Sha256::new();
        for number in 0..SIZE / MIB {
            let block = block(number);
            hash.update(&block);
            stdin.write_all(&block).unwrap();
        }
        hash.finalize()
    });
    let mut stdout = child.stdout.take().unwrap();
    let (mut hash, mut length, mut buffer) = (Sha256::new(), 0, vec![0; MIB]);
    let mut begin = None;
    loop {
        let count = stdout.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        begin.get_or_insert_with(Instant::now);
        length += count;
        hash.update(&buffer[..count]);
    }
    let took = begin.unwrap().elapsed();
    println!("{} MiB there and back in {took:?}: {:.1} MiB/s", SIZE / MIB, (SIZE / MIB) as f64 / took.as_secs_f64());
    assert!(child.wait().unwrap().success());
    assert_eq!(length, SIZE);
    assert_eq!(hash.finalize(), writer.join().unwrap());
    before.assert_same(&stockade);
}

#[test]
fn streams_are_apart_and_a_child_that_keeps_them_hangs_nobody() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("streams");
    // The child outlives the first process and holds its output; everything written before the end is there.
    let script = "echo out; echo err >&2; sleep 1000 & head -c 1000000 /dev/zero | tr '\\0' x; echo; exit 5";
    let bundle = Bundle::shell(script).unwrap();
    let begin = Instant::now();
    let output = stockade.start_run(&id, &bundle, &[]).wait(BOOT);
    println!("a run with a child that stays took {:?}", begin.elapsed());
    assert_eq!(output.code(), 5);
    assert_eq!(output.error(), "err\n");
    let text = output.text();
    assert!(text.starts_with("out\nxxx") && text.len() == 1_000_005, "{} bytes", text.len());
    before.assert_same(&stockade);
}

fn run_in_terminal(stockade: &Stockade, terminal: &Terminal, id: &str, bundle: &Bundle) -> Running {
    let command = terminal.session(&stockade.run_cmd(id, bundle, &[]));
    stockade.spawn_with(command, terminal.end(), terminal.end())
}

#[test]
fn a_terminal_echoes_obeys_its_keys_and_follows_its_window() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("terminal");
    let bundle = Bundle::builder().args(["sh"]).tty(true).env("PS1=prompt: ").build().unwrap();
    let terminal = Terminal::open(100, 30);
    let screen = Screen::of(terminal.master());
    let running = run_in_terminal(&stockade, &terminal, &id, &bundle);
    screen.wait_for("prompt: ", BOOT);
    terminal.write("echo $((6*7)); stty size\n");
    screen.wait_for("echo $((6*7)); stty size\r\n42\r\n30 100\r\n", SOON);
    terminal.resize(120, 40);
    // The signal travels beside the keys, so the shell is asked until it has arrived.
    assert!(
        wait::until(SOON, || {
            terminal.write("stty size\n");
            wait::until(Duration::from_secs(1), || screen.text().contains("\r\n40 120\r\n"))
        }),
        "{:?}",
        screen.text()
    );
    terminal.write("sleep 1000\n");
    screen.wait_for("sleep 1000\r\n", SOON);
    assert!(wait::until(SOON, || stockade.call(["ps", &id]).ok().text().contains("sleep 1000")));
    terminal.write("\x03");
    screen.wait_for("^C", SOON);
    terminal.write("exit 9\n");
    assert_eq!(running.wait(SOON).code(), 9);
    before.assert_same(&stockade);
}

#[test]
fn a_console_socket_receives_the_terminals_master() {
    let stockade = Stockade::new();
    let before = HostState::capture(&stockade);
    let id = stockade.id("console");
    let bundle = Bundle::builder().args(["sh"]).tty(true).env("PS1=prompt: ").build().unwrap();
    let without = stockade.create(&id, &bundle, &[]).failure();
    assert!(without.contains("--console-socket"), "{without}");

    let path = stockade.folder().join("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let receiver = thread::spawn(move || receive(&listener));
    let _ = stockade.create(&id, &bundle, &["--console-socket", path.to_str().unwrap()]).ok();
    let mut master = receiver.join().unwrap();
    let screen = Screen::of(&master);
    let _ = stockade.start(&id).ok();
    screen.wait_for("prompt: ", SOON);
    master.write_all(b"test -t 0 && echo yes-$((1+1))\n").unwrap();
    screen.wait_for("yes-2\r\n", SOON);
    master.write_all(b"exit\n").unwrap();
    stockade.wait_status(&id, "stopped", SOON);
    let _ = stockade.delete(&id, &[]).ok();
    fs::remove_file(&path).unwrap();
    before.assert_same(&stockade);
}

/// The descriptor that one connection brings.
#[expect(unsafe_code, reason = "a received descriptor is owned by nobody until it is wrapped")]
fn receive(listener: &UnixListener) -> File {
    use std::os::fd::FromRawFd as _;
    let (stream, _) = listener.accept().unwrap();
    let mut bytes = [0; 4096];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut iov = [std::io::IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
    for control in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just made this descriptor for us.
            return unsafe { File::from_raw_fd(fds[0]) };
        }
    }
    panic!("the console socket got no descriptor");
}
