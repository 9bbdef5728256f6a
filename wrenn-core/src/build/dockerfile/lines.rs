//! The instructions of a Dockerfile as text: comments, directives, continued lines and here-documents are gone.

/// An instruction as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::build) struct Written {
    /// The line that it begins on, from 1 on.
    pub(in crate::build) line: usize,
    /// In capitals.
    pub(in crate::build) keyword: String,
    /// All after the keyword, as one line.
    pub(in crate::build) rest: String,
    pub(in crate::build) documents: Vec<Document>,
    /// What stands before a character that is to be taken as it is: `\`, or what the directive `escape` names.
    pub(in crate::build) escape: char,
}

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::build) struct Document {
    pub(in crate::build) name: String,
    /// The word that asks for it, as `<<EOF`.
    pub(in crate::build) word: String,
    pub(in crate::build) content: String,
    /// Whether variables in it are expanded: the name is not in quotes.
    pub(in crate::build) is_expanded: bool,
}

/// What is wrong with a Dockerfile, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::build) struct Fault {
    pub(in crate::build) line: usize,
    pub(in crate::build) problem: String,
}

impl Fault {
    pub(in crate::build) fn new(line: usize, problem: impl Into<String>) -> Self {
        Self { line, problem: problem.into() }
    }
}

/// Reads every instruction.
pub(super) fn read(text: &str) -> Result<Vec<Written>, Fault> {
    let text = text.trim_start_matches('\u{feff}');
    let lines: Vec<&str> = text.lines().collect();
    let escape = escape_of(&lines)?;
    let mut written = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let first = lines[at].trim();
        if first.is_empty() || first.starts_with('#') {
            at += 1;
            continue;
        }
        let line = at + 1;
        let (joined, next) = join(&lines, at, escape);
        at = next;
        let joined = joined.trim();
        if joined.is_empty() {
            continue;
        }
        let (keyword, rest) = joined.split_once(char::is_whitespace).unwrap_or((joined, ""));
        let keyword = keyword.to_ascii_uppercase();
        let mut documents = Vec::new();
        if matches!(keyword.as_str(), "RUN" | "COPY" | "ADD") {
            for opening in openings(rest) {
                let (document, next) = opening.read(&lines, at, line)?;
                documents.push(document);
                at = next;
            }
        }
        written.push(Written { line, keyword, rest: rest.trim().to_owned(), documents, escape });
    }
    Ok(written)
}

/// What the directives at the top say of the escape character. A directive that is not known is a comment.
fn escape_of(lines: &[&str]) -> Result<char, Fault> {
    for (at, line) in lines.iter().enumerate() {
        let Some(comment) = line.trim().strip_prefix('#') else { break };
        let Some((name, value)) = comment.split_once('=') else { break };
        let name = name.trim().to_ascii_lowercase();
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric()) {
            break;
        }
        if name == "escape" {
            return match value.trim() {
                "\\" => Ok('\\'),
                "`" => Ok('`'),
                other => Err(Fault::new(at + 1, format!("the escape character {other:?} is neither \\ nor `"))),
            };
        }
    }
    Ok('\\')
}

/// The line at `at` with those that continue it, and the number of the next one. Comments and empty lines between them are
/// left out.
fn join(lines: &[&str], mut at: usize, escape: char) -> (String, usize) {
    let mut joined = String::new();
    let mut is_first = true;
    while let Some(line) = lines.get(at) {
        at += 1;
        let trimmed = line.trim();
        if !is_first && (trimmed.is_empty() || trimmed.starts_with('#')) {
            continue;
        }
        is_first = false;
        match line.trim_end().strip_suffix(escape) {
            Some(continued) => joined.push_str(continued),
            None => {
                joined.push_str(line);
                break;
            }
        }
    }
    (joined, at)
}

/// The beginning of a here-document.
struct Opening {
    word: String,
    name: String,
    is_expanded: bool,
    /// Whether tabs before each line go: `<<-`.
    strips_tabs: bool,
}

/// The words of a line that ask for a here-document, outside of quotes.
fn openings(rest: &str) -> Vec<Opening> {
    let mut found = Vec::new();
    let mut quote = None;
    for word in rest.split_whitespace() {
        if quote.is_none()
            && let Some(opening) = opening(word)
        {
            found.push(opening);
            continue;
        }
        for c in word.chars() {
            match quote {
                Some(open) if c == open => quote = None,
                None if c == '"' || c == '\'' => quote = Some(c),
                _ => {}
            }
        }
    }
    found
}

fn opening(word: &str) -> Option<Opening> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (rest, strips_tabs) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
    let quoted = |quote: char| rest.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    let (name, is_expanded) = match quoted('"').or_else(|| quoted('\'')) {
        Some(name) => (name, false),
        None => (rest, true),
    };
    let is_name = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    let word = word.to_owned();
    (!name.is_empty() && name.chars().all(is_name)).then(|| Opening {
        word,
        name: name.to_owned(),
        is_expanded,
        strips_tabs,
    })
}

impl Opening {
    /// Reads the lines up to the one that is the document's name.
    fn read(self, lines: &[&str], from: usize, line: usize) -> Result<(Document, usize), Fault> {
        let mut content = String::new();
        for (at, text) in lines.iter().enumerate().skip(from) {
            let text = if self.strips_tabs { text.trim_start_matches('\t') } else { text };
            if text == self.name {
                let Self { word, name, is_expanded, .. } = self;
                return Ok((Document { name, word, content, is_expanded }, at + 1));
            }
            content.push_str(text);
            content.push('\n');
        }
        Err(Fault::new(line, format!("the here-document {} has no end", self.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<(usize, String, String)> {
        read(text).unwrap().into_iter().map(|written| (written.line, written.keyword, written.rest)).collect()
    }

    #[test]
    fn continued_lines_are_one_and_comments_between_them_go() {
        let text = "# syntax=docker/dockerfile:1\n\n  # a comment\nfrom base\nRUN a && \\\n  # not this\n\n  b \\  \n c\nUSER x\n";
        let expected = [(4, "FROM", "base"), (5, "RUN", "a &&   b  c"), (10, "USER", "x")];
        let expected = expected.map(|(line, keyword, rest)| (line, keyword.to_owned(), rest.to_owned()));
        assert_eq!(told(text), expected);
    }

    #[test]
    fn the_escape_character_may_be_another() {
        let written = read("# escape=`\nRUN a `\n b\\\nUSER y").unwrap();
        assert_eq!((written[0].rest.as_str(), written[1].rest.as_str()), ("a  b\\", "y"));
        assert_eq!(read("#escape=x\nFROM a").unwrap_err().line, 1);
    }

    #[test]
    fn here_documents_belong_to_their_instruction() {
        let text = "RUN <<A cat && 3<<-'B' x\none\n# no comment\nA\n\ttwo\n\tB\nRUN echo \"<<A\" $((1<<2))\nUSER z";
        let written = read(text).unwrap();
        assert_eq!(written.len(), 3);
        let documents: Vec<_> = written[0].documents.iter().map(|d| (&*d.name, &*d.content, d.is_expanded)).collect();
        assert_eq!(documents, [("A", "one\n# no comment\n", true), ("B", "two\n", false)]);
        assert!(written[1].documents.is_empty());
        assert_eq!(read("FROM a\nRUN <<EOF\nx").unwrap_err().line, 2);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "([A-Z]{1,5}|[ \\\\\n#\"'<=`-]){0,60}") {
            if let Ok(written) = read(&text) {
                assert!(written.iter().all(|written| written.line >= 1 && !written.keyword.is_empty()));
            }
        }
    }
}
