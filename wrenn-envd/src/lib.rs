//! The guest agent, and the wire types that hosts share with it.
#![warn(missing_docs)]
