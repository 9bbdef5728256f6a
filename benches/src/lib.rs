//! The benches are the files beside this package; `cargo xtask bench` runs them.
