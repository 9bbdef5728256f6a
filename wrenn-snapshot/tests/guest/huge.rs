//! Huge pages for a test: reserved while it runs, and given back.

use std::{
    fs::{self, File},
    io,
};

/// Pages of 2 MiB that are there for whoever holds this.
#[derive(Debug)]
pub(crate) struct HugePages(u64);

impl HugePages {
    /// Reserves pages beside what is reserved already.
    pub(crate) fn reserve(pages: u64) -> io::Result<Self> {
        let _lock = lock()?;
        let before = reserved()?;
        fs::write(RESERVED, (before + pages).to_string())?;
        let got = reserved()?.saturating_sub(before);
        // Dropping it gives back what there was of it.
        let held = Self(got);
        if got < pages {
            return Err(io::Error::other(format!("the kernel has {got} huge pages of {pages}")));
        }
        Ok(held)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let give_back = || {
            let _lock = lock()?;
            fs::write(RESERVED, reserved()?.saturating_sub(self.0).to_string())
        };
        // The test has its result by now.
        let _ = give_back();
    }
}

fn reserved() -> io::Result<u64> {
    fs::read_to_string(RESERVED)?.trim().parse().map_err(io::Error::other)
}

/// Other tests, and other people's, change the number too: each by as much as it needs, and one at a time.
fn lock() -> io::Result<File> {
    let file = File::options().write(true).open(RESERVED)?;
    file.lock()?;
    Ok(file)
}

const RESERVED: &str = "/proc/sys/vm/nr_hugepages";
