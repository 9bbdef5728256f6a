//! Circles of files that import each other.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::imports::Imports;
use super::tree::{FileId, Tree};
use super::violation::{Step, Violation};

/// A circle for each import that has to go until there is none, the shortest first.
pub(super) fn circles(tree: &Tree, imports: &Imports) -> Vec<Violation> {
    let mut graph = Graph::new();
    for file in tree.files() {
        graph.insert(file, imports.from(file).map(|(to, _)| to).collect());
    }
    let mut circles = Vec::new();
    while let Some(circle) = shortest(&graph) {
        // The import that closes it is gone with it, so that the next circle is another one.
        if let (Some(last), Some(first)) = (circle.last(), circle.first()) {
            graph.entry(*last).or_default().remove(first);
        }
        circles.push(Violation::Circle(steps(tree, imports, &circle)));
    }
    circles
}

type Graph = BTreeMap<FileId, BTreeSet<FileId>>;

fn steps(tree: &Tree, imports: &Imports, circle: &[FileId]) -> Vec<Step> {
    let next = circle.iter().cycle().skip(1);
    let pairs = circle.iter().zip(next);
    let step = |(&from, &to)| Step { file: tree.file(from).to_owned(), lines: imports.lines(from, to).collect() };
    pairs.map(step).collect()
}

fn shortest(graph: &Graph) -> Option<Vec<FileId>> {
    graph.keys().filter_map(|&file| shortest_through(graph, file)).min_by_key(Vec::len)
}

/// The shortest way from a file back to itself.
fn shortest_through(graph: &Graph, start: FileId) -> Option<Vec<FileId>> {
    let mut came_from: BTreeMap<FileId, FileId> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(file) = queue.pop_front() {
        for &next in graph.get(&file).into_iter().flatten() {
            if next == start {
                return Some(way(&came_from, start, file));
            }
            if let Entry::Vacant(unseen) = came_from.entry(next) {
                unseen.insert(file);
                queue.push_back(next);
            }
        }
    }
    None
}

fn way(came_from: &BTreeMap<FileId, FileId>, start: FileId, end: FileId) -> Vec<FileId> {
    let mut way = vec![end];
    while let Some(file) = way.last().filter(|&&file| file != start).and_then(|file| came_from.get(file)) {
        way.push(*file);
    }
    way.reverse();
    way
}
