//! What of wrenn takes bytes that strangers send, for a fuzzer and for the tests that replay what one has found.
//!
//! ```text
//!  corpus/TARGET/*  ──▶  cargo test: each seed, and each a little changed      (everywhere, in seconds)
//!                   └─▶  cargo xtask fuzz MINUTES: libFuzzer goes on from them  (for as long as one likes)
//! ```
//!
//! An input that breaks something goes to `corpus/TARGET` together with what mends it.

mod frames;

/// A function that takes any bytes, and panics if they break a promise.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name, which is also that of its seeds' directory.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: [Target; 17] = [
    Target { name: "header", run: wrenn_snapshot::fuzz::header },
    Target { name: "manifest", run: wrenn_snapshot::fuzz::manifest },
    Target { name: "working_set", run: wrenn_snapshot::fuzz::working_set },
    Target { name: "hand_over", run: wrenn_snapshot::fuzz::hand_over },
    Target { name: "multipart", run: wrenn_envd::agent::fuzz::multipart },
    Target { name: "archives", run: wrenn_envd::agent::fuzz::archives },
    Target { name: "frames", run: frames::frames },
    Target { name: "qmp", run: wrenn_core::fuzz::qmp },
    Target { name: "drive_copies", run: wrenn_core::fuzz::drive_copies },
    Target { name: "dockerfile", run: wrenn_core::fuzz::dockerfile },
    Target { name: "records", run: wrenn_core::fuzz::records },
    Target { name: "layers", run: wrenn_core::fuzz::layers },
    Target { name: "images", run: wrenn_core::fuzz::images },
    Target { name: "first_bytes", run: wrenn_net::fuzz::first_bytes },
    Target { name: "questions", run: wrenn_net::fuzz::questions },
    Target { name: "packets", run: wrenn_net::fuzz::packets },
    Target { name: "proxy_answers", run: wrenn_net::fuzz::proxy_answers },
];

/// The target of a name.
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
