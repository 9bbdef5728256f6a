//! The VMM's metadata service (MMDS, version 2), where the guest has one: Firecracker's, at 169.254.169.254.
//!
//! ```text
//!  PUT /latest/api/token -> a token -> GET / with the token -> {"instanceID", "envID", "accessTokenHash"}
//! ```
//!
//! What it says is the host's word: nobody in the guest can change it. So the hash of an access token there says who may
//! call `/init`, even on a guest that has no token yet. A guest without the service is told the same by `/init` alone.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Method, Request, StatusCode,
    client::conn::http1,
    header::{ACCEPT, HOST},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::TcpStream, time::timeout};

/// Asks the service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mmds {
    pub(super) address: SocketAddr,
}

/// What the host says about the guest. Other fields are for others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Metadata {
    #[serde(rename = "instanceID")]
    pub(super) instance_id: Option<String>,
    #[serde(rename = "envID")]
    pub(super) env_id: Option<String>,
    /// SHA-512 of the access token, in hexadecimal digits.
    #[serde(rename = "accessTokenHash")]
    pub(super) access_token_hash: Option<String>,
}

/// Why the service did not say.
#[derive(Debug, thiserror::Error)]
pub(super) enum MmdsError {
    #[error("the metadata service at {0} cannot be reached")]
    NotReachable(SocketAddr, #[source] std::io::Error),
    #[error("the metadata service does not answer within {TIME_MAX:?}")]
    TimedOut,
    #[error("the metadata service answers {0}")]
    Refused(StatusCode),
    #[error("the metadata service's answer is broken: {0}")]
    Broken(String),
}

impl Mmds {
    /// Reads all that there is, anew: a fork's host says something else.
    pub(super) async fn read(&self) -> Result<Metadata, MmdsError> {
        timeout(TIME_MAX, self.read_once()).await.map_err(|_| MmdsError::TimedOut)?
    }

    async fn read_once(&self) -> Result<Metadata, MmdsError> {
        let token = self.call(Method::PUT, "/latest/api/token", (TTL_HEADER, TTL_SECONDS)).await?;
        let token = std::str::from_utf8(&token).map_err(|error| MmdsError::Broken(error.to_string()))?;
        let text = self.call(Method::GET, "/", (TOKEN_HEADER, token.trim())).await?;
        serde_json::from_slice(&text).map_err(|error| MmdsError::Broken(error.to_string()))
    }

    /// One call on a connection of its own: the service keeps few.
    async fn call(&self, method: Method, path: &str, header: (&str, &str)) -> Result<Bytes, MmdsError> {
        let not_reachable = |error| MmdsError::NotReachable(self.address, error);
        let broken = |error: &dyn std::error::Error| MmdsError::Broken(error.to_string());
        let stream = TcpStream::connect(self.address).await.map_err(not_reachable)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.ip().to_string())
            .header(ACCEPT, "application/json")
            .header(header.0, header.1)
            .body(Empty::<Bytes>::new())
            .map_err(|error| broken(&error))?;
        let answered = async {
            let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
            if !response.status().is_success() {
                return Err(MmdsError::Refused(response.status()));
            }
            let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
            Ok(body.map_err(|error| MmdsError::Broken(error.to_string()))?.to_bytes())
        };
        let mut answered = std::pin::pin!(answered);
        tokio::select! {
            answer = &mut answered => answer,
            // The connection may end with its last byte delivered, and not yet taken.
            _ = connection => answered.await,
        }
    }
}

const TTL_HEADER: &str = "x-metadata-token-ttl-seconds";
const TOKEN_HEADER: &str = "x-metadata-token";
/// It is used at once.
const TTL_SECONDS: &str = "60";

/// The service is in the VMM: what takes longer is not there.
const TIME_MAX: Duration = Duration::from_secs(2);

/// Firecracker's own limit of the data is 51,200 bytes by default.
const BODY_BYTES_MAX: usize = 1 << 20;
