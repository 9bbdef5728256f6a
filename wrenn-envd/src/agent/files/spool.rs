//! An upload on its way to the disk.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::PathBuf};

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};

use super::{
    place::{Place, Spooled},
    temporary::Temporary,
};
use crate::agent::{api_error::ApiError, identity::as_user, users::User};

/// A file that takes what comes; while one batch is being written the next one is taken in.
///
/// # Cancel-Safety
///
/// One that is dropped leaves nothing.
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
        let (file, temporary) = as_user(user, move || Place::find(&path)?.spool()).await?;
        let state = State::Idle(Writer { file, position: 0 });
        Ok(Self { temporary, batch: Vec::new(), batch_bytes: 0, state })
    }

    pub(super) async fn push(&mut self, piece: Bytes) -> io::Result<()> {
        self.batch_bytes += piece.len();
        self.batch.push(piece);
        if self.batch_bytes < BATCH_BYTES {
            return Ok(());
        }
        let mut writer = self.writer().await?;
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        self.state = State::Writing(spawn_blocking(move || {
            writer.write(&batch)?;
            Ok(writer)
        }));
        Ok(())
    }

    pub(super) async fn finish(mut self) -> io::Result<Spooled> {
        let mut writer = self.writer().await?;
        let (batch, temporary) = (self.batch, self.temporary);
        let finished = spawn_blocking(move || {
            writer.write(&batch)?;
            writer.file.set_len(writer.position)?;
            Spooled::new(&writer.file, temporary)
        });
        finished.await.map_err(io::Error::other)?
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
    file: File,
    position: u64,
}

impl Writer {
    fn write(&mut self, batch: &[Bytes]) -> io::Result<()> {
        for piece in batch {
            // Zeros that are not written take no room on the disk.
            if !is_hole(piece) {
                self.file.write_all_at(piece, self.position)?;
            }
            self.position += piece.len() as u64;
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
