//! An image before its layers are fetched: what it is, and where its parts are.

use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::task::spawn_blocking;

use crate::oci::digest::Digest;
use crate::oci::error::OciError;
use crate::oci::files::{Files, blob_name};
use crate::oci::manifest::{Descriptor, Document, ImageConfig, Manifest, choose, config};
use crate::oci::options::{Progress, PullOptions};
use crate::oci::registry::{Event, Registry};
use crate::oci::source::Source;

/// Who is told of progress.
pub(super) type Report<'a> = Mutex<&'a mut (dyn FnMut(Progress) + Send)>;

/// Where the parts of an image are.
pub(super) enum Store {
    Registry(Registry),
    Files(Arc<Files>),
}

/// An image, before its layers.
pub(super) struct Image {
    pub(super) store: Store,
    pub(super) digest: Digest,
    pub(super) config: ImageConfig,
    pub(super) layers: Vec<Part>,
}

/// A layer to be fetched.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) digest: Digest,
    pub(super) diff_id: Option<Digest>,
    pub(super) bytes: u64,
    /// In an archive.
    pub(super) name: String,
}

pub(super) async fn choose_image(
    source: &Source,
    options: &PullOptions,
    report: &Report<'_>,
) -> Result<(Store, Digest, Option<Manifest>), OciError> {
    let limit = options.limits.manifest_bytes;
    match source {
        Source::Registry(reference) => {
            let registry = Registry::connect(reference, options).await?;
            let pinned = reference.digest().map(|digest| Digest::parse(digest, "the reference")).transpose()?;
            let bytes = registry.manifest(pinned, limit, &events(report)).await?;
            let what = format!("the manifest of {}", reference.whole());
            match Document::parse(&bytes, &what)? {
                Document::Image(manifest) => Ok((Store::Registry(registry), Digest::of(&bytes), Some(manifest))),
                Document::Index(all) => {
                    let digest = choose(&all)?.digest()?;
                    Ok((Store::Registry(registry), digest, None))
                }
            }
        }
        Source::Layout { path, tag } => local(Files::Directory(path.clone()), path, tag.clone(), limit).await,
        Source::OciArchive { path, tag } => {
            let opened = path.clone();
            local(blocking(path, move || Files::archive(&opened)).await?, path, tag.clone(), limit).await
        }
        Source::DockerArchive { path, name } => {
            let (opened, name) = (path.clone(), name.clone());
            blocking(path, move || {
                let files = Files::archive(&opened)?;
                let saved = files.saved(name.as_deref(), limit)?;
                let digest = Digest::of(&files.read(&saved.config, limit)?);
                Ok((Store::Files(Arc::new(files)), digest, None))
            })
            .await
        }
        Source::Tar(_) | Source::Directory(_) => unreachable!("they have no manifest"),
    }
}

async fn local(
    files: Files,
    path: &Path,
    tag: Option<String>,
    limit: u64,
) -> Result<(Store, Digest, Option<Manifest>), OciError> {
    blocking(path, move || {
        let mut digest = files.image(tag.as_deref(), limit)?.digest()?;
        for _ in 0..INDEXES_MAX {
            match Document::parse(&files.blob(digest, limit)?, &format!("the manifest {digest}"))? {
                Document::Image(manifest) => return Ok((Store::Files(Arc::new(files)), digest, Some(manifest))),
                Document::Index(all) => digest = choose(&all)?.digest()?,
            }
        }
        Err(OciError::malformed("index.json", "it leads from index to index"))
    })
    .await
}

pub(super) async fn find(source: &Source, options: &PullOptions, report: &Report<'_>) -> Result<Image, OciError> {
    let limits = options.limits;
    let (store, digest, manifest) = choose_image(source, options, report).await?;
    let what = format!("the manifest {digest}");
    if let (Store::Files(files), Source::DockerArchive { path, name }) = (&store, source) {
        let (files, name, layers_max) = (files.clone(), name.clone(), limits.layers);
        return blocking(path, move || saved(files, name.as_deref(), digest, layers_max, limits.manifest_bytes)).await;
    }
    let manifest = match (manifest, &store) {
        (Some(manifest), _) => manifest,
        (None, Store::Registry(registry)) => {
            let bytes = registry.manifest(Some(digest), limits.manifest_bytes, &events(report)).await?;
            match Document::parse(&bytes, &what)? {
                Document::Image(manifest) => manifest,
                Document::Index(_) => return Err(OciError::malformed(what, "it is an index within an index")),
            }
        }
        (None, Store::Files(_)) => return Err(OciError::malformed(what, "it is no manifest")),
    };
    manifest.check(&what, limits.layers)?;
    let at = manifest.config.digest()?;
    let bytes = match &store {
        Store::Registry(registry) => registry.small(at, limits.manifest_bytes, &events(report)).await?,
        Store::Files(files) => {
            let files = files.clone();
            blocking(Path::new("the image"), move || files.blob(at, limits.manifest_bytes)).await?
        }
    };
    let (config, diff_ids) = config(&bytes, manifest.layers.len())?;
    let layers = manifest.layers.iter().enumerate().map(|(number, layer)| part(layer, diff_ids.get(number).copied()));
    let layers = layers.collect::<Result<_, _>>()?;
    Ok(Image { store, digest, config, layers })
}

fn part(layer: &Descriptor, diff_id: Option<Digest>) -> Result<Part, OciError> {
    let digest = layer.digest()?;
    Ok(Part { digest, diff_id, bytes: layer.size, name: blob_name(digest) })
}

/// The image of a `docker save`: what it names by digest are the archives themselves.
fn saved(
    files: Arc<Files>,
    name: Option<&str>,
    digest: Digest,
    layers_max: usize,
    limit: u64,
) -> Result<Image, OciError> {
    let saved = files.saved(name, limit)?;
    let what = "manifest.json";
    if saved.layers.is_empty() || saved.layers.len() > layers_max {
        return Err(OciError::malformed(
            what,
            format!("it has {} layers, and 1 to {layers_max} can be", saved.layers.len()),
        ));
    }
    let (config, diff_ids) = config(&files.read(&saved.config, limit)?, saved.layers.len())?;
    if diff_ids.is_empty() {
        return Err(OciError::malformed("the image's configuration", "it has no diff_ids"));
    }
    let layers = saved.layers.into_iter().zip(diff_ids).map(|(name, diff_id)| {
        let (_, bytes) = files.open(&name)?;
        Ok(Part { digest: diff_id, diff_id: Some(diff_id), bytes, name })
    });
    let layers = layers.collect::<Result<_, OciError>>()?;
    Ok(Image { store: Store::Files(files), digest, config, layers })
}

pub(super) fn tell(report: &Report<'_>, progress: Progress) {
    if let Ok(mut report) = report.lock() {
        report(progress);
    }
}

pub(super) fn events<'a>(report: &'a Report<'_>) -> impl Fn(Event<'_>) + Send + Sync + 'a {
    |event| {
        if let Event::Retry { what, error } = event {
            tell(report, Progress::Retrying { what: what.to_owned(), reason: error.to_string() });
        }
    }
}

/// Does work that blocks, off the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, OciError> + Send + 'static,
) -> Result<T, OciError> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(OciError::io("finish the work on", path)(error.into())),
    }
}

/// An index names images, and seldom indexes.
const INDEXES_MAX: u32 = 4;
