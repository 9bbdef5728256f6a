//! The message by which a VMM hands over its memory: Firecracker's own protocol, unchanged.
//!
//! ```text
//!  VMM: userfaultfd, handshake, register ─► connect ─► one message: JSON, and the descriptor beside it
//!  here: HandOver::receive ─► adopt ─► PageServer::new ─► serve
//! ```
//!
//! There is no answer. The VMM may be a stranger that has been broken into, so its message is bounded, and what it says
//! is checked: regions are whole granules and apart here, memory of the descriptor's process in
//! [`adopt`](crate::adopt), and inside of the source in [`PageServer::new`](crate::PageServer::new).

use std::os::{
    fd::{AsFd, BorrowedFd},
    unix::net::{UnixListener, UnixStream},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::Deserialize;

use crate::{
    error::{Error, Result},
    region::{Granule, Region, Regions},
    stop::StopHandle,
    sys::{rights, uffd::Uffd},
};

/// What a VMM handed over.
#[derive(Debug)]
#[non_exhaustive]
pub struct HandOver {
    /// The userfaultfd. [Adopt](crate::adopt) the regions on it.
    pub uffd: Uffd,
    /// Where the memory is mapped.
    pub regions: Vec<Region>,
    /// The connection. Nothing more comes: it is readable once the VMM is gone, so it can be the
    /// [`watch`](crate::ServeOptions::watch) of a server.
    pub connection: UnixStream,
}

impl HandOver {
    /// Waits for a VMM to connect and to send its message. `None` if it was stopped first.
    ///
    /// Makes `listener` non-blocking.
    ///
    /// # Errors
    /// The VMM hung up, or sent something else, or the same in more than 64 parts.
    pub fn receive(listener: &UnixListener, stop: &StopHandle) -> Result<Option<Self>> {
        listener.set_nonblocking(true).map_err(|error| Error::kernel("fcntl", error))?;
        let connection = loop {
            if !wait(listener.as_fd(), stop)? {
                return Ok(None);
            }
            match listener.accept() {
                Ok((connection, _)) => break connection,
                // Whoever it was is gone.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(Error::kernel("accept", error)),
            }
        };
        let mut message = Vec::new();
        let mut uffds = Vec::new();
        // Each part is parsed with all before it, so there are not many.
        for _ in 0..PARTS_MAX {
            if !wait(connection.as_fd(), stop)? {
                return Ok(None);
            }
            if rights::receive(connection.as_fd(), &mut message, MESSAGE_BYTES_MAX, &mut uffds)? == 0 {
                return Err(Error::invalid("the VMM hung up before it handed its memory over"));
            }
            let other_than_one = || Error::invalid("the VMM handed over a number of descriptors other than one");
            if uffds.len() > 1 {
                return Err(other_than_one());
            }
            match parse(&message) {
                Ok(regions) => {
                    let uffd = uffds.pop().ok_or_else(other_than_one)?;
                    return Ok(Some(Self { uffd: uffd.into(), regions, connection }));
                }
                Err(Refused::Unfinished) if message.len() < MESSAGE_BYTES_MAX => {}
                Err(refused) => return Err(refused.into()),
            }
        }
        Err(Error::invalid("the VMM sent its message in too many parts"))
    }

    /// The regions that a whole message names.
    ///
    /// # Errors
    /// It is not JSON of the right form, is longer than 64 KiB, names none or more than 64 regions, or they are not
    /// whole granules or overlap.
    pub fn parse_regions(message: &[u8]) -> Result<Vec<Region>> {
        Ok(parse(message)?)
    }
}

/// Waits until there is something to read. `false` if it was stopped first.
fn wait(fd: BorrowedFd<'_>, stop: &StopHandle) -> Result<bool> {
    loop {
        let mut fds = [fd, stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            _ if stop.is_stopped() => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::kernel("poll", errno)),
        }
    }
}

/// Why a message is not taken.
#[derive(Debug)]
enum Refused {
    /// It may be the first part of one.
    Unfinished,
    Wrong(String),
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unfinished => Self::invalid("a hand-over message that is not whole"),
            Refused::Wrong(why) => Self::invalid(format!("a hand-over message that is wrong: {why}")),
        }
    }
}

