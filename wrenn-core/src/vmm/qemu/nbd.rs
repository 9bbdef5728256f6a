//! The server's end of NBD, as far as QEMU's backup job needs it: a place that takes what is written to it.
//!
//! ```text
//!  greet ─▶ options, one answer each ─▶ the export is agreed on ─▶ Requests: a write or zeroes, and its answer, each
//! ```
//!
//! Nothing is read back, and nothing is refused while it makes sense: QEMU would hand a refusal on to the guest, whose
//! own write waits for its copy. QEMU is not trusted. What it sends is bounded, and rubbish ends the connection.
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>

#![expect(clippy::big_endian_bytes, reason = "NBD's numbers are big-endian")]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use wrenn_snapshot::{PAGE_BYTES, PageRange, ReadPages};

/// Agrees with a client on an export of `len_bytes`. Returns once the client may send requests. Blocks, at most as
/// long as the stream's own time-outs say for each step.
///
/// # Errors
/// The connection broke, or the client's words are not NBD or not what this server can do.
pub(super) fn greet(mut stream: &UnixStream, len_bytes: u64) -> io::Result<()> {
    let mut greeting = [0; 18];
    greeting[..8].copy_from_slice(b"NBDMAGIC");
    greeting[8..16].copy_from_slice(b"IHAVEOPT");
    greeting[16..].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&greeting)?;
    let _client_flags: [u8; 4] = take(&mut stream)?;
    for _ in 0..OPTIONS_MAX {
        let (magic, option, len) = (take::<8>(&mut stream)?, take::<4>(&mut stream)?, take::<4>(&mut stream)?);
        let len = u32::from_be_bytes(len);
        if magic != *b"IHAVEOPT" || len > OPTION_BYTES_MAX {
            return Err(rubbish("an option"));
        }
        io::copy(&mut (&mut stream).take(u64::from(len)), &mut io::sink())?;
        match u32::from_be_bytes(option) {
            GO => {
                let mut export = [0; 12];
                export[2..10].copy_from_slice(&len_bytes.to_be_bytes());
                export[10..].copy_from_slice(&(HAS_FLAGS | SEND_WRITE_ZEROES).to_be_bytes());
                answer_option(stream, GO, INFO, &export)?;
                return answer_option(stream, GO, ACK, &[]);
            }
            other => answer_option(stream, other, UNSUPPORTED, &[])?,
        }
    }
    Err(rubbish("no end of options"))
}

/// What a client writes, answered one after the other. Ends with the first error.
#[derive(Debug)]
pub(super) struct Requests<'a> {
    stream: &'a UnixStream,
    /// Says when no more requests come: by a byte, or by its end where something went wrong.
    done: &'a UnixStream,
    /// How many pages may come yet.
    left: u32,
    pages: u32,
    ended: bool,
}

impl<'a> Requests<'a> {
    /// The requests for an export of so many pages, each of which comes once at most.
    pub(super) fn new(stream: &'a UnixStream, done: &'a UnixStream, pages: u32) -> Self {
        Self { stream, done, left: pages, pages, ended: false }
    }

    fn next_piece(&mut self) -> io::Result<Option<ReadPages>> {
        loop {
            let mut polled = [PollFd::new(self.stream, PollFlags::IN), PollFd::new(self.done, PollFlags::IN)];
            match poll(&mut polled, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
                Ok(_) => {}
            }
            if polled[0].revents().is_empty() {
                let mut end = [0];
                return match (&mut &*self.done).read(&mut end)? {
                    0 => Err(io::Error::other("the copying of the drive was given up")),
                    _ => Ok(None),
                };
            }
            if let Some(piece) = self.request()? {
                return Ok(Some(piece));
            }
        }
    }

