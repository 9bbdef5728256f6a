//! Templates, which sandboxes are created from: images, each booted once for each machine shape, and snapshots with a
//! name.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use wrenn_snapshot::{Generation, GenerationId};

use crate::clock::{time_of, unix_ms};
use crate::defaults::Defaults;
use crate::error::{Error, Result, Subject};
use crate::guest::Guest;
use crate::guest::then::Then;
use crate::id::TemplateName;
use crate::image::installed::Image;
use crate::runtime::blocking;
use crate::site::Site;
use crate::site::lock::FileLock;
use crate::site::record;
use crate::site::records::TemplateRecord;
use crate::site::step::Step;
use crate::vmm::shape::{Acceleration, MachineShape};
use crate::vmm::tsc::tsc_khz;

/// A template that sandboxes are created from, as [`Host::templates`](crate::Host::templates) lists it: an image, or a
/// snapshot of a sandbox.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox, host: &wrenn_core::Host) -> wrenn_core::Result<()> {
/// sandbox.exec("python3 -m compileall lib").await?;
/// let template = sandbox.snapshot("warm-python").await?;
/// let copy = wrenn_core::Sandbox::create(host, template.name().as_str()).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Template {
    name: TemplateName,
    snapshot: Option<TemplateRecord>,
}

/// The processors and the memory that a create asks for; `None` takes what the template has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub(crate) vcpus: Option<u32>,
    pub(crate) memory_mib: Option<u32>,
}

/// What a create starts from.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) generation: Generation,
    pub(crate) shape: MachineShape,
    pub(crate) defaults: Defaults,
}

/// What a build starts from, as it is known before anything is booted.
#[derive(Debug)]
pub(crate) struct Base {
    /// Another one wherever the guest would begin as another machine or with other files.
    pub(crate) key: String,
    pub(crate) defaults: Defaults,
}

/// Whether a snapshot may take the name of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    Replaced,
    Refused,
}

impl Template {
    /// The name, which [`Sandbox::create`](crate::Sandbox::create) takes.
    #[must_use]
    pub fn name(&self) -> &TemplateName {
        &self.name
    }

    /// Whether the template is a snapshot of a sandbox, whose processors and memory are fixed. Otherwise it is an
    /// image, which takes any number of processors and any size of memory.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// How many virtual processors a snapshot has; `None` for an image.
    #[must_use]
    pub fn vcpus(&self) -> Option<u32> {
        self.snapshot.as_ref().map(|record| record.shape.vcpus)
    }

    /// The memory of a snapshot, in MiB; `None` for an image.
    #[must_use]
    pub fn memory_mib(&self) -> Option<u32> {
        self.snapshot.as_ref().map(|record| record.shape.memory_mib)
    }

    /// What a snapshot says of the processes of its sandboxes; `None` for an image, of which
    /// [`Image::defaults`](crate::image::Image::defaults) tells it.
    #[must_use]
    pub fn defaults(&self) -> Option<&Defaults> {
        self.snapshot.as_ref().map(|record| &record.defaults)
    }

    /// When the snapshot was made; `None` for an image.
    #[must_use]
    pub fn created_at(&self) -> Option<SystemTime> {
        self.snapshot.as_ref().map(|record| time_of(record.created_at_ms))
    }

    /// All templates but those whose record is damaged, by name. Blocks.
    pub(crate) fn all(site: &Site) -> Result<Vec<Self>> {
        let mut templates = Vec::new();
        for stem in record::stems(&site.data.templates())? {
            let Ok(name) = stem.parse::<TemplateName>() else { continue };
            if let Ok(Some(snapshot)) = record::read(&site.data.template(&name)) {
                templates.push(Self { name, snapshot: Some(snapshot) });
            }
        }
        for image in Image::names(site.data.path())? {
            let name: TemplateName = image.parse()?;
            if templates.iter().all(|template| template.name != name) {
                templates.push(Self { name, snapshot: None });
            }
        }
        templates.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(templates)
    }