/// One mapping, in the sender's words. All are bytes.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Mapping {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    /// The older name. It has always been in bytes.
    page_size_kib: Option<u64>,
}

fn parse(message: &[u8]) -> std::result::Result<Vec<Region>, Refused> {
    let wrong = |why: &dyn ToString| Refused::Wrong(why.to_string());
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(wrong(&"it is too long"));
    }
    let mappings: Vec<Mapping> = serde_json::from_slice(message)
        .map_err(|error| if error.is_eof() { Refused::Unfinished } else { wrong(&error) })?;
    if mappings.is_empty() || mappings.len() > REGIONS_MAX {
        return Err(wrong(&format!("it has {} regions", mappings.len())));
    }
    let regions = mappings.iter().map(|mapping| mapping.region().ok_or_else(|| wrong(&"a page size it cannot have")));
    let regions = regions.collect::<std::result::Result<Vec<_>, _>>()?;
    Regions::new(regions.clone()).map_err(|error| wrong(&error))?;
    Ok(regions)
}

impl Mapping {
    fn region(&self) -> Option<Region> {
        let granule = match (self.page_size, self.page_size_kib) {
            (Some(new), Some(old)) if new != old => return None,
            (Some(bytes), _) | (None, Some(bytes)) => Granule::from_bytes(bytes)?,
            (None, None) => Granule::Kib4,
        };
        let Self { base_host_virt_addr, size, offset, .. } = *self;
        Some(Region { granule, ..Region::new(base_host_virt_addr, size, offset) })
    }
}

