//! An upload on its way to the disk.

use std::{
    io::{self, IoSlice},
    path::PathBuf,
};

use bytes::Bytes;
use rustix::io::{Errno, pwritev};
use tokio::task::JoinHandle;

use super::{
    place::{Missing, Place},
    spooled::Spooled,
};
use crate::agent::{
    api_error::ApiError,
    disk::{cleanup::Held, temporary::Temporary, threads},
    users::User,
};

/// A file that takes what comes; while one batch is being written the next one is taken in.
///
/// # Cancel-Safety
///
/// One that is dropped leaves nothing, soon: its file is closed and removed by a thread that may wait.
#[derive(Debug)]
pub(super) struct Spool {
    temporary: Temporary,
    batch: Vec<Bytes>,
    batch_bytes: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Idle(Writer),
    Writing(JoinHandle<io::Result<Writer>>),
    /// It failed, or was cancelled in between.
    Broken,
}

impl Spool {
    /// Begins a file that is meant for `path`.
    pub(super) async fn create(user: User, path: PathBuf) -> Result<Self, ApiError> {
        let (file, temporary) = {
            let owner = user.clone();
            threads::as_user(user, move || Place::find(&path, Missing::Leave)?.spool(&owner)).await?
        };
        let state = State::Idle(Writer { file: Held::new(file), position: 0 });
        Ok(Self { temporary, batch: Vec::new(), batch_bytes: 0, state })
    }

    pub(super) async fn push(&mut self, piece: Bytes) -> io::Result<()> {
        self.batch_bytes += piece.len();
        self.batch.push(piece);
        if self.batch_bytes < BATCH_BYTES && self.batch.len() < BATCH_PIECES {
            return Ok(());
        }
        let mut writer = self.writer().await?;
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        self.state = State::Writing(tokio::spawn(threads::run(move || {
            writer.write(&batch)?;
            Ok(writer)
        })));
        Ok(())
    }

    pub(super) async fn finish(mut self) -> io::Result<Spooled> {
        let mut writer = self.writer().await?;
        let (batch, temporary) = (self.batch, self.temporary);
        let finished = threads::run(move || {
            writer.write(&batch)?;
            writer.file.set_len(writer.position)?;
            let spooled = Spooled::new(&writer.file, temporary);
            drop(writer.file.into_file());
            spooled
        });
        finished.await
    }

    async fn writer(&mut self) -> io::Result<Writer> {
        match std::mem::replace(&mut self.state, State::Broken) {
            State::Idle(writer) => Ok(writer),
            State::Writing(task) => task.await.map_err(io::Error::other)?,
            State::Broken => Err(io::Error::other("the upload has failed before")),
        }
    }
}

#[derive(Debug)]
struct Writer {
    file: Held,
    position: u64,
}

impl Writer {
    fn write(&mut self, batch: &[Bytes]) -> io::Result<()> {
        // Zeros that are not written take no room on the disk.
        for run in batch.chunk_by(|piece, next| is_hole(piece) == is_hole(next)) {
            if is_hole(&run[0]) {
                self.position += run.iter().map(|piece| piece.len() as u64).sum::<u64>();
            } else {
                self.write_all(&mut run.iter().map(|piece| IoSlice::new(piece)).collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }

    /// All in one call, unless the kernel takes less.
    fn write_all(&mut self, mut pieces: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut pieces, 0);
        while !pieces.is_empty() {
            let length = match pwritev(&*self.file, pieces, self.position) {
                Err(Errno::INTR) => continue,
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                written => written?,
            };
            self.position += length as u64;
            IoSlice::advance_slices(&mut pieces, length);
        }
        Ok(())
    }
}

/// Whether it is worth a hole.
fn is_hole(piece: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    piece.len() >= ZEROS.len() && piece.chunks(ZEROS.len()).all(|block| block == &ZEROS[..block.len()])
}

/// Enough that a write is worth its way to another thread.
const BATCH_BYTES: usize = 256 << 10;

/// As many as one call takes.
const BATCH_PIECES: usize = 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn pieces_and_holes_come_out_as_they_went_in() {
        let file = tempfile::tempfile().unwrap();
        let mut writer = Writer { file: Held::new(file.try_clone().unwrap()), position: 0 };
        let [zeros, ones] = [0, 1].map(|byte| Bytes::from(vec![byte; 1 << 20]));
        let batch = [Bytes::new(), ones.clone(), zeros.slice(..10), ones, zeros.clone(), zeros.clone()];
        writer.write(&batch).unwrap();
        writer.write(&[Bytes::from_static(b"end")]).unwrap();
        let written = [&batch.concat()[..], b"end"].concat();
        assert_eq!(writer.position, written.len() as u64);
        assert!(std::fs::read(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))).unwrap() == written);
        assert!(file.metadata().unwrap().blocks() * 512 < written.len() as u64 - (1 << 20), "holes");
    }
}