    /// The generation to create from and its machine, booting the image first where that has not been done for this
    /// shape.
    pub(crate) async fn generation(site: &Arc<Site>, name: &TemplateName, wanted: Wanted) -> Result<Found> {
        match Origin::of(site, name).await? {
            Origin::Snapshot(record) => {
                check_locked(name, &record.shape, wanted)?;
                let generation = load(site, record.generation).await?;
                Ok(Found { generation, shape: record.shape, defaults: record.defaults })
            }
            Origin::Image { image, is_current, tsc_khz } => {
                let image = if is_current { *image } else { image.renew().await? };
                let shape = shape_of(site, wanted, tsc_khz)?;
                let defaults = image.defaults().clone();
                let (generation, shape) = booted(site, image, shape).await?;
                Ok(Found { generation, shape, defaults })
            }
        }
    }

    /// What a build of a template starts from. Nothing is booted for that.
    pub(crate) async fn base(site: &Arc<Site>, name: &TemplateName, wanted: Wanted) -> Result<Base> {
        match Origin::of(site, name).await? {
            Origin::Snapshot(record) => {
                check_locked(name, &record.shape, wanted)?;
                Ok(Base { key: format!("snapshot-{}", record.generation), defaults: record.defaults })
            }
            Origin::Image { image, is_current, tsc_khz } => {
                let image = if is_current { *image } else { image.renew().await? };
                let shape = shape_of(site, wanted, tsc_khz)?;
                Ok(Base { key: boot_key(site, &image, &shape), defaults: image.defaults().clone() })
            }
        }
    }

    /// Gives what a build has made its name. A snapshot of that name is replaced, if it may be: sandboxes of it go on, and
    /// what it has is kept for as long as anybody needs it. Blocks.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] where an image has the name, or a snapshot that is not to be replaced.
    pub(crate) fn publish(
        site: &Arc<Site>,
        name: &TemplateName,
        generation: &Generation,
        shape: &MachineShape,
        defaults: &Defaults,
        former: Taken,
    ) -> Result<Self> {
        if former == Taken::Refused {
            Self::check_free(site, name)?;
            return Self::name_snapshot(site, name, generation, shape, defaults);
        }
        Self::check_no_image(site, name)?;
        let path = site.data.template(name);
        let snapshot = TemplateRecord {
            generation: generation.id(),
            shape: shape.clone(),
            created_at_ms: unix_ms(),
            defaults: defaults.clone(),
        };
        // A damaged record is replaced, too.
        let former = record::read::<TemplateRecord>(&path).ok().flatten();
        let is_same = |former: &TemplateRecord| {
            (&former.generation, &former.shape, &former.defaults)
                == (&snapshot.generation, &snapshot.shape, &snapshot.defaults)
        };
        let snapshot = match former.filter(is_same) {
            Some(former) => former,
            None => {
                site.keep(&path, &snapshot)?;
                snapshot
            }
        };
        Ok(Self { name: name.clone(), snapshot: Some(snapshot) })
    }

    /// Refuses the name of an image. Blocks.
    pub(crate) fn check_no_image(site: &Site, name: &TemplateName) -> Result<()> {
        if Image::names(site.data.path())?.iter().any(|image| image == name.as_str()) {
            return Err(taken(name));
        }
        Ok(())
    }

    /// Gives a generation a name that [`Sandbox::create`](crate::Sandbox::create) takes. Blocks.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] where another snapshot took the name meanwhile.
    pub(crate) fn name_snapshot(
        site: &Arc<Site>,
        name: &TemplateName,
        generation: &Generation,
        shape: &MachineShape,
        defaults: &Defaults,
    ) -> Result<Self> {
        let snapshot = TemplateRecord {
            generation: generation.id(),
            shape: shape.clone(),
            created_at_ms: unix_ms(),
            defaults: defaults.clone(),
        };
        if !site.keep_new(&site.data.template(name), &snapshot)? {
            return Err(taken(name));
        }
        Ok(Self { name: name.clone(), snapshot: Some(snapshot) })
    }

    /// Refuses a name that is in use. Blocks.
    pub(crate) fn check_free(site: &Arc<Site>, name: &TemplateName) -> Result<()> {
        if Self::all(site)?.iter().any(|template| template.name() == name) { Err(taken(name)) } else { Ok(()) }
    }
}

/// Loads a generation. While it is held, no collection removes it.
pub(crate) async fn load(site: &Arc<Site>, id: GenerationId) -> Result<Generation> {
    let store = site.store.clone();
    Ok(blocking("load a snapshot", move || store.load(id)).await??)
}

