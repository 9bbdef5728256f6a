//! The guest's own side: it does to its memory what it is told to.

use std::{
    collections::VecDeque,
    fs::File,
    io::{IoSlice, Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    thread::JoinHandle,
    time::Instant,
};

use memmap2::{MmapMut, MmapOptions, MmapRaw, UncheckedAdvice};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use wrenn_snapshot::{PAGE_BYTES, create_uffd};

use super::{Backing, checksum, shuffled};

/// Call it from an ignored test named `guest_process`, or a program that is started with that as an argument.
pub(crate) fn run() {
    let Some(socket) = std::env::var_os("GUEST_SOCKET") else { return };
    let mut stream = UnixStream::connect(socket).expect("the test listens");
    let backing = std::env::var("GUEST_BACKING").expect("a backing");
    let backing = Backing::SERVED
        .into_iter()
        .chain([Backing::Clone])
        .find(|known| format!("{known:?}") == backing)
        .expect("a known one");
    let memory: &'static Memory = Box::leak(Box::new(Memory::map(backing)));
    let (uffd, second) = (create_uffd().expect("a userfaultfd"), create_uffd().expect("another"));
    let addr = (memory.map.as_ptr() as u64).to_le_bytes();
    let fds: [RawFd; 2] = [uffd.as_raw_fd(), second.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&addr)], &rights, MsgFlags::empty(), None).expect("sent");
    // Only the test has them now, as with a VMM that keeps none.
    drop((uffd, second));
    let mut begun: VecDeque<JoinHandle<u64>> = VecDeque::new();
    let mut request = [0; 10];
    while stream.read_exact(&mut request).is_ok() {
        let number = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().expect("four bytes"));
        let (how, verb, at, value) = (request[0], request[1], number(2), number(6));
        let answer = match how {
            b'b' => {
                begun.push_back(std::thread::spawn(move || memory.obey(verb, at, value)));
                continue;
            }
            b'e' => begun.pop_front().expect("something was begun").join().expect("it does not panic"),
            _ => memory.obey(verb, at, value),
        };
        stream.write_all(&answer.to_le_bytes()).expect("the test waits");
    }
}

struct Memory {
    map: MmapRaw,
    backing: Backing,
    granule_bytes: usize,
}

impl Memory {
    fn map(backing: Backing) -> Self {
        let len = std::env::var("GUEST_LEN").expect("a length").parse().expect("a number");
        let map = match backing {
            Backing::Shared | Backing::SharedHuge => {
                let file = std::env::var_os("GUEST_MEMORY").expect("a path");
                let file = File::options().read(true).write(true).open(file).expect("the memory");
                MmapRaw::map_raw(&file).expect("a mapping")
            }
            Backing::Clone => {
                let file = std::env::var_os("GUEST_MEMORY").expect("a path");
                let file = File::open(file).expect("the memory");
                // SAFETY: nobody writes to the file or truncates it.
                unsafe { MmapOptions::new().map_copy(&file) }.expect("a mapping").into()
            }
            Backing::Private => MmapMut::map_anon(len).expect("a mapping").into(),
            Backing::PrivateHuge => MmapOptions::new().len(len).huge(Some(21)).map_anon().expect("a mapping").into(),
        };
        let granule_bytes = usize::try_from(backing.granule().bytes()).expect("it fits");
        Self { map, backing, granule_bytes }
    }

    fn granules(&self) -> usize {
        self.map.len() / self.granule_bytes
    }

    fn bytes(&self, granule: usize) -> &[u8] {
        assert!(granule < self.granules(), "inside of the memory");
        let start = self.map.as_ptr().wrapping_add(granule * self.granule_bytes);
        // SAFETY: the granule is inside of the mapping, and holds plain integers. The test does not begin a write of
        // what another of its requests reads.
        unsafe { std::slice::from_raw_parts(start, self.granule_bytes) }
    }

