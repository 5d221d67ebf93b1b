//! The protocol between ends that trust each other, and between ends that do not.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use stockade_hypervisor::{MiB, ShareCache};

use super::packet::{decode, encode, send_bytes};
use super::*;

const LIMIT: Duration = Duration::from_secs(5);

fn text() -> impl Strategy<Value = String> {
    ".{0,40}"
}

fn added() -> impl Strategy<Value = Added> {
    prop_oneof![
        any::<bool>().prop_map(|read_only| Added::Disk(Disk { read_only })),
        (any::<[u8; 6]>(), any::<u16>()).prop_map(|(mac, mtu)| Added::Network(Network { mac, mtu })),
    ]
}

fn memory() -> impl Strategy<Value = MiB> {
    any::<u32>().prop_map(MiB)
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        Just(Request::Start),
        Just(Request::Pause),
        Just(Request::Resume),
        (text(), added()).prop_map(|(id, device)| Request::Add { id, device }),
        text().prop_map(|id| Request::Remove { id }),
        (proptest::option::of(any::<u8>()), proptest::option::of(memory()))
            .prop_map(|(vcpus, memory)| Request::Resize { vcpus, memory }),
        memory().prop_map(|size| Request::Balloon { size }),
        Just(Request::Counters),
        Just(Request::Save),
        Just(Request::PowerButton),
        Just(Request::Quit),
    ]
}

fn begin() -> impl Strategy<Value = Begin> {
    let numbers = (any::<i32>(), proptest::option::of(any::<i32>()), proptest::option::of(any::<i32>()), any::<i32>());
    let sizes = (any::<u8>(), any::<u8>(), memory(), memory());
    let vsock = any::<(u32, i32)>().prop_map(|(guest_cid, listener)| Vsock { guest_cid, listener });
    let share = proptest::option::of((text(), text()).prop_map(|(tag, root)| Share {
        tag,
        root: root.into(),
        cache: ShareCache::Metadata,
    }));
    let disks =
        proptest::collection::vec((text(), any::<bool>().prop_map(|read_only| Disk { read_only }), any::<i32>()), 0..4);
    let network = (any::<[u8; 6]>(), any::<u16>()).prop_map(|(mac, mtu)| Network { mac, mtu });
    let networks = proptest::collection::vec((text(), network, proptest::collection::vec(any::<i32>(), 0..9)), 0..4);
    let rest = (any::<bool>(), any::<bool>(), any::<u32>(), proptest::option::of(any::<(i32, i32)>()));
    (numbers, text(), sizes, vsock, share, disks, networks, rest).prop_map(
        |(numbers, cmdline, sizes, vsock, share, disks, networks, rest)| {
            let (kvm, kernel, initrd, console) = numbers;
            let (vcpus, max_vcpus, memory, hotplug_memory) = sizes;
            let (reclaim, seccomp, user, restore) = rest;
            Begin {
                kvm,
                kernel,
                initrd,
                cmdline,
                console,
                vcpus,
                max_vcpus,
                memory,
                hotplug_memory,
                vsock,
                share,
                disks,
                networks,
                reclaim,
                seccomp,
                user,
                restore,
            }
        },
    )
}

fn to_vmm() -> impl Strategy<Value = ToVmm> {
    prop_oneof![
        begin().prop_map(|begin| ToVmm::Begin(Box::new(begin))),
        (any::<u64>(), request()).prop_map(|(id, request)| ToVmm::Request { id, request }),
    ]
}

fn from_vmm() -> impl Strategy<Value = FromVmm> {
    let counters = (any::<u64>(), proptest::collection::vec((text(), any::<[u64; 3]>()), 0..4))
        .prop_map(|(exits, devices)| Answer::Counters(Box::new(Counters { exits, devices })));
    let answer = prop_oneof![
        Just(Answer::Done),
        (any::<u8>(), memory()).prop_map(|(vcpus, memory)| Answer::Sized(Sized { vcpus, memory })),
        counters,
        text().prop_map(|reason| Answer::Unsupported { reason }),
        text().prop_map(|message| Answer::Failed { message }),
    ];
    let reason = prop_oneof![
        Just(ExitReason::Shutdown),
        Just(ExitReason::Reset),
        Just(ExitReason::Quit),
        any::<i32>().prop_map(ExitReason::Signal),
        text().prop_map(|message| ExitReason::Failed { message }),
    ];
    let event = prop_oneof![
        Just(Event::Ready),
        Just(Event::Panicked),
        (text(), text()).prop_map(|(device, problem)| Event::DeviceFailed { device, problem }),
        reason.prop_map(|reason| Event::Exited { reason }),
    ];
    prop_oneof![
        (any::<u64>(), answer).prop_map(|(id, answer)| FromVmm::Answer { id, answer }),
        event.prop_map(FromVmm::Event),
    ]
}

