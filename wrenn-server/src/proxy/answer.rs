//! Why a request did not reach a sandbox's port, in E2B's words, which its clients look for.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};

/// Why a request did not reach a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unreached {
    /// There is no such sandbox that runs, or that is to be woken.
    NoSandbox,
    /// Nothing listens on it.
    PortClosed,
    /// The guest does not answer.
    Silent(String),
    /// The sandbox wants its token.
    NoToken,
    /// It is another's token.
    WrongToken,
    /// A call of the agent without the sandbox's token.
    NotTheAgents,
    /// A route of the agent that is the server's alone, or none.
    NoRoute,
    /// The message of a stream's request did not come whole, or in time.
    NoMessage,
    /// It cannot be woken now.
    NotWoken(String),
}

impl Unreached {
    /// The answer to a request with these headers.
    pub(super) fn answer(&self, id: &str, port: u16, headers: &HeaderMap) -> Response {
        let (status, message) = self.text();
        let code = status.as_u16();
        let body = match self {
            Self::PortClosed => json!({"sandboxId": id, "message": message, "port": port, "code": code}),
            Self::NotTheAgents if is_rpc(headers) => json!({"code": "unauthenticated", "message": message}),
            Self::NoRoute | Self::NotTheAgents | Self::NoMessage => json!({"code": code, "message": message}),
            _ => json!({"sandboxId": id, "message": message, "code": code}),
        };
        if accepts_html(headers) {
            (status, page(&body)).into_response()
        } else {
            (status, axum::Json(body)).into_response()
        }
    }

    fn text(&self) -> (StatusCode, String) {
        match self {
            Self::NoSandbox => (StatusCode::BAD_GATEWAY, "The sandbox was not found".to_owned()),
            Self::PortClosed => (StatusCode::BAD_GATEWAY, "The sandbox is running but port is not open".to_owned()),
            Self::Silent(why) => (StatusCode::BAD_GATEWAY, format!("The sandbox does not answer: {why}")),
            Self::NoToken => (
                StatusCode::FORBIDDEN,
                format!("Sandbox is secured with traffic access token. Token header '{TRAFFIC_TOKEN}' is missing"),
            ),
            Self::WrongToken => (
                StatusCode::FORBIDDEN,
                format!("Sandbox is secured with traffic access token. Token header '{TRAFFIC_TOKEN}' is invalid"),
            ),
            Self::NotTheAgents => (
                StatusCode::UNAUTHORIZED,
                "the request needs this sandbox's token as X-Access-Token: who makes or connects to it gets that"
                    .to_owned(),
            ),
            Self::NoRoute => (StatusCode::NOT_FOUND, "there is no such route".to_owned()),
            Self::NoMessage => {
                (StatusCode::BAD_REQUEST, "the request's message did not come whole, or in time".to_owned())
            }
            Self::NotWoken(why) => {
                (StatusCode::CONFLICT, format!("The sandbox is paused, and cannot be resumed: {why}"))
            }
        }
    }
}

/// Whether it is a call of Connect's, whose errors have a code that is a word.
fn is_rpc(headers: &HeaderMap) -> bool {
    headers.contains_key("connect-protocol-version")
}

fn accepts_html(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).map(HeaderValue::to_str);
    matches!(accept, Some(Ok(accept)) if accept.contains("text/html"))
}

fn page(body: &Value) -> Html<String> {
    let text = |name: &str| {
        let value = body.get(name).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        escaped(&value.unwrap_or_default())
    };
    Html(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{message}</title>\
         <body style='font-family:sans-serif;margin:4em auto;max-width:36em'><h1>{message}</h1><p>{sandbox} {port}</p></body></html>\n",
        message = text("message"),
        sandbox = text("sandboxId"),
        port = text("port"),
    ))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The header that has a sandbox's token for its ports.
pub(super) const TRAFFIC_TOKEN: &str = "e2b-traffic-access-token";

#[cfg(test)]
mod tests {
    use super::*;

    async fn body(unreached: &Unreached, accept: &str) -> (u16, String) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_str(accept).expect("a header"));
        let response = unreached.answer("<sb>", 80, &headers);
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.expect("a body");
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn clients_and_people_are_told_the_same() {
        let (status, json) = body(&Unreached::PortClosed, "*/*").await;
        assert_eq!(status, 502);
        assert!(json.contains("port is not open") && json.contains("\"port\":80"), "{json}");
        let (status, html) = body(&Unreached::NoSandbox, "text/html,*/*").await;
        assert_eq!(status, 502);
        assert!(html.contains("was not found") && html.contains("&lt;sb&gt;") && !html.contains("<sb>"), "{html}");
    }
}
