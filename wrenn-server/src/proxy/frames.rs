//! The frames of Connect's streams: a byte of flags, the length in four bytes, and that many bytes.
//! (<https://connectrpc.com/docs/protocol#streaming-rpcs>)

use std::io;

use axum::body::{Body, BodyDataStream};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) flags: u8,
    pub(super) message: Bytes,
}

impl Frame {
    pub(super) fn message(message: impl Into<Bytes>) -> Self {
        Self { flags: 0, message: message.into() }
    }

    /// The last frame of a stream, with why it ended.
    pub(super) fn error(code: &str, message: &str) -> Self {
        let error = serde_json::json!({"error": {"code": code, "message": message}});
        Self { flags: END, message: error.to_string().into() }
    }

    pub(super) fn is_compressed(&self) -> bool {
        self.flags & COMPRESSED != 0
    }

    pub(super) fn is_end(&self) -> bool {
        self.flags & END != 0
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEAD_LEN + self.message.len());
        bytes.put_u8(self.flags);
        bytes.put_u32(u32::try_from(self.message.len()).unwrap_or(u32::MAX));
        bytes.put_slice(&self.message);
        bytes.freeze()
    }

    /// Takes the first frame of what has come, if that is whole.
    #[expect(clippy::big_endian_bytes, reason = "Connect's frames have their lengths so")]
    fn take(from: &mut BytesMut) -> io::Result<Option<Self>> {
        let Some((&[flags, a, b, c, d], _)) = from.split_first_chunk::<HEAD_LEN>() else { return Ok(None) };
        let len = usize::try_from(u32::from_be_bytes([a, b, c, d])).map_err(io::Error::other)?;
        if len > LEN_MAX {
            return Err(io::Error::other(format!("a frame of {len} bytes")));
        }
        if from.len() < HEAD_LEN + len {
            return Ok(None);
        }
        from.advance(HEAD_LEN);
        Ok(Some(Self { flags, message: from.split_to(len).freeze() }))
    }
}

/// The frames of a body.
#[derive(Debug)]
pub(super) struct Frames {
    body: BodyDataStream,
    come: BytesMut,
}

impl Frames {
    pub(super) fn of(body: Body) -> Self {
        Self { body: body.into_data_stream(), come: BytesMut::new() }
    }

    /// The next one; `None` at the end of the body.
    ///
    /// # Cancel-Safety
    /// Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = Frame::take(&mut self.come)? {
                return Ok(Some(frame));
            }
            match self.body.next().await {
                Some(piece) => self.come.extend_from_slice(&piece.map_err(io::Error::other)?),
                None if self.come.is_empty() => return Ok(None),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

/// The only frame of a body; `None` where it has others, or none that is whole.
pub(super) fn only(body: &[u8]) -> Option<Frame> {
    let mut bytes = BytesMut::from(body);
    let frame = Frame::take(&mut bytes).ok()??;
    bytes.is_empty().then_some(frame)
}

const HEAD_LEN: usize = 5;
const COMPRESSED: u8 = 1;
const END: u8 = 2;
/// What the agent sends at once is far less.
const LEN_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_whole_however_they_are_cut() {
        let all = [Frame::message("one"), Frame::message(""), Frame::error("unavailable", "it is over")];
        let bytes: Vec<u8> = all.iter().flat_map(|frame| frame.to_bytes().to_vec()).collect();
        for size in 1..bytes.len() {
            let pieces: Vec<Result<Bytes, io::Error>> =
                bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            let mut frames = Frames::of(Body::from_stream(futures::stream::iter(pieces)));
            for frame in &all {
                assert_eq!(frames.next().await.expect("whole").as_ref(), Some(frame));
            }
            assert_eq!(frames.next().await.expect("the end"), None);
        }
        let mut cut = Frames::of(Body::from(bytes[..bytes.len() - 1].to_vec()));
        assert!(cut.next().await.is_ok() && cut.next().await.is_ok() && cut.next().await.is_err());
        assert!(Frames::of(Body::from(vec![0, 255, 255, 255, 255, 0])).next().await.is_err(), "too long");
        assert_eq!(only(&all[0].to_bytes()), Some(all[0].clone()));
        assert_eq!(only(&bytes), None);
    }
}
