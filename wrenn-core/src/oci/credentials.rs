//! As whom a registry is asked: what Docker's client has been told with `docker login`.
//!
//! `docker_credential` runs a helper without a limit in time, so this is our own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::oci::error::OciError;
use crate::oci::options::Credentials;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: HashMap<String, Auth>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    registrytoken: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// What the file at `path` has for a registry; a file that is not there has nothing. A helper that it names has 30 s.
pub(super) async fn of(registry: &str, path: Option<&Path>) -> Result<Credentials, OciError> {
    let Some(path) = path.map(Path::to_owned).or_else(default_path) else { return Ok(Credentials::Anonymous) };
    let text = match tokio::fs::read(&path).await {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Credentials::Anonymous),
        Err(error) => return Err(OciError::io("read", &path)(error)),
    };
    let file: File =
        serde_json::from_slice(&text).map_err(|error| refused(registry, format!("{}: {error}", path.display())))?;
    let same = |key: &&String| host(key) == canonical(registry);
    let helper =
        file.cred_helpers.keys().find(same).and_then(|key| file.cred_helpers.get(key)).or(file.creds_store.as_ref());
    if let Some(helper) = helper {
        let key = if canonical(registry) == DOCKER { DOCKER_KEY } else { registry };
        let found = ask(helper, key, registry).await?;
        if found != Credentials::Anonymous {
            return Ok(found);
        }
    }
    match file.auths.keys().find(same).and_then(|key| file.auths.get(key)) {
        Some(auth) => auth.credentials(registry),
        None => Ok(Credentials::Anonymous),
    }
}

impl Auth {
    fn credentials(&self, registry: &str) -> Result<Credentials, OciError> {
        if let Some(token) = self.registrytoken.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Credentials::Token(token.clone()));
        }
        if let Some(token) = self.identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Credentials::Identity(token.clone()));
        }
        if let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) {
            let decoded = STANDARD.decode(auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
            let (user, password) =
                pair.ok_or_else(|| refused(registry, "`auth` is not a user and a password in base64".to_owned()))?;
            let password = password.trim_end_matches('\0');
            return Ok(Credentials::Basic { user: user.to_owned(), password: password.to_owned() });
        }
        Ok(match (&self.username, &self.password) {
            (Some(user), Some(password)) => Credentials::Basic { user: user.clone(), password: password.clone() },
            _ => Credentials::Anonymous,
        })
    }
}

/// Asks `docker-credential-HELPER`, which is killed where it takes too long.
async fn ask(helper: &str, key: &str, registry: &str) -> Result<Credentials, OciError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if helper.is_empty() || !helper.bytes().all(plain) {
        return Err(refused(registry, format!("`{helper}` is no helper's name")));
    }
    let program = format!("docker-credential-{helper}");
    let fault = |reason: String| refused(registry, format!("{program}: {reason}"));
    let mut command = Command::new(&program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| fault(error.to_string()))?;
    let talk = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that does not read its question answers without it.
            stdin.write_all(key.as_bytes()).await.ok();
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(HELPER_TIME, talk)
        .await
        .map_err(|_| fault(format!("no answer within {HELPER_TIME:?}")))?;
    let output = output.map_err(|error| fault(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // What every helper says, word for word.
        return if said.contains("credentials not found") { Ok(Credentials::Anonymous) } else { Err(fault(said)) };
    }
    let answer: Answer = serde_json::from_slice(&output.stdout).map_err(|error| fault(error.to_string()))?;
    // What every helper says of an identity token, word for word.
    if answer.username == "<token>" {
        return Ok(Credentials::Identity(answer.secret));
    }
    Ok(Credentials::Basic { user: answer.username, password: answer.secret })
}

fn default_path() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("DOCKER_CONFIG")
        .or_else(|| set("HOME").map(|home| home.join(".docker")))
        .map(|directory| directory.join("config.json"))
}

/// Of a key, which may be a whole address.
fn host(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    canonical(rest.split('/').next().unwrap_or(rest))
}

fn canonical(host: &str) -> &str {
    if matches!(host, "index.docker.io" | "registry-1.docker.io") { DOCKER } else { host }
}

fn refused(registry: &str, reason: String) -> OciError {
    OciError::Credentials { registry: registry.to_owned(), reason }
}

const DOCKER: &str = "docker.io";
const DOCKER_KEY: &str = "https://index.docker.io/v1/";
const HELPER_TIME: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_docker_was_told_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let text = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{}"}},"a:5000":{{"username":"u","password":"p"}},
            "t":{{"registrytoken":"x"}},"b":{{"auth":"!"}},"i":{{"identitytoken":"y"}}}},"credHelpers":{{"h":"../evil"}},"HttpHeaders":{{}}}}"#,
            STANDARD.encode("me:a:secret")
        );
        std::fs::write(&path, text).unwrap();
        let of = async |registry| of(registry, Some(&path)).await;
        let basic =
            |user: &str, password: &str| Credentials::Basic { user: user.to_owned(), password: password.to_owned() };
        assert_eq!(of("docker.io").await.unwrap(), basic("me", "a:secret"));
        assert_eq!(of("a:5000").await.unwrap(), basic("u", "p"));
        assert_eq!(of("t").await.unwrap(), Credentials::Token("x".to_owned()));
        assert_eq!(of("elsewhere").await.unwrap(), Credentials::Anonymous);
        assert_eq!(of("i").await.unwrap(), Credentials::Identity("y".to_owned()));
        for registry in ["b", "h"] {
            assert!(matches!(of(registry).await, Err(OciError::Credentials { .. })), "{registry}");
        }
        assert!(!format!("{:?}", basic("me", "hidden")).contains("hidden"));
    }
}