    #[expect(clippy::mut_from_ref, reason = "the test says who writes what, and when")]
    fn bytes_mut(&self, granule: usize) -> &mut [u8] {
        assert!(granule < self.granules(), "inside of the memory");
        let start = self.map.as_mut_ptr().wrapping_add(granule * self.granule_bytes);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(start, self.granule_bytes) }
    }

    fn byte(&self, at: usize) -> u8 {
        assert!(at < self.map.len(), "inside of the memory");
        // SAFETY: the address is inside of the mapping. Volatile, since its page may become zeros at any time.
        unsafe { self.map.as_ptr().wrapping_add(at).read_volatile() }
    }

    fn set(&self, at: usize, byte: u8) {
        assert!(at < self.map.len(), "inside of the memory");
        // SAFETY: the address is inside of the mapping.
        unsafe { self.map.as_mut_ptr().wrapping_add(at).write_volatile(byte) }
    }

    fn discard(&self, granule: usize, count: usize) {
        let advice = match self.backing {
            Backing::Shared | Backing::SharedHuge => UncheckedAdvice::Remove,
            Backing::Private | Backing::PrivateHuge | Backing::Clone => UncheckedAdvice::DontNeed,
        };
        let (start, len) = (granule * self.granule_bytes, count * self.granule_bytes);
        // SAFETY: that the pages read as zeros afterwards is what is wanted.
        unsafe { self.map.unchecked_advise_range(advice, start, len) }.expect("discarded");
    }

    fn obey(&self, verb: u8, at: u32, value: u32) -> u64 {
        let granule = at as usize;
        let byte = u8::try_from(value & 0xff).expect("a byte");
        match verb {
            b'r' => return checksum(self.bytes(granule)),
            b'w' => self.bytes_mut(granule)[0] = byte,
            b'f' => self.bytes_mut(granule).fill(byte),
            b'd' => {
                let started = Instant::now();
                self.discard(granule, value as usize);
                return u64::try_from(started.elapsed().as_micros()).expect("not that long");
            }
            b'x' => return self.race_discards(value as usize),
            b'a' => return self.read_all(),
            b'h' => return self.write_hard(value),
            b't' => return self.touch((0..value.min(at)).collect(), |at| _ = self.byte(at)),
            b's' => return self.touch(shuffled(at).into_iter().take(value as usize).collect(), |at| _ = self.byte(at)),
            b'u' => return self.touch((0..value.min(at)).collect(), |at| self.set(at, 1)),
            b'v' => return self.touch(shuffled(at).into_iter().take(value as usize).collect(), |at| self.set(at, 1)),
            _ => unreachable!("the test knows the verbs"),
        }
        0
    }

    fn race_discards(&self, rounds: usize) -> u64 {
        let granules = self.granules();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..rounds).for_each(|round| self.discard(round * 5 % (granules - 4), 4)));
            let strange = |round: usize| {
                let granule = round * 3 % granules;
                let byte = self.byte(granule * self.granule_bytes + 100);
                u64::from(byte != 0 && usize::from(byte) != granule + 1)
            };
            let reader = scope.spawn(move || (0..rounds).map(strange).sum());
            reader.join().expect("the reader does not panic")
        })
    }

    /// Writes to every granule, over and over, and returns how often it did.
    fn write_hard(&self, rounds: u32) -> u64 {
        for round in 0..rounds {
            for granule in shuffled(u32::try_from(self.granules()).expect("few")) {
                let start = granule as usize * self.granule_bytes;
                // At both ends, so that a page that is copied in between would be torn.
                for at in [start, start + self.granule_bytes - 1] {
                    self.set(at, u8::try_from(round % 256).expect("a byte"));
                }
            }
        }
        u64::from(rounds) * self.granules() as u64
    }

    fn read_all(&self) -> u64 {
        std::thread::scope(|scope| {
            for first in 0..4 {
                let touch = move || {
                    (first * self.granule_bytes / 2..self.map.len())
                        .step_by(self.granule_bytes)
                        .map(|at| u64::from(self.byte(at)))
                        .sum::<u64>()
                };
                scope.spawn(touch);
            }
        });
        // SAFETY: the whole mapping, as above.
        checksum(unsafe { std::slice::from_raw_parts(self.map.as_ptr(), self.map.len()) })
    }

    /// The mean and the 99th percentile of a touch, in nanoseconds, in the upper and the lower half.
    fn touch(&self, order: Vec<u32>, touch: impl Fn(usize)) -> u64 {
        let touches = u64::try_from(order.len()).expect("few");
        let mut waits: Vec<u32> = Vec::with_capacity(order.len());
        let started = Instant::now();
        for page in order {
            let asked = Instant::now();
            touch(page as usize * PAGE_BYTES);
            waits.push(u32::try_from(asked.elapsed().as_nanos()).unwrap_or(u32::MAX));
        }
        let mean = u64::try_from(started.elapsed().as_nanos()).expect("not that long") / touches.max(1);
        waits.sort_unstable();
        let high = waits[waits.len() * 99 / 100];
        mean << 32 | u64::from(high)
    }
}
