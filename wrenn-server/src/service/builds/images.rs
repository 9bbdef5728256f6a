//! Images of registries, which builds begin with.

use sha2::{Digest as _, Sha256};
use wrenn_core::Host;
use wrenn_core::image::{Image, ImageError, Step};

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
    let pulled = pull(host, &name, reference, login, report).await;
    if pulled.is_err() && is_new {
        store.remove_snapshot(&name).await?;
    }
    pulled.map(|()| name)
}

async fn pull(
    host: &Host,
    name: &str,
    reference: &Reference,
    login: Option<&Login>,
    report: impl Fn(String) + Send,
) -> Result<(), ServiceError> {
    let builder = Image::builder(name).oci(reference.to_string());
    // The logins of this machine are its operator's.
    let builder = match login {
        Some(login) => builder.registry_login(&login.user, &login.password.0),
        None => builder.registry_anonymous(),
    };
    let built = builder.build(host.data_dir(), move |step: &Step| report(step.to_string())).await;
    match built {
        Ok(_) => Ok(()),
        Err(error @ ImageError::Oci(_)) => Err(ServiceError::BadBuild { why: error.to_string() }),
        Err(error) => Err(wrenn_core::Error::from(error).into()),
    }
}

/// Whether an image has the name of one that was pulled for builds.
#[must_use]
pub fn is_pulled(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|digits| {
        digits.len() == 2 * DIGEST_BYTES && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Each owner has images of its own, since the registry may give each of them another one.
fn name(owner: &str, reference: &Reference) -> String {
    let digest = Sha256::digest(format!("{owner}\0{reference}"));
    let digits: String = digest.iter().take(DIGEST_BYTES).map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}{digits}")
}

const PREFIX: &str = "i-";
const DIGEST_BYTES: usize = 6;
