//! Where text may be cut.

/// How many of `bytes` are left without the beginning of a character at their end. What is no UTF-8 is left whole.
pub(super) fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().min(3);
    for back in 1..=tail {
        let at = bytes.len() - back;
        let length = match bytes[at] {
            0b1000_0000..=0b1011_1111 => continue,
            0b1100_0010..=0b1101_1111 => 2,
            0b1110_0000..=0b1110_1111 => 3,
            0b1111_0000..=0b1111_0100 => 4,
            _ => 1,
        };
        return if back < length { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_of_text_are_text(text in any::<String>(), at in any::<prop::sample::Index>()) {
            let cut = at.index(text.len() + 1);
            let whole = whole_characters(&text.as_bytes()[..cut]);
            prop_assert!(whole <= cut && cut - whole < 4);
            prop_assert!(std::str::from_utf8(&text.as_bytes()[..whole]).is_ok());
            prop_assert!(cut - whole == 0 || !text.is_char_boundary(cut));
        }

        #[test]
        fn what_is_no_text_moves_on(bytes in prop::collection::vec(any::<u8>(), 4..40)) {
            prop_assert!(bytes.len() - whole_characters(&bytes) < 4);
        }
    }
}
