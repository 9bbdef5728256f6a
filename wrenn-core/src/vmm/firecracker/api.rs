//! Firecracker's API: HTTP over one connection to its Unix socket, one request at a time.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::vmm::console::escape_controls;
use crate::vmm::firecracker::door::Socket;

/// A connection. Dropping it closes it; Firecracker goes on.
#[derive(Debug)]
pub(super) struct Api {
    sender: SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
}

/// Why Firecracker did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// The message is Firecracker's own.
    #[error("Firecracker refused {request}: {message}")]
    Refused { request: String, message: String },
    #[error("Firecracker did not answer {request} within {after:?}")]
    TimedOut { request: String, after: Duration },
    #[error("Firecracker closed its API")]
    Closed(#[source] hyper::Error),
    #[error("Firecracker answered {request} with {status} and something else than its protocol has")]
    Strange { request: String, status: StatusCode },
    #[error("Firecracker's API did not come up within {after:?}")]
    NotUp { after: Duration },
}

impl Api {
    /// Connects to a socket that a starting Firecracker is about to make, and `find` finds.
    pub(super) async fn connect(find: impl Fn() -> io::Result<Socket>, within: Duration) -> Result<Self, ApiError> {
        let connect = async || match find() {
            Ok(socket) => UnixStream::connect(socket.path()).await,
            Err(not_yet) => Err(not_yet),
        };
        let connected = timeout(within, async {
            loop {
                match connect().await {
                    Ok(stream) => return stream,
                    Err(_not_yet) => sleep(CONNECT_POLL).await,
                }
            }
        });
        let stream = connected.await.map_err(|_elapsed| ApiError::NotUp { after: within })?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(ApiError::Closed)?;
        // Its end is seen by the request that it fails.
        let connection = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, connection })
    }

    pub(super) async fn put(&mut self, path: &str, body: &impl Serialize, within: Duration) -> Result<(), ApiError> {
        self.request(Method::PUT, path, body, within).await
    }

    pub(super) async fn patch(&mut self, path: &str, body: &impl Serialize, within: Duration) -> Result<(), ApiError> {
        self.request(Method::PATCH, path, body, within).await
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        within: Duration,
    ) -> Result<(), ApiError> {
        let request = format!("{method} {path}");
        let answered = timeout(within, self.exchange(method, path, body, &request));
        let (status, body) = answered
            .await
            .unwrap_or_else(|_elapsed| Err(ApiError::TimedOut { request: request.clone(), after: within }))?;
        if status.is_success() {
            return Ok(());
        }
        match serde_json::from_slice::<Fault>(&body) {
            Ok(Fault { fault_message }) => Err(ApiError::Refused { request, message: escape_controls(&fault_message) }),
            Err(_) => Err(ApiError::Strange { request, status }),
        }
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        name: &str,
    ) -> Result<(StatusCode, Bytes), ApiError> {
        let strange = |status| ApiError::Strange { request: name.to_owned(), status };
        let body = serde_json::to_vec(body).map_err(|_| strange(StatusCode::BAD_REQUEST))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| strange(StatusCode::BAD_REQUEST))?;
        self.sender.ready().await.map_err(ApiError::Closed)?;
        let response = self.sender.send_request(request).await.map_err(ApiError::Closed)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((status, body.map_err(|_| strange(status))?.to_bytes()))
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

/// The socket is there some 10 ms after the start.
const CONNECT_POLL: Duration = Duration::from_millis(1);
/// An answer is a message of a line or two.
const ANSWER_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::fs::File;

    use hyper::server::conn::http1 as server;
    use hyper::service::service_fn;
    use serde_json::json;
    use tokio::net::UnixListener;

    use super::*;
    use crate::vmm::firecracker::door::Door;

    /// A server that is not Firecracker, and answers every request alike.
    async fn answer(status: u16, body: &'static str) -> (Api, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("api.sock")).unwrap();
        let door = Door::to(File::open(dir.path()).unwrap());
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(move |_| async move {
                if status == 0 {
                    std::future::pending::<()>().await;
                }
                let response = http::Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap();
                Ok::<_, Infallible>(response)
            });
            let _ = server::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
        (Api::connect(|| door.socket("api.sock"), WITHIN).await.unwrap(), dir)
    }

    #[tokio::test]
    async fn a_refusal_has_firecrackers_own_words() {
        let (mut api, _dir) = answer(400, r#"{"fault_message":"The kernel file cannot be opened"}"#).await;
        let error = api.put("/boot-source", &json!({}), WITHIN).await.unwrap_err();
        assert_eq!(error.to_string(), "Firecracker refused PUT /boot-source: The kernel file cannot be opened");
        // The connection is good for the next one.
        assert!(matches!(api.patch("/vm", &json!({}), WITHIN).await, Err(ApiError::Refused { .. })));
    }

    #[tokio::test]
    async fn what_is_no_answer_of_firecracker_is_called_strange() {
        let (mut api, _dir) = answer(500, "<html>").await;
        assert!(matches!(api.put("/actions", &json!({}), WITHIN).await, Err(ApiError::Strange { .. })));
        let (mut api, _dir) = answer(204, "").await;
        api.put("/actions", &json!({}), WITHIN).await.unwrap();
    }

    #[tokio::test]
    async fn an_api_that_hangs_is_given_up_on() {
        let (mut api, _dir) = answer(0, "").await;
        let error = api.put("/snapshot/create", &json!({}), Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, ApiError::TimedOut { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_socket_that_never_comes_is_given_up_on() {
        let dir = tempfile::tempdir().unwrap();
        let door = Door::to(File::open(dir.path()).unwrap());
        let error = Api::connect(|| door.socket("api.sock"), Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, ApiError::NotUp { .. }), "{error}");
    }

    const WITHIN: Duration = Duration::from_secs(5);
}
