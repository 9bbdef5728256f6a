//! Every call that is issued here, held against the `userfaultfd` crate's: the same to two memories has to come to the same.

mod calls;
mod changes;
mod outcome;
mod sequences;
mod side;
mod touch;
