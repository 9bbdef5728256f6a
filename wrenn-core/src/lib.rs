//! MicroVM sandboxes as a library: create one in milliseconds, run commands in it, pause it to disk, resume it lazily,
//! fork it while it runs, and make templates that many start from.
//!
//! ```no_run
//! # async fn demo() -> wrenn_core::Result<()> {
//! use wrenn_core::{Host, Sandbox};
//!
//! let host = Host::open("/var/lib/wrenn").await?;
//! let sandbox = Sandbox::create(&host, "base").await?;
//! println!("{}", sandbox.exec("uname -a").await?.stdout_utf8());
//!
//! let paused = sandbox.pause().await?;
//! let sandbox = paused.resume().await?;
//! for child in sandbox.fork(2).await? {
//!     println!("{}", child?.exec("hostname").await?.stdout_utf8());
//! }
//! # Ok(()) }
//! ```
//!
//! `ARCHITECTURE.md` in the repository tells how the parts work together.
#![warn(missing_docs)]

mod agent;
mod child;
mod command;
mod data_dir;
mod doctor;
mod drive;
mod driver;
mod error;
mod files;
mod flat;
mod guest;
mod guest_events;
mod host;
mod id;
pub mod image;
mod lineage;
mod manifest;
mod paging;
mod ports;
mod probe;
mod processes;
mod record;
mod sandbox;
mod step;
mod sys;
mod template;
mod vmm;
mod watch;

pub use agent::AgentError;
pub use child::{Child, Event, ExitStatus, Signal};
pub use command::{Command, Output, PtySize};
pub use data_dir::default_path as default_data_dir;
pub use doctor::{Diagnosis, Finding, Verdict};
pub use driver::{Confinement, Driver};
pub use error::{BoxError, Error};
pub use files::{FileEntry, FileKind, FileReader, FileWriter, Files};
pub use guest::SaveReport;
pub use guest_events::{GuestEvent, GuestEventKind};
pub use host::{Host, HostBuilder};
pub use id::{SandboxId, TemplateName};
pub use paging::{Paging, RestoreReport};
pub use ports::Port;
pub use probe::Probe;
pub use processes::{ProcessInfo, ProcessRef};
pub use sandbox::{OnExpiry, PausedSandbox, Sandbox, SandboxBuilder, SandboxInfo, SandboxState};
pub use step::Step;
pub use template::Template;
pub use vmm::Acceleration;
pub use watch::{Change, ChangeKind, WatchBuilder, Watcher};
pub use wrenn_snapshot::RestoreReport as MemoryReport;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;
