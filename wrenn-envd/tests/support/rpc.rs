//! Calls on the file system as a client in another language makes them: JSON over HTTP/1.1.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::Agent;

/// One call of `filesystem.Filesystem` as the guest's user `user`. An error is the refusal's code and message.
pub(crate) async fn call(agent: &Agent, user: &str, method: &str, body: Value) -> Result<Value, (String, String)> {
    let authorization = format!("Basic {}", STANDARD.encode(format!("{user}:")));
    let headers = [("content-type", "application/json"), ("authorization", authorization.as_str())];
    let route = format!("/filesystem.Filesystem/{method}");
    let answer = agent.call("POST", &route, &headers, body.to_string()).await;
    let told: Value = serde_json::from_slice(answer.body()).expect("JSON");
    if answer.status().is_success() {
        return Ok(told);
    }
    let text = |name: &str| told[name].as_str().unwrap_or_default().to_owned();
    Err((text("code"), text("message")))
}

/// The entries of a list.
pub(crate) fn entries(answer: &Value) -> &[Value] {
    answer["entries"].as_array().map(Vec::as_slice).unwrap_or_default()
}
