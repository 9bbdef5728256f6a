//! Processes in the guest.
//!
//! ```text
//!  Service::start -> Start::run -> Launch::spawn -> Table::spawn -> Process::run -> Journal::push -> Reader::next
//!                                                      |   ^          |  ^                              |
//!                                    a starter's thread v   |  time-out v  | exit status          a stream v
//!                                               Program::start    reap <- SIGCHLD
//! ```
//!
//! A process belongs to the table, not to the client that started it: its readers come and go. While there are readers
//! the slowest one sets the pace. The newest output is kept, up to [`journal::KEPT_BYTES_MAX`], and for a while after the
//! end; so a client whose connection was lost goes on where it was.

mod command;
mod descendants;
mod events;
mod input;
mod journal;
mod launch;
mod life;
mod moment;
mod output;
mod pace;
mod ring;
mod running;
mod service;
mod table;
mod terminal;
mod time_limit;
mod utf8;

pub(super) use output::Outputs;
pub(super) use service::Service;
pub(super) use table::{Table, block_child_signals};
pub(super) use time_limit::take_time_limit;
