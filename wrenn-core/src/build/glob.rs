//! Patterns of paths, as `.dockerignore` and `COPY` have them: `*`, `?`, `[a-z]`, `\` before a character that stands for
//! itself, and `**` for any number of directories.

/// A pattern of a relative path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Glob(Vec<Part>);

/// A pattern between two slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// `**`: any number of directories, none too.
    Any,
    One(Vec<char>),
}

/// The text of a pattern that can match nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BadGlob(pub(super) String);

impl Glob {
    pub(super) fn new(text: &str) -> Result<Self, BadGlob> {
        let mut parts = Vec::new();
        for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
            match part {
                "**" => parts.push(Part::Any),
                ".." => return Err(BadGlob(format!("{text:?} leads out of its directory"))),
                part => {
                    let part: Vec<char> = part.chars().collect();
                    // What is well-formed can be told by a match alone: an open class or a `\` at the end.
                    check(&part).map_err(|why| BadGlob(format!("{text:?} {why}")))?;
                    parts.push(Part::One(part));
                }
            }
        }
        Ok(Self(parts))
    }

    /// Whether a text is more than a path.
    pub(super) fn is_pattern(text: &str) -> bool {
        text.contains(['*', '?', '[', '\\'])
    }

    /// Whether the whole path matches.
    pub(super) fn matches(&self, path: &str) -> bool {
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
        matches_parts(&self.0, &names)
    }
}

fn matches_parts(parts: &[Part], names: &[&str]) -> bool {
    // For each number of parts: whether the first so many match the names so far.
    let mut reached = vec![false; parts.len() + 1];
    reached[0] = true;
    pass_any(parts, &mut reached);
    for name in names {
        let name: Vec<char> = name.chars().collect();
        let mut next = vec![false; parts.len() + 1];
        for (at, part) in parts.iter().enumerate() {
            if reached[at] {
                match part {
                    Part::Any => next[at] = true,
                    Part::One(pattern) => next[at + 1] |= matches_name(pattern, &name),
                }
            }
        }
        reached = next;
        pass_any(parts, &mut reached);
    }
    reached[parts.len()]
}

/// `**` matches no directory at all, too.
fn pass_any(parts: &[Part], reached: &mut [bool]) {
    for (at, part) in parts.iter().enumerate() {
        if reached[at] && *part == Part::Any {
            reached[at + 1] = true;
        }
    }
}

fn matches_name(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where the last `*` is, and how much of the name it takes.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, n));
            p += 1;
        } else if let Some(next) = one(pattern, p, name[n]) {
            (p, n) = (next, n + 1);
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            (p, n) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Where the pattern goes on after it has matched `c`; `None` where it does not match.
fn one(pattern: &[char], at: usize, c: char) -> Option<usize> {
    match pattern.get(at)? {
        '?' => Some(at + 1),
        '\\' => (*pattern.get(at + 1)? == c).then_some(at + 2),
        '[' => {
            let (is_in, end) = class(pattern, at, c)?;
            is_in.then_some(end)
        }
        plain => (*plain == c).then_some(at + 1),
    }
}

/// Whether `c` is in the class that begins at `at`, and where the class ends; `None` for one that does not end.
fn class(pattern: &[char], at: usize, c: char) -> Option<(bool, usize)> {
    let mut next = at + 1;
    let negated = matches!(pattern.get(next), Some('^' | '!'));
    next += usize::from(negated);
    let (mut is_in, first) = (false, next);
    loop {
        let low = match pattern.get(next)? {
            ']' if next > first => return Some((is_in != negated, next + 1)),
            '\\' => {
                next += 1;
                *pattern.get(next)?
            }
            plain => *plain,
        };
        next += 1;
        let mut high = low;
        if pattern.get(next) == Some(&'-') && pattern.get(next + 1).is_some_and(|c| *c != ']') {
            high = *pattern.get(next + 1)?;
            next += 2;
        }
        is_in |= (low..=high).contains(&c);
    }
}

fn check(pattern: &[char]) -> Result<(), &'static str> {
    let mut at = 0;
    while let Some(c) = pattern.get(at) {
        at = match c {
            '\\' if at + 1 == pattern.len() => return Err("ends with a `\\`"),
            '\\' => at + 2,
            '[' => class(pattern, at, 'x').ok_or("has a `[` without its `]`")?.1,
            _ => at + 1,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_what_docker_says() {
        let table = [
            ("*.py", "a.py", true),
            ("*.py", "d/a.py", false),
            ("**/*.py", "a.py", true),
            ("**/*.py", "d/e/a.py", true),
            ("d/**", "d/e/a.py", true),
            ("d/**/a.py", "d/a.py", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[^a-c]x", "zx", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("./d/x", "d/x", true),
            ("ä*", "ähm", true),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(Glob::new(pattern).unwrap().matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_that_matches_nothing_is_refused() {
        for bad in ["[a", "a\\", "../x", "[]", "x/[a-"] {
            assert!(Glob::new(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_path_without_special_characters_matches_itself_alone(
            path in "[a-z]{1,4}(/[a-z]{1,4}){0,3}", other in "[a-z]{1,4}(/[a-z]{1,4}){0,3}",
        ) {
            let glob = Glob::new(&path).unwrap();
            assert!(glob.matches(&path));
            assert_eq!(glob.matches(&other), path == other);
        }

        #[test]
        fn no_pattern_takes_long_or_panics(pattern in "[a*?/\\[\\]^\\\\-]{0,24}", path in "[ab/]{0,40}") {
            if let Ok(glob) = Glob::new(&pattern) {
                let _ = glob.matches(&path);
            }
        }
    }
}
