//! A tap interface in a network namespace of its own, and a packet socket at it.
#![expect(unsafe_code, reason = "tap devices and packet sockets have no safe face")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const IFF_TAP: i16 = 0x0002;
const IFF_MULTI_QUEUE: i16 = 0x0100;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
const NAME: &[u8; 5] = b"test0";

/// The host's side of it. Frames at the socket have a virtio header of 10 bytes before them.
pub(super) struct Interface {
    socket: File,
    /// For settings of the interface, in its namespace.
    control: OwnedFd,
}

fn check(result: libc::c_int) -> libc::c_int {
    assert!(result >= 0, "{}", io::Error::last_os_error());
    result
}

fn request(flags: i16) -> libc::ifreq {
    // SAFETY: an ifreq is numbers and a union of numbers and addresses, for all of which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, letter) in request.ifr_name.iter_mut().zip(NAME) {
        *place = letter.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags;
    request
}

fn tap(flags: i16) -> OwnedFd {
    let tun = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = request(flags);
    // SAFETY: the request is a whole ifreq that lives over the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &raw mut request) });
    tun.into()
}

fn socket(domain: libc::c_int, protocol: u16) -> OwnedFd {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.to_be().into()) });
    // SAFETY: the kernel has just returned it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

impl Interface {
    /// An interface with so many queues, and their descriptors.
    pub(super) fn new(queues: usize) -> (Self, Vec<OwnedFd>) {
        std::thread::spawn(move || Self::make(queues)).join().unwrap()
    }

    fn make(queues: usize) -> (Self, Vec<OwnedFd>) {
        // The namespace lives as long as the descriptors that are made in it.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let multiqueue = if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
        let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | multiqueue;
        let taps = (0..queues).map(|_| tap(flags)).collect();
        // No address: the kernel has nothing of its own to say.
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", std::str::from_utf8(NAME).unwrap()), "1")
            .ok();
        let control = socket(libc::AF_PACKET, 0);
        // A socket that is bound to an interface that is down remembers it as an error.
        Self::set_up(&control);
        let interface = Self { socket: Self::packet_socket(&control), control };
        (interface, taps)
    }

    /// A tap descriptor made without IFF_VNET_HDR.
    pub(super) fn without_header() -> OwnedFd {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tap(IFF_TAP | IFF_NO_PI)
        })
        .join()
        .unwrap()
    }

    fn packet_socket(control: &OwnedFd) -> File {
        let mut named = request(0);
        // SAFETY: as in `tap`.
        check(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut named) });
        let all = u16::try_from(libc::ETH_P_ALL).unwrap();
        let socket = socket(libc::AF_PACKET, 0);
        let on: libc::c_int = 1;
        for option in [libc::PACKET_VNET_HDR, libc::PACKET_IGNORE_OUTGOING] {
            let len = u32::try_from(size_of::<libc::c_int>()).unwrap();
            // SAFETY: the option is an integer that lives over the call.
            check(unsafe {
                libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const on).cast(), len)
            });
        }
        // SAFETY: a sockaddr_ll is numbers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = all.to_be();
        // SAFETY: the request has just filled in the index.
        address.sll_ifindex = unsafe { named.ifr_ifru.ifru_ifindex };
        let len = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
        // SAFETY: the address is as long as said and lives over the call.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) });
        socket.into()
    }

    fn set_up(control: &OwnedFd) {
        let mut request = request(i16::try_from(libc::IFF_UP).unwrap());
        // SAFETY: as in `tap`.
        check(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) });
    }

    /// Sends a frame to the guest.
    pub(super) fn send(&self, frame: &[u8]) {
        self.send_with_header(&[0; 10], frame);
    }

    /// Sends a frame to the guest, with offloads as the header of 10 bytes says.
    pub(super) fn send_with_header(&self, header: &[u8], frame: &[u8]) {
        (&self.socket).write_all(&[header, frame].concat()).unwrap();
    }

    /// The next frame of the guest, without its header.
    pub(super) fn receive(&self) -> Vec<u8> {
        let mut bytes = vec![0; 70_000];
        let len = (&self.socket).read(&mut bytes).unwrap();
        bytes[10..len].to_vec()
    }

    /// Removes the interface from its namespace.
    pub(super) fn remove(&self) {
        let mut index = request(0);
        // SAFETY: as in `tap`.
        check(unsafe { libc::ioctl(self.control.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut index) });
        // SAFETY: the request has just filled in the index.
        let index = unsafe { index.ifr_ifru.ifru_ifindex };
        let namespace = {
            // SAFETY: the request takes no argument; SIOCGSKNS returns a descriptor of the socket's namespace.
            let fd = check(unsafe { libc::ioctl(self.control.as_raw_fd(), 0x894c) });
            // SAFETY: the kernel has just returned it.
            unsafe { OwnedFd::from_raw_fd(fd) }
        };
        std::thread::spawn(move || {
            nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let netlink = socket(libc::AF_NETLINK, 0);
            let mut message = Vec::new();
            // nlmsghdr: length, RTM_DELLINK, request and acknowledge, sequence, port; ifinfomsg with the index.
            message.extend(32_u32.to_ne_bytes());
            message.extend(17_u16.to_ne_bytes());
            message.extend(5_u16.to_ne_bytes());
            message.extend([0; 12]);
            message.extend(index.to_ne_bytes());
            message.extend([0; 8]);
            let mut netlink = File::from(netlink);
            netlink.write_all(&message).unwrap();
            let mut answer = [0; 256];
            let len = netlink.read(&mut answer).unwrap();
            assert!(len >= 20 && answer[16..20] == [0; 4], "the interface is not removed: {:?}", &answer[..len]);
        })
        .join()
        .unwrap();
    }
}
