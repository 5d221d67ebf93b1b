//! A guest made of code: it reads and writes Ethernet frames on a tap's descriptor.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};
use stockade_network::Mac;

/// The virtio-net header before each frame until another length is set.
const HEADER: usize = 10;
/// How long a frame may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The guest's network interface.
#[derive(Debug)]
pub(crate) struct Nic {
    file: File,
    mac: Mac,
}

impl Nic {
    pub(crate) fn new(queue: &OwnedFd, mac: Mac) -> Self {
        Self { file: File::from(queue.try_clone().expect("a descriptor")), mac }
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        let whole = [&[0; HEADER], frame].concat();
        assert_eq!(self.file.write(&whole).expect("sent"), whole.len());
    }

    /// The first frame for which `wanted` has an answer; others are passed over.
    pub(crate) fn receive<T>(&mut self, what: &str, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.poll(deadline, &mut wanted);
            if let Some(found) = found {
                return found;
            }
            assert!(Instant::now() < deadline, "no {what} came");
        }
    }

    fn poll<T>(&mut self, deadline: Instant, wanted: &mut impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis() + 1;
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(left).expect("a time")).expect("polled");
        let mut buffer = vec![0; 70_000];
        match self.file.read(&mut buffer) {
            Ok(length) => wanted(&buffer[HEADER..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Asks who has `address`, as `own`, and gives the MAC address that answers.
    pub(crate) fn arp(&mut self, own: Ipv4Addr, address: Ipv4Addr) -> Mac {
        let mut frame = ethernet(Mac([0xff; 6]), self.mac, 0x0806);
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(self.mac.0);
        frame.extend(own.octets());
        frame.extend([0; 6]);
        frame.extend(address.octets());
        self.send(&frame);
        self.receive("ARP reply", |frame| {
            let reply = frame.get(12..14)? == [0x08, 0x06] && frame.get(20..22)? == [0, 2];
            (reply && frame.get(28..32)? == address.octets()).then(|| mac(&frame[22..28]))
        })
    }

    /// Sends an echo request of `payload` bytes and waits for the same to come back.
    pub(crate) fn ping(&mut self, to: Mac, own: Ipv4Addr, address: Ipv4Addr, payload: usize) {
        let data = pattern(payload);
        let mut echo = vec![8, 0, 0, 0, 0, 7, 0, 1];
        echo.extend(&data);
        let sum = checksum(&[&echo]);
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
        let frame = [ethernet(to, self.mac, 0x0800), ipv4(1, own, address, echo.len()), echo].concat();
        self.send(&frame);
        self.receive("echo reply", |frame| {
            let reply = frame.get(12..14)? == [0x08, 0x00] && frame.get(23)? == &1 && frame.get(34)? == &0;
            (reply && frame.get(42..)? == data).then_some(())
        });
    }

    /// Sends a datagram of `payload` bytes from port 5000, without a checksum.
    pub(crate) fn send_udp(&mut self, to: Mac, own: Ipv4Addr, address: Ipv4Addr, port: u16, payload: usize) {
        let length = u16::try_from(8 + payload).expect("fits");
        let mut datagram = [&5000u16.to_be_bytes()[..], &port.to_be_bytes(), &length.to_be_bytes(), &[0, 0]].concat();
        datagram.extend(pattern(payload));
        let frame = [ethernet(to, self.mac, 0x0800), ipv4(17, own, address, datagram.len()), datagram].concat();
        self.send(&frame);
    }

    /// Asks for the neighbour `address` by IPv6.
    pub(crate) fn solicit(&mut self, own: Ipv6Addr, address: Ipv6Addr) -> Mac {
        let target = address.octets();
        let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, target[13], target[14], target[15]]);
        let mut solicitation = vec![135, 0, 0, 0, 0, 0, 0, 0];
        solicitation.extend(target);
        solicitation.extend([1, 1]);
        solicitation.extend(self.mac.0);
        let to = Mac([0x33, 0x33, 0xff, target[13], target[14], target[15]]);
        self.send_icmpv6(to, own, group, solicitation);
        self.receive("neighbour advertisement", |frame| {
            let advertisement = frame.get(12..14)? == [0x86, 0xdd] && frame.get(54)? == &136;
            (advertisement && frame.get(62..78)? == target).then(|| mac(&frame[6..12]))
        })
    }

    /// The IPv6 echo.
    pub(crate) fn ping6(&mut self, to: Mac, own: Ipv6Addr, address: Ipv6Addr, payload: usize) {
        let data = pattern(payload);
        let mut echo = vec![128, 0, 0, 0, 0, 7, 0, 1];
        echo.extend(&data);
        self.send_icmpv6(to, own, address, echo);
        let own_mac = self.mac;
        loop {
            // The other end looks for us before it answers.
            let solicited = self.receive("IPv6 echo reply", |frame| {
                if frame.get(12..14)? != [0x86, 0xdd] {
                    return None;
                }
                match frame.get(54)? {
                    129 if frame.get(62..)? == data => Some(None),
                    135 if frame.get(62..78)? == own.octets() => Some(Some(address)),
                    _ => None,
                }
            });
            let Some(asker) = solicited else { return };
            let mut advertisement = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
            advertisement.extend(own.octets());
            advertisement.extend([2, 1]);
            advertisement.extend(own_mac.0);
            self.send_icmpv6(to, own, asker, advertisement);
        }
    }

    fn send_icmpv6(&mut self, to: Mac, own: Ipv6Addr, address: Ipv6Addr, mut message: Vec<u8>) {
        let length = u16::try_from(message.len()).expect("fits");
        let pseudo = [&own.octets()[..], &address.octets(), &[0, 0], &length.to_be_bytes(), &[0, 0, 0, 58]].concat();
        let sum = checksum(&[&pseudo, &message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(length.to_be_bytes());
        header.extend([58, 255]);
        header.extend(own.octets());
        header.extend(address.octets());
        let frame = [ethernet(to, self.mac, 0x86dd), header, message].concat();
        self.send(&frame);
    }
}

/// A frame's first 14 bytes.
pub(crate) fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    [&to.0[..], &from.0, &kind.to_be_bytes()].concat()
}

fn ipv4(protocol: u8, own: Ipv4Addr, address: Ipv4Addr, payload: usize) -> Vec<u8> {
    let length = u16::try_from(20 + payload).expect("fits");
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(own.octets());
    header.extend(address.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn mac(bytes: &[u8]) -> Mac {
    Mac(bytes.try_into().expect("six bytes"))
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| u8::try_from(index % 251).expect("a byte")).collect()
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(sum).expect("16 bits")
}
