//! Why a step failed.

use crate::error::Error;

/// Why a step failed, as far as the step knows.
#[derive(Debug)]
pub(super) enum Failure {
    /// The step's own doing.
    Step { problem: String, code: Option<i32>, last_lines: Vec<String>, source: Option<Box<Error>> },
    /// Something that no step can help.
    Host(Error),
}

impl Failure {
    pub(super) fn of(problem: impl Into<String>) -> Self {
        Self::Step { problem: problem.into(), code: None, last_lines: Vec::new(), source: None }
    }

    pub(super) fn with_lines(self, lines: Vec<String>) -> Self {
        match self {
            Self::Step { problem, code, source, .. } => Self::Step { problem, code, last_lines: lines, source },
            host => host,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound { .. } | Error::InvalidInput { .. } | Error::Agent { .. } | Error::Failed { .. } => {
                Self::Step {
                    problem: error.to_string(),
                    code: None,
                    last_lines: Vec::new(),
                    source: Some(Box::new(error)),
                }
            }
            Error::CommandTimedOut { after, .. } => Self::of(format!("it took longer than its limit of {after:?}")),
            error => Self::Host(error),
        }
    }
}
