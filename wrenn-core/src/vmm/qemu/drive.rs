//! What a guest writes to its drive: QEMU keeps a bitmap of it, and copies it out as it was at one instant.
//!
//! ```text
//!  restore ─▶ bitmap ─▶ … ─▶ stop ─▶ save ─▶ job ─▶ the guest goes on ─▶ job ends ─▶ published: bitmap from here on
//!                                             │ what is in the bitmap, and what the guest is about to overwrite
//!                                             └──── NBD ────▶ wrenn: compared with the parent, and stored
//! ```
//!
//! The job is QEMU's incremental backup: it copies each cluster that was written since the last one, and a cluster that
//! the guest wants to write before that is done is copied first. So the stop does not depend on the drive's size, nor
//! on how much of it was written. `https://www.qemu.org/docs/master/interop/bitmaps.html`
//!
//! A save of the device state has QEMU let go of its block devices, which a job keeps it from. So the job begins after
//! the save, with the guest still stopped. To take hold of them again without letting the guest run, QEMU before 10.0
//! has no command of its own; the adding of an export does it first, and then fails, since there is no server.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::oneshot;
use wrenn_snapshot::{PAGE_BYTES, PageIndex, SpaceWriter};

use crate::error::{Error, Result};
use crate::patience::patient;
use crate::runtime::blocking;
use crate::vmm::console::escape_controls;
use crate::vmm::qemu::nbd::{self, Requests};
use crate::vmm::qemu::qmp::{Qmp, QmpError};
use crate::vmm::saved::{Begun, SavingDrive};

/// What is known of the writes to a machine's drive.
#[derive(Debug, Default)]
pub(super) struct DriveLog {
    known: Known,
    /// Where QEMU sends what was written, once there is such a place.
    copies: Option<Copies>,
    /// Ends the taking of what a job sends.
    job: Option<UnixStream>,
}

/// Our end of the connection with QEMU, and the size of the drive that comes over it.
#[derive(Debug)]
struct Copies {
    stream: UnixStream,
    pages: u32,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// QEMU keeps no bitmap, or cannot send what is in it.
    #[default]
    Never,
    /// The bitmap lacks what was written before it was made or after a save that failed.
    NotYet,
    /// What was written since the last generation is in the bitmap.
    All,
    /// The same, once what is being saved is published.
    OncePublished,
}

impl DriveLog {
    /// Has QEMU note what is written from now on. `is_parents` says that the drive holds what a generation has of it.
    pub(super) async fn begin(&mut self, qmp: &mut Qmp, is_parents: bool) -> Result<(), QmpError> {
        let bitmap = json!({ "node": NODE, "name": BITMAP, "granularity": CLUSTER_BYTES });
        if accepted(qmp.execute("block-dirty-bitmap-add", bitmap).await)? {
            self.known = if is_parents { Known::All } else { Known::NotYet };
        }
        Ok(())
    }

    /// Whether a save can have QEMU copy what was written, and need not look for it.
    pub(super) fn is_complete(&self) -> bool {
        self.known == Known::All
    }

