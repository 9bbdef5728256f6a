//! What the agent says to whoever reads the guest's console.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
};

/// A line on the console; there is nowhere else to say it.
pub(super) fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "wrenn-envd: {line}");
}

/// A line in the kernel's log, which has its time beside it, and beside that when `/init` was started.
pub(super) fn note(line: &str) {
    // Without its end the line is one that may go on, and nobody is shown it before the next one.
    let whole = format!("<6>wrenn-envd: {line}\n");
    let noted = OpenOptions::new().write(true).open("/dev/kmsg").and_then(|mut log| log.write_all(whole.as_bytes()));
    if noted.is_err() {
        complain(line);
    }
}
