use connectrpc::ConnectError;

use crate::agent::filesystem::error::FileError;

/// Why a watch did not tell of everything.
#[derive(Debug, thiserror::Error)]
pub(in crate::agent::filesystem) enum WatchError {
    #[error("events were lost, since they came faster than they were read; list the directory again")]
    Lost,
    #[error("the watch has ended: {0}")]
    Ended(#[source] FileError),
}

impl From<WatchError> for ConnectError {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Lost => Self::data_loss(error.to_string()),
            WatchError::Ended(error) => error.into(),
        }
    }
}