    /// Takes a request. `None` for one that writes nothing.
    fn request(&mut self) -> io::Result<Option<ReadPages>> {
        let mut stream = self.stream;
        let head: [u8; 28] = take(&mut stream)?;
        let (magic, kind) = (&head[..4], u16::from_be_bytes([head[6], head[7]]));
        let offset = u64::from_be_bytes(head[16..24].try_into().unwrap_or_default());
        let len = u32::from_be_bytes(head[24..].try_into().unwrap_or_default());
        if magic != REQUEST {
            return Err(rubbish("a request"));
        }
        let piece = match kind {
            WRITE => {
                let pages = self.pages_of(offset, len)?;
                if len > WRITE_BYTES_MAX {
                    return Err(rubbish("a write, which is too long"));
                }
                let mut bytes = vec![0; len as usize];
                stream.read_exact(&mut bytes)?;
                Some(ReadPages { pages, bytes: Some(bytes) })
            }
            WRITE_ZEROES => Some(ReadPages { pages: self.pages_of(offset, len)?, bytes: None }),
            FLUSH => None,
            DISCONNECT => return Err(io::ErrorKind::ConnectionAborted.into()),
            _ => return Err(rubbish("a request of another kind")),
        };
        let mut answer = [0; 16];
        answer[..4].copy_from_slice(&SIMPLE_ANSWER);
        answer[8..].copy_from_slice(&head[8..16]);
        stream.write_all(&answer)?;
        Ok(piece)
    }

    fn pages_of(&mut self, offset: u64, len: u32) -> io::Result<PageRange> {
        let is_whole = offset.is_multiple_of(PAGE.into()) && len.is_multiple_of(PAGE) && len > 0;
        let start = u32::try_from(offset / u64::from(PAGE)).ok().filter(|_| is_whole);
        let range = start.map(|start| PageRange::new(start, len / PAGE));
        let range = range.filter(|range| range.end() <= u64::from(self.pages) && range.count <= self.left);
        let range = range.ok_or_else(|| rubbish("a request for what is not in the drive, or was sent already"))?;
        self.left -= range.count;
        Ok(range)
    }
}

impl Iterator for Requests<'_> {
    type Item = io::Result<ReadPages>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let piece = self.next_piece().transpose();
        self.ended = !matches!(piece, Some(Ok(_)));
        piece
    }
}

fn answer_option(mut stream: &UnixStream, option: u32, kind: u32, bytes: &[u8]) -> io::Result<()> {
    let mut answer = OPTION_ANSWER.to_vec();
    answer.extend(option.to_be_bytes());
    answer.extend(kind.to_be_bytes());
    answer.extend(u32::try_from(bytes.len()).unwrap_or_default().to_be_bytes());
    answer.extend(bytes);
    stream.write_all(&answer)
}

fn take<const BYTES: usize>(mut stream: impl Read) -> io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn rubbish(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("QEMU sent {what} that makes no sense"))
}

