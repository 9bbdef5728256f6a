//! Messages to the kernel that the netlink library has none of: nftables, and the reverse path filter of a link.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Requests, one after another. Netlink's numbers are the host's; x86-64 is little-endian.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    count: u32,
}

/// A socket to a part of the kernel, in the calling thread's network namespace.
pub(crate) struct Netlink(OwnedFd);

impl Messages {
    /// Adds a request; `body` gets its fixed part and its attributes.
    pub(crate) fn add(&mut self, kind: u16, flags: u16, fixed: &[u8], attributes: impl FnOnce(&mut Attributes)) {
        self.count += 1;
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_le_bytes());
        self.bytes.extend(self.count.to_le_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(fixed);
        let mut inner = Attributes(std::mem::take(&mut self.bytes));
        attributes(&mut inner);
        self.bytes = inner.0;
        let len = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&len.to_le_bytes());
    }
}

/// Attributes, in a buffer that has what is before them.
#[derive(Debug)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(len.to_le_bytes());
        self.0.extend(kind.to_le_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A text, with the zero byte that ends it.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// A number as nftables has it.
    pub(crate) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        let [a, b, c, d] = value.to_le_bytes();
        self.bytes(kind, &[d, c, b, a])
    }

    pub(crate) fn nested(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend((NLA_F_NESTED | kind).to_le_bytes());
        inside(self);
        let len = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&len.to_le_bytes());
        self
    }
}

impl Netlink {
    pub(crate) fn open(part: SockProtocol) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, part)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(10))?;
        Ok(Self(socket))
    }

    /// Sends all requests at once, and waits for the answers that were asked for, of which there are `answers`.
    ///
    /// # Errors
    /// The kernel's first refusal.
    pub(crate) fn send(&self, messages: &Messages, answers: usize) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        sendmsg(self.0.as_raw_fd(), &[IoSlice::new(&messages.bytes)], &[], MsgFlags::empty(), Some(&kernel))?;
        let mut answered = 0;
        while answered < answers {
            let mut buffer = [0; 8192];
            let len = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            answered += check(buffer.get(..len).unwrap_or_default())?;
        }
        Ok(())
    }
}

/// How many answers there are, if none of them is a refusal.
fn check(mut rest: &[u8]) -> io::Result<usize> {
    let mut count = 0;
    while let (Some(len), Some(kind)) = (word(rest, 0), word(rest, 4)) {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        // The kind is the lower half.
        if kind & 0xffff == NLMSG_ERROR {
            match word(rest, 16).map_or(0, u32::cast_signed) {
                0 => count += 1,
                code => return Err(io::Error::from_raw_os_error(-code)),
            }
        }
        match rest.get(len.next_multiple_of(4).max(16)..) {
            Some(next) => rest = next,
            None => break,
        }
    }
    Ok(count)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes)
}

pub(crate) const NLM_F_ACK: u16 = 4;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u32 = 2;
const NLA_F_NESTED: u16 = 0x8000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nested_has_its_length_and_a_refusal_is_told() {
        let mut messages = Messages::default();
        messages.add(7, NLM_F_ACK, &[1, 2, 3, 4], |all| {
            all.nested(1, |inside| _ = inside.text(2, "ab"));
        });
        assert_eq!(messages.bytes.len(), 16 + 4 + 4 + 8);
        assert_eq!(messages.bytes[..6], [32, 0, 0, 0, 7, 0]);
        assert_eq!(messages.bytes[20..], [12, 0, 1, 0x80, 7, 0, 2, 0, b'a', b'b', 0, 0]);
        let answer = |code: i32| {
            let mut bytes = vec![0; 36];
            bytes[0] = 36;
            bytes[4] = 2;
            bytes[16..20].copy_from_slice(&code.to_le_bytes());
            bytes
        };
        assert_eq!(check(&[answer(0), answer(0)].concat()).expect("no refusal"), 2);
        assert_eq!(check(&answer(-libc::EPERM)).expect_err("a refusal").raw_os_error(), Some(libc::EPERM));
        assert_eq!(check(&[]).expect("nothing"), 0);
    }
}
