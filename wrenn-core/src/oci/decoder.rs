//! Undoes the compression of an archive.

use std::io::{self, BufReader, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

/// What came, from its first bytes on once more.
type Whole<R> = BufReader<io::Chain<Cursor<Vec<u8>>, R>>;

/// Undoes the compression that the first bytes show: registries' media types are not always right.
pub(super) enum Decoder<R: Read> {
    Plain(Whole<R>),
    Gzip(Box<MultiGzDecoder<Whole<R>>>),
    Zstd(Box<zstd::Decoder<'static, Whole<R>>>),
}

impl<R: Read> Decoder<R> {
    pub(super) fn sniff(mut inner: R) -> io::Result<Self> {
        let mut head = Vec::new();
        (&mut inner).take(4).read_to_end(&mut head)?;
        let (gzip, zstd) = (head.starts_with(&[0x1f, 0x8b]), head == [0x28, 0xb5, 0x2f, 0xfd]);
        let whole = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(head).chain(inner));
        Ok(match (gzip, zstd) {
            (true, _) => Self::Gzip(Box::new(MultiGzDecoder::new(whole))),
            (_, true) => Self::Zstd(Box::new(zstd::Decoder::with_buffer(whole)?)),
            _ => Self::Plain(whole),
        })
    }

    pub(super) fn into_inner(self) -> R {
        let whole = match self {
            Self::Plain(whole) => whole,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        };
        whole.into_inner().into_inner().1
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(inner) => inner.read(buffer),
            Self::Gzip(inner) => inner.read(buffer),
            Self::Zstd(inner) => inner.read(buffer),
        }
    }
}

const BUFFER_BYTES: usize = 1 << 18;
