//! What sandboxes are made from: an image that is booted once for each machine shape, or a snapshot with a name.

use crate::clock::unix_ms;
use crate::site::records::TemplateRecord;
use std::sync::Arc;

use wrenn_snapshot::{Generation, GenerationId};

use crate::error::{Error, Result, Subject};
use crate::guest::Guest;
use crate::guest::then::Then;
use crate::id::TemplateName;
use crate::image::installed::Image;
use crate::runtime::blocking;
use crate::site::Site;
use crate::site::record;
use crate::site::step::Step;
use crate::vmm::shape::{Acceleration, MachineShape};
use crate::vmm::tsc::tsc_khz;

/// A template, as [`Host::templates`](crate::Host::templates) lists it.
#[derive(Debug, Clone)]
pub struct Template {
    name: TemplateName,
    snapshot: Option<TemplateRecord>,
}

/// What a create asks of the machine; `None` takes what the template has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub(crate) vcpus: Option<u32>,
    pub(crate) memory_mib: Option<u32>,
}

impl Template {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &TemplateName {
        &self.name
    }

    /// Whether it is a snapshot of a sandbox, which fixes processors and memory; otherwise it is an image, which takes
    /// any.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Virtual processors of a snapshot.
    #[must_use]
    pub fn vcpus(&self) -> Option<u32> {
        self.snapshot.as_ref().map(|record| record.shape.vcpus)
    }

    /// Memory of a snapshot, in MiB.
    #[must_use]
    pub fn memory_mib(&self) -> Option<u32> {
        self.snapshot.as_ref().map(|record| record.shape.memory_mib)
    }

