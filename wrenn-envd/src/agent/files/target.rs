use std::{
    borrow::Cow,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use hyper::{StatusCode, Uri};

use crate::agent::{
    api_error::ApiError,
    settings::Settings,
    users::{User, UserError},
};

/// What the query of a call names: `?path=…&username=…`.
#[derive(Debug)]
pub(super) struct Target {
    path: Option<String>,
    pub(super) user: User,
    /// What a relative path is relative to.
    base: PathBuf,
}

impl Target {
    pub(super) fn parse(settings: &Mutex<Settings>, uri: &Uri) -> Result<Self, ApiError> {
        let value = |key: &str| {
            let query = uri.query().unwrap_or("");
            query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .find(|(name, _)| *name == key)
                .map(|(_, value)| decode(value))
        };
        let username = value("username").transpose()?;
        let settings = settings.lock().unwrap_or_else(PoisonError::into_inner);
        let user = settings.user(username.as_deref()).map_err(|error| match error {
            UserError::Unknown { .. } => ApiError::bad_request(error.to_string()),
            UserError::Unreadable(_) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        })?;
        let base = user.home.clone();
        Ok(Self { path: value("path").transpose()?.filter(|path| !path.is_empty()), user, base })
    }

    /// The path that the query names.
    pub(super) fn path(&self) -> Result<PathBuf, ApiError> {
        let path = self.path.as_deref().ok_or_else(|| ApiError::bad_request("the path is missing"))?;
        self.resolve(path)
    }

    /// The path that the query names, or else `other`, a part's own file name.
    pub(super) fn path_or(&self, other: &str) -> Result<PathBuf, ApiError> {
        self.resolve(self.path.as_deref().unwrap_or(other))
    }

    fn resolve(&self, path: &str) -> Result<PathBuf, ApiError> {
        if path.is_empty() || path.contains('\0') {
            return Err(ApiError::bad_request("the path is empty, or holds a NUL"));
        }
        Ok(self.user.resolve(path, &self.base))
    }
}

/// Percent-decoding, with `+` for a blank as forms have it.
fn decode(text: &str) -> Result<String, ApiError> {
    let refused = || ApiError::bad_request(format!("{text:?} is no UTF-8, or is badly escaped"));
    let text = if text.contains('+') { Cow::from(text.replace('+', " ")) } else { Cow::from(text) };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first == b'%' {
            let (digits, after) = rest.split_at_checked(2).ok_or_else(refused)?;
            let digits = std::str::from_utf8(digits).map_err(|_| refused())?;
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| refused())?);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_clients_escape() {
        assert_eq!(decode("%2Ftmp%2Fa+b%20c%C3%A9%2B").unwrap(), "/tmp/a b cé+");
        for text in ["%", "%2", "%zz", "%ff"] {
            assert!(decode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_query_names_a_path_and_a_user() {
        let settings = Mutex::default();
        let target = |uri: &str| Target::parse(&settings, &uri.parse().unwrap());
        assert_eq!(target("/files?username=root&path=%2Fetc%2Fx").unwrap().path().unwrap(), PathBuf::from("/etc/x"));
        assert_eq!(target("/files").unwrap().path().unwrap_err().status, StatusCode::BAD_REQUEST);
        assert_eq!(target("/files?path=x&username=ghost").unwrap_err().message, r#"no user "ghost""#);
    }
}
