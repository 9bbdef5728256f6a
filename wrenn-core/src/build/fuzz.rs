//! What the repository's fuzzer calls: it takes any bytes, and panics where a promise is broken.

use std::collections::BTreeMap;

use crate::build::dockerfile::Dockerfile;
use crate::build::dockerfile::instruction::Place;
use crate::build::ignore::Ignore;

/// Dockerfiles, and the rules of a `.dockerignore`: any bytes are read or refused with a line that they have.
///
/// # Panics
/// A promise is broken.
pub fn dockerfile(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().count().max(1);
    if let Ok(ignore) = Ignore::parse(&text) {
        let _ = ignore.leaves_out("a/b.c");
    }
    let file = match Dockerfile::parse(&text) {
        Ok(file) => file,
        Err(fault) => return assert!((1..=lines).contains(&fault.line), "{fault:?}"),
    };
    let values = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
    let Ok(resolution) = file.resolve(&values) else { return };
    for (stage, stages) in resolution.stages.iter().zip(&resolution.names) {
        for line in &stage.lines {
            let place = Place { values: &values, shell: &[], stages, secrets: &values };
            if let Err(fault) = line.instruction(&place) {
                assert!((1..=lines).contains(&fault.line), "{fault:?}");
            }
        }
    }
}
