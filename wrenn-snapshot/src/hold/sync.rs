//! What the keeper locks with. Its model has other locks by the same names.

pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
