//! What sandboxes are made from: images, which are everybody's, and snapshots, which are their key's.

use wrenn_core::{Error, Host, Sandbox, Subject, Template, TemplateName};

use crate::service::clock::now_ms;
use crate::service::error::ServiceError;
use crate::store::contract::{SnapshotRecord, Store};

/// Whether an owner may make sandboxes of a template. One that is another's is none.
pub(super) async fn check(store: &dyn Store, owner: &str, name: &str) -> Result<(), ServiceError> {
    let is_anothers = |record: &SnapshotRecord| record.name == name && record.owner != owner;
    match store.snapshots().await?.iter().any(is_anothers) {
        false => Ok(()),
        true => Err(ServiceError::NoSnapshot { name: name.to_owned() }),
    }
}

pub(super) async fn snapshot(
    store: &dyn Store,
    sandbox: &Sandbox,
    owner: &str,
    name: String,
) -> Result<Template, ServiceError> {
    let parsed: TemplateName = name.parse().map_err(Error::from)?;
    // The record comes first: without one, what is there would be everybody's.
    let record = SnapshotRecord { name, owner: owner.to_owned(), created_at_ms: now_ms() };
    if !store.add_snapshot(&record).await? {
        return Err(Error::AlreadyExists { subject: Subject::Template(parsed) }.into());
    }
    match sandbox.snapshot(&record.name).await {
        Ok(template) => Ok(template),
        Err(error) => {
            store.remove_snapshot(&record.name).await?;
            Err(error.into())
        }
    }
}

pub(super) async fn list(host: &Host, store: &dyn Store, owner: &str) -> Result<Vec<Template>, ServiceError> {
    let (templates, records) = (host.templates().await?, store.snapshots().await?);
    let is_anothers = |template: &Template| {
        records.iter().any(|record| record.name == template.name().as_str() && record.owner != owner)
    };
    Ok(templates.into_iter().filter(|template| !is_anothers(template)).collect())
}

pub(super) async fn remove(host: &Host, store: &dyn Store, owner: &str, name: &str) -> Result<(), ServiceError> {
    let is_owners = |record: &SnapshotRecord| record.name == name && record.owner == owner;
    if !store.snapshots().await?.iter().any(is_owners) {
        return Err(ServiceError::NoSnapshot { name: name.to_owned() });
    }
    match host.remove_template(name).await {
        Ok(()) => Ok(store.remove_snapshot(name).await?),
        // Such as one whose server ended between its record and it.
        Err(Error::NotFound { .. }) => {
            store.remove_snapshot(name).await?;
            Err(ServiceError::NoSnapshot { name: name.to_owned() })
        }
        Err(error) => Err(error.into()),
    }
}
