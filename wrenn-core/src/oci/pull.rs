//! From a source to a base.
//!
//! ```text
//! find: what the image is ──▶ layers, several at once: download ─▶ convert ─▶ publish ──▶ base::write
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::mpsc;

use crate::oci::base;
use crate::oci::cache::{Cache, Layer, Lock};
use crate::oci::convert::{Converted, convert};
use crate::oci::digest::{Digest, Hashing};
use crate::oci::directory;
use crate::oci::error::OciError;
use crate::oci::layer_writer::LayerWriter;
use crate::oci::limits::Budget;
use crate::oci::manifest::ImageConfig;
use crate::oci::options::{Progress, PullOptions};
use crate::oci::package_list::PackageList;
use crate::oci::parts::{Image, Part, Report, Store, blocking, choose_image, events, find, tell};
use crate::oci::registry::Event;
use crate::oci::source::Source;
use crate::oci::stream::{Received, Stop};

/// A base that was made.
#[derive(Debug)]
pub(crate) struct Made {
    /// Of the image's manifest, or of the content where there is none: `sha256:` and 64 digits.
    pub(crate) digest: String,
    /// What the source is in full.
    pub(crate) reference: String,
    pub(crate) config: ImageConfig,
    /// The lowest first.
    pub(crate) layers: Vec<LayerInfo>,
    pub(crate) packages: PackageList,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerInfo {
    /// As [`prune`] takes it.
    pub(crate) digest: String,
    /// Of its files, unpacked.
    pub(crate) size: u64,
}

/// Makes the new file `base` of an image: an EROFS file system of its merged layers. The layers are kept in the directory
/// `layers`, and those that are there already are not fetched. The same image gives the same bytes. The base is not made
/// durable.
///
/// # Errors
///
/// Each says what can be done. [`OciError::is_retryable`] tells whether the same call may succeed later.
///
/// # Cancel-Safety
///
/// Whole layers stay for the next call. What is being written is removed in the background, but for `base`, which may
/// be there in part: it belongs to a directory that the caller removes.
pub(crate) async fn make_base(
    source: &Source,
    options: &PullOptions,
    layers: &Path,
    base: &Path,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Made, OciError> {
    let opened = layers.to_owned();
    let open = move || {
        let cache = Cache::open(&opened)?;
        cache.sweep()?;
        Ok(cache)
    };
    let (cache, report) = (blocking(layers, open).await?, Mutex::new(progress));
    let budget = Arc::new(Budget::new(options.limits));
    let (digest, config, parts) = match source {
        Source::Tar(path) => plain(&cache, Plain::Tar(path.clone()), &budget, &report).await?,
        Source::Directory(path) => plain(&cache, Plain::Directory(path.clone()), &budget, &report).await?,
        _ => {
            let image = find(source, options, &report).await?;
            image.fetch(&cache, options, &budget, &report).await?
        }
    };
    tell(&report, Progress::Base);
    let infos =
        parts.iter().map(|layer| LayerInfo { digest: layer.digest.to_string(), size: layer.totals.unpacked_bytes });
    let infos = infos.collect();
    let path = base.to_owned();
    let packages = blocking(base, move || base::write(&parts, &path)).await?;
    Ok(Made { digest: digest.to_string(), reference: source.to_string(), config, layers: infos, packages })
}

/// The digest that [`make_base`] would give, without layers. A tar archive or a directory is read for it.
///
/// # Cancel-Safety
///
/// Nothing is left.
pub(crate) async fn resolve(source: &Source, options: &PullOptions) -> Result<String, OciError> {
    let budget = Budget::new(options.limits);
    let stop = Stop::default();
    let digest = match source {
        Source::Tar(path) => {
            let (opened, part) = (path.clone(), stop.guard(()));
            blocking(path, move || {
                let file = File::open(&opened).map_err(OciError::io("open", &opened))?;
                part.check().and_then(|()| Hashing::new(file).finish()).map_err(OciError::io("read", &opened))
            })
            .await?
            .0
        }
        Source::Directory(path) => {
            let (root, guard) = (path.clone(), stop.guard(()));
            blocking(path, move || directory::read(&root, None, &budget, &guard)).await?.0
        }
        _ => {
            let mut quiet = |_: Progress| {};
            let report: Report<'_> = Mutex::new(&mut quiet);
            choose_image(source, options, &report).await?.1
        }
    };
    Ok(digest.to_string())
}

/// What a source leads to now.
#[derive(Debug)]
pub(crate) struct Found {
    /// As [`resolve`] gives it.
    pub(crate) digest: String,
    /// Each layer's digest and the bytes of its archive, the lowest first.
    pub(crate) layers: Vec<(String, u64)>,
}

/// Asks what a source leads to, without its layers. A tar archive or a directory is read for it.
///
/// # Cancel-Safety
///
/// Nothing is left.
pub(crate) async fn look(source: &Source, options: &PullOptions) -> Result<Found, OciError> {
    if matches!(source, Source::Tar(_) | Source::Directory(_)) {
        let digest = resolve(source, options).await?;
        return Ok(Found { layers: vec![(digest.clone(), 0)], digest });
    }
    let mut quiet = |_: Progress| {};
    let report: Report<'_> = Mutex::new(&mut quiet);
    let image = find(source, options, &report).await?;
    let layers = image.layers.iter().map(|part| (part.digest.to_string(), part.bytes)).collect();
    Ok(Found { digest: image.digest.to_string(), layers })
}

/// Removes the layers whose digests are not in `keep`, but for those that are in the making. Returns what it removed.
pub(crate) async fn prune(layers: &Path, keep: BTreeSet<String>) -> Result<Vec<String>, OciError> {
    let path = layers.to_owned();
    blocking(layers, move || {
        let keep = keep.iter().map(|text| Digest::parse(text, "a layer to keep")).collect::<Result<_, _>>()?;
        let removed = Cache::open(&path)?.prune(&keep)?;
        Ok(removed.iter().map(Digest::to_string).collect())
    })
    .await
}

/// Reads every layer, and returns the digests of those that are whole and of those that are damaged. Removing one with
/// [`prune`] has it fetched anew.
pub(crate) async fn verify(layers: &Path) -> Result<(Vec<String>, Vec<String>), OciError> {
    let path = layers.to_owned();
    blocking(layers, move || {
        let cache = Cache::open(&path)?;
        let (mut whole, mut damaged) = (Vec::new(), Vec::new());
        for digest in cache.digests()? {
            let is_whole = match cache.peek(digest)? {
                Some(layer) => layer.verify().map_err(OciError::io("read", &path))?,
                None => false,
            };
            if is_whole { &mut whole } else { &mut damaged }.push(digest.to_string());
        }
        Ok((whole, damaged))
    })
    .await
}

impl Image {
    async fn fetch(
        self,
        cache: &Cache,
        options: &PullOptions,
        budget: &Arc<Budget>,
        report: &Report<'_>,
    ) -> Result<(Digest, ImageConfig, Vec<Arc<Layer>>), OciError> {
        let bytes = self.layers.iter().map(|layer| layer.bytes).sum();
        tell(report, Progress::Found { digest: self.digest.to_string(), layers: self.layers.len(), bytes });
        // An image may have one layer several times.
        let parts: BTreeMap<Digest, Part> = self.layers.iter().map(|part| (part.digest, part.clone())).collect();
        let downloaded = Mutex::new(0);
        let parallel = options.parallel.max(1);
        let fetches = parts.values().map(|part| self.layer(part, cache, budget, report, &downloaded));
        let fetches: Vec<_> = fetches.collect();
        let fetched: BTreeMap<Digest, Arc<Layer>> = stream::iter(fetches)
            .buffer_unordered(parallel)
            .map_ok(|layer| (layer.digest, Arc::new(layer)))
            .try_collect()
            .await?;
        let (mut layers, mut seen): (Vec<Arc<Layer>>, _) = (Vec::new(), BTreeSet::new());
        for layer in self.layers.iter().filter_map(|part| fetched.get(&part.digest)) {
            if !seen.insert(layer.digest) {
                budget.take_entries(layer.totals.entries)?;
                budget.take_bytes(layer.totals.unpacked_bytes)?;
            }
            layers.push(layer.clone());
        }
        Ok((self.digest, self.config, layers))
    }

    async fn layer(
        &self,
        part: &Part,
        cache: &Cache,
        budget: &Arc<Budget>,
        report: &Report<'_>,
        downloaded: &Mutex<u64>,
    ) -> Result<Layer, OciError> {
        let digest = part.digest;
        if let Some(layer) = kept(cache, digest).await? {
            return part.take(layer, budget, report);
        }
        let lock = cache.lock(digest.hex()).await?;
        if let Some(layer) = kept(cache, digest).await? {
            return part.take(layer, budget, report);
        }
        let stop = Stop::default();
        let layer = match &self.store {
            Store::Files(files) => {
                let (files, name) = (files.clone(), part.name.clone());
                let opened = blocking(Path::new("the image"), move || files.open(&name)).await?.0;
                make(cache, lock, stop.guard(opened), part.clone(), budget).await?
            }
            Store::Registry(registry) => {
                let (to, from) = mpsc::channel(CHUNKS);
                let event = |event: Event<'_>| match event {
                    Event::Bytes(count) => {
                        let bytes = downloaded.lock().map_or(count, |mut sum| {
                            *sum += count;
                            *sum
                        });
                        tell(report, Progress::Downloaded { bytes });
                    }
                    retry => events(report)(retry),
                };
                let converted = make(cache, lock, stop.guard(Received::new(from, part.bytes)), part.clone(), budget);
                let (sent, made) = tokio::join!(registry.layer(digest, part.bytes, to, &event), converted);
                // Where the download failed, the conversion fails of that.
                sent.and(made)?
            }
        };
        tell(report, Progress::Layer { layer: digest.to_string() });
        Ok(layer)
    }
}

impl Part {
    /// A layer that was there counts as one that comes.
    fn take(&self, layer: Layer, budget: &Budget, report: &Report<'_>) -> Result<Layer, OciError> {
        budget.take_bytes(layer.totals.unpacked_bytes)?;
        budget.take_entries(layer.totals.entries)?;
        self.check_diff_id(layer.totals.diff_id)?;
        tell(report, Progress::Kept { layer: self.digest.to_string() });
        Ok(layer)
    }

