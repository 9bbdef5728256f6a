//! Text of the guest, made safe and short enough to show.

/// The guest's text, safe for a terminal: control characters are escaped, and text that is longer than 4 KiB is cut.
pub(crate) fn shown(words: &str) -> String {
    let mut shown = String::with_capacity(words.len().min(BYTES_MAX));
    for character in words.chars() {
        if shown.len() >= BYTES_MAX {
            shown.push('…');
            break;
        }
        match character {
            '\n' | '\t' => shown.push(character),
            character if character.is_control() || is_invisible(character) => shown.extend(character.escape_default()),
            character => shown.push(character),
        }
    }
    shown
}

/// Whether a character changes the direction of text, or shows nothing. With such characters, text can be made to look
/// like other text.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

const BYTES_MAX: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_obey_nothing_of_it() {
        assert_eq!(shown("no file \u{1b}[2Jx\u{7}\r\u{9b}31m"), r"no file \u{1b}[2Jx\u{7}\r\u{9b}31m");
        assert_eq!(shown("a\u{202e}b"), r"a\u{202e}b");
        assert_eq!(shown("två\n\t漢字"), "två\n\t漢字");
    }

    #[test]
    fn it_is_no_longer_than_a_screen() {
        let shown = shown(&"ä".repeat(1 << 20));
        assert!(shown.len() < BYTES_MAX + 8 && shown.ends_with('…'), "{}", shown.len());
    }
}
