//! What sandboxes are made from: images, which are everybody's, and snapshots, which are their key's.

use wrenn_core::image::Image;
use wrenn_core::{Error, Host, Sandbox, Subject, Template, TemplateName};

use crate::service::clock::now_ms;
use crate::service::error::ServiceError;
use crate::store::contract::Store;
use crate::store::records::{SandboxRecord, SnapshotRecord};

/// What becomes of a snapshot that has the name of a new one, and the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Former {
    /// It stays, and the new one is refused.
    Kept,
    /// It is replaced.
    Replaced,
}

/// What a template's sandboxes have where nothing else is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) vcpus: u32,
    pub(super) memory_mib: u32,
    pub(super) disk_mib: u32,
    /// The name that it was built under, if it was.
    pub(super) built_as: Option<String>,
}

/// The name of the template that a name, with or without a tag, stands for.
pub(super) async fn resolve(store: &dyn Store, owner: &str, asked: &str) -> Result<String, ServiceError> {
    let none = || ServiceError::NoSnapshot { name: asked.to_owned() };
    let (name, tag) = asked.split_once(':').unwrap_or((asked, DEFAULT));
    let tag = normalized(tag).ok_or_else(none)?;
    match store.tag(owner, name, &tag).await? {
        Some(record) => Ok(record.template),
        None if [DEFAULT, LATEST].contains(&&*tag) => Ok(name.to_owned()),
        None => Err(none()),
    }
}

/// A tag as it is kept: in small letters. `None` if it can be none.
pub(super) fn normalized(tag: &str) -> Option<String> {
    let tag = tag.trim().to_ascii_lowercase();
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    ((1..=TAG_BYTES_MAX).contains(&tag.len()) && tag.bytes().all(is_good)).then_some(tag)
}

/// The shape of a template that an owner may make sandboxes of. One that is another's is none.
pub(super) async fn shape(host: &Host, store: &dyn Store, owner: &str, name: &str) -> Result<Shape, ServiceError> {
    match store.snapshot(name).await? {
        Some(SnapshotRecord { owner: its, vcpus, memory_mib, disk_mib, source, .. }) if its == owner => {
            Ok(Shape { vcpus, memory_mib, disk_mib, built_as: source.strip_prefix(BUILD).map(str::to_owned) })
        }
        Some(_) => Err(ServiceError::NoSnapshot { name: name.to_owned() }),
        None => {
            let (data_dir, name) = (host.data_dir().to_owned(), name.to_owned());
            let image = tokio::task::spawn_blocking(move || Image::open(&data_dir, &name)).await?;
            // What is no image is refused by the create, which knows why.
            let bytes = image.map_or(0, |image| image.drive_size_bytes());
            Ok(Shape { disk_mib: u32::try_from(bytes >> 20).unwrap_or(u32::MAX), ..IMAGES_SHAPE })
        }
    }
}

/// Makes a snapshot, for who has the lock of its name.
pub(super) async fn snapshot(
    host: &Host,
    store: &dyn Store,
    sandbox: &Sandbox,
    of: &SandboxRecord,
    name: String,
    former: Former,
) -> Result<Template, ServiceError> {
    let parsed: TemplateName = name.parse().map_err(Error::from)?;
    // The record comes first: without one, what is there would be everybody's.
    let record = SnapshotRecord {
        name,
        owner: of.owner.clone(),
        vcpus: of.vcpus,
        memory_mib: of.memory_mib,
        disk_mib: of.asked.disk_mib,
        source: of.id.to_string(),
        created_at_ms: now_ms(),
    };
    if !store.add_snapshot(&record).await? {
        let is_own = |its: SnapshotRecord| its.owner == of.owner && !is_made_by_builds(&its);
        if former == Former::Kept || !store.snapshot(&record.name).await?.is_some_and(is_own) {
            return Err(Error::AlreadyExists { subject: Subject::Template(parsed) }.into());
        }
        let template = sandbox.replace_snapshot(&record.name).await?;
        if !store.set_snapshot(&record).await? {
            // An operator has removed it meanwhile: without a record it would be everybody's.
            host.remove_template(&record.name).await?;
            return Err(ServiceError::NoSnapshot { name: record.name });
        }
        return Ok(template);
    }
    match sandbox.snapshot(&record.name).await {
        Ok(template) => Ok(template),
        Err(error) => {
            store.remove_snapshot(&record.name).await?;
            Err(error.into())
        }
    }
}

/// All that an owner may make sandboxes of.
pub(super) async fn list(host: &Host, store: &dyn Store, owner: &str) -> Result<Vec<Template>, ServiceError> {
    let (templates, records) = (host.templates().await?, store.snapshots().await?);
    let is_anothers = |template: &Template| {
        records.iter().any(|record| record.name == template.name().as_str() && record.owner != owner)
    };
    Ok(templates.into_iter().filter(|template| !is_anothers(template)).collect())
}

/// The same without what builds have made, or pulled, and is known by other names.
pub(super) async fn list_plain(host: &Host, store: &dyn Store, owner: &str) -> Result<Vec<Template>, ServiceError> {
    let (mut templates, records) = (list(host, store, owner).await?, store.snapshots().await?);
    templates.retain(|template| {
        !records.iter().any(|record| record.name == template.name().as_str() && is_made_by_builds(record))
    });
    Ok(templates)
}

pub(super) async fn remove(host: &Host, store: &dyn Store, owner: &str, name: &str) -> Result<(), ServiceError> {
    let none = || ServiceError::NoSnapshot { name: name.to_owned() };
    store.snapshot(name).await?.filter(|record| record.owner == owner).ok_or_else(none)?;
    match host.remove_template(name).await {
        Ok(()) => Ok(store.remove_snapshot(name).await?),
        // Such as one whose server ended between its record and it.
        Err(Error::NotFound { .. }) => {
            store.remove_snapshot(name).await?;
            Err(none())
        }
        Err(error) => Err(error.into()),
    }
}

/// What stands for the template of the name itself, unless it is assigned.
pub(super) const DEFAULT: &str = "default";
pub(super) const LATEST: &str = "latest";
const TAG_BYTES_MAX: usize = 128;
/// What `wrenn-core` gives a sandbox of an image.
const IMAGES_SHAPE: Shape = Shape { vcpus: 1, memory_mib: 512, disk_mib: 0, built_as: None };
/// Whether a record is of what builds have made, or pulled.
pub(super) fn is_made_by_builds(record: &SnapshotRecord) -> bool {
    [BUILD, IMAGE].iter().any(|kind| record.source.starts_with(kind))
}

/// What the source of a template that was built begins with; its name comes then.
pub(super) const BUILD: &str = "build:";
/// The same of an image that was pulled; its registry's name for it comes then.
pub(super) const IMAGE: &str = "image:";
