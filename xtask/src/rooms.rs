//! `cargo xtask rooms`: which file of a crate imports which, and whether that has the shape that `ARCHITECTURE.md` gives it.
//!
//! ```text
//!  src/**/*.rs ──parse──▶ Tree ──Imports::of──▶ file ──▶ file ──circles──▶ Violation::Circle
//!  ARCHITECTURE.md ──Order::all──▶ rooms, top to bottom ──Order::check──▶ Violation::Upward
//! ```
//!
//! A room is a top-level module of a crate: a file or a directory of `src/`. What only tests compile does not count.

mod circles;
mod imports;
mod lines;
mod order;
mod parse;
mod resolve;
mod source;
#[cfg(test)]
mod tests;
mod tree;
mod violation;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use imports::Imports;
use lines::Lengths;
use order::Order;
use tree::Tree;
use violation::Violation;

use crate::shell;

/// Prints the shape of one crate, or of each, and fails if anything is wrong with it.
pub(crate) fn run(only: Option<&str>) -> anyhow::Result<()> {
    let workspace = shell::workspace();
    let mut violations = Vec::new();
    let mut found = false;
    for package in packages(workspace)?.iter().filter(|package| only.is_none_or(|only| only == package.name)) {
        found = true;
        let lengths = Lengths::of(&package.dir)?;
        println!("{}: {lengths}", package.name);
        violations.extend(lengths.too_long());
        violations.extend(package.check(workspace)?);
    }
    ensure!(found, "no package of the workspace is called {}", only.unwrap_or("anything"));
    report(&violations)
}

/// What `cargo xtask lint` asks: the length of every file, and the rooms of every crate.
pub(crate) fn lint() -> anyhow::Result<()> {
    let workspace = shell::workspace();
    let mut violations = Vec::new();
    for package in packages(workspace)? {
        violations.extend(Lengths::of(&package.dir)?.too_long());
        violations.extend(package.check(workspace)?);
    }
    report(&violations)
}

fn report(violations: &[Violation]) -> anyhow::Result<()> {
    for violation in violations {
        println!("{violation}");
    }
    match violations.len() {
        0 => Ok(()),
        1 => bail!("1 thing is wrong with the rooms or the length of files"),
        count => bail!("{count} things are wrong with the rooms or the length of files"),
    }
}

/// A package of the workspace.
struct Package {
    name: String,
    dir: PathBuf,
}

impl Package {
    /// What is wrong with the imports of the package's library and binary. Names files relative to `workspace`.
    fn check(&self, workspace: &Path) -> anyhow::Result<Vec<Violation>> {
        let mut trees = Vec::new();
        for root in ["src/lib.rs", "src/main.rs"] {
            let root = self.dir.join(root);
            if root.is_file() {
                trees.push(Tree::read(workspace, &root)?);
            }
        }
        let orders = workspace.join("ARCHITECTURE.md");
        let orders =
            std::fs::read_to_string(&orders).with_context(|| format!("{} cannot be read", orders.display()))?;
        let order = Order::all(&orders)?.into_iter().find(|order| order.package == self.name);
        let mut violations = Vec::new();
        for tree in &trees {
            let imports = Imports::of(tree);
            violations.extend(imports.detours().iter().cloned());
            violations.extend(circles::circles(tree, &imports));
            violations.extend(order.iter().flat_map(|order| order.upward(tree, &imports)));
        }
        violations.extend(order.iter().flat_map(|order| order.mismatches(&trees)));
        Ok(violations)
    }
}

/// The packages of the workspace, by name.
fn packages(workspace: &Path) -> anyhow::Result<Vec<Package>> {
    let mut packages = Vec::new();
    for entry in std::fs::read_dir(workspace).context("the workspace cannot be listed")? {
        let dir = entry?.path();
        if dir.join("Cargo.toml").is_file() {
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            packages.push(Package { name, dir });
        }
    }
    packages.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(packages)
}
