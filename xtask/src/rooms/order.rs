//! The order of a crate's rooms, as `ARCHITECTURE.md` has it for people.
//!
//! ````text
//! ```rooms wrenn-net
//! slot                 # what comes after a `#` is for people
//! netns sys            # rooms of one line do not know each other
//! error
//! ```
//! ````
//!
//! A file may import those of its own room, and of rooms on lines below.

use std::collections::BTreeMap;

use anyhow::{bail, ensure};

use super::imports::Imports;
use super::tree::{FileId, Tree};
use super::violation::{Above, At, Violation};

/// The rooms of a package, top to bottom.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) package: String,
    /// The line that each room is on, counted from the top.
    ranks: BTreeMap<String, usize>,
}

impl Order {
    /// The orders in a text: one for each fenced block `rooms PACKAGE`.
    pub(super) fn all(text: &str) -> anyhow::Result<Vec<Self>> {
        let mut orders: Vec<Self> = Vec::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let Some(package) = line.strip_prefix("```rooms") else { continue };
            let package = package.trim();
            ensure!(!package.is_empty(), "a block of rooms names no package");
            ensure!(orders.iter().all(|order| order.package != package), "two blocks of rooms are for {package}");
            orders.push(Self::block(package, &mut lines)?);
        }
        Ok(orders)
    }

    fn block<'a>(package: &str, lines: &mut impl Iterator<Item = &'a str>) -> anyhow::Result<Self> {
        let mut ranks = BTreeMap::new();
        for (rank, line) in lines.enumerate() {
            if line.trim_end() == "```" {
                return Ok(Self { package: package.to_owned(), ranks });
            }
            let rooms = line.split('#').next().unwrap_or_default();
            for room in rooms.split_whitespace() {
                ensure!(ranks.insert(room.to_owned(), rank).is_none(), "the rooms of {package} have `{room}` twice");
            }
        }
        bail!("the block of {package}'s rooms has no end")
    }

    /// The imports that do not run downward.
    pub(super) fn upward(&self, tree: &Tree, imports: &Imports) -> Vec<Violation> {
        let mut upward = Vec::new();
        for from in tree.files() {
            let Some(room) = tree.room(from) else { continue };
            for (to, lines) in imports.from(from) {
                let (Some(above), Some(&line)) = (self.above(tree, room, to), lines.first()) else { continue };
                let at = At { file: tree.file(from).to_owned(), line };
                upward.push(Violation::Upward { at, room: room.to_owned(), imported: tree.file(to).to_owned(), above });
            }
        }
        upward
    }

    /// What is wrong with an import of the file `to` by the room. A room without a rank is told of elsewhere.
    fn above(&self, tree: &Tree, room: &str, to: FileId) -> Option<Above> {
        let Some(other) = tree.room(to) else { return Some(Above::Root) };
        if other == room {
            return None;
        }
        match self.ranks.get(other)?.cmp(self.ranks.get(room)?) {
            std::cmp::Ordering::Less => Some(Above::Room(other.to_owned())),
            std::cmp::Ordering::Equal => Some(Above::Peer(other.to_owned())),
            std::cmp::Ordering::Greater => None,
        }
    }

    /// Rooms that the order leaves out, and names in it that no room has.
    pub(super) fn mismatches(&self, trees: &[Tree]) -> Vec<Violation> {
        let package = &self.package;
        let exists = |name: &str| trees.iter().flat_map(Tree::rooms).any(|room| room == name);
        let missing = trees.iter().flat_map(Tree::rooms).filter(|room| !self.ranks.contains_key(*room));
        let missing = missing.map(|room| format!("the rooms of {package} lack `{room}`"));
        let unknown = self.ranks.keys().filter(|name| !exists(name));
        let unknown = unknown.map(|name| format!("the rooms of {package} have `{name}`, which is no module of it"));
        missing.chain(unknown).map(Violation::Order).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_read_top_to_bottom() -> anyhow::Result<()> {
        let text =
            "# Title\n```text\nnot this\n```\n```rooms one\na   # the door\n\nb c # peers\n```\n```rooms two\nd\n```\n";
        let orders = Order::all(text)?;
        let packages: Vec<&str> = orders.iter().map(|order| order.package.as_str()).collect();
        assert_eq!(packages, ["one", "two"]);
        let ranks = &orders[0].ranks;
        assert!(ranks["a"] < ranks["b"] && ranks["b"] == ranks["c"]);
        assert_eq!(ranks.len(), 3);
        Ok(())
    }

    #[test]
    fn a_block_that_cannot_be_meant_is_refused() {
        for (text, reason) in [
            ("```rooms\na\n```", "names no package"),
            ("```rooms one\na\n", "no end"),
            ("```rooms one\na\na\n```", "`a` twice"),
            ("```rooms one\n```\n```rooms one\n```", "two blocks"),
        ] {
            let error = Order::all(text).expect_err(text).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
