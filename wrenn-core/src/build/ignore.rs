//! What of a directory is not copied: the rules of a `.dockerignore`, and a step's own.

use crate::build::glob::{BadGlob, Glob};

/// Rules in their order: the last one that matches a path, or a directory above it, decides.
#[derive(Debug, Clone, Default)]
pub(super) struct Ignore(Vec<Rule>);

#[derive(Debug, Clone)]
struct Rule {
    glob: Glob,
    effect: Effect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    LeftOut,
    Kept,
}

impl Ignore {
    /// The rules of a `.dockerignore`. Lines that begin with `#` are comments, and those with `!` are exceptions.
    pub(super) fn parse(text: &str) -> Result<Self, BadGlob> {
        let lines = text.trim_start_matches('\u{feff}').lines();
        Self::of(lines.filter(|line| !line.starts_with('#')))
    }

    /// The rules in `patterns`.
    pub(super) fn of<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, BadGlob> {
        let mut rules = Vec::new();
        for pattern in patterns {
            let pattern = pattern.trim();
            let (pattern, effect) = match pattern.strip_prefix('!') {
                Some(rest) => (rest.trim(), Effect::Kept),
                None => (pattern, Effect::LeftOut),
            };
            if !pattern.is_empty() && pattern != "." && pattern != "/" {
                rules.push(Rule { glob: Glob::new(pattern)?, effect });
            }
        }
        Ok(Self(rules))
    }

    /// Whether the file at a relative path is left out.
    pub(super) fn leaves_out(&self, path: &str) -> bool {
        let mut is_out = false;
        for rule in &self.0 {
            if is_out != (rule.effect == Effect::LeftOut) && prefixes(path).any(|prefix| rule.glob.matches(prefix)) {
                is_out = rule.effect == Effect::LeftOut;
            }
        }
        is_out
    }

    /// Whether nothing below a directory that is left out can be kept by an exception.
    pub(super) fn has_no_exception(&self) -> bool {
        self.0.iter().all(|rule| rule.effect == Effect::LeftOut)
    }
}

/// The path, and each directory above it.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    ends.map(|end| &path[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_that_matches_decides() {
        let text = "# a comment\n\n*.log\nnode_modules\n!keep.log\ntmp/**\n!tmp/a/keep\n/top\n**/*.pyc\n";
        let ignore = Ignore::parse(text).unwrap();
        let table = [
            ("a.log", true),
            ("keep.log", false),
            ("d/a.log", false),
            ("node_modules/x/y", true),
            ("d/node_modules", false),
            ("tmp/a/b", true),
            ("tmp/a/keep", false),
            ("top", true),
            ("d/e/x.pyc", true),
            ("#", false),
        ];
        for (path, expected) in table {
            assert_eq!(ignore.leaves_out(path), expected, "{path}");
        }
        assert!(!ignore.has_no_exception());
        assert!(Ignore::parse("*\n").unwrap().leaves_out("any/thing"));
        assert!(!Ignore::default().leaves_out("any/thing"));
    }
}
