//! How long the files of a package are.

use std::fmt;
use std::path::Path;

use anyhow::Context;

use super::violation::Violation;
use crate::shell;

/// What a file may have, its tests included.
const LINES_MAX: usize = 600;

/// The length of each file, the longest last.
#[derive(Debug)]
pub(super) struct Lengths(Vec<(usize, String)>);

impl Lengths {
    /// Counts the lines of every Rust file below a directory.
    pub(super) fn of(dir: &Path) -> anyhow::Result<Self> {
        let mut lengths = Vec::new();
        count(dir, &mut lengths)?;
        lengths.sort();
        Ok(Self(lengths))
    }

    pub(super) fn too_long(&self) -> impl Iterator<Item = Violation> {
        let too_long = self.0.iter().filter(|(lines, _)| *lines > LINES_MAX);
        too_long.map(|(lines, file)| Violation::Length { file: file.clone(), lines: *lines, lines_max: LINES_MAX })
    }

    /// The length that a share of the files (in percent) does not exceed.
    fn percentile(&self, percent: usize) -> usize {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).map_or(0, |(lines, _)| *lines)
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (median, p90) = (self.percentile(50), self.percentile(90));
        let (longest, file) = self.0.last().map_or((0, ""), |(lines, file)| (*lines, file.as_str()));
        write!(f, "{} files; lines: median {median}, p90 {p90}, longest {longest} ({file})", self.0.len())
    }
}

fn count(dir: &Path, lengths: &mut Vec<(usize, String)>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("{} cannot be listed", dir.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "target" {
                count(&path, lengths)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
            let name = path.strip_prefix(shell::workspace()).unwrap_or(&path).display().to_string();
            lengths.push((text.lines().count(), name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_summed_up_and_the_longest_named() {
        let lengths = Lengths((1..=10).map(|n| (n * 100, format!("{n}.rs"))).collect());
        assert_eq!(lengths.to_string(), "10 files; lines: median 500, p90 900, longest 1000 (10.rs)");
        let too_long: Vec<String> = lengths.too_long().map(|long| long.to_string()).collect();
        assert_eq!(too_long.len(), 4);
        assert_eq!(too_long[0], "7.rs: 700 lines, where 600 are the limit: split it");
    }
}
