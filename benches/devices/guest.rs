//! What the guest does: process 1 of it is this program, which obeys an order a line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};

/// The answer to an order that was obeyed.
pub(crate) const DONE: &str = "done";
/// The file of the share that is read.
pub(crate) const FILE: &str = "file";
/// The message of a round trip.
pub(crate) const MESSAGE: [u8; 64] = [b'm'; 64];

/// Where the share is.
const SHARE: &str = "/share";
const MIB: u64 = 1 << 20;
/// How much is read from or written to the share, or the connection, at once.
const LARGE: usize = 128 << 10;
/// The size of the small requests.
const SMALL: usize = 4 << 10;

/// Memory that direct access takes.
#[repr(align(4096))]
struct Aligned<const SIZE: usize>([u8; SIZE]);

impl<const SIZE: usize> Aligned<SIZE> {
    fn new() -> Box<Self> {
        Box::new(Self([b'x'; SIZE]))
    }
}

/// Obeys an order, if it is one of these.
pub(crate) fn obey(order: &str, stream: &mut BufReader<File>) -> Option<io::Result<String>> {
    let mut words = order.split(' ');
    let verb = words.next()?;
    let name = Path::new(words.next().unwrap_or_default());
    let numbers: Vec<u32> = order.split(' ').filter_map(|word| word.parse().ok()).collect();
    let file = Path::new(SHARE).join(FILE);
    let outcome = match (verb, &numbers[..]) {
        ("use", []) => use_disk(&Path::new("/dev").join(name)),
        ("forget", []) => fs::write("/proc/sys/vm/drop_caches", "3"),
        ("share-write", [mebibytes]) => write_file(&Path::new(SHARE).join("written"), *mebibytes),
        ("share-read", [mebibytes]) => read(&file, 0, *mebibytes),
        ("share-make", [count]) => make_files(*count),
        ("share-read-4k", [count]) => small_requests(&file, 1, *count, read_at),
        ("send", [mebibytes]) => send(stream, *mebibytes),
        ("receive", [mebibytes]) => receive(stream, *mebibytes),
        ("send-back", [count]) => send_back(stream, *count),
        ("disk-read", [mebibytes]) => read(disk(), OFlag::O_DIRECT.bits(), *mebibytes),
        ("disk-read-4k", [together, count]) => small_requests(disk(), *together, *count, read_at),
        ("disk-write-4k", [together, count]) => small_requests(disk(), *together, *count, write_at),
        _ => return None,
    };
    Some(outcome.map(|()| DONE.to_owned()))
}

static DISK: OnceLock<PathBuf> = OnceLock::new();

fn use_disk(disk: &Path) -> io::Result<()> {
    let _path = DISK.get_or_init(|| disk.to_owned());
    let none: Option<&str> = None;
    fs::create_dir_all(SHARE)?;
    mount(Some("contract"), SHARE, Some("virtiofs"), MsFlags::empty(), none).map_err(Into::into)
}

fn disk() -> &'static Path {
    DISK.get().map_or_else(|| Path::new("/no disk is used yet"), PathBuf::as_path)
}

fn write_file(path: &Path, mebibytes: u32) -> io::Result<()> {
    send_to(&mut File::create(path)?, mebibytes)
}

/// Reads a file from its beginning.
fn read(path: &Path, flags: i32, mebibytes: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    receive_from(&mut file, mebibytes)
}

/// Small files in a new directory of the share.
fn make_files(count: u32) -> io::Result<()> {
    static DIRECTORIES: AtomicU32 = AtomicU32::new(0);
    let directory = Path::new(SHARE).join(format!("directory-{}", DIRECTORIES.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir(&directory)?;
    (0..count).try_for_each(|number| fs::write(directory.join(number.to_string()), MESSAGE))
}

type SmallRequest = fn(&File, &mut [u8], u64) -> io::Result<()>;

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(buffer, offset)
}

fn write_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    file.write_all_at(buffer, offset)
}

/// `count` requests in all, anywhere in the file, past the guest's cache; of each of `together` threads one at a time.
fn small_requests(path: &Path, together: u32, count: u32, request: SmallRequest) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_DIRECT.bits()).open(path)?;
    let size = u64::try_from(SMALL).map_err(io::Error::other)?;
    // A disk has no length of its own.
    let places = io::Seek::seek(&mut &file, io::SeekFrom::End(0))? / size;
    let work = |first: u32| -> io::Result<()> {
        let mut buffer = Aligned::<SMALL>::new();
        for number in (first..count).step_by(usize::try_from(together).map_err(io::Error::other)?) {
            // Far from each other, and the same in each round.
            let place = u64::from(number.wrapping_mul(2_654_435_761)) % places;
            request(&file, &mut buffer.0, place * size)?;
        }
        Ok(())
    };
    if together == 1 {
        return work(0);
    }
    thread::scope(|scope| {
        let threads: Vec<_> = (0..together).map(|first| scope.spawn(move || work(first))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
    })
}

/// Writes so much to a connection.
pub(crate) fn send<S: Write>(stream: &mut BufReader<S>, mebibytes: u32) -> io::Result<()> {
    send_to(stream.get_mut(), mebibytes)
}

/// Reads so much from a connection.
pub(crate) fn receive<S: Read>(stream: &mut BufReader<S>, mebibytes: u32) -> io::Result<()> {
    receive_from(stream, mebibytes)
}

fn send_back(stream: &mut BufReader<File>, count: u32) -> io::Result<()> {
    let mut message = MESSAGE;
    for _ in 0..count {
        stream.read_exact(&mut message)?;
        stream.get_mut().write_all(&message)?;
    }
    Ok(())
}

fn send_to(target: &mut impl Write, mebibytes: u32) -> io::Result<()> {
    let buffer = Aligned::<LARGE>::new();
    let mut left = u64::from(mebibytes) * MIB;
    while left > 0 {
        target.write_all(&buffer.0)?;
        left -= LARGE as u64;
    }
    Ok(())
}

fn receive_from(source: &mut impl Read, mebibytes: u32) -> io::Result<()> {
    let mut buffer = Aligned::<LARGE>::new();
    let mut left = u64::from(mebibytes) * MIB;
    while left > 0 {
        // Not more than is left: what follows on a connection is the answer.
        source.read_exact(&mut buffer.0)?;
        left -= LARGE as u64;
    }
    Ok(())
}
