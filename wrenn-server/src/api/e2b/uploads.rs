//! The files of builds, which clients send by a link that they ask for.

use axum::Json;
use axum::body::Body as Bytes;
use axum::extract::{Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use crate::api::e2b::answer::Refused;
use crate::api::e2b::owner::Owner;
use crate::api::e2b::query::Pairs;
use crate::api::state::Context;
use crate::service::builds::files::is_hash;
use crate::service::clock::now_ms;
use crate::service::error::ServiceError;

#[derive(Debug, Serialize)]
pub(super) struct LinkBody {
    present: bool,
    url: String,
}

/// Whether files are there already, and where to send them.
pub(super) async fn link(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path((id, hash)): Path<(String, String)>,
    parts: Parts,
) -> Result<(StatusCode, Json<LinkBody>), Refused> {
    known(&hash)?;
    // The link has the right to write, whose asking is a reading.
    if !may_send(&context, &owner).await? {
        return Err(Refused::new(StatusCode::FORBIDDEN, "This API key may only look"));
    }
    let until_sec = now_ms() / 1000 + LINK_SEC;
    let token = context.secret.upload_token(&owner, &hash, until_sec);
    let (id, by) = (utf8_percent_encode(&id, NON_ALPHANUMERIC), utf8_percent_encode(&owner, NON_ALPHANUMERIC));
    let here = here(&parts, context.scheme)?;
    let url = format!("{here}/templates/{id}/files/{hash}?by={by}&until={until_sec}&token={token}");
    Ok((StatusCode::CREATED, Json(LinkBody { present: context.sandboxes.has_files(&owner, &hash), url })))
}

/// Takes files. The link has the right to that, and no key is needed.
pub(super) async fn take(
    State(context): State<Context>,
    Path((_, hash)): Path<(String, String)>,
    query: Pairs,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, Refused> {
    known(&hash)?;
    let refused = || Refused::new(StatusCode::FORBIDDEN, "This link is not good, or no longer: ask for another one");
    // A server without keys has an owner without a name.
    let owner = query.text("by").unwrap_or_default();
    let (until_sec, token) = (query.integer("until")?.ok_or_else(refused)?, query.text("token").ok_or_else(refused)?);
    if !context.secret.is_upload_token(token, owner, &hash, until_sec) || until_sec < now_ms() / 1000 {
        return Err(refused());
    }
    if !may_send(&context, owner).await? {
        return Err(refused());
    }
    let len = headers.get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse().ok());
    let len = len.ok_or_else(|| Refused::new(StatusCode::LENGTH_REQUIRED, "The upload needs a Content-Length"))?;
    context.sandboxes.take_files(owner, &hash, len, body.into_data_stream()).await?;
    Ok(StatusCode::OK)
}

/// Whether an owner may send files, and still may where the link was made before.
async fn may_send(context: &Context, owner: &str) -> Result<bool, Refused> {
    if !context.needs_key {
        return Ok(true);
    }
    let key = context.store.key(owner).await.map_err(ServiceError::from)?;
    Ok(key.is_some_and(|key| key.revoked_at_ms.is_none() && !key.terms.reads_only))
}

fn known(hash: &str) -> Result<(), Refused> {
    if is_hash(hash) {
        return Ok(());
    }
    Err(Refused::bad_request("The hash of files is their SHA-256, in 64 small hex digits"))
}

/// What the client reaches this server by. A proxy that speaks TLS for it says so.
fn here(parts: &Parts, scheme: &'static str) -> Result<String, Refused> {
    let said = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let scheme = match said("x-forwarded-proto") {
        Some("https") => "https",
        _ => scheme,
    };
    let host = parts.uri.authority().map(axum::http::uri::Authority::as_str).or_else(|| said(header::HOST.as_str()));
    match host {
        Some(host) if !host.is_empty() => Ok(format!("{scheme}://{host}")),
        _ => Err(Refused::bad_request("The request has no Host, so that there is no link to this server")),
    }
}

/// An hour.
const LINK_SEC: i64 = 3600;
