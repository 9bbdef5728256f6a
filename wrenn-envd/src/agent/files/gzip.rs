//! Gzip, a piece at a time, on threads that may take their time: the agent's one thread answers others meanwhile.

use std::{
    io::{self, Write as _},
    mem,
};

use bytes::{Buf as _, Bytes};
use flate2::{
    Compression,
    write::{GzEncoder, MultiGzDecoder},
};
use futures::{Stream, TryStreamExt as _, stream};
use tokio::task::spawn_blocking;

/// The bytes of `chunks`, compressed.
pub(super) fn compressed(
    chunks: impl Stream<Item = io::Result<Bytes>> + Send,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    // The quickest level: it is the network that is to be relieved.
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let packed = stream::try_unfold((Box::pin(chunks), Some(encoder)), |(mut chunks, encoder)| async move {
        let Some(encoder) = encoder else { return Ok(None) };
        let chunk = chunks.try_next().await?;
        let (packed, encoder) = spawn_blocking(move || pack(encoder, chunk)).await.map_err(io::Error::other)??;
        Ok(Some((packed, (chunks, encoder))))
    });
    packed.try_filter(|packed| std::future::ready(!packed.is_empty()))
}

/// What a chunk comes to, or the end where there is none.
fn pack(mut encoder: GzEncoder<Vec<u8>>, chunk: Option<Bytes>) -> io::Result<(Bytes, Option<GzEncoder<Vec<u8>>>)> {
    let Some(chunk) = chunk else { return Ok((encoder.finish()?.into(), None)) };
    encoder.write_all(&chunk)?;
    Ok((mem::take(encoder.get_mut()).into(), Some(encoder)))
}

/// The bytes that `pieces` hold, compressed once or several times in a row. However much a piece comes to, little of it is in
/// memory at a time.
pub(super) fn decompressed(
    pieces: impl Stream<Item = io::Result<Bytes>> + Send,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let state = Unpacking { decoder: MultiGzDecoder::new(Vec::new()), rest: Bytes::new() };
    let unpacked = stream::try_unfold((Box::pin(pieces), Some(state)), |(mut pieces, state)| async move {
        let Some(mut state) = state else { return Ok(None) };
        let is_over = state.rest.is_empty()
            && match pieces.try_next().await? {
                Some(piece) => {
                    state.rest = piece;
                    false
                }
                None => true,
            };
        let step = move || if is_over { state.finish() } else { state.unpack() };
        let (unpacked, state) = spawn_blocking(step).await.map_err(io::Error::other)??;
        Ok(Some((unpacked, (pieces, state))))
    });
    unpacked.try_filter(|unpacked| std::future::ready(!unpacked.is_empty()))
}

struct Unpacking {
    decoder: MultiGzDecoder<Vec<u8>>,
    /// What came and is not unpacked yet.
    rest: Bytes,
}

impl Unpacking {
    /// Unpacks until there is enough to pass on, or nothing left to unpack.
    fn unpack(mut self) -> io::Result<(Bytes, Option<Self>)> {
        while !self.rest.is_empty() && self.decoder.get_ref().len() < UNPACKED_BYTES {
            // Each write comes to 32 KiB at most.
            let taken = self.decoder.write(&self.rest)?;
            self.rest.advance(taken);
        }
        Ok((mem::take(self.decoder.get_mut()).into(), Some(self)))
    }

    fn finish(self) -> io::Result<(Bytes, Option<Self>)> {
        Ok((self.decoder.finish()?.into(), None))
    }
}

/// Enough that it is worth its way to another thread.
const UNPACKED_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    async fn collect(stream: impl Stream<Item = io::Result<Bytes>> + Send) -> io::Result<Vec<Bytes>> {
        stream.try_collect().await
    }

    fn cut(bytes: &[u8], size: usize) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        stream::iter(pieces)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_packed_in_any_pieces_is_unpacked_in_any(
            (contents, each, other) in (prop::collection::vec(0_u8..4, 0..100_000), 1_usize..70_000, 1_usize..5_000),
        ) {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let packed = runtime.block_on(collect(compressed(cut(&contents, each)))).unwrap().concat();
            let twice = packed.repeat(2);
            let unpacked = runtime.block_on(collect(decompressed(cut(&twice, other)))).unwrap().concat();
            prop_assert_eq!(unpacked, contents.repeat(2));
            let cut_off = runtime.block_on(collect(decompressed(cut(&packed[..packed.len() - 1], other))));
            prop_assert!(cut_off.is_err());
        }
    }

    #[tokio::test]
    async fn a_bomb_goes_off_in_small_pieces() {
        let packed = collect(compressed(cut(&vec![0; 64 << 20], 1 << 20))).await.unwrap().concat();
        assert!(packed.len() < 1 << 20);
        let pieces = collect(decompressed(cut(&packed, packed.len()))).await.unwrap();
        assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), 64 << 20);
        assert!(pieces.iter().all(|piece| piece.len() < UNPACKED_BYTES + (64 << 10)));
    }
}
