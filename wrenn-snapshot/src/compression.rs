//! Compressing what a data file holds, in chunks that are read one at a time.
//!
//! A chunk is a run of stored pages. It goes into the file compressed, or as it is where compression gains nothing, and
//! its length tells which. What is read back goes into a buffer that is as long as the chunk was: whatever the bytes
//! are, nothing is allocated for them and nothing is written past its end.

use crate::damage::Damage;

/// How a store compresses the pages of new generations. Reading goes by what each generation says of itself, so
/// compressed ones and plain ones may be each other's ancestors.
///
/// The right choice depends on where the bytes lie. On a local disk, plain pages are read fastest, and can share storage
/// with what they came from; for what travels or is kept for long, half the bytes are worth the time. The figures are in
/// `docs/snapshot-format.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// Pages are stored as they are.
    #[default]
    None,
    /// A guest's memory is some 1.9 times smaller, and each 16 KiB take some 6 us more to read.
    #[cfg(feature = "lz4")]
    Lz4,
    /// A guest's memory is some 2.4 times smaller, and each 16 KiB take some 14 us more to read.
    #[cfg(feature = "zstd")]
    Zstd,
}

/// What a chunk is compressed by, as the format has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    Lz4,
    Zstd,
}

impl Compression {
    pub(crate) fn codec(self) -> Option<Codec> {
        match self {
            Self::None => None,
            #[cfg(feature = "lz4")]
            Self::Lz4 => Some(Codec::Lz4),
            #[cfg(feature = "zstd")]
            Self::Zstd => Some(Codec::Zstd),
        }
    }
}

impl Codec {
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    pub(crate) fn from_code(code: u32) -> Option<Self> {
        [Self::Lz4, Self::Zstd].into_iter().find(|codec| codec.code() == code)
    }

    /// Whether this build can read it.
    pub(crate) fn check(self) -> Result<(), Damage> {
        let (is_built_in, feature) = match self {
            Self::Lz4 => (cfg!(feature = "lz4"), "lz4"),
            Self::Zstd => (cfg!(feature = "zstd"), "zstd"),
        };
        if is_built_in { Ok(()) } else { Err(Damage::Codec(feature)) }
    }
}

/// Compresses chunks, one after another.
pub(crate) struct Compressor {
    codec: Codec,
    #[cfg(feature = "zstd")]
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Compressor {
    pub(crate) fn new(codec: Codec) -> std::io::Result<Self> {
        Ok(Self {
            codec,
            #[cfg(feature = "zstd")]
            zstd: (codec == Codec::Zstd).then(|| zstd::bulk::Compressor::new(ZSTD_LEVEL)).transpose()?,
        })
    }

    pub(crate) fn codec(&self) -> Codec {
        self.codec
    }

    /// Appends what a chunk is to be stored as, and says how long that is: `chunk.len()` if it is the chunk itself.
    pub(crate) fn append(&mut self, chunk: &[u8], to: &mut Vec<u8>) -> usize {
        let start = to.len();
        to.resize(start + chunk.len(), 0);
        // One that saves less than a sixteenth is not worth the decompressing.
        let room = chunk.len() - chunk.len() / 16;
        let packed = self.compress(chunk, &mut to[start..start + room]);
        let len = packed.unwrap_or(chunk.len());
        if packed.is_none() {
            to[start..].copy_from_slice(chunk);
        }
        to.truncate(start + len);
        len
    }

    /// `None` if it does not fit.
    fn compress(&mut self, chunk: &[u8], into: &mut [u8]) -> Option<usize> {
        match self.codec {
            #[cfg(feature = "lz4")]
            Codec::Lz4 => {
                let mut packed = vec![0; lz4_flex::block::get_maximum_output_size(chunk.len())];
                let len = lz4_flex::block::compress_into(chunk, &mut packed).ok()?;
                into.get_mut(..len)?.copy_from_slice(&packed[..len]);
                Some(len)
            }
            #[cfg(feature = "zstd")]
            Codec::Zstd => self.zstd.as_mut()?.compress_to_buffer(chunk, into).ok(),
            #[cfg(not(all(feature = "lz4", feature = "zstd")))]
            _ => {
                let _ = (chunk, into);
                None
            }
        }
    }
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").field("codec", &self.codec).finish_non_exhaustive()
    }
}

