//! What the server decides, the same for whatever it is asked by.

pub mod clock;
pub mod error;
pub mod keys;
pub mod sandboxes;
pub mod templates;
