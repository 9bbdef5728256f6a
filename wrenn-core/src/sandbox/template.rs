//! Templates, which sandboxes are created from: images, and snapshots with a name.

use std::sync::Arc;
use std::time::SystemTime;

use wrenn_snapshot::{Generation, GenerationId};

use crate::clock::{time_of, unix_ms};
use crate::defaults::Defaults;
use crate::error::{Error, Result, Subject};
use crate::id::TemplateName;
use crate::image::installed::Image;
use crate::runtime::blocking;
use crate::sandbox::boots::{boot_key, booted};
use crate::site::Site;
use crate::site::record;
use crate::site::records::TemplateRecord;
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

    pub(crate) fn generation_id(&self) -> Option<GenerationId> {
        self.snapshot.as_ref().map(|record| record.generation)
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

    /// Gives a generation its name. A snapshot of that name is replaced, if it may be: sandboxes of it go on, and
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
