//! Memory and disk generations, and the page server that serves them.
#![warn(missing_docs)]
