//! A file as a stream of chunks, read ahead on threads that may wait for the disk.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use tokio::task::spawn_blocking;

/// The bytes of `range`. A file that became shorter ends in an error, so that what was promised is not silently cut.
pub(super) fn part(file: File, range: Range<u64>) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let (file, pool) = (Arc::new(file), Arc::new(Pool::default()));
    let step = CHUNK_BYTES as u64;
    let starts = stream::unfold(range.start, move |start| async move {
        (start < range.end).then_some((start..range.end.min(start.saturating_add(step)), start.saturating_add(step)))
    });
    starts
        .map(move |range| {
            let (file, pool) = (file.clone(), pool.clone());
            async move { spawn_blocking(move || read(&file, &pool, &range)).await.map_err(io::Error::other)? }
        })
        .buffered(CHUNKS_AHEAD)
}

/// All that can be read from the file's beginning, whatever length it claims: a file of the kernel's claims none.
pub(super) fn whole(file: File) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let (file, pool) = (Arc::new(file), Arc::new(Pool::default()));
    stream::try_unfold(0, move |start: u64| {
        let (file, pool) = (file.clone(), pool.clone());
        async move {
            let read = spawn_blocking(move || {
                let mut buffer = pool.take();
                let count = file.read_at(&mut buffer, start)?;
                Ok::<_, io::Error>(pool.lend(buffer, count))
            });
            let chunk = read.await.map_err(io::Error::other)??;
            let next = start + chunk.len() as u64;
            Ok((!chunk.is_empty()).then_some((chunk, next)))
        }
    })
}

fn read(file: &File, pool: &Arc<Pool>, range: &Range<u64>) -> io::Result<Bytes> {
    let mut buffer = pool.take();
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    file.read_exact_at(&mut buffer[..length], range.start)?;
    Ok(pool.lend(buffer, length))
}

/// Buffers that come back when they have been sent: fresh ones would cost a page fault for every page.
#[derive(Debug, Default)]
struct Pool {
    idle: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    fn take(&self) -> Vec<u8> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.unwrap_or_else(|| vec![0; CHUNK_BYTES])
    }

    /// The first `length` bytes of `buffer`, which comes back to the pool in the end.
    fn lend(self: &Arc<Self>, buffer: Vec<u8>, length: usize) -> Bytes {
        Bytes::from_owner(Lent { pool: self.clone(), buffer, length })
    }
}

struct Lent {
    pool: Arc<Pool>,
    buffer: Vec<u8>,
    length: usize,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() <= CHUNKS_AHEAD {
            idle.push(std::mem::take(&mut self.buffer));
        }
    }
}

/// Each is a way to another thread and back.
const CHUNK_BYTES: usize = 512 << 10;

/// How many chunks are read before they are asked for.
const CHUNKS_AHEAD: usize = 1;
