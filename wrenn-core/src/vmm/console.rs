//! The last part of what a VM printed: the guest's serial console and the VMM's own messages, up to a limit.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};

/// A ring of the newest [`CONSOLE_BYTES_MAX`] bytes. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Console(Arc<Mutex<VecDeque<u8>>>);

/// Enough for a kernel's oops and what led to it.
pub(crate) const CONSOLE_BYTES_MAX: usize = 64 * 1024;

impl Console {
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ring.extend(bytes);
        let excess = ring.len().saturating_sub(CONSOLE_BYTES_MAX);
        ring.drain(..excess);
    }

    /// The ring as text; what is not UTF-8 is replaced.
    pub(crate) fn text(&self) -> String {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (front, back) = ring.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).into_owned()
    }

    /// The last `lines` lines that hold anything, for an error's text: what could steer a terminal is escaped.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let text = self.text();
        let mut last: Vec<&str> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(lines).collect();
        last.reverse();
        escape_controls(&last.join("\n"))
    }

    /// Reads `from` to its end. A VM whose console is not read stops when the pipe is full.
    pub(crate) async fn drain(self, mut from: impl AsyncRead + Unpin) {
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut chunk).await {
            self.push(&chunk[..read]);
        }
    }
}

/// Makes text of a guest or a VMM safe to print. Characters that act on a terminal or change the direction of text are
/// written as `\u{..}`, except line ends and tabs.
pub(crate) fn escape_controls(text: &str) -> String {
    let turns =
        |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            '\r' => shown.push_str("\\r"),
            c if c.is_control() || turns(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_bytes_and_no_more() {
        let console = Console::default();
        console.push(&vec![b'a'; CONSOLE_BYTES_MAX]);
        console.push(b"\nthe end\n\n");
        assert_eq!(console.text().len(), CONSOLE_BYTES_MAX);
        assert_eq!(console.tail(1), "the end");
    }

    #[test]
    fn what_an_error_shows_of_a_console_cannot_steer_a_terminal() {
        let console = Console::default();
        console.push("one\ttab\r\n\x1b]0;title\x07\x1b[2Jred\x7f\u{9b}31m\rover\u{202e}txt\n".as_bytes());
        assert_eq!(console.tail(2), "one\ttab\n\\u{1b}]0;title\\u{7}\\u{1b}[2Jred\\u{7f}\\u{9b}31m\\rover\\u{202e}txt");
        assert!(console.text().contains('\x1b'), "who asks for the console has it as it is");
    }
}
