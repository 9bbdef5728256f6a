//! The words of an instruction: quotes, escapes and variables, as Docker has them.

use std::collections::BTreeMap;

/// The values that variables have at a place of a Dockerfile.
pub(in crate::build) trait Values {
    fn value(&self, name: &str) -> Option<String>;
}

impl Values for BTreeMap<String, String> {
    fn value(&self, name: &str) -> Option<String> {
        self.get(name).cloned()
    }
}

/// What becomes of quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quotes {
    Removed,
    Kept,
}

/// Expands the variables of a text and removes its quotes. The result is one word, whatever is in it.
pub(super) fn expand(text: &str, escape: char, values: &dyn Values) -> Result<String, String> {
    Reader { rest: text, escape, values, quotes: Quotes::Removed, depth: 0 }.text(None)
}

/// Expands the variables of a text in which quotes are nothing special: that of a here-document.
pub(super) fn expand_document(text: &str, escape: char, values: &dyn Values) -> Result<String, String> {
    Reader { rest: text, escape, values, quotes: Quotes::Kept, depth: 0 }.text(None)
}

/// Splits at white space outside of quotes. Quotes and variables stay as they are.
pub(super) fn split(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        if quote.is_none() && c.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        word.push(c);
        match quote {
            _ if c == escape && quote != Some('\'') => word.extend(characters.next()),
            Some(open) if c == open => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            _ => {}
        }
    }
    words.extend(word);
    words
}

/// The words of a JSON array of texts; `None` where the text is something else.
pub(super) fn array(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok())?
}

struct Reader<'a> {
    rest: &'a str,
    escape: char,
    values: &'a dyn Values,
    quotes: Quotes,
    /// How many `${` are open.
    depth: u32,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    /// Reads up to `end`, or to the end of the text.
    fn text(&mut self, end: Option<char>) -> Result<String, String> {
        let mut text = String::new();
        while let Some(c) = self.next() {
            match c {
                c if Some(c) == end => return Ok(text),
                c if c == self.escape => self.escaped(&mut text, false),
                '$' => text.push_str(&self.variable()?),
                '\'' if self.quotes == Quotes::Removed => self.single(&mut text)?,
                '"' if self.quotes == Quotes::Removed => self.double(&mut text)?,
                c => text.push(c),
            }
        }
        match end {
            Some(end) => Err(format!("a `{end}` is missing")),
            None => Ok(text),
        }
    }

    fn escaped(&mut self, text: &mut String, in_quotes: bool) {
        match self.next() {
            // Within double quotes, and in documents, the escape character means itself before anything else.
            Some(c) if (in_quotes || self.quotes == Quotes::Kept) && c != '"' && c != '$' && c != self.escape => {
                text.extend([self.escape, c]);
            }
            Some(c) => text.push(c),
            None => text.push(self.escape),
        }
    }

    fn single(&mut self, text: &mut String) -> Result<(), String> {
        let (quoted, rest) = self.rest.split_once('\'').ok_or("a `'` is missing")?;
        text.push_str(quoted);
        self.rest = rest;
        Ok(())
    }

    fn double(&mut self, text: &mut String) -> Result<(), String> {
        loop {
            match self.next().ok_or("a `\"` is missing")? {
                '"' => return Ok(()),
                c if c == self.escape => self.escaped(text, true),
                '$' => text.push_str(&self.variable()?),
                c => text.push(c),
            }
        }
    }

    /// The value of the variable whose `$` was read.
    fn variable(&mut self) -> Result<String, String> {
        if self.peek() == Some('{') {
            self.next();
            self.depth += 1;
            if self.depth > DEPTH_MAX {
                return Err(format!("more than {DEPTH_MAX} `${{` are open"));
            }
            let value = self.braced();
            self.depth -= 1;
            return value;
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".to_owned());
        }
        Ok(self.values.value(&name).unwrap_or_default())
    }

    fn name(&mut self) -> String {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = self.rest.find(|c| !is_name(c)).unwrap_or(self.rest.len());
        let (name, _) = self.rest.split_at(end);
        if name.starts_with(|c: char| c.is_ascii_digit()) {
            return String::new();
        }
        self.rest = &self.rest[end..];
        name.to_owned()
    }

    /// `${A}`, `${A:-b}`, `${A-b}`, `${A:+b}`, `${A+b}` and `${A:?b}`, whose `${` was read.
    fn braced(&mut self) -> Result<String, String> {
        let name = self.name();
        if name.is_empty() {
            return Err("`${` without the name of a variable".to_owned());
        }
        let value = self.values.value(&name);
        let (mut sign, mut counts_empty) = (self.next(), false);
        if sign == Some(':') {
            (sign, counts_empty) = (self.next(), true);
        }
        let is_set = value.as_ref().is_some_and(|value| !(counts_empty && value.is_empty()));
        match sign {
            Some('}') if !counts_empty => Ok(value.unwrap_or_default()),
            Some('-') => self.text(Some('}')).map(|other| value.filter(|_| is_set).unwrap_or(other)),
            Some('+') => self.text(Some('}')).map(|other| if is_set { other } else { String::new() }),
            Some('?') => {
                let why = self.text(Some('}'))?;
                value.filter(|_| is_set).ok_or_else(|| format!("{name} is not set: {why}"))
            }
            Some(_) => Err(format!("`${{{name}` goes on in a way that is not supported: use :- :+ - + or ?")),
            None => Err("a `}` is missing".to_owned()),
        }
    }
}

