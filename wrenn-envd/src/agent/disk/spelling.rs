//! Names that are not UTF-8, as text and back.
//!
//! A name of the guest's is any bytes; a name in the protocol is text. A byte that is part of no character is told as the
//! character U+10FE00 + byte, of a plane that nobody uses. A client hands it back as it came. So that nothing is told twice
//! over, such a character in a name is told byte by byte itself.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
};

/// A name, or a path, as the protocol has it.
pub(in crate::agent) fn told(name: impl AsRef<OsStr>) -> String {
    let bytes = name.as_ref().as_bytes();
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.contains(is_byte)
    {
        return text.to_owned();
    }
    let mut told = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if is_byte(character) {
                let mut buffer = [0; 4];
                told.extend(character.encode_utf8(&mut buffer).bytes().map(spelled));
            } else {
                told.push(character);
            }
        }
        told.extend(chunk.invalid().iter().copied().map(spelled));
    }
    told
}

/// The path that a client means.
pub(in crate::agent) fn meant(path: PathBuf) -> PathBuf {
    match path.to_str() {
        Some(text) if text.contains(is_byte) => unspelled(text),
        _ => path,
    }
}

fn unspelled(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match byte(character) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend(character.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    OsString::from_vec(bytes).into()
}

fn spelled(byte: u8) -> char {
    char::from_u32(BASE + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn byte(character: char) -> Option<u8> {
    // An ASCII byte is a character of its own, and "/" and NUL are no part of a name.
    u32::from(character).checked_sub(BASE).and_then(|byte| u8::try_from(byte).ok()).filter(|byte| !byte.is_ascii())
}

fn is_byte(character: char) -> bool {
    byte(character).is_some()
}

const BASE: u32 = 0x10_fe00;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_text_stays_as_it_is() {
        for name in ["", "plain", "ünïcödé", "a b", "\u{fffd}", "\u{10fe00}", "\u{10fdff}", "\u{10ff00}"] {
            assert_eq!(told(name), name);
        }
        assert_eq!(told(OsStr::from_bytes(b"caf\xe9")), "caf\u{10fee9}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_name_comes_back(bytes in prop::collection::vec(1_u8.., 0..40)) {
            let name = OsStr::from_bytes(&bytes);
            prop_assert_eq!(meant(told(name).into()), Path::new(name));
        }

        #[test]
        fn any_text_comes_back(text in "[a\u{10fdfe}-\u{10ff02}]{0,10}") {
            prop_assert_eq!(meant(told(&text).into()), Path::new(&text));
        }
    }
}
