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

use crate::agent::disk::{cleanup::Held, threads};

/// The bytes of `range`. A file that became shorter ends in an error, so that what was promised is not silently cut.
pub(super) fn part(file: File, range: Range<u64>) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let (file, pool) = (Arc::new(Held::new(file)), Arc::new(Pool::default()));
    let step = CHUNK_BYTES as u64;
    let starts = stream::unfold(range.start, move |start| async move {
        (start < range.end).then_some((start..range.end.min(start.saturating_add(step)), start.saturating_add(step)))
    });
    starts
        .map(move |range| {
            let (file, pool) = (file.clone(), pool.clone());
            async move { threads::run(move || read(&file, &pool, &range)).await }
        })
        .buffered(CHUNKS_AHEAD)
}

/// `head`, and what can be read after it: a file of the kernel's does not say how much that is. More than `bytes_max` bytes are an
/// error.
pub(super) fn rest(head: Bytes, file: File, bytes_max: u64) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let (file, pool, start) = (Arc::new(Held::new(file)), Arc::new(Pool::default()), head.len() as u64);
    let rest = stream::try_unfold(start, move |start: u64| {
        let (file, pool) = (file.clone(), pool.clone());
        async move {
            let read = threads::run(move || {
                let mut buffer = pool.take();
                let count = file.read_at(&mut buffer, start)?;
                Ok::<_, io::Error>(pool.lend(buffer, count))
            });
            let chunk = read.await?;
            let next = start + chunk.len() as u64;
            if next > bytes_max {
                let message = format!("the file does not say how long it is, and holds more than {bytes_max} bytes");
                return Err(io::Error::other(message));
            }
            Ok((!chunk.is_empty()).then_some((chunk, next)))
        }
    });
    stream::iter([Ok(head)]).chain(rest)
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

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_file_without_a_length_is_read_to_its_end_or_the_limit() {
        let file = || {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&vec![7; 3 << 20], 0).unwrap();
            file
        };
        let head = || Bytes::from(vec![7; 1 << 20]);
        let read: Vec<Bytes> = rest(head(), file(), 3 << 20).try_collect().await.unwrap();
        assert!(read.concat() == vec![7; 3 << 20]);
        let read: Result<Vec<Bytes>, _> = rest(head(), file(), (3 << 20) - 1).try_collect().await;
        assert!(read.unwrap_err().to_string().contains("does not say"));
    }
}
