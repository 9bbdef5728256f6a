//! The variables of a process's environment, as a caller names them.

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
pub(super) fn check<'a>(variables: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<(), VariableError> {
    for (name, value) in variables {
        let told = || name.chars().take(64).collect();
        if name.is_empty() {
            return Err(VariableError::Unnamed);
        }
        if name.contains(['=', '\0']) {
            return Err(VariableError::Name(told()));
        }
        if value.contains('\0') {
            return Err(VariableError::Value(told()));
        }
    }
    Ok(())
}