    pub(crate) fn all(site: &Arc<Site>) -> Result<Vec<Self>> {
        let mut templates = Vec::new();
        for stem in record::stems(&site.data.templates())? {
            let name: TemplateName = stem.parse()?;
            if let Some(snapshot) = record::read(&site.data.template(&name))? {
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

    /// The generation to create from, booting the image first where that has not been done for this shape.
    pub(crate) async fn generation(site: &Arc<Site>, name: &TemplateName, wanted: Wanted) -> Result<Generation> {
        if let Some(record) = record::read::<TemplateRecord>(&site.data.template(name))? {
            check_locked(name, &record.shape, wanted)?;
            return load(site, record.generation).await;
        }
        if !Image::names(site.data.path())?.iter().any(|image| image == name.as_str()) {
            return Err(unknown(site, name)?);
        }
        let image = Image::open(site.data.path(), name.as_str())?;
        let acceleration = site.probe.acceleration;
        let shape = MachineShape {
            vcpus: wanted.vcpus.unwrap_or(VCPUS_DEFAULT),
            memory_mib: wanted.memory_mib.unwrap_or(MEMORY_MIB_DEFAULT),
            acceleration,
            tsc_khz: if acceleration == Acceleration::Tcg { tsc_khz() } else { None },
        };
        check_limits(&shape)?;
        booted(site, &image, shape).await
    }

    /// Gives a generation a name that [`Sandbox::create`](crate::Sandbox::create) takes.
    pub(crate) fn name_snapshot(
        site: &Arc<Site>,
        name: &TemplateName,
        generation: &Generation,
        shape: &MachineShape,
    ) -> Result<Self> {
        let snapshot = TemplateRecord { generation: generation.id(), shape: shape.clone(), created_at_ms: unix_ms() };
        site.keep(&site.data.template(name), &snapshot)?;
        Ok(Self { name: name.clone(), snapshot: Some(snapshot) })
    }

    /// Refuses a name that is in use.
    pub(crate) fn check_free(site: &Arc<Site>, name: &TemplateName) -> Result<()> {
        if Self::all(site)?.iter().any(|template| template.name() == name) {
            return Err(Error::invalid(format!(
                "there is a template named {name} already: choose another name, or remove it with \
                 `Host::remove_template`"
            )));
        }
        Ok(())
    }
}

/// Loads a generation, and with it pins it against collection.
pub(crate) async fn load(site: &Arc<Site>, id: GenerationId) -> Result<Generation> {
    let store = site.store.clone();
    let load = move || store.load(id);
    let generation = tokio::task::spawn_blocking(load).await.map_err(|e| Error::failed("load a snapshot")(e.into()))?;
    Ok(generation?)
}

pub(crate) const VCPUS_DEFAULT: u32 = 1;
pub(crate) const MEMORY_MIB_DEFAULT: u32 = 512;
const VCPUS_MAX: u32 = 32;
const MEMORY_MIB_MIN: u32 = 128;
const MEMORY_MIB_MAX: u32 = 64 * 1024;

async fn booted(site: &Arc<Site>, image: &Image, shape: MachineShape) -> Result<Generation> {
    let key = boot_key(site, image, &shape);
    let path = site.data.booted().join(format!("{key}.json"));
    let known = record::read::<TemplateRecord>(&path)?;
    if let Some(generation) = find(site, known).await {
        return Ok(generation);
    }
    let lock = {
        let data = site.data.clone();
        let name = format!("boot-{key}");
        tokio::task::spawn_blocking(move || data.lock(&name)).await
    };
    let _booting = lock.map_err(|e| Error::failed("wait for another boot of this template")(e.into()))??;
    // Another program may have booted it while this one waited.
    if let Some(generation) = find(site, record::read::<TemplateRecord>(&path)?).await {
        return Ok(generation);
    }
    site.observer.at(Step::Boot)?;
    tracing::info!(image = image.name(), vcpus = shape.vcpus, memory_mib = shape.memory_mib, "booting the template");
    let mut guest = Guest::boot(site, image, shape.clone()).await?;
    let generation = guest.capture(site, Then::Stay).await;
    guest.kill().await;
    let generation = generation?;
    let record = TemplateRecord { generation: generation.id(), shape, created_at_ms: unix_ms() };
    let keeper = site.clone();
    blocking("record the booted template", move || keeper.keep(&path, &record)).await??;
    forget_outdated(site, image)?;
    Ok(generation)
}

/// Forgets the boots of what the image was before: nothing is created from them any more.
fn forget_outdated(site: &Arc<Site>, image: &Image) -> Result<()> {
    let (of_image, current) = (format!("{}-", image.name()), format!("-{}", short_digest(image)));
    for stem in record::stems(&site.data.booted())? {
        let shape = stem.strip_prefix(&of_image).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        if shape && !stem.ends_with(&current) {
            record::remove(&site.data.booted().join(format!("{stem}.json")))?;
            site.data.forget_lock(&format!("boot-{stem}"));
        }
    }
    Ok(())
}

/// The generation of an earlier boot; `None`, and a word in the log, where it cannot be used any more.
async fn find(site: &Arc<Site>, known: Option<TemplateRecord>) -> Option<Generation> {
    match load(site, known?.generation).await {
        Ok(generation) => Some(generation),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the booted template is unusable; booting anew");
            None
        }
    }
}

/// Two boots with the same key would give the same template.
fn boot_key(site: &Arc<Site>, image: &Image, shape: &MachineShape) -> String {
    let vmm: String =
        site.vmm.version().chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let accel = format!("{:?}", shape.acceleration).to_lowercase();
    format!("{}-{}c-{}m-{vmm}-{accel}-{}", image.name(), shape.vcpus, shape.memory_mib, short_digest(image))
}

fn short_digest(image: &Image) -> String {
    let mut digest = image.digest();
    digest.truncate(16);
    digest
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
        [] => "there are none yet: `cargo xtask setup` makes `base`".to_owned(),
        names => format!("there are {}", names.join(", ")),
    };
    Ok(Error::not_found(Subject::Template(name.clone()), format!("no template is named {name}; {here}")))
}