/// Firecracker's have two regions at most, of some 120 bytes each.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
const REGIONS_MAX: usize = 64;
/// Firecracker sends one. A stream may cut it anywhere, and does not cut so little.
const PARTS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seed::cases;

    /// As Firecracker 1.16 sends it, for a guest over 3 GiB.
    const TWO_REGIONS: &str = r#"[{"base_host_virt_addr":139942421168128,"size":3221225472,"offset":0,"page_size":4096,"page_size_kib":4096},{"base_host_virt_addr":139941347426304,"size":1073741824,"offset":3221225472,"page_size":4096,"page_size_kib":4096}]"#;

    fn one(fields: &str) -> Result<Vec<Region>> {
        HandOver::parse_regions(format!("[{{{fields}}}]").as_bytes())
    }

    #[test]
    fn what_firecracker_sends_is_read() {
        let regions = HandOver::parse_regions(TWO_REGIONS.as_bytes()).expect("two regions");
        let low = Region::new(139_942_421_168_128, 3 << 30, 0);
        let high = Region::new(139_941_347_426_304, 1 << 30, 3 << 30);
        assert_eq!(regions, [low, high]);
        let huge = one(r#""base_host_virt_addr":4194304,"size":2097152,"offset":0,"page_size":2097152,"new":[{}]"#);
        assert_eq!(huge.expect("huge")[0].granule, Granule::Mib2);
        let old = one(r#""base_host_virt_addr":4194304,"size":2097152,"offset":0,"page_size_kib":2097152"#);
        assert_eq!(old.expect("an older VMM's")[0].granule, Granule::Mib2);
    }

    #[test]
    fn what_cannot_be_memory_is_refused() {
        for fields in [
            r#""base_host_virt_addr":4096,"size":4096,"offset":0,"page_size":8192"#,
            r#""base_host_virt_addr":4096,"size":4096,"offset":0,"page_size":4096,"page_size_kib":2097152"#,
            r#""base_host_virt_addr":4097,"size":4096,"offset":0"#,
            r#""base_host_virt_addr":4096,"size":0,"offset":0"#,
            r#""base_host_virt_addr":4096,"size":4096,"offset":-4096"#,
            r#""base_host_virt_addr":4096,"size":18446744073709547520,"offset":4096"#,
            r#""base_host_virt_addr":4096,"size":99999999999999999999999,"offset":0"#,
            r#""base_host_virt_addr":4096,"size":4096"#,
            r#""base_host_virt_addr":4096,"base_host_virt_addr":4096,"size":4096,"offset":0"#,
        ] {
            assert!(matches!(one(fields), Err(Error::Invalid(_))), "{fields}");
        }
        let region = r#"{"base_host_virt_addr":4096,"size":4096,"offset":0}"#;
        for message in [
            "[]".to_owned(),
            "{}".to_owned(),
            "[".repeat(10_000),
            format!("[{region},{region}]"),
            format!("[{region}]x"),
            format!("[{}]", vec![region; 65].join(",")),
            format!("[{region}]{}", " ".repeat(MESSAGE_BYTES_MAX)),
        ] {
            assert!(HandOver::parse_regions(message.as_bytes()).is_err(), "{:.60}", message);
        }
    }

    #[test]
    fn every_part_of_a_message_waits_for_the_rest() {
        for len in 0..TWO_REGIONS.len() {
            let part = parse(&TWO_REGIONS.as_bytes()[..len]);
            assert!(matches!(part, Err(Refused::Unfinished)), "{len} bytes: {part:?}");
        }
    }

    /// A change to a message.
    #[derive(Clone, Debug)]
    enum Mutation {
        Set(usize, u8),
        Insert(usize, u8),
        Delete(usize, usize),
        Repeat(usize, usize),
        Swap(usize, usize),
    }

    impl Mutation {
        fn apply(&self, bytes: &mut Vec<u8>) {
            let len = bytes.len().max(1);
            match *self {
                _ if bytes.is_empty() => {}
                Self::Set(at, byte) => bytes[at % len] = byte,
                Self::Insert(at, byte) => bytes.insert(at % len, byte),
                Self::Delete(at, count) => drop(bytes.drain(at % len..(at % len + count % 40).min(len))),
                Self::Repeat(at, count) => {
                    let part = bytes[at % len..(at % len + count % 200).min(len)].to_vec();
                    bytes.splice(at % len..at % len, part);
                }
                Self::Swap(one, other) => bytes.swap(one % len, other % len),
            }
        }
    }

    fn mutation() -> impl Strategy<Value = Mutation> {
        let byte = prop_oneof![any::<u8>(), prop::sample::select(b"0123456789[]{},:\"-.e ".to_vec())];
        let at = any::<usize>;
        prop_oneof![
            (at(), byte.clone()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
            (at(), byte).prop_map(|(at, byte)| Mutation::Insert(at, byte)),
            (at(), at()).prop_map(|(at, count)| Mutation::Delete(at, count)),
            (at(), at()).prop_map(|(at, count)| Mutation::Repeat(at, count)),
            (at(), at()).prop_map(|(one, other)| Mutation::Swap(one, other)),
        ]
    }

    fn is_sound(message: &[u8]) -> bool {
        parse(message).ok().is_none_or(|regions| {
            let in_bounds = |region: &Region| {
                region.len_bytes > 0
                    && region.host_addr.checked_add(region.len_bytes).is_some()
                    && region.offset_bytes.checked_add(region.len_bytes).is_some()
                    && region.len_bytes.is_multiple_of(region.granule.bytes())
            };
            regions.len() <= REGIONS_MAX && regions.iter().all(in_bounds)
        })
    }

    proptest! {
        #![proptest_config(cases(10_000))]

        #[test]
        fn a_message_that_was_tampered_with_is_sound_or_refused(
            mutations in prop::collection::vec(mutation(), 1..8),
        ) {
            let mut message = TWO_REGIONS.as_bytes().to_vec();
            mutations.iter().for_each(|mutation| mutation.apply(&mut message));
            prop_assert!(is_sound(&message));
        }

        #[test]
        fn whatever_numbers_it_has_a_message_is_sound_or_refused(
            fields in prop::collection::vec(any::<[u64; 4]>(), 1..5), shift in 0u32..64,
        ) {
            let region = |[addr, size, offset, page]: [u64; 4]| format!(
                r#"{{"base_host_virt_addr":{},"size":{},"offset":{},"page_size":{}}}"#,
                addr >> shift << 21, size >> shift << 12, offset >> shift << 12, if page % 2 == 0 { 4096 } else { 2 << 20 },
            );
            let message = format!("[{}]", fields.into_iter().map(region).collect::<Vec<_>>().join(","));
            prop_assert!(is_sound(message.as_bytes()));
        }
    }
}
