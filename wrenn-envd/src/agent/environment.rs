//! The variables of a process's environment, as a caller names them.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

/// Why a variable can be in no environment.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum VariableError {
    #[error("a variable of the environment has no name")]
    Unnamed,
    #[error("the variable's name {0:?} holds a `=` or a NUL")]
    Name(String),
    #[error("the value of the variable {0} holds a NUL")]
    Value(String),
}

/// Refuses what no process can be started with. Values are secrets, and not told.
pub(super) fn check<T: AsRef<OsStr>>(variables: impl IntoIterator<Item = (T, T)>) -> Result<(), VariableError> {
    for (name, value) in variables {
        let (name, value) = (name.as_ref().as_bytes(), value.as_ref().as_bytes());
        let told = || String::from_utf8_lossy(name).chars().take(64).collect();
        if name.is_empty() {
            return Err(VariableError::Unnamed);
        }
        if name.iter().any(|byte| matches!(byte, b'=' | 0)) {
            return Err(VariableError::Name(told()));
        }
        if value.contains(&0) {
            return Err(VariableError::Value(told()));
        }
    }
    Ok(())
}
