//! Threads for work on files, which takes as long as a file system takes.
//!
//! Some of the runtime's threads are left to others: were all of them waiting for a disk that stands still, nothing could let
//! it go on again.

use std::{io, sync::LazyLock, time::Duration};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::spawn_blocking,
    time::timeout,
};

use crate::agent::{identity, users::User};

/// Runs `work` on a thread that may wait.
///
/// # Errors
///
/// Those of `work`; [`io::ErrorKind::TimedOut`] when no thread is free for half a minute, since all wait for file systems that do not
/// answer.
///
/// # Cancel-Safety
///
/// A future that is dropped leaves `work` running to its end, if it has begun.
pub(in crate::agent) async fn run<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
{
    let thread = take(WAIT_MAX).await?;
    let worked = spawn_blocking(move || {
        let _thread = thread;
        work()
    });
    worked.await.unwrap_or_else(|error| Err(io::Error::other(error).into()))
}

/// The same, with a user's rights: the kernel checks each path as it would for the user's own process, and what is made is the
/// user's.
pub(in crate::agent) async fn as_user<T, E>(
    user: User,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
{
    let thread = take(WAIT_MAX).await?;
    identity::as_user(user, move || {
        let _thread = thread;
        work()
    })
    .await
}

async fn take(wait_max: Duration) -> io::Result<SemaphorePermit<'static>> {
    let taken = timeout(wait_max, THREADS.acquire()).await;
    let message = "file systems of the guest do not answer, and other calls wait for them already";
    let taken = taken.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, message))?;
    taken.map_err(io::Error::other)
}

static THREADS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(THREADS_MAX));

/// Of the 16 that the runtime has.
const THREADS_MAX: usize = 12;

const WAIT_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn who_finds_no_thread_hears_of_it_and_others_have_theirs() {
        let (release, released): (mpsc::Sender<()>, _) = mpsc::channel();
        let released = std::sync::Arc::new(std::sync::Mutex::new(released));
        let standing: Vec<_> = (0..THREADS_MAX)
            .map(|_| {
                let released = released.clone();
                tokio::spawn(run(move || {
                    let _ = released.lock().unwrap().recv();
                    Ok::<_, io::Error>(())
                }))
            })
            .collect();
        tokio::task::yield_now().await;
        let refused = take(Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        assert_eq!(spawn_blocking(|| 7).await.unwrap(), 7);
        drop(release);
        for standing in standing {
            standing.await.unwrap().unwrap();
        }
        run(|| Ok::<_, io::Error>(())).await.unwrap();
    }
}