proptest! {
    #[test]
    fn every_message_comes_out_as_it_went_in(to in to_vmm(), from in from_vmm(), count in 0..DESCRIPTOR_LIMIT) {
        prop_assert_eq!(decode::<ToVmm>(&encode(&to, count).unwrap(), count).unwrap(), to);
        prop_assert_eq!(decode::<FromVmm>(&encode(&from, count).unwrap(), count).unwrap(), from);
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = decode::<ToVmm>(&bytes, 0);
        let _ = decode::<FromVmm>(&bytes, 0);
    }

    /// Messages with a byte changed, taken out or put in are nearer to the edge than bytes by chance.
    #[test]
    fn a_damaged_message_is_a_message_or_an_error(
        to in to_vmm(), at in any::<prop::sample::Index>(), byte in any::<u8>(), how in 0..3,
    ) {
        let mut bytes = encode(&to, 0).unwrap();
        let at = at.index(bytes.len());
        match how {
            0 => bytes[at] = byte,
            1 => { bytes.remove(at); }
            _ => bytes.insert(at, byte),
        }
        if let Ok(message) = decode::<ToVmm>(&bytes, 0) {
            // What is taken can be said again.
            prop_assert_eq!(decode::<ToVmm>(&encode(&message, 0).unwrap(), 0).unwrap(), message);
        }
    }

    #[test]
    fn bounded_texts_are_bounded_and_plain(text in any::<String>()) {
        let bounded = bounded(&text);
        prop_assert!(bounded.len() <= TEXT_LIMIT);
        prop_assert!(!bounded.chars().any(char::is_control));
    }
}

#[test]
fn deep_nesting_is_an_error_and_no_overflow() {
    let bytes = format!("{{\"version\":1,\"descriptors\":0,\"body\":{}", "[".repeat(MESSAGE_LIMIT / 2));
    assert!(matches!(decode::<ToVmm>(bytes.as_bytes(), 0), Err(PacketError::Malformed(_))));
}

#[test]
fn another_version_and_an_unknown_field_are_refused() {
    let version = br#"{"version":2,"descriptors":0,"body":{"something":"new"}}"#;
    assert!(matches!(decode::<ToVmm>(version, 0), Err(PacketError::Version(2))));
    let field = br#"{"version":1,"descriptors":0,"body":{"request":{"id":1,"request":"start","force":true}}}"#;
    assert!(matches!(decode::<ToVmm>(field, 0), Err(PacketError::Malformed(_))));
}

fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

fn add() -> Request {
    Request::Add { id: "disk-1".to_owned(), device: Added::Disk(Disk { read_only: true }) }
}

#[test]
fn descriptors_arrive_with_their_message_and_close_on_exec() {
    let (ours, theirs) = pair().unwrap();
    let sent = ToVmm::Request { id: 1, request: add() };
    send(ours.as_fd(), &sent, &[null(), null()]).unwrap();
    let (message, descriptors) = receive::<ToVmm>(theirs.as_fd()).unwrap();
    assert_eq!(message, sent);
    assert_eq!(descriptors.len(), 2);
    for descriptor in &descriptors {
        let flags = nix::fcntl::fcntl(descriptor.as_raw_fd(), nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & nix::libc::FD_CLOEXEC, nix::libc::FD_CLOEXEC);
    }
}

#[test]
fn a_message_that_lies_about_its_descriptors_is_refused() {
    let (ours, theirs) = pair().unwrap();
    let bytes = encode(&ToVmm::Request { id: 1, request: add() }, 1).unwrap();
    send_bytes(ours.as_fd(), &bytes, &[]).unwrap();
    assert!(matches!(receive::<ToVmm>(theirs.as_fd()), Err(PacketError::Malformed(_))));
}

#[test]
fn a_packet_that_is_too_long_is_refused_on_both_ends() {
    let (ours, theirs) = pair().unwrap();
    let long = ToVmm::Request { id: 1, request: Request::Remove { id: "x".repeat(MESSAGE_LIMIT) } };
    assert!(matches!(send(ours.as_fd(), &long, &[]), Err(PacketError::TooLong("bytes"))));
    send_bytes(ours.as_fd(), &vec![b' '; MESSAGE_LIMIT + 2], &[]).unwrap();
    assert!(matches!(receive::<ToVmm>(theirs.as_fd()), Err(PacketError::TooLong("bytes"))));
}

#[test]
fn more_descriptors_than_allowed_are_refused() {
    let (ours, theirs) = pair().unwrap();
    let file = null();
    let bytes = encode(&ToVmm::Request { id: 1, request: Request::Start }, 0).unwrap();
    send_bytes(ours.as_fd(), &bytes, &[file.as_raw_fd(); DESCRIPTOR_LIMIT + 1]).unwrap();
    assert!(matches!(receive::<ToVmm>(theirs.as_fd()), Err(PacketError::TooLong("descriptors"))));
}

#[test]
fn a_closed_socket_is_told_apart_from_a_broken_one() {
    let (ours, theirs) = pair().unwrap();
    drop(theirs);
    assert!(matches!(receive::<ToVmm>(ours.as_fd()), Err(PacketError::Closed)));
    assert!(matches!(send(ours.as_fd(), &FromVmm::Event(Event::Ready), &[]), Err(PacketError::Closed)));
}

