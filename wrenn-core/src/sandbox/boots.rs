//! The boots of images: an image is booted once for each machine shape, and every create from it restores that generation.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use wrenn_snapshot::Generation;

use crate::clock::unix_ms;
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::guest::then::Then;
use crate::image::installed::Image;
use crate::runtime::blocking;
use crate::site::Site;
use crate::site::lock::FileLock;
use crate::site::record;
use crate::site::records::TemplateRecord;
use crate::site::step::Step;
use crate::vmm::shape::MachineShape;

/// The generation of an image that has booted as a machine of this shape, booting it first where that has not been done.
pub(super) async fn booted(site: &Arc<Site>, image: Image, shape: MachineShape) -> Result<(Generation, MachineShape)> {
    let key = boot_key(site, &image, &shape);
    let path = site.data.booted().join(format!("{key}.json"));
    if let Some(found) = find(site, &path).await? {
        return Ok(found);
    }
    let _booting = match turn_to_boot(site, &key, &path).await? {
        Turn::Boot(lock) => lock,
        Turn::Booted(generation, shape) => return Ok((generation, shape)),
    };
    site.observer.at(Step::Boot)?;
    tracing::info!(image = image.name(), vcpus = shape.vcpus, memory_mib = shape.memory_mib, "booting the template");
    let mut guest = Guest::boot(site, &image, shape.clone()).await?;
    let generation = guest.capture(site, Then::Stay).await;
    guest.kill().await;
    let generation = generation?;
    let record = TemplateRecord {
        generation: generation.id(),
        shape: shape.clone(),
        created_at_ms: unix_ms(),
        defaults: image.defaults().clone(),
    };
    let keeper = Arc::clone(site);
    let keep = move || {
        keeper.keep(&path, &record)?;
        // Whoever removes an image looks at what is recorded.
        if let Err(error) = Image::base_of_digest(keeper.data.path(), image.name(), image.base_digest()) {
            record::remove(&path)?;
            return Err(error.into());
        }
        forget_boots(&keeper, &image, &key)
    };
    blocking("record the booted template", keep).await??;
    Ok((generation, shape))
}

/// The result of waiting for other creates that boot the same template.
enum Turn {
    Booted(Generation, MachineShape),
    Boot(FileLock),
}

/// Waits without a thread, so that any number of creates may wait for one boot.
async fn turn_to_boot(site: &Arc<Site>, key: &str, path: &Path) -> Result<Turn> {
    let deadline = Instant::now() + BOOT_PATIENCE;
    loop {
        let (data, name) = (site.data.clone(), format!("boot-{key}"));
        let lock = blocking("wait for another boot of this template", move || data.try_lock(&name)).await??;
        // Another program may have booted the template while this one waited.
        if let Some((generation, shape)) = find(site, path).await? {
            return Ok(Turn::Booted(generation, shape));
        }
        if let Some(lock) = lock {
            return Ok(Turn::Boot(lock));
        }
        if Instant::now() >= deadline {
            let text = format!("its lock has been held for {} s", BOOT_PATIENCE.as_secs());
            return Err(Error::failed("wait for another boot of this template")(text.into()));
        }
        tokio::time::sleep(BOOT_POLL).await;
    }
}

/// Removes the records of boots that are probably not needed any more: all boots of former contents of the image, and
/// all boots of its present content except those that were used last. The boot `own` always stays. Blocks.
pub(crate) fn forget_boots(site: &Site, image: &Image, own: &str) -> Result<()> {
    let (of_image, current) = (format!("{}-", image.name()), format!("-{}", short_digest(image)));
    let mut boots: Vec<(Option<SystemTime>, String)> = Vec::new();
    for stem in record::stems(&site.data.booted())? {
        // The name of an image may begin with the name of another image.
        if stem != own && stem.strip_prefix(&of_image).is_some_and(is_shape) {
            let used = boot_path(site, &stem).metadata().and_then(|metadata| metadata.modified()).ok();
            boots.push((used.filter(|_| stem.ends_with(&current)), stem));
        }
    }
    // Boots of former contents come last, as if they had never been used.
    boots.sort_by(|a, b| b.cmp(a));
    let outdated = boots.iter().filter(|(used, _)| used.is_none()).count();
    let kept = (boots.len() - outdated).min(BOOTS_MAX - 1);
    for (_, stem) in &boots[kept..] {
        record::remove(&boot_path(site, stem))?;
        site.data.forget_lock(&format!("boot-{stem}"));
    }
    if kept < boots.len() {
        tracing::debug!(image = image.name(), count = boots.len() - kept, "forgot booted templates");
    }
    Ok(())
}

