//! The examples are the files beside this package; run one with `cargo run --example hello`.