    /// Makes a place for what was written, before the guest is stopped for that.
    pub(super) async fn prepare(&mut self, qmp: &mut Qmp) -> Result<(), QmpError> {
        if !self.is_complete() || self.copies.is_some() {
            return Ok(());
        }
        let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true })).await?;
        self.copies = match (pages_of(&nodes), connection()) {
            (Some(pages), Ok((ours, theirs))) => connect(qmp, pages, ours, theirs).await?,
            _ => None,
        };
        if self.copies.is_none() {
            self.known = Known::Never;
        }
        Ok(())
    }

    /// Forgets what was written before, since it is being saved without the bitmap.
    pub(super) async fn start_over(&mut self, qmp: &mut Qmp) -> Result<(), QmpError> {
        if self.known != Known::Never {
            self.known = Known::NotYet;
            let bitmap = json!({ "node": NODE, "name": BITMAP });
            if accepted(qmp.execute("block-dirty-bitmap-clear", bitmap).await)? {
                self.known = Known::OncePublished;
            }
        }
        Ok(())
    }

    /// Begins to save the drive of a stopped machine whose state is saved. Where QEMU refuses, `into` comes back, and
    /// the drive has to be compared.
    pub(super) async fn save(&mut self, qmp: &mut Qmp, into: SpaceWriter) -> Result<Begun, QmpError> {
        let copies = self.copies.as_ref().filter(|_| self.is_complete());
        let taken = copies.and_then(|copies| Some((copies.try_clone().ok()?, UnixStream::pair().ok()?)));
        let Some((copies, (done, job))) = taken else { return Ok(Begun::Unknown(Box::new(into))) };
        self.known = Known::NotYet;
        // Each fails, having done what it is for.
        for node in [NODE, COPIES] {
            accepted(qmp.execute("block-export-add", json!({ "type": "nbd", "id": BITMAP, "node-name": node })).await)?;
        }
        let (give, writer) = mpsc::channel();
        let (sender, saving) = oneshot::channel();
        tokio::task::spawn_blocking(move || drop(sender.send(receive(&copies, &done, &writer))));
        let backup = json!({
            "job-id": JOB, "device": NODE, "target": COPIES, "sync": "incremental", "bitmap": BITMAP,
            "auto-dismiss": false, "x-perf": { "max-workers": WORKERS },
        });
        if !accepted(qmp.execute("blockdev-backup", backup).await)? {
            self.known = Known::Never;
            return Ok(Begun::Unknown(Box::new(into)));
        }
        self.job = Some(job);
        // The job may have sent something already, which waits.
        let _ = give.send(into);
        Ok(Begun::Saving(SavingDrive(saving)))
    }

    /// Waits until a job that [`save`](Self::save) began has copied everything.
    pub(super) async fn saved(&mut self, qmp: &mut Qmp) -> Result<Result<(), String>, QmpError> {
        let Some(mut job) = self.job.take() else { return Ok(Ok(())) };
        let ended = end_of_job(qmp).await?;
        if ended.is_ok() {
            self.known = Known::OncePublished;
            // Its reader is there until it has read this.
            let _ = job.write_all(b".");
        }
        Ok(ended)
    }

    /// Notes that what was saved is published.
    pub(super) fn published(&mut self) {
        if self.known == Known::OncePublished {
            self.known = Known::All;
        }
    }
}

impl Copies {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { stream: self.stream.try_clone()?, pages: self.pages })
    }
}

/// A connection for what QEMU copies. Our end gives up on a QEMU that stops in the middle of a word.
fn connection() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let limit = Some(patient(WORD_TIMEOUT));
    ours.set_read_timeout(limit)?;
    ours.set_write_timeout(limit)?;
    Ok((ours, theirs))
}

/// Gives QEMU its end of the connection. `None` where it cannot use that.
async fn connect(qmp: &mut Qmp, pages: u32, ours: UnixStream, theirs: UnixStream) -> Result<Option<Copies>, QmpError> {
    qmp.give_fd(COPIES, theirs.as_fd()).await?;
    drop(theirs);
    let bytes = PageIndex(pages).byte_offset();
    let greeted = blocking("greet QEMU", move || nbd::greet(&ours, bytes).map(|()| ours));
    let node = json!({ "driver": "nbd", "node-name": COPIES, "server": { "type": "fd", "str": COPIES } });
    let (added, greeted) = tokio::join!(qmp.execute("blockdev-add", node), greeted);
    match (accepted(added)?, greeted) {
        (true, Ok(Ok(stream))) => Ok(Some(Copies { stream, pages })),
        (_, greeted) => {
            tracing::debug!(?greeted, "QEMU cannot send what is written to a drive, which is compared instead");
            Ok(None)
        }
    }
}