    fn check_diff_id(&self, found: Digest) -> Result<(), OciError> {
        let what = || format!("the archive in the layer {}", self.digest);
        self.diff_id.map_or(Ok(()), |expected| expected.check(found, what()))
    }

    fn check(&self, converted: &Converted) -> Result<(), OciError> {
        // A saved archive's layer may be compressed, and is named by what is in it.
        if self.diff_id != Some(self.digest) {
            self.digest.check(converted.blob, format!("the layer {}", self.digest))?;
        }
        self.check_diff_id(converted.diff_id)
    }
}

async fn make(
    cache: &Cache,
    lock: Lock,
    blob: impl Read + Send + 'static,
    part: Part,
    budget: &Arc<Budget>,
) -> Result<Layer, OciError> {
    let (cache, budget) = (cache.clone(), budget.clone());
    blocking(Path::new("the cache of layers"), move || {
        let staged = cache.stage(lock)?;
        let mut writer = LayerWriter::create(staged.path()).map_err(OciError::io("create", staged.path()))?;
        let converted = convert(blob, &mut writer, &budget, &format!("the layer {}", part.digest))?;
        part.check(&converted)?;
        let finished = writer.finish(converted.blob, converted.diff_id, converted.unpacked_bytes);
        finished.map_err(OciError::io("write", staged.path()))?;
        cache.publish(staged, part.digest)
    })
    .await
}

/// What is one layer, and says nothing of itself.
enum Plain {
    Tar(PathBuf),
    Directory(PathBuf),
}

async fn plain(
    cache: &Cache,
    plain: Plain,
    budget: &Arc<Budget>,
    report: &Report<'_>,
) -> Result<(Digest, ImageConfig, Vec<Arc<Layer>>), OciError> {
    let (Plain::Tar(path) | Plain::Directory(path)) = &plain;
    let path = path.clone();
    // Two that read the same place wait for each other, and nobody else does.
    let lock = cache.lock(format!("from-{}", Digest::of(path.as_os_str().as_encoded_bytes()).hex())).await?;
    let stop = Stop::default();
    let (made_in, budget, guard) = (cache.clone(), budget.clone(), stop.guard(()));
    let layer = blocking(&path.clone(), move || {
        let staged = made_in.stage(lock)?;
        let mut writer = LayerWriter::create(staged.path()).map_err(OciError::io("create", staged.path()))?;
        let (digest, diff_id, bytes) = match &plain {
            Plain::Tar(path) => {
                let file = File::open(path).map_err(OciError::io("open", path))?;
                let converted =
                    convert(guard.with(file), &mut writer, &budget, &format!("the archive {}", path.display()))?;
                (converted.blob, converted.diff_id, converted.unpacked_bytes)
            }
            Plain::Directory(path) => {
                let (digest, bytes) = directory::read(path, Some(&mut writer), &budget, &guard)?;
                (digest, digest, bytes)
            }
        };
        writer.finish(digest, diff_id, bytes).map_err(OciError::io("write", staged.path()))?;
        made_in.publish(staged, digest)
    })
    .await?;
    tell(report, Progress::Layer { layer: layer.digest.to_string() });
    Ok((layer.digest, ImageConfig::default(), vec![Arc::new(layer)]))
}

async fn kept(cache: &Cache, digest: Digest) -> Result<Option<Layer>, OciError> {
    let cache = cache.clone();
    blocking(Path::new("the cache of layers"), move || cache.layer(digest)).await
}

/// Of a download that are waiting for the conversion, some 16 KiB each.
const CHUNKS: usize = 64;
