//! Processes whose input and output a client has at a WebSocket for as long as they run.
//!
//! ```text
//!  exec, terminal ─▶ upgrade: the place, the socket, the first message ─▶ pump ◀─▶ socket ◀─▶ client
//!                                                                          ▲
//!                                     the process: its input, its output ──┘ again after each pause, from place
//! ```

pub(super) mod exec;
mod input;
pub(super) mod message;
mod place;
mod pump;
mod socket;
pub(super) mod terminal;
mod text;
mod upgrade;
