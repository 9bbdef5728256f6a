//! What a step's command writes: cut into lines, without the values of secrets, and its end kept for an error.

use std::collections::VecDeque;

/// Cuts the bytes of one stream into lines.
#[derive(Debug)]
pub(super) struct Lines {
    pending: Vec<u8>,
    secrets: Redaction,
}

/// The texts that no line shows.
#[derive(Debug, Clone, Default)]
pub(super) struct Redaction {
    /// The longest first, so that what contains another one goes whole.
    texts: Vec<String>,
}

/// The last lines of a step.
#[derive(Debug, Default)]
pub(super) struct Tail(VecDeque<String>);

impl Lines {
    pub(super) fn new(secrets: &Redaction) -> Self {
        Self { pending: Vec::new(), secrets: secrets.clone() }
    }

    /// Takes more bytes, and returns the lines that are whole now.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.pending.pop();
                lines.push(self.take(self.pending.len()));
            }
            while self.pending.len() >= LINE_BYTES_MAX + self.secrets.longest() {
                // A secret that begins before the cut and ends after it would show a part of itself.
                let cut = self.secrets.cut_before(&self.pending, LINE_BYTES_MAX);
                lines.push(self.take(cut));
            }
        }
        lines
    }

    /// What is left without the end of a line.
    pub(super) fn end(mut self) -> Option<String> {
        (!self.pending.is_empty()).then(|| self.take(self.pending.len()))
    }

    fn take(&mut self, bytes: usize) -> String {
        let rest = self.pending.split_off(bytes);
        let line = std::mem::replace(&mut self.pending, rest);
        let line = String::from_utf8_lossy(&line);
        // What a progress bar has written over is not shown.
        let line = line.trim_end_matches('\r');
        let shown = line.rsplit('\r').next().unwrap_or(line);
        self.secrets.hide(shown)
    }
}

impl Redaction {
    /// Hides each value, and each line of one that has several.
    pub(super) fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let lines = values.into_iter().flat_map(|value| {
            let lines = value.lines().map(str::trim).filter(|line| line.len() >= PART_BYTES_MIN);
            lines.chain([value]).map(str::to_owned).collect::<Vec<_>>()
        });
        let mut texts: Vec<String> = lines.filter(|text| !text.is_empty()).collect();
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        texts.dedup();
        Self { texts }
    }

    pub(super) fn hide(&self, text: &str) -> String {
        self.texts.iter().fold(text.to_owned(), |text, secret| text.replace(secret, HIDDEN))
    }

    fn longest(&self) -> usize {
        self.texts.first().map_or(0, String::len)
    }

    /// Where to cut `bytes`, at `cut` or before, so that no secret is cut.
    fn cut_before(&self, bytes: &[u8], cut: usize) -> usize {
        let straddles = |at: usize| {
            self.texts.iter().any(|text| {
                let from = at.saturating_sub(text.len() - 1);
                (from..at).any(|begin| bytes[begin..].starts_with(text.as_bytes()))
            })
        };
        let lowest = cut.saturating_sub(self.longest()).max(1);
        (lowest..=cut).rev().find(|at| !straddles(*at)).unwrap_or(cut)
    }
}

impl Tail {
    pub(super) fn push(&mut self, line: &str) {
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    pub(super) fn into_lines(self) -> Vec<String> {
        self.0.into()
    }
}

/// A line that is longer is cut.
const LINE_BYTES_MAX: usize = 16 << 10;
/// A part of a secret that is shorter would hide too much that is none.
const PART_BYTES_MIN: usize = 4;
const HIDDEN: &str = "***";
/// How many lines an error has.
const TAIL_LINES: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_when_they_are_whole_and_the_rest_at_the_end() {
        let mut lines = Lines::new(&Redaction::default());
        assert_eq!(lines.push(b"a\nb"), ["a"]);
        assert_eq!(lines.push(b"c\r\n\n10%\r20%\nd"), ["bc", "", "20%"]);
        assert_eq!(lines.end(), Some("d".to_owned()));
    }

    #[test]
    fn the_tail_keeps_the_last_lines() {
        let mut tail = Tail::default();
        (0..30).for_each(|number| tail.push(&number.to_string()));
        let lines = tail.into_lines();
        assert_eq!((lines.len(), lines[0].as_str(), lines[19].as_str()), (20, "10", "29"));
    }

    proptest::proptest! {
        #[test]
        fn no_secret_is_shown_however_the_bytes_come(
            before in "[a-y ]{0,60}", secret in "[zZ]{6,12}", fill in 0usize..3, at in 0usize..80,
        ) {
            let text = format!("{}{before}{secret}{before}\n{secret}", "x".repeat(fill * (LINE_BYTES_MAX - 40)));
            let mut lines = Lines::new(&Redaction::new([secret.as_str()]));
            let (head, tail) = text.as_bytes().split_at(at.min(text.len()));
            let mut shown = lines.push(head);
            shown.extend(lines.push(tail));
            shown.extend(lines.end());
            // No part of a secret that would tell it, either.
            assert!(shown.iter().all(|line| !line.contains(&secret[..4])), "{shown:?}");
        }
    }
}
