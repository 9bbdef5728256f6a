//! Requests to the ports of sandboxes: which one is meant, who may, and the carrying.

mod agent;
mod answer;
mod carry;
mod connector;
mod counted;
pub(crate) mod door;
mod frames;
mod signature;
mod streams;
mod target;
mod trust;
mod words;
