use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use hyper::StatusCode;

use super::query::Query;
use crate::agent::{
    api_error::ApiError,
    disk::spelling::meant,
    guest_path,
    settings::Settings,
    users::{User, UserError},
};

/// Whose files a call is about, and which.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) user: User,
    path: Option<String>,
    workdir: Option<String>,
}

impl Target {
    pub(super) fn find(settings: &Mutex<Settings>, query: Query) -> Result<Self, ApiError> {
        let settings = settings.lock().unwrap_or_else(PoisonError::into_inner);
        let user = settings.user(query.username.as_deref()).map_err(|error| match error {
            UserError::Unknown { .. } | UserError::UnknownGroup { .. } => ApiError::bad_request(error.to_string()),
            UserError::Unreadable(_) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        })?;
        let path = query.path.filter(|path| !path.is_empty());
        Ok(Self { user, path, workdir: settings.default_workdir.clone() })
    }

    /// The path that the query names.
    pub(super) fn path(&self) -> Result<PathBuf, ApiError> {
        self.path_or(None)
    }

    /// The path that the query names, or else `other`.
    pub(super) fn path_or(&self, other: Option<&str>) -> Result<PathBuf, ApiError> {
        let named = self.path.as_deref().or(other).filter(|path| !path.is_empty());
        self.resolve(named.ok_or_else(|| ApiError::bad_request("the path is missing"))?)
    }

    /// The path that the query names, for a file that is to be written.
    pub(super) fn file_path(&self) -> Result<PathBuf, ApiError> {
        self.file_path_or(None)
    }

    /// The path that the query names, or else `other`, for a file that is to be written: one that ends as only a directory's
    /// does is refused.
    pub(super) fn file_path_or(&self, other: Option<&str>) -> Result<PathBuf, ApiError> {
        match self.path.as_deref().or(other) {
            Some(path) if path.ends_with('/') || path.ends_with("/.") => {
                Err(ApiError::bad_request(format!("{path} is a directory's path, and no file's")))
            }
            _ => self.path_or(other),
        }
    }

    pub(super) fn resolve(&self, path: &str) -> Result<PathBuf, ApiError> {
        guest_path::resolve(path, &self.user, self.workdir.as_deref())
            .map(meant)
            .map_err(|error| ApiError::bad_request(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_query_names_a_path_and_a_user() {
        let settings = Mutex::default();
        let target = |text: &str| Target::find(&settings, Query::parse(text).unwrap());
        assert_eq!(target("username=root&path=%2Fetc%2Fx").unwrap().path().unwrap(), Path::new("/etc/x"));
        assert_eq!(target("").unwrap().path().unwrap_err().status, StatusCode::BAD_REQUEST);
        assert_eq!(target("").unwrap().path_or(Some("/x")).unwrap(), Path::new("/x"));
        assert_eq!(target("path=/y").unwrap().path_or(Some("/x")).unwrap(), Path::new("/y"));
        assert_eq!(target("path=x&username=ghost").unwrap_err().message, r#"no user "ghost""#);
    }
}
