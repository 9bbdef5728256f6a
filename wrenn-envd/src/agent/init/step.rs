use std::io;

/// A step of the boot that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub(in crate::agent) struct BootError {
    step: String,
    pub(super) source: io::Error,
}

/// Names the step that an error belongs to.
pub(super) trait Step<T> {
    fn step(self, step: impl Into<String>) -> Result<T, BootError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, BootError> {
        self.map_err(|error| BootError { step: step.into(), source: error.into() })
    }
}