/// Decompresses chunks, one after another.
#[derive(Default)]
pub(crate) struct Decompressor {
    #[cfg(feature = "zstd")]
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Decompressor {
    /// Fills `into`, which is as long as the chunk, from what is stored of it. `None` if that is no such chunk.
    pub(crate) fn decompress(&mut self, codec: Codec, stored: &[u8], into: &mut [u8]) -> Option<()> {
        if stored.len() == into.len() {
            into.copy_from_slice(stored);
            return Some(());
        }
        (self.fill(codec, stored, into)? == into.len()).then_some(())
    }

    /// How much of it was filled.
    fn fill(&mut self, codec: Codec, stored: &[u8], into: &mut [u8]) -> Option<usize> {
        match codec {
            #[cfg(feature = "lz4")]
            Codec::Lz4 => lz4_flex::block::decompress_into(stored, into).ok(),
            #[cfg(feature = "zstd")]
            Codec::Zstd => {
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    none => none.insert(zstd::bulk::Decompressor::new().ok()?),
                };
                zstd.decompress_to_buffer(stored, into).ok()
            }
            #[cfg(not(all(feature = "lz4", feature = "zstd")))]
            _ => {
                let _ = (stored, into);
                None
            }
        }
    }
}

/// Level 3 is 2 % smaller, and takes a third more time.
#[cfg(feature = "zstd")]
const ZSTD_LEVEL: i32 = 1;

#[cfg(all(test, feature = "lz4", feature = "zstd"))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seed::cases;

    fn pack(codec: Codec, chunk: &[u8]) -> Vec<u8> {
        let mut packed = b"before".to_vec();
        let len = Compressor::new(codec).expect("made").append(chunk, &mut packed);
        assert_eq!(packed.len(), 6 + len);
        packed.split_off(6)
    }

    /// As a guest's memory is: some of it repeats, some does not.
    fn chunk() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec((any::<u8>(), 1usize..3000, any::<bool>()), 1..12).prop_map(|runs| {
            let bytes = runs.into_iter().flat_map(|(byte, len, flat)| {
                (0..len).map(move |at| if flat { byte } else { (at * 7919 + usize::from(byte)).to_le_bytes()[0] })
            });
            bytes.collect()
        })
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn a_chunk_comes_back_as_it_was(chunk in chunk()) {
            for codec in [Codec::Lz4, Codec::Zstd] {
                let packed = pack(codec, &chunk);
                prop_assert!(packed.len() <= chunk.len());
                let mut back = vec![0xee; chunk.len()];
                prop_assert!(Decompressor::default().decompress(codec, &packed, &mut back).is_some());
                prop_assert!(back == chunk);
            }
        }

        #[test]
        fn strange_bytes_fill_a_chunk_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for codec in [Codec::Lz4, Codec::Zstd] {
                let _ = Decompressor::default().decompress(codec, &bytes, &mut [0; 4096]);
            }
        }
    }

    #[test]
    fn what_is_random_is_stored_as_it_is() {
        let noise: Vec<u8> =
            (0..4096u32).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[2..].to_vec()).collect();
        let random: Vec<u8> =
            noise.iter().zip(noise.iter().skip(17).cycle()).map(|(a, b)| a.wrapping_mul(31) ^ b).collect();
        for codec in [Codec::Lz4, Codec::Zstd] {
            let packed = pack(codec, &random);
            assert!(packed.len() < random.len() || packed == random);
            let mut seed = 1u64;
            let random: Vec<u8> = std::iter::repeat_with(|| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                seed.to_le_bytes()[7]
            })
            .take(16384)
            .collect();
            assert!(pack(codec, &random) == random);
        }
    }

    #[test]
    fn a_bomb_fills_no_more_than_its_chunk() {
        let bomb = vec![0; 64 << 20];
        let stored = pack(Codec::Zstd, &bomb);
        assert!(stored.len() < 16384, "{} bytes", stored.len());
        assert!(Decompressor::default().decompress(Codec::Zstd, &stored, &mut [0; 16384]).is_none());
        let stored = pack(Codec::Lz4, &bomb[..1 << 20]);
        assert!(stored.len() < 16384, "{} bytes", stored.len());
        assert!(Decompressor::default().decompress(Codec::Lz4, &stored, &mut [0; 16384]).is_none());
    }

    #[test]
    fn less_than_a_chunk_is_no_chunk() {
        for codec in [Codec::Lz4, Codec::Zstd] {
            let stored = pack(codec, &[5; 8192]);
            assert!(Decompressor::default().decompress(codec, &stored, &mut [0; 16384]).is_none());
        }
    }
}
