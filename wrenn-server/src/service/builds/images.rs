//! Images of registries, which builds begin with.

use sha2::{Digest as _, Sha256};
use wrenn_core::Host;

use crate::service::builds::recipe::Login;
use crate::service::builds::registries::Reference;
use crate::service::clock::now_ms;
use crate::service::error::ServiceError;
use crate::service::templates::IMAGE;
use crate::store::contract::Store;
use crate::store::records::SnapshotRecord;

/// The name of an image that was pulled for an owner, and is that one's alone: another one may not be allowed to pull it.
/// `report` is told how far that is.
pub(in crate::service) async fn pulled(
    host: &Host,
    store: &dyn Store,
    owner: &str,
    reference: &Reference,
    login: Option<&Login>,
    report: impl Fn(String) + Send,
) -> Result<String, ServiceError> {
    let name = name(owner, reference);
    // The record comes first: without one, what is there would be everybody's.
    let record = SnapshotRecord {
        name: name.clone(),
        owner: owner.to_owned(),
        vcpus: 1,
        memory_mib: 512,
        disk_mib: 0,
        source: format!("{IMAGE}{reference}"),
        created_at_ms: now_ms(),
    };
    let is_new = store.add_snapshot(&record).await?;
    report(format!("pulling {reference}"));
    let pulled = pull(host, &name, reference, login).await;
    if pulled.is_err() && is_new {
        store.remove_snapshot(&name).await?;
    }
    pulled.map(|()| name)
}

async fn pull(_: &Host, _: &str, reference: &Reference, _: Option<&Login>) -> Result<(), ServiceError> {
    let why = format!(
        "{reference} cannot be pulled: this version of wrenn pulls no images. Begin with the template `base`, or with one \
         of this server's"
    );
    std::future::ready(Err(ServiceError::BadBuild { why })).await
}

/// Each owner has images of its own, since the registry may give each of them another one.
fn name(owner: &str, reference: &Reference) -> String {
    let digest = Sha256::digest(format!("{owner}\0{reference}"));
    let digits: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("i-{digits}")
}
