//! What the repository's fuzzer calls: it takes any bytes, and panics where a promise is broken.

use std::path::Path;
use std::sync::Arc;

use crate::oci::base;
use crate::oci::cache::Layer;
use crate::oci::convert::convert;
use crate::oci::digest::Digest;
use crate::oci::layer_writer::LayerWriter;
use crate::oci::limits::{Budget, Limits};
use crate::oci::manifest::{Document, choose, config};
use crate::oci::source::Source;

/// A layer's archive, upon itself: any bytes are a layer that a base is made of, or they are refused.
///
/// # Panics
/// A promise is broken.
pub fn layers(bytes: &[u8]) {
    let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("no directory: {error}"));
    let limits = Limits { unpacked_bytes: 16 << 20, entries: 10_000, ..Limits::default() };
    let mut writer = LayerWriter::create(directory.path()).unwrap_or_else(|error| panic!("no layer: {error}"));
    let Ok(converted) = convert(bytes, &mut writer, &Budget::new(limits), "the layer") else { return };
    let finished = writer.finish(converted.blob, converted.diff_id, converted.unpacked_bytes);
    finished.unwrap_or_else(|error| panic!("a layer that is not written: {error}"));
    let layer = open(directory.path(), &converted.blob);
    assert!(layer.verify().is_ok_and(|whole| whole), "a layer is damaged as it is written");
    let layers = [layer.clone(), layer];
    let path = directory.path().join("base");
    if base::write(&layers, &path).is_ok() {
        let size_bytes = path.metadata().unwrap_or_else(|error| panic!("no base: {error}")).len();
        assert_eq!(size_bytes % 4096, 0, "a base ends within a block");
    }
}

fn open(directory: &Path, digest: &Digest) -> Arc<Layer> {
    match Layer::open(directory, *digest) {
        Ok(Some(layer)) => Arc::new(layer),
        other => panic!("a layer is not read again: {other:?}"),
    }
}

/// What an image says of itself, and what names one: any bytes are understood or refused, and a name that is written is
/// the name that was read.
///
/// # Panics
/// A promise is broken.
pub fn images(bytes: &[u8]) {
    match Document::parse(bytes, "the manifest") {
        Ok(Document::Index(all)) => drop(choose(&all).map(|chosen| chosen.digest())),
        Ok(Document::Image(manifest)) => drop(manifest.check("the manifest", 512)),
        Err(_) => {}
    }
    config(bytes, 1).ok();
    let Some(source) = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<Source>().ok()) else { return };
    let again = source.to_string().parse::<Source>();
    assert!(again.as_ref().is_ok_and(|again| *again == source), "{source:?} is {again:?} once written");
}