pub(crate) const VCPUS_DEFAULT: u32 = 1;
pub(crate) const MEMORY_MIB_DEFAULT: u32 = 512;
const VCPUS_MAX: u32 = 32;
const MEMORY_MIB_MIN: u32 = 128;
const MEMORY_MIB_MAX: u32 = 64 * 1024;
/// Boots that are kept of each image: each takes some 100 MB of disk, and 3 s to make anew.
const BOOTS_MAX: usize = 8;
/// A boot is given up on after 120 s, and its capture is bounded by the disk.
const BOOT_PATIENCE: Duration = Duration::from_secs(600);
const BOOT_POLL: Duration = Duration::from_millis(20);

/// The template that a name stands for.
enum Origin {
    Snapshot(TemplateRecord),
    Image {
        image: Box<Image>,
        /// Whether the image has the agent that comes with this library.
        is_current: bool,
        /// The rate of an emulated guest's clock, in kHz.
        tsc_khz: Option<u32>,
    },
}

impl Origin {
    async fn of(site: &Arc<Site>, name: &TemplateName) -> Result<Self> {
        let (here, named) = (Arc::clone(site), name.clone());
        blocking("find the template", move || Self::find(&here, &named)).await?
    }

    /// Blocks.
    fn find(site: &Arc<Site>, name: &TemplateName) -> Result<Self> {
        if let Some(record) = record::read(&site.data.template(name))? {
            return Ok(Self::Snapshot(record));
        }
        if !Image::names(site.data.path())?.iter().any(|image| image == name.as_str()) {
            return Err(unknown(site, name)?);
        }
        let tsc_khz = if site.probe.acceleration == Acceleration::Tcg { tsc_khz() } else { None };
        let image = Image::open(site.data.path(), name.as_str())?;
        Ok(Self::Image { is_current: image.has_current_agent(), image: Box::new(image), tsc_khz })
    }
}

/// The machine that an image is booted as.
fn shape_of(site: &Site, wanted: Wanted, tsc_khz: Option<u32>) -> Result<MachineShape> {
    let shape = MachineShape {
        vcpus: wanted.vcpus.unwrap_or(VCPUS_DEFAULT),
        memory_mib: wanted.memory_mib.unwrap_or(MEMORY_MIB_DEFAULT),
        acceleration: site.probe.acceleration,
        tsc_khz,
    };
    check_limits(&shape)?;
    Ok(shape)
}

async fn booted(site: &Arc<Site>, image: Image, shape: MachineShape) -> Result<(Generation, MachineShape)> {
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

/// What a boot does with its guest before it is anybody's: another word with each change of that.
const BOOT: &str = "names";

fn short_digest(image: &Image) -> String {
    let mut digest = image.digest();
    digest.truncate(16);
    digest
}

fn taken(name: &TemplateName) -> Error {
    Error::AlreadyExists { subject: Subject::Template(name.clone()) }
}

fn check_locked(name: &TemplateName, shape: &MachineShape, wanted: Wanted) -> Result<()> {
    let differs = |wanted: Option<u32>, has: u32| wanted.is_some_and(|wanted| wanted != has);
    if differs(wanted.vcpus, shape.vcpus) || differs(wanted.memory_mib, shape.memory_mib) {
        return Err(Error::invalid(format!(
            "template {name} is a snapshot of a machine with {} vCPUs and {} MiB, which cannot be changed: leave both \
             out, or create from an image",
            shape.vcpus, shape.memory_mib
        )));
    }
    Ok(())
}

fn check_limits(shape: &MachineShape) -> Result<()> {
    if !(1..=VCPUS_MAX).contains(&shape.vcpus) {
        return Err(Error::invalid(format!("{} vCPUs: ask for 1 to {VCPUS_MAX}", shape.vcpus)));
    }
    if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&shape.memory_mib) {
        return Err(Error::invalid(format!(
            "{} MiB of memory: ask for {MEMORY_MIB_MIN} to {MEMORY_MIB_MAX} MiB",
            shape.memory_mib
        )));
    }
    Ok(())
}

fn unknown(site: &Arc<Site>, name: &TemplateName) -> Result<Error> {
    let names: Vec<String> = Template::all(site)?.iter().map(|template| template.name().to_string()).collect();
    let here = match names.as_slice() {
        [] => "there are none yet: `Host::ensure_image` makes `base`, and so does `wrenn-server setup`".to_owned(),
        names => format!("there are {}", names.join(", ")),
    };
    Ok(Error::not_found(Subject::Template(name.clone()), format!("no template is named {name}; {here}")))
}