/// A client, and a thread that plays the process: it gets each message and sends what `play` makes of it.
fn played(play: impl Fn(ToVmm) -> Vec<FromVmm> + Send + 'static) -> Client {
    let (ours, theirs) = pair().unwrap();
    std::thread::spawn(move || {
        while let Ok((message, _)) = receive::<ToVmm>(theirs.as_fd()) {
            for answer in play(message) {
                if send(theirs.as_fd(), &answer, &[]).is_err() {
                    return;
                }
            }
        }
    });
    Client::new(ours).unwrap()
}

fn answer(message: &ToVmm, answer: Answer) -> FromVmm {
    let ToVmm::Request { id, .. } = message else { panic!("{message:?} is no request") };
    FromVmm::Answer { id: *id, answer }
}

#[tokio::test]
async fn answers_go_to_their_requests_and_events_beside_them() {
    let client = played(|message| vec![FromVmm::Event(Event::Ready), answer(&message, Answer::Done)]);
    assert_eq!(client.ask(Request::Start, &[], LIMIT).await.unwrap(), Answer::Done);
    assert!(client.seen().borrow().ready);
    let fd = Arc::new(null());
    assert_eq!(client.ask(add(), &[fd], LIMIT).await.unwrap(), Answer::Done);
}

#[tokio::test]
async fn a_late_answer_is_not_taken_for_that_of_the_next_request() {
    let client = played(|message| match &message {
        ToVmm::Request { request: Request::Pause, .. } => Vec::new(),
        ToVmm::Request { id, .. } => {
            let late = FromVmm::Answer { id: id - 1, answer: Answer::Failed { message: "late".to_owned() } };
            vec![late, answer(&message, Answer::Done)]
        }
        ToVmm::Begin(_) => Vec::new(),
    });
    let short = Duration::from_millis(50);
    assert!(matches!(client.ask(Request::Pause, &[], short).await, Err(ClientError::Timeout(_))));
    assert_eq!(client.ask(Request::Resume, &[], LIMIT).await.unwrap(), Answer::Done);
}

#[tokio::test]
async fn the_first_exit_counts_and_the_end_of_the_connection_ends_requests() {
    let client = played(|_| {
        [ExitReason::Reset, ExitReason::Shutdown].map(|reason| FromVmm::Event(Event::Exited { reason })).to_vec()
    });
    let asked = client.ask(Request::Quit, &[], Duration::from_millis(100)).await;
    assert!(matches!(asked, Err(ClientError::Timeout(_))), "{asked:?}");
    assert_eq!(client.seen().borrow().exited, Some(ExitReason::Reset));

    let (ours, theirs) = pair().unwrap();
    let client = Client::new(ours).unwrap();
    let mut seen = client.seen();
    let closing = async {
        receive_in_thread(theirs).await;
    };
    let (asked, ()) = tokio::join!(client.ask(Request::Start, &[], LIMIT), closing);
    assert!(matches!(asked, Err(ClientError::Closed)), "{asked:?}");
    let end = seen.wait_for(|seen| seen.closed).await.unwrap().clone();
    assert_eq!((end.exited, end.problem), (None, None));
    assert!(matches!(client.ask(Request::Start, &[], LIMIT).await, Err(ClientError::Closed)));
}

/// Takes one message and closes the socket.
async fn receive_in_thread(socket: OwnedFd) {
    tokio::task::spawn_blocking(move || drop(receive::<ToVmm>(socket.as_fd()).unwrap())).await.unwrap();
}

#[tokio::test]
async fn nonsense_from_the_process_closes_the_connection_and_says_so() {
    for nonsense in [b"{}".to_vec(), vec![0xff; 100], vec![b' '; MESSAGE_LIMIT + 100]] {
        let (ours, theirs) = pair().unwrap();
        let client = Client::new(ours).unwrap();
        send_bytes(theirs.as_fd(), &nonsense, &[]).unwrap();
        let mut seen = client.seen();
        let end = tokio::time::timeout(LIMIT, seen.wait_for(|seen| seen.closed)).await.unwrap().unwrap().clone();
        assert!(end.problem.is_some());
    }
}

#[tokio::test]
async fn descriptors_that_the_process_sends_are_discarded() {
    let (ours, theirs) = pair().unwrap();
    let client = Client::new(ours).unwrap();
    let (read, write) = nix::unistd::pipe().unwrap();
    let bytes = encode(&FromVmm::Event(Event::Ready), 0).unwrap();
    send_bytes(theirs.as_fd(), &bytes, &[write.as_raw_fd()]).unwrap();
    drop(write);
    let mut seen = client.seen();
    tokio::time::timeout(LIMIT, seen.wait_for(|seen| seen.ready)).await.unwrap().unwrap();
    // The pipe ends only when nobody holds its other end.
    let mut byte = [0];
    assert_eq!(nix::unistd::read(read.as_raw_fd(), &mut byte).unwrap(), 0);
}
