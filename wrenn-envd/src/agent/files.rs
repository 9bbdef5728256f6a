//! `/files`: whole files in and out of the guest.
//!
//! ```text
//!  GET  -> authorize -> download -> chunks (read ahead) [-> gzip]
//!  POST -> authorize -> upload [-> gzip] [-> parts] -> spool -> spooled -> place
//!  POST /files/compose           -> compose -> copy   -> spooled -> place
//!  POST /files/unpack            -> archives -> unpacker -> tar_entries
//!  GET  /files/pack              -> archives -> packer
//! ```

mod archives;
#[cfg(test)]
mod archives_tests;
mod chunks;
mod compose;
mod download;
mod encoding;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz;
mod gzip;
mod headers;
mod packer;
mod parts;
mod place;
mod query;
mod range;
mod regular;
mod signature;
mod spool;
mod spooled;
mod tar_entries;
mod target;
mod unpacker;
mod upload;
mod written;

use std::sync::{Mutex, PoisonError};

use hyper::{HeaderMap, Method, Request, Response, StatusCode, body::Incoming};

pub(super) use self::archives::{pack, unpack};
pub(super) use self::compose::compose;
use self::{
    query::Query,
    signature::{Operation, sign},
};
use super::{answer::Body, api_error::ApiError, settings::Settings};
use crate::timestamp::Timestamp;

/// `GET` and `POST /files`, for who has the token, or a signature by who has it.
pub(super) async fn answer(settings: &Mutex<Settings>, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let query = Query::parse(request.uri().query().unwrap_or(""))?;
    let operation = match *request.method() {
        Method::GET => Operation::Read,
        Method::POST => Operation::Write,
        _ => return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "GET and POST are what /files knows")),
    };
    authorize(settings, request.headers(), &query, operation)?;
    match operation {
        Operation::Read => download::download(settings, query, &request).await,
        Operation::Write => upload::upload(settings, query, request).await,
    }
}

fn authorize(
    settings: &Mutex<Settings>,
    headers: &HeaderMap,
    query: &Query,
    operation: Operation,
) -> Result<(), ApiError> {
    let settings = settings.lock().unwrap_or_else(PoisonError::into_inner);
    settings.authorize_signed(headers, query.signature.as_deref(), |token| {
        let now = Timestamp::now().unix_nanos() / 1_000_000_000;
        match query.expiration {
            Some(expiration) if expiration < now => {
                Err(ApiError::new(StatusCode::UNAUTHORIZED, "signature is already expired"))
            }
            _ => Ok(sign(query, operation, token)),
        }
    })
}
