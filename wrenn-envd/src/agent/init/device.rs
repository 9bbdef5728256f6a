use std::{
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// Waits until `path` is there: drivers find their devices in their own time.
pub(super) fn wait_for(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + WAIT_MAX;
    while !path.exists() {
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it did not appear within 5 s"));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

const WAIT_MAX: Duration = Duration::from_secs(5);
