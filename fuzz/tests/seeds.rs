//! Every seed, and every seed a little changed, keeps the promises of its target.
#![expect(clippy::print_stdout, reason = "shown of a test that fails")]

use std::path::{Path, PathBuf};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use wrenn_fuzz::{TARGETS, Target};

/// Of each seed.
const CHANGED: usize = 300;

fn corpus() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus"))
}

fn seeds(target: Target) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = corpus().join(target.name);
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut seeds: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.clone(), std::fs::read(&path).expect("a seed")))
        .collect();
    seeds.sort();
    seeds
}

#[test]
fn every_target_has_seeds_and_every_seed_a_target() {
    for target in TARGETS {
        assert!(!seeds(target).is_empty(), "{} has no seeds", target.name);
    }
    for entry in std::fs::read_dir(corpus()).expect("the corpus") {
        let name = entry.expect("an entry").file_name();
        assert!(name.to_str().and_then(wrenn_fuzz::target).is_some(), "{} is no target", name.display());
    }
}

#[test]
fn no_seed_breaks_a_promise() {
    for target in TARGETS {
        for (path, seed) in seeds(target) {
            println!("{}", path.display());
            (target.run)(&seed);
        }
    }
}

#[test]
fn no_seed_that_is_changed_breaks_a_promise() {
    for target in TARGETS {
        for (path, seed) in seeds(target) {
            // The same changes each time, so that a failure can be looked at.
            let mut random = StdRng::seed_from_u64(seed.len() as u64);
            for change in 0..CHANGED {
                let mut bytes = seed.clone();
                (0..random.random_range(1..4)).for_each(|_| disturb(&mut bytes, &mut random));
                let _blame = Blame { seed: &path, change, bytes: &bytes };
                (target.run)(&bytes);
            }
        }
    }
}

/// Says which input it was, if one panics.
struct Blame<'a> {
    seed: &'a Path,
    change: usize,
    bytes: &'a [u8],
}

impl Drop for Blame<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}, change {}: {:02x?}", self.seed.display(), self.change, self.bytes);
        }
    }
}

fn disturb(bytes: &mut Vec<u8>, random: &mut StdRng) {
    let at = random.random_range(0..=bytes.len());
    match random.random_range(0..5) {
        0 => bytes.truncate(at),
        1 => bytes.insert(at, random.random()),
        2 => drop(bytes.drain(at..(at + 4).min(bytes.len()))),
        3 => {
            let piece = bytes[at..(at + 16).min(bytes.len())].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = random.random()),
    }
}