/// The size of the drive, as QEMU has it.
fn pages_of(nodes: &Value) -> Option<u32> {
    let drive = nodes.as_array()?.iter().find(|node| node["node-name"] == NODE)?;
    let bytes = drive["image"]["virtual-size"].as_u64()?;
    u32::try_from(bytes / PAGE_BYTES as u64).ok().filter(|pages| PageIndex(*pages).byte_offset() == bytes)
}

/// Takes what QEMU sends until `done` says that this was all. An error of the store's is told at the end: the guest
/// waits for the answers.
fn receive(copies: &Copies, done: &UnixStream, writer: &mpsc::Receiver<SpaceWriter>) -> Result<SpaceWriter> {
    let told = |error: io::Error| Error::failed("take what the guest wrote to its drive")(error.into());
    let mut into = writer.recv().map_err(|error| told(io::Error::other(error)))?;
    let mut requests = Requests::new(&copies.stream, done, copies.pages);
    let mut broken = None;
    let pieces = requests.by_ref().map_while(|piece| piece.map_err(|error| broken = Some(error)).ok());
    let stored = into.add_read(copies.pages, pieces.map(Ok));
    let rest = requests.find_map(|piece| piece.err());
    match broken.or(rest) {
        Some(error) => Err(told(error)),
        None => Ok(stored.map(|()| into)?),
    }
}

/// Waits for the end of the job, and has QEMU forget it. The inner error is QEMU's reason why not all was copied.
async fn end_of_job(qmp: &mut Qmp) -> Result<Result<(), String>, QmpError> {
    let (mut moved, mut cancelled) = ((0, Instant::now()), false);
    loop {
        let jobs = qmp.execute("query-jobs", Value::Null).await?;
        let job = jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["id"] == JOB));
        let Some(job) = job else { return Ok(Err("QEMU has lost the job".to_owned())) };
        if job["status"] == "concluded" {
            let error = job["error"].as_str().map(escape_controls);
            qmp.execute("job-dismiss", json!({ "id": JOB })).await?;
            return Ok(match error {
                None if cancelled => Err(format!("nothing of the drive was copied for {COPY_TIMEOUT:?}")),
                None => Ok(()),
                Some(error) => Err(error),
            });
        }
        let progress = job["current-progress"].as_u64().unwrap_or_default();
        if progress != moved.0 {
            moved = (progress, Instant::now());
        }
        if moved.1.elapsed() > patient(COPY_TIMEOUT) {
            if cancelled {
                let (command, waited) = ("job-cancel".to_owned(), COPY_TIMEOUT);
                return Err(QmpError::TimedOut { command, waited });
            }
            (cancelled, moved.1) = (true, Instant::now());
            accepted(qmp.execute("job-cancel", json!({ "id": JOB })).await)?;
        }
        tokio::time::sleep(JOB_POLL).await;
    }
}

/// Whether QEMU did as it was told. Where it did not, the drive is compared instead.
fn accepted(answer: Result<Value, QmpError>) -> Result<bool, QmpError> {
    match answer {
        Ok(_) => Ok(true),
        Err(QmpError::Refused { command, description }) => {
            tracing::debug!(command, description, "QEMU refused a step of the saving of a drive");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The block device's node, as [the command line](super::args) names it.
const NODE: &str = "drive";
const BITMAP: &str = "wrenn";
const COPIES: &str = "copies";
const JOB: &str = "save";
/// What a backup copies at least.
const CLUSTER_BYTES: u32 = 64 << 10;
/// Each has up to a MiB under way. More of them would keep QEMU busy during the stop: with its 64 the job took 17 ms
/// to begin, and with two of them 1.3 ms; a pause is not quicker with 16.
const WORKERS: u32 = 2;
const WORD_TIMEOUT: Duration = Duration::from_secs(20);
/// As long as nothing is copied.
const COPY_TIMEOUT: Duration = Duration::from_secs(60);
const JOB_POLL: Duration = Duration::from_millis(2);
