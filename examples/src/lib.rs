//! The examples are the files beside this package; run one with `cargo run --example hello`.

/// The README of the agent, whose own package has no tests of its documentation: half of that is generated.
#[cfg(doctest)]
#[doc = include_str!("../../wrenn-envd/README.md")]
struct AgentReadme;