#[expect(clippy::cast_possible_truncation, reason = "4096")]
const PAGE: u32 = PAGE_BYTES as u32;
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const OPTION_ANSWER: [u8; 8] = 0x0003_e889_0455_65a9_u64.to_be_bytes();
const GO: u32 = 7;
const ACK: u32 = 1;
const INFO: u32 = 3;
const UNSUPPORTED: u32 = 0x8000_0001;
const HAS_FLAGS: u16 = 1;
const SEND_WRITE_ZEROES: u16 = 1 << 6;
const REQUEST: [u8; 4] = 0x2560_9513_u32.to_be_bytes();
const SIMPLE_ANSWER: [u8; 4] = 0x6744_6698_u32.to_be_bytes();
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const WRITE_ZEROES: u16 = 6;
/// QEMU sends two.
const OPTIONS_MAX: usize = 16;
/// The export's name, which is empty, and the numbers of what is asked of it.
const OPTION_BYTES_MAX: u32 = 4096;
/// A backup copies a MiB at a time.
const WRITE_BYTES_MAX: u32 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const PAGES: u32 = 64;

    fn request(kind: u16, offset: u64, len: u32) -> Vec<u8> {
        let mut bytes = [REQUEST.as_slice(), &[0, 0], &kind.to_be_bytes(), b"12345678"].concat();
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes
    }

    fn write(page: u64, fill: u8) -> Vec<u8> {
        [request(WRITE, page * 4096, 4096), vec![fill; 4096]].concat()
    }

    /// What a client that sends `bytes` has written, and the server's last word.
    fn served(bytes: &[u8], end: Option<&[u8]>) -> (Vec<ReadPages>, io::Result<()>, Vec<u8>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (done, mut finish) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).unwrap();
        if let Some(end) = end {
            finish.write_all(end).unwrap();
            drop(finish);
        } else {
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let (mut pieces, mut last) = (Vec::new(), Ok(()));
        for piece in Requests::new(&ours, &done, PAGES) {
            match piece {
                Ok(piece) => pieces.push(piece),
                Err(error) => last = Err(error),
            }
        }
        drop(ours);
        let mut answers = Vec::new();
        theirs.read_to_end(&mut answers).unwrap();
        (pieces, last, answers)
    }

    #[test]
    fn a_client_that_asks_for_more_than_there_is_comes_to_the_export() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let client = thread::spawn(move || {
            assert_eq!(take::<18>(&theirs).unwrap()[..16], *b"NBDMAGICIHAVEOPT");
            theirs.write_all(&3_u32.to_be_bytes()).unwrap();
            // Structured replies, which are not had; and the export whose name is empty, with its block sizes.
            for (option, data) in [(8_u32, &[][..]), (GO, &[0, 0, 0, 0, 0, 1, 0, 3])] {
                theirs.write_all(b"IHAVEOPT").unwrap();
                theirs.write_all(&option.to_be_bytes()).unwrap();
                theirs.write_all(&u32::try_from(data.len()).unwrap().to_be_bytes()).unwrap();
                theirs.write_all(data).unwrap();
            }
            let refusal = take::<20>(&theirs).unwrap();
            assert_eq!(refusal[12..16], UNSUPPORTED.to_be_bytes());
            let export = take::<32>(&theirs).unwrap();
            assert_eq!((&export[12..16], &export[22..30]), (&INFO.to_be_bytes()[..], &(1_u64 << 20).to_be_bytes()[..]));
            assert_eq!(take::<20>(&theirs).unwrap()[12..16], ACK.to_be_bytes());
        });
        greet(&ours, 1 << 20).unwrap();
        client.join().unwrap();
    }

    #[test]
    fn rubbish_instead_of_options_ends_the_greeting() {
        let endless = [b"IHAVEOPT".as_slice(), &8_u32.to_be_bytes(), &0_u32.to_be_bytes()].concat().repeat(20);
        let long = [b"IHAVEOPT".as_slice(), &GO.to_be_bytes(), &u32::MAX.to_be_bytes()].concat();
        for said in [vec![7; 64], endless, long] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(&[0; 4]).unwrap();
            theirs.write_all(&said).unwrap();
            let error = greet(&ours, 1 << 20).unwrap_err();
            assert!(error.to_string().contains("makes no sense"), "{error}");
        }
    }

    #[test]
    fn writes_and_zeroes_come_in_the_order_in_which_they_were_sent_and_are_answered() {
        let sent = [write(9, 1), request(FLUSH, 0, 0), request(WRITE_ZEROES, 0, 8 * 4096), write(8, 2)].concat();
        let (pieces, last, answers) = served(&sent, Some(b"."));
        assert!(last.is_ok(), "{last:?}");
        let expected = [(9, 1, Some(vec![1; 4096])), (0, 8, None), (8, 1, Some(vec![2; 4096]))];
        let expected = expected.map(|(at, count, bytes)| ReadPages { pages: PageRange::new(at, count), bytes });
        assert_eq!(pieces, expected);
        let answer = [SIMPLE_ANSWER.as_slice(), &[0; 4], b"12345678"].concat();
        assert_eq!(answers, answer.repeat(4));
    }

    #[test]
    fn an_end_that_is_none_is_an_error() {
        let error = served(&write(1, 1), Some(b"")).1.unwrap_err();
        assert!(error.to_string().contains("given up"), "{error}");
        assert_eq!(served(&write(1, 1), None).1.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let left = served(&request(DISCONNECT, 0, 0), None).1.unwrap_err();
        assert_eq!(left.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[test]
    fn what_is_not_in_the_drive_or_comes_without_end_is_refused() {
        let all = request(WRITE_ZEROES, 0, PAGES * 4096);
        let cases = [
            request(WRITE, 100, 4096),
            request(WRITE, 0, 100),
            request(WRITE, 0, 0),
            request(WRITE, u64::from(PAGES) * 4096, 4096),
            request(WRITE_ZEROES, u64::MAX - 4095, 4096),
            request(WRITE, 0, !4095),
            request(0, 0, 4096),
            [all.clone(), all].concat(),
            vec![0; 28],
        ];
        for sent in cases {
            let error = served(&sent, Some(b".")).1.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{sent:?}");
        }
        let mut requests_for_more = request(WRITE, 0, 8 << 20);
        requests_for_more.extend([0; 64]);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&requests_for_more).unwrap();
        let (done, _finish) = UnixStream::pair().unwrap();
        let error = Requests::new(&ours, &done, 1 << 20).next().unwrap().unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }
}
