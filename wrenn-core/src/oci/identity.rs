//! Identity tokens: what some registries give at a login in a password's place. Their token server makes a token for one
//! repository of it: <https://distribution.github.io/distribution/spec/auth/oauth/>

use std::fmt::Write as _;

use http_auth::parser::ChallengeParser;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE};
use serde::Deserialize;

/// Whom a registry sends those to who ask without a token.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TokenServer {
    realm: String,
    service: Option<String>,
}

/// Why there is no token.
#[derive(Debug)]
pub(super) enum Refusal {
    /// In the words of the token server, or ours.
    Denied(String),
    Broken(reqwest::Error),
}

impl TokenServer {
    /// Of the headers of a registry's answer; `None` where it names no such server.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let texts = headers.get_all(WWW_AUTHENTICATE).into_iter().filter_map(|value| value.to_str().ok());
        let mut challenges = texts.flat_map(ChallengeParser::new).filter_map(Result::ok);
        let bearer = challenges.find(|challenge| challenge.scheme.eq_ignore_ascii_case("bearer"))?;
        let get = |wanted: &str| {
            let value = bearer.params.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            value.map(|(_, value)| value.to_unescaped())
        };
        Some(Self { realm: get("realm")?, service: get("service") })
    }

    /// Asks for a token that may pull from a repository.
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub(super) async fn exchange(
        &self,
        client: &reqwest::Client,
        identity: &str,
        repository: &str,
        is_plain: bool,
    ) -> Result<String, Refusal> {
        if !is_plain && !self.realm.starts_with("https://") {
            return Err(Refusal::Denied(format!(
                "an identity token is not sent without TLS, as the registry wants with the realm {}",
                self.realm
            )));
        }
        let body = self.request(identity, repository);
        let form = "application/x-www-form-urlencoded";
        let sent = client.post(&self.realm).header(CONTENT_TYPE, form).body(body).send().await;
        let mut answer = sent.map_err(Refusal::Broken)?;
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(Refusal::Broken)? {
            text.extend(chunk);
            if text.len() > ANSWER_BYTES_MAX {
                return Err(Refusal::Denied("the token server's answer is too long".to_owned()));
            }
        }
        if !answer.status().is_success() {
            let said = String::from_utf8_lossy(&text).into_owned();
            return Err(Refusal::Denied(format!("the token server answers {}: {said}", answer.status())));
        }
        match serde_json::from_slice(&text) {
            Ok(Answer { access_token }) => Ok(access_token),
            Err(error) => Err(Refusal::Denied(format!("the token server's answer has no token: {error}"))),
        }
    }

    fn request(&self, identity: &str, repository: &str) -> String {
        let scope = format!("repository:{repository}:pull");
        let mut form = "grant_type=refresh_token".to_owned();
        let service = self.service.as_deref().unwrap_or_default();
        for (name, value) in
            [("client_id", "wrenn"), ("service", service), ("scope", &scope), ("refresh_token", identity)]
        {
            // A string takes all that is written to it.
            write!(form, "&{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)).ok();
        }
        form
    }
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
}

const ANSWER_BYTES_MAX: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn server(challenges: &[&str]) -> Option<TokenServer> {
        let value = |text: &&str| (WWW_AUTHENTICATE, text.parse().unwrap());
        TokenServer::of(&challenges.iter().map(value).collect())
    }

    #[test]
    fn the_token_server_is_the_one_that_a_registry_names() {
        let named =
            server(&["Basic realm=\"x\"", "bearer realm=\"https://t/token\",service=\"a, \\\"b\\\"\""]).unwrap();
        assert_eq!(named, TokenServer { realm: "https://t/token".to_owned(), service: Some("a, \"b\"".to_owned()) });
        for none in [&[][..], &["Basic realm=\"x\""], &["Bearer service=\"s\""], &["Bearer realm=\"x"]] {
            assert_eq!(server(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_token_cannot_add_to_the_request() {
        let named = TokenServer { realm: String::new(), service: Some("s".to_owned()) };
        let expected =
            "grant_type=refresh_token&client_id=wrenn&service=s&scope=repository%3Aa%2Fb%3Apull&refresh_token=x%26y%3D";
        assert_eq!(named.request("x&y=", "a/b"), expected);
    }

    #[tokio::test]
    async fn an_identity_token_is_sent_by_tls_alone() {
        rustls::crypto::ring::default_provider().install_default().ok();
        let named = TokenServer { realm: "http://127.0.0.1:1/token".to_owned(), service: None };
        let client = reqwest::Client::new();
        let refused = named.exchange(&client, "x", "a/b", false).await.unwrap_err();
        assert!(matches!(&refused, Refusal::Denied(reason) if reason.contains("without TLS")), "{refused:?}");
        assert!(matches!(named.exchange(&client, "x", "a/b", true).await, Err(Refusal::Broken(_))));
    }
}
