//! Records of what was asked for: keys, and whose each sandbox is. They outlive the server.

pub mod contract;
mod outbox;
pub mod postgres;
pub mod records;
mod rows;
mod sql;
pub mod sqlite;
