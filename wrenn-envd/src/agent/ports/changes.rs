//! Whether somebody may have begun or ceased to listen, as cheaply as can be told.

use std::{fs::File, os::unix::fs::FileExt as _};

/// The kernel's own count of the sockets of TCP that are bound to something. To list them costs a guest that does nothing half
/// of all that it does.
#[derive(Debug)]
pub(super) struct Changes {
    /// Kept open: each closed file is work for the kernel.
    counts: Vec<File>,
    last: String,
    /// How many looks ago there was a change.
    quiet: u32,
}

impl Changes {
    pub(super) fn new() -> Self {
        Self::of(["/proc/net/sockstat", "/proc/net/sockstat6"])
    }

    /// A kernel without IPv6 has one file less.
    fn of<const N: usize>(files: [&str; N]) -> Self {
        let counts = files.into_iter().filter_map(|path| File::open(path).ok()).collect();
        Self { counts, last: String::new(), quiet: 0 }
    }

    /// Looks once more. One that ceases and another that begins between two looks leave the count as it is, so each
    /// [`QUIET_MAX`]th look says that there may be a change, and so does each one where nothing is counted.
    pub(super) fn may_be(&mut self) -> bool {
        let now: String = self.counts.iter().filter_map(read).collect();
        self.quiet = if now == self.last && !now.is_empty() { self.quiet + 1 } else { 0 };
        self.last = now;
        self.quiet.is_multiple_of(QUIET_MAX)
    }
}

/// `TCP: inuse 3 orphan 0 tw 0 alloc 4 mem 1`: the first number alone.
fn read(counts: &File) -> Option<String> {
    let mut bytes = [0; 512];
    let read = counts.read_at(&mut bytes, 0).ok()?;
    let text = std::str::from_utf8(bytes.get(..read)?).ok()?;
    let of_tcp = text.lines().find(|line| line.starts_with("TCP"))?;
    Some(of_tcp.split_ascii_whitespace().take(3).collect())
}

const QUIET_MAX: u32 = 5;

#[cfg(test)]
mod tests {
    use std::{fs, net::TcpListener};

    use super::*;

    #[test]
    fn a_changed_count_is_seen_and_what_does_not_change_is_looked_at_now_and_then() {
        let directory = tempfile::tempdir().unwrap();
        let (v4, v6) = (directory.path().join("v4"), directory.path().join("v6"));
        let count = |path, number: u32, others: u32| {
            fs::write(
                path,
                format!("sockets: used {others}\nTCP: inuse {number} orphan 0 tw 0 alloc {others} mem 1\n"),
            )
            .unwrap();
        };
        count(&v4, 3, 9);
        count(&v6, 1, 9);
        let mut changes = Changes::of([v4.to_str().unwrap(), v6.to_str().unwrap(), "/none"]);
        let quiet = [false, false, false, false, true, false];
        assert!(changes.may_be(), "the first look");
        assert_eq!(quiet.map(|_| changes.may_be()), quiet);
        count(&v4, 3, 7);
        assert!(!changes.may_be(), "other sockets");
        for path in [&v4, &v6] {
            count(path, 4, 7);
            assert!(changes.may_be());
            assert!(!changes.may_be());
        }
        let mut unknown = Changes::of(["/none"]);
        assert!((0..9).all(|_| unknown.may_be()), "nothing is counted");
    }

    #[test]
    fn the_kernel_counts_who_listens() {
        let changes = Changes::new();
        let counted = || changes.counts.iter().map(|counts| read(counts).expect("a count")).collect::<Vec<_>>();
        // Other tests have sockets, too.
        let seen = (0..1000).any(|_| {
            let before = counted();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let with = counted();
            drop(listener);
            before != with && before == counted()
        });
        assert!(seen && !changes.counts.is_empty());
    }
}
