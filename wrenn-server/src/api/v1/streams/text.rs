//! Output as text, of which no character is cut in two.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::api::v1::encoding::Encoding;
use crate::api::v1::streams::message::Data;

/// Makes messages of the pieces in which a stream comes, which may end anywhere in a character.
#[derive(Debug, Default)]
pub(super) struct Text {
    /// The begin of a character whose end has not come: up to three bytes.
    held: Vec<u8>,
}

impl Text {
    /// What can be sent now that `piece` has come; `None` if that is nothing.
    pub(super) fn push(&mut self, piece: &[u8]) -> Option<Data> {
        let mut bytes = std::mem::take(&mut self.held);
        bytes.extend_from_slice(piece);
        self.held = bytes.split_off(bytes.len() - unfinished(&bytes));
        data(bytes)
    }

    /// What is left at the end.
    pub(super) fn finish(&mut self) -> Option<Data> {
        data(std::mem::take(&mut self.held))
    }
}

/// How many bytes at the end are the begin of a character.
fn unfinished(bytes: &[u8]) -> usize {
    let is_begin = |len: &usize| {
        let end = &bytes[bytes.len() - len..];
        // It is neither whole nor wrong, but for what is missing.
        std::str::from_utf8(end).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..=bytes.len().min(CHARACTER_BYTES_MAX - 1)).find(is_begin).unwrap_or(0)
}

fn data(bytes: Vec<u8>) -> Option<Data> {
    if bytes.is_empty() {
        return None;
    }
    Some(match String::from_utf8(bytes) {
        Ok(data) => Data { data, encoding: None },
        Err(error) => Data { data: STANDARD.encode(error.as_bytes()), encoding: Some(Encoding::Base64) },
    })
}

/// In UTF-8 (RFC 3629, section 3).
const CHARACTER_BYTES_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(data: Data) -> Vec<u8> {
        match data.encoding {
            None | Some(Encoding::Utf8) => data.data.into_bytes(),
            Some(Encoding::Base64) => STANDARD.decode(data.data).expect("base64"),
        }
    }

    #[test]
    fn text_stays_text_wherever_it_is_cut() {
        let whole = "a\u{e9}\u{20ac}\u{1f980}z";
        for first in 0..=whole.len() {
            for second in first..=whole.len() {
                let mut text = Text::default();
                let pieces =
                    [&whole.as_bytes()[..first], &whole.as_bytes()[first..second], &whole.as_bytes()[second..]];
                let sent: Vec<Data> = pieces.into_iter().filter_map(|piece| text.push(piece)).collect();
                assert!(sent.iter().all(|data| data.encoding.is_none()), "{first} {second}: {sent:?}");
                assert_eq!(sent.into_iter().map(|data| data.data).collect::<String>(), whole);
                assert!(text.finish().is_none());
            }
        }
    }

    #[test]
    fn what_is_no_text_comes_as_it_is() {
        let whole = b"a\xff\xc3\x28\xe2\x82\xf0\x9f\xa6\x80\xed\xa0\x80\xc3";
        for cut in 0..=whole.len() {
            let mut text = Text::default();
            let mut all = Vec::new();
            for piece in [&whole[..cut], &whole[cut..]] {
                all.extend(text.push(piece).map(bytes).unwrap_or_default());
            }
            assert!(all.len() < whole.len(), "the last byte is the begin of a character");
            all.extend(text.finish().map(bytes).unwrap_or_default());
            assert_eq!(all, whole, "{cut}");
        }
    }
}
