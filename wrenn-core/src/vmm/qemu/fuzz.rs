//! What the repository's fuzzer calls: it takes any bytes, and panics where a promise is broken.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::vmm::qemu::nbd::{Requests, greet};
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

/// What QEMU copies of a drive: any bytes are pages of the drive, each once at most, or an error.
///
/// # Panics
/// A promise is broken.
pub fn drive_copies(bytes: &[u8]) {
    use std::io::Write as _;
    const PAGES: u32 = 1 << 18;
    let pair = || std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
    let ((greeted, mut greeter), (ours, mut theirs), (done, finish)) = (pair(), pair(), pair());
    for stream in [&greeted, &ours] {
        stream.set_read_timeout(Some(HUNG_AFTER)).expect("a limit");
    }
    // Less than a socket holds: nobody reads while it is written.
    let bytes = &bytes[..bytes.len().min(64 << 10)];
    for client in [&mut greeter, &mut theirs] {
        client.write_all(bytes).expect("room for it");
        client.shutdown(std::net::Shutdown::Write).expect("an end");
    }
    // A greeting that was none is an error like another.
    let _ = greet(&greeted, u64::from(PAGES) * 4096);
    let mut came = 0;
    for piece in Requests::new(&ours, &done, PAGES).flatten() {
        assert!(piece.pages.end() <= u64::from(PAGES), "{:?} is not in the drive", piece.pages);
        let len = piece.bytes.as_ref().map(Vec::len);
        assert!(len.is_none_or(|len| len == piece.pages.count as usize * 4096), "the bytes are not the pages'");
        came += piece.pages.count;
    }
    assert!(came <= PAGES, "more came than there is");
    drop(finish);
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
