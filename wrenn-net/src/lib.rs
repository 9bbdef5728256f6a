//! Network slots: a namespace, a tap and addresses for one sandbox.
#![warn(missing_docs)]