const DEPTH_MAX: u32 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> BTreeMap<String, String> {
        [("A", "1"), ("EMPTY", ""), ("SPACE", "x y")].map(|(a, b)| (a.to_owned(), b.to_owned())).into()
    }

    #[test]
    fn variables_quotes_and_escapes_are_those_of_docker() {
        let table = [
            ("$A", "1"),
            ("x${A}y", "x1y"),
            ("$NONE.", "."),
            ("${NONE:-b}", "b"),
            ("${A:-b}", "1"),
            ("${EMPTY:-b}", "b"),
            ("${EMPTY-b}", ""),
            ("${A:+b}", "b"),
            ("${EMPTY:+b}", ""),
            ("${EMPTY+b}", "b"),
            ("${NONE:+b}", ""),
            ("${NONE:-${A}z}", "1z"),
            ("\"$A $SPACE\"", "1 x y"),
            ("'$A'", "$A"),
            ("\\$A", "$A"),
            ("\"\\$A \\x\"", "$A \\x"),
            ("a\\ b", "a b"),
            ("$", "$"),
            ("$$A", "$1"),
            ("100$", "100$"),
            ("$1", "$1"),
        ];
        for (text, expected) in table {
            assert_eq!(expand(text, '\\', &values()).as_deref(), Ok(expected), "{text}");
        }
        assert_eq!(expand_document("it's \"$A\" \\n \\$A", '\\', &values()).as_deref(), Ok("it's \"1\" \\n $A"));
        for bad in ["${A", "${}", "${A%x}", "\"a", "'a", "${NONE:?gone}", "${A:}"] {
            assert!(expand(bad, '\\', &values()).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_are_split_outside_of_quotes() {
        assert_eq!(split("a \"b c\" 'd  e' f\\ g=\"h\"", '\\'), ["a", "\"b c\"", "'d  e'", "f\\ g=\"h\""]);
        assert_eq!(array("[\"a\", \"b c\"]"), Some(vec!["a".to_owned(), "b c".to_owned()]));
        assert_eq!(array("[ -f x ]"), None);
        assert_eq!(array("echo [\"a\"]"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_expanded_or_refused(text in "[a$A{}:+?'\"\\\\ -]{0,40}") {
            let _ = expand(&text, '\\', &values());
            let _ = expand_document(&text, '\\', &values());
        }

        #[test]
        fn a_text_without_special_characters_stays(text in "[a-z0-9./ =,@-]{0,40}") {
            assert_eq!(expand(&text, '\\', &values()), Ok(text));
        }

        #[test]
        fn what_is_in_single_quotes_stays(text in "[a-z$\\\\{}\" ]{0,40}") {
            assert_eq!(expand(&format!("'{text}'"), '\\', &values()), Ok(text));
        }
    }
}
