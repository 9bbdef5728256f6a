//! E2B's `process` package, generated from `proto/process.proto`.
#![expect(missing_docs, reason = "the comments are in the proto file")]
#![expect(
    missing_debug_implementations,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    clippy::use_self,
    reason = "generated code"
)]

connectrpc::include_generated!();
