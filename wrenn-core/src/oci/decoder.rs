//! Undoes the compression of an archive.

use std::io::{self, BufReader, Cursor, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

/// What came, from its first bytes on once more.
type Whole<R> = BufReader<io::Chain<Cursor<Vec<u8>>, R>>;

/// Undoes the compression that the first bytes show: registries' media types are not always right. Each kind takes little
/// memory, whatever the archive asks for.
pub(crate) enum Decoder<R: Read> {
    Plain(Whole<R>),
    Gzip(Box<MultiGzDecoder<Whole<R>>>),
    Bzip2(Box<MultiBzDecoder<Whole<R>>>),
    Xz(Box<XzDecoder<Whole<R>>>),
    Zstd(Box<zstd::Decoder<'static, Whole<R>>>),
}

impl<R: Read> Decoder<R> {
    pub(crate) fn sniff(mut inner: R) -> io::Result<Self> {
        let mut head = Vec::new();
        (&mut inner).take(MAGIC_BYTES_MAX).read_to_end(&mut head)?;
        let kind = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, kind)| *kind);
        let whole = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(head).chain(inner));
        Ok(match kind {
            None => Self::Plain(whole),
            Some(Kind::Gzip) => Self::Gzip(Box::new(MultiGzDecoder::new(whole))),
            Some(Kind::Bzip2) => Self::Bzip2(Box::new(MultiBzDecoder::new(whole))),
            Some(Kind::Xz) => {
                let stream = Stream::new_stream_decoder(XZ_MEMORY_MAX, CONCATENATED)?;
                Self::Xz(Box::new(XzDecoder::new_stream(whole, stream)))
            }
            Some(Kind::Zstd) => Self::Zstd(Box::new(zstd::Decoder::with_buffer(whole)?)),
        })
    }

    pub(crate) fn into_inner(self) -> R {
        let whole = match self {
            Self::Plain(whole) => whole,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Bzip2(decoder) => decoder.into_inner(),
            Self::Xz(decoder) => decoder.into_inner(),
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
            Self::Bzip2(inner) => inner.read(buffer),
            Self::Xz(inner) => inner.read(buffer),
            Self::Zstd(inner) => inner.read(buffer),
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Gzip,
    Bzip2,
    Xz,
    Zstd,
}

/// What each begins with.
const MAGIC: [(&[u8], Kind); 4] = [
    (&[0x1f, 0x8b], Kind::Gzip),
    (b"BZh", Kind::Bzip2),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Kind::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Kind::Zstd),
];
const MAGIC_BYTES_MAX: u64 = 6;
/// The highest preset of `xz` takes a quarter of it.
const XZ_MEMORY_MAX: u64 = 256 << 20;
const BUFFER_BYTES: usize = 1 << 18;
