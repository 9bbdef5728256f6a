//! What `POST /init` sets, and every later call goes by.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{HeaderMap, StatusCode, header};
use sha2::{Digest as _, Sha512};

use super::{
    api_error::ApiError,
    users::{User, UserError, Users},
};
use crate::{init_request::InitRequest, protocol::ACCESS_TOKEN_HEADER, timestamp::Timestamp};

/// The agent's settings.
#[derive(Debug, Default)]
pub(super) struct Settings {
    token: Option<String>,
    pub(super) envs: BTreeMap<String, String>,
    /// The sandbox and the template that the guest is, in the host's words.
    instance_id: Option<String>,
    env_id: Option<String>,
    pub(super) default_user: Option<String>,
    pub(super) default_workdir: Option<String>,
    /// The last time that was accepted from the host.
    pub(super) last_timestamp: Option<Timestamp>,
    users: Users,
}

/// Whether a request's headers say that its sender may call.
#[derive(Debug)]
pub(super) enum Proof {
    /// They carry the token.
    Token,
    /// There is no token yet.
    NotNeeded,
    /// They do not, and this says so.
    None(ApiError),
}

impl Settings {
    /// Takes over what `request` names, and keeps the rest.
    pub(super) fn replace(&mut self, request: InitRequest) {
        if let Some(token) = request.access_token {
            self.token = Some(token).filter(|token| !token.is_empty());
        }
        if let Some(envs) = request.env_vars {
            self.envs = envs;
        }
        self.instance_id = request.instance_id.or_else(|| self.instance_id.take());
        self.env_id = request.env_id.or_else(|| self.env_id.take());
        if let Some(user) = request.default_user {
            self.default_user = Some(user).filter(|user| !user.is_empty());
        }
        if let Some(workdir) = request.default_workdir {
            self.default_workdir = Some(workdir).filter(|workdir| !workdir.is_empty());
        }
    }

    /// Refuses a request that does not carry the token, once there is one.
    pub(super) fn authorize(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(token) = &self.token else { return Ok(()) };
        match headers.get(ACCESS_TOKEN_HEADER) {
            Some(given) if equal_in_constant_time(given.as_bytes(), token.as_bytes()) => Ok(()),
            Some(_) => Err(ApiError::new(StatusCode::UNAUTHORIZED, "the access token is wrong")),
            None => Err(ApiError::new(StatusCode::UNAUTHORIZED, "the access token is missing")),
        }
    }

    /// What the headers of a request prove by themselves.
    pub(super) fn proof(&self, headers: &HeaderMap) -> Proof {
        match self.authorize(headers) {
            Err(refusal) => Proof::None(refusal),
            Ok(()) if self.token.is_some() => Proof::Token,
            Ok(()) => Proof::NotNeeded,
        }
    }

    /// Refuses a request for `/init`, which may come with the current token, or with a new one that the host vouches for by
    /// its hash. Without hash and token it is the first, and welcome.
    pub(super) fn authorize_init(
        &self,
        headers: &HeaderMap,
        new_token: Option<&str>,
        vouched_hash: Option<&str>,
    ) -> Result<(), ApiError> {
        let Some(hash) = vouched_hash.filter(|hash| !hash.is_empty()) else { return self.authorize(headers) };
        let is_vouched_for = equal_in_constant_time(
            sha512_hex(new_token.unwrap_or("")).as_bytes(),
            hash.to_ascii_lowercase().as_bytes(),
        );
        if is_vouched_for || (self.token.is_some() && self.authorize(headers).is_ok()) {
            return Ok(());
        }
        Err(ApiError::new(StatusCode::UNAUTHORIZED, "the new access token is not the one that the host vouches for"))
    }

    /// What every process of the sandbox has in its environment.
    pub(super) fn environment(&self) -> BTreeMap<String, String> {
        let ids = [("E2B_SANDBOX_ID", &self.instance_id), ("E2B_TEMPLATE_ID", &self.env_id)];
        let mut envs: BTreeMap<_, _> =
            ids.into_iter().filter_map(|(name, id)| Some((name.to_owned(), id.clone()?))).collect();
        if self.instance_id.is_some() {
            envs.insert("E2B_SANDBOX".to_owned(), "true".to_owned());
        }
        envs.extend(self.envs.clone());
        envs
    }

