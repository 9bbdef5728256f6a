//! MicroVM sandboxes as a library: create one in milliseconds, run commands in it, pause it to disk, resume it lazily,
//! fork it while it runs, and make templates that many start from.
//!
//! ```no_run
//! # async fn demo() -> wrenn_core::Result<()> {
//! use wrenn_core::{Host, Sandbox};
//!
//! let host = Host::builder().open().await?;
//! host.ensure_image("base").on_step(|step| eprintln!("{step}")).await?;
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

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("wrenn-core runs on Linux on x86-64 alone: build it for x86_64-unknown-linux-gnu");

mod agent;
mod build;
mod clock;
mod defaults;
mod erofs;
mod error;
mod events;
mod exec;
mod files;
mod free_memory;
mod guest;
mod host;
mod id;
pub mod image;
mod network;
mod oci;
mod packages;
mod patience;
mod ports;
mod process;
mod program;
mod runtime;
mod sandbox;
mod site;
mod state;
mod sys;
mod unnamed;
mod vmm;

pub use agent::error::AgentError;
pub use agent::metrics::GuestMetrics;
pub use build::builder::{Build, TemplateBuilder};
pub use build::event::{BuildEvent, BuildEventKind, BuildStream};
pub use build::ready::Ready;
pub use build::step::{CopyStep, RunStep};
pub use defaults::Defaults;
pub use error::build::BuildFailure;
pub use error::{BoxError, Error, Result, Subject};
pub use events::guest::{GuestEvent, GuestEventKind};
pub use exec::collect::Output;
pub use exec::event::{Event, ExitStatus, PtySize};
pub use exec::signal::Signal;
pub use files::entry::{FileEntry, FileKind};
pub use files::handle::Files;
pub use files::stream::{FileReader, FileWriter};
pub use files::watch::{Change, ChangeKind, WatchBuilder, Watcher};
pub use guest::then::{DriveSaving, SaveReport, SaveSteps};
pub use host::builder::HostBuilder;
pub use host::create::SandboxBuilder;
pub use host::doctor::Diagnosis;
pub use host::doctor::finding::{Finding, Verdict};
pub use host::ensure::EnsureImage;
pub use host::events::{HostEvents, Missed, NetworkRefusals};
pub use host::filter::SandboxFilter;
pub use host::handle::Host;
pub use host::images::Pruned;
pub use host::metrics::HostMetrics;
pub use host::shutdown::Running;
pub use host::template_bases::TemplateBase;
pub use id::{NameError, SandboxId, TemplateName};
pub use network::port_stream::PortStream;
pub use network::publish::PublishOptions;
pub use network::refusals::NetworkRefusal;
pub use network::secrets::SecretSource;
pub use ports::Port;
pub use process::child::Child;
pub use process::command::Command;
pub use process::input::ChildStdin;
pub use process::list::{ProcessInfo, ProcessRef};
pub use process::output::{ChildStderr, ChildStdout};
pub use program::find_in_path;
pub use sandbox::event::{HostEvent, HostEventKind};
pub use sandbox::handle::Sandbox;
pub use sandbox::many::Sandboxes;
pub use sandbox::metrics::{SandboxMetrics, VmmMetrics};
pub use sandbox::paused::PausedSandbox;
pub use sandbox::template::Template;
pub use site::data_dir::default_path as default_data_dir;
pub use site::step::Step;
pub use site::survey::DamagedRecord;
pub use state::{Exit, OnExpiry, PublishedPort, SandboxInfo, SandboxState, TtlFrom};
pub use vmm::driver::{Confinement, Driver};
pub use vmm::paging::{Paging, RestoreReport};
pub use vmm::phases::{RestorePhases, RestoreSteps, SavePhases};
pub use vmm::probe::Probe;
pub use vmm::shape::Acceleration;
pub use vmm::tracking::Tracking;
pub use wrenn_net::{
    Budget as NetworkBudget, Destination, EgressCounters, Limits as NetworkLimits, NetworkPolicy, PolicyEntry,
    PolicyError, Protocol, ProxyFault, Refusal, Refused, Rule, Secret, SecretFuture, UpstreamProxy,
};
pub use wrenn_snapshot::RestoreReport as MemoryReport;

/// What the repository's fuzzer calls. Not part of the API.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz {
    pub use crate::build::fuzz::dockerfile;
    pub use crate::oci::fuzz::{images, layers};
    pub use crate::site::fuzz::records;
    pub use crate::vmm::qemu::fuzz::{drive_copies, qmp};
}

/// The example of the README is compiled, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
