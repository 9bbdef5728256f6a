//! What the repository's fuzzer calls: it takes any bytes, and panics where a promise is broken.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::vmm::qemu::qmp::{Qmp, QmpError};

/// What QEMU's monitor says: any bytes are an answer or an error, whose text steers no terminal. The monitor says them all, and
/// closes.
///
/// # Panics
/// A promise is broken.
pub fn qmp(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ended = runtime.block_on(async { timeout(HUNG_AFTER, converse(bytes)).await });
    match ended.expect("the monitor has closed, and is waited for") {
        Ok(()) => {}
        Err(QmpError::TimedOut { command, .. }) => panic!("{command} waits for a monitor that has closed"),
        Err(error) => check_text(&error),
    }
}

fn check_text(error: &QmpError) {
    let text = error.to_string();
    assert!(!text.contains('\u{1b}'), "a terminal would obey {text:?}");
}

/// Far more than reading a monitor that has closed takes, and less than a command may.
const HUNG_AFTER: Duration = Duration::from_secs(5);

async fn converse(bytes: &[u8]) -> Result<(), QmpError> {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    let monitor = async {
        let (mut requests, mut answers) = theirs.split();
        // A client that gives up takes no more.
        let _ = answers.write_all(bytes).await;
        let _ = answers.shutdown().await;
        // A socket that closes with requests unread would reset the connection, and take what was said along.
        let _ = requests.read_to_end(&mut Vec::new()).await;
    };
    let client = async {
        let mut qmp = Qmp::connect(ours, HUNG_AFTER).await?;
        for command in ["query-status", "query-migrate", "cont"] {
            match qmp.execute(command, Value::Null).await {
                Ok(_) => {}
                Err(error @ QmpError::Refused { .. }) => check_text(&error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    let (result, ()) = tokio::join!(client, monitor);
    result
}