    /// Refuses a request that carries neither the token nor, in its place, what `sign` makes of the token.
    pub(super) fn authorize_signed(
        &self,
        headers: &HeaderMap,
        signature: Option<&str>,
        sign: impl FnOnce(&str) -> Result<String, ApiError>,
    ) -> Result<(), ApiError> {
        let (Some(token), None, Some(signature)) = (&self.token, headers.get(ACCESS_TOKEN_HEADER), signature) else {
            return self.authorize(headers);
        };
        if equal_in_constant_time(signature.as_bytes(), sign(token)?.as_bytes()) {
            Ok(())
        } else {
            Err(ApiError::new(StatusCode::UNAUTHORIZED, "the signature is wrong"))
        }
    }

    /// The user of a call: who HTTP Basic names, else the default one.
    pub(super) fn user_of(&self, headers: &HeaderMap) -> Result<User, UserError> {
        self.user(basic_user(headers).as_deref())
    }

    /// The user called `name`, else the default one.
    pub(super) fn user(&self, name: Option<&str>) -> Result<User, UserError> {
        let name = name.filter(|name| !name.is_empty());
        self.users.find(name.or(self.default_user.as_deref()).unwrap_or("root"))
    }
}

/// `Authorization: Basic base64(user:)`
fn basic_user(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
    let (user, _password) = decoded.split_once(':')?;
    Some(user.to_owned())
}

fn sha512_hex(text: &str) -> String {
    Sha512::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes as long for the first byte that differs as for the last. The length may show.
fn equal_in_constant_time(left: &[u8], right: &[u8]) -> bool {
    let mut difference = u8::from(left.len() != right.len());
    for (left, right) in left.iter().zip(right) {
        difference |= std::hint::black_box(left ^ right);
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn everything_is_open_until_a_token_is_set() {
        let mut settings = Settings::default();
        assert!(settings.authorize(&HeaderMap::new()).is_ok());
        settings.replace(serde_json::from_str(r#"{"accessToken":"abc"}"#).unwrap());
        let name = || header::HeaderName::from_static(ACCESS_TOKEN_HEADER);
        assert!(settings.authorize(&HeaderMap::new()).is_err());
        for wrong in ["", "ab", "abd", "abcd"] {
            assert!(settings.authorize(&headers(name(), wrong)).is_err(), "{wrong}");
        }
        assert!(settings.authorize(&headers(name(), "abc")).is_ok());
        settings.replace(InitRequest::default());
        assert!(settings.authorize(&HeaderMap::new()).is_err(), "an absent field keeps the token");
    }

    #[test]
    fn the_hosts_word_beats_who_comes_first() {
        let mut settings = Settings::default();
        let none = HeaderMap::new();
        let hash = sha512_hex("new");
        assert!(settings.authorize_init(&none, None, None).is_ok(), "the first");
        assert!(settings.authorize_init(&none, Some("guess"), Some(&hash)).is_err());
        assert!(settings.authorize_init(&none, None, Some(&hash)).is_err());
        assert!(settings.authorize_init(&none, Some("new"), Some(&hash)).is_ok());
        assert!(settings.authorize_init(&none, Some("new"), Some(&hash.to_uppercase())).is_ok());
        settings.replace(serde_json::from_str(r#"{"accessToken":"old"}"#).unwrap());
        let with_old = headers(header::HeaderName::from_static(ACCESS_TOKEN_HEADER), "old");
        assert!(settings.authorize_init(&with_old, Some("other"), Some(&hash)).is_ok(), "the current token");
        assert!(settings.authorize_init(&none, Some("new"), Some(&hash)).is_ok());
        assert!(settings.authorize_init(&none, Some("new"), None).is_err());
        assert!(settings.authorize_init(&none, None, Some(&sha512_hex(""))).is_ok(), "the host wants no token");
    }

    #[test]
    fn processes_know_their_sandbox() {
        let mut settings = Settings::default();
        assert!(settings.environment().is_empty());
        let text = r#"{"instanceID":"i1","envID":"t1","envVars":{"E2B_TEMPLATE_ID":"mine"}}"#;
        settings.replace(serde_json::from_str(text).unwrap());
        settings.replace(InitRequest::default());
        let envs = settings.environment();
        let value = |name: &str| envs.get(name).map(String::as_str);
        assert_eq!((value("E2B_SANDBOX"), value("E2B_SANDBOX_ID")), (Some("true"), Some("i1")));
        assert_eq!(value("E2B_TEMPLATE_ID"), Some("mine"), "what the request sets wins");
    }

    #[test]
    fn basic_names_the_user_and_needs_no_password() {
        let user = |value: &str| basic_user(&headers(header::AUTHORIZATION, value));
        assert_eq!(user("Basic dXNlcjo="), Some("user".to_owned()));
        assert_eq!(user("basic dXNlcjpwdw=="), Some("user".to_owned()));
        assert_eq!(user("Bearer dXNlcjo="), None);
        assert_eq!(user("Basic !!"), None);
    }
}
