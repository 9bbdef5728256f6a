//! The one place that turns stored bytes into types, and types into stored bytes.
//!
//! `docs/snapshot-format.md` has the byte tables and changes in the same commit as the files of this module. Everything is
//! little-endian. Parsing is total: any bytes give a value or a [`Damage`](crate::damage::Damage), with no panic, and
//! nothing is allocated that is larger than the file is. The caps hold for what is written as well as for what is read.

pub(crate) mod fields;
pub(crate) mod header;
pub(crate) mod manifest;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