/// Removes the records of all boots of an image that is no more. Blocks.
pub(crate) fn forget_boots_of(site: &Site, image: &str) -> Result<()> {
    let of_image = format!("{image}-");
    for stem in record::stems(&site.data.booted())? {
        if stem.strip_prefix(&of_image).is_some_and(is_shape) {
            record::remove(&boot_path(site, &stem))?;
            site.data.forget_lock(&format!("boot-{stem}"));
        }
    }
    Ok(())
}

/// When a boot of an image was last used; `None` where it has not booted. Blocks.
pub(crate) fn booted_at(site: &Site, image: &str) -> Result<Option<SystemTime>> {
    let of_image = format!("{image}-");
    let stems = record::stems(&site.data.booted())?;
    let boots = stems.iter().filter(|stem| stem.strip_prefix(&of_image).is_some_and(is_shape));
    Ok(boots.filter_map(|stem| boot_path(site, stem).metadata().and_then(|metadata| metadata.modified()).ok()).max())
}

/// Whether the text after an image's name begins with `1c-512m-`, as that of a boot key does.
fn is_shape(rest: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = rest.split('-');
    let mut part = |unit: char| parts.next().and_then(|part| part.strip_suffix(unit)).is_some_and(number);
    part('c') && part('m')
}

fn boot_path(site: &Site, stem: &str) -> PathBuf {
    site.data.booted().join(format!("{stem}.json"))
}

/// Finds the generation of an earlier boot, and notes its use. `None`, and a warning in the log, where it cannot be
/// used.
pub(crate) async fn find(site: &Arc<Site>, path: &Path) -> Result<Option<(Generation, MachineShape)>> {
    let (store, path) = (site.store.clone(), path.to_owned());
    let find = move || {
        let record = record::read::<TemplateRecord>(&path);
        let loaded = record.and_then(|record| match record {
            Some(record) => Ok(Some((store.load(record.generation)?, record.shape))),
            None => Ok(None),
        });
        match loaded {
            Ok(found) => {
                if found.is_some() {
                    note_use(&path);
                }
                found
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the booted template is unusable; booting anew");
                None
            }
        }
    };
    blocking("find the booted template", find).await
}

/// Notes the use of a booted template, or of a step, as the time of its record's file.
pub(crate) fn note_use(path: &Path) {
    let noted = std::fs::File::options().write(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = noted {
        tracing::debug!(error = &error as &dyn std::error::Error, "the use of a record was not noted");
    }
}

/// The name of a boot's record. Boots of the same image, machine shape and VMM have the same key.
pub(crate) fn boot_key(site: &Arc<Site>, image: &Image, shape: &MachineShape) -> String {
    let vmm: String =
        site.vmm.version().chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let accel = format!("{:?}", shape.acceleration).to_lowercase();
    let (name, MachineShape { vcpus, memory_mib, .. }) = (image.name(), shape);
    format!("{name}-{vcpus}c-{memory_mib}m-{vmm}-{accel}-{BOOT}-{}", short_digest(image))
}

fn short_digest(image: &Image) -> String {
    let mut digest = image.digest();
    digest.truncate(16);
    digest
}

/// Boots that are kept of each image: each takes some 100 MB of disk, and 3 s to make anew.
const BOOTS_MAX: usize = 8;
/// A boot is given up on after 120 s, and its capture is bounded by the disk.
const BOOT_PATIENCE: Duration = Duration::from_secs(600);
const BOOT_POLL: Duration = Duration::from_millis(20);
/// What a boot does with its guest before it is anybody's: another word with each change of that.
const BOOT: &str = "tickless";
