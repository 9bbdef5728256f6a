//! What a guest's way out has carried.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a guest's way out has carried since it was opened.
///
/// ```
/// use wrenn_net::EgressCounters;
///
/// /// Bytes that went either way in between.
/// fn carried(before: EgressCounters, now: EgressCounters) -> u64 {
///     (now.bytes_out - before.bytes_out) + (now.bytes_in - before.bytes_in)
/// }
///
/// let (before, mut now) = (EgressCounters::default(), EgressCounters::default());
/// (now.bytes_out, now.bytes_in) = (100, 4000);
/// assert_eq!(carried(before, now), 4100);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EgressCounters {
    /// Bytes of data that came from the guest.
    pub bytes_out: u64,
    /// Bytes of data that went to the guest.
    pub bytes_in: u64,
    /// TCP connections that were made.
    pub connections: u64,
    /// TCP connections that are open now.
    pub open_connections: u64,
    /// UDP flows that were begun.
    pub flows: u64,
    /// Echo requests that were sent on.
    pub echoes: u64,
    /// Questions to DNS.
    pub questions: u64,
    /// Connections, flows, echo requests and questions that were refused.
    pub refusals: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    bytes_out: AtomicU64,
    bytes_in: AtomicU64,
    connections: AtomicU64,
    flows: AtomicU64,
    echoes: AtomicU64,
    questions: AtomicU64,
    refusals: AtomicU64,
}

/// Which way data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Out,
    In,
}

impl Counters {
    pub(super) fn count_bytes(&self, way: Way, bytes: usize) {
        let counter = if way == Way::Out { &self.bytes_out } else { &self.bytes_in };
        counter.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn count_connection(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    pub(super) fn count_flow(&self) {
        self.flows.fetch_add(1, Relaxed);
    }

    pub(super) fn count_echo(&self) {
        self.echoes.fetch_add(1, Relaxed);
    }

    pub(super) fn count_question(&self) {
        self.questions.fetch_add(1, Relaxed);
    }

    pub(super) fn count_refusal(&self) {
        self.refusals.fetch_add(1, Relaxed);
    }

    pub(super) fn report(&self, open_connections: usize) -> EgressCounters {
        EgressCounters {
            bytes_out: self.bytes_out.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            connections: self.connections.load(Relaxed),
            open_connections: open_connections as u64,
            flows: self.flows.load(Relaxed),
            echoes: self.echoes.load(Relaxed),
            questions: self.questions.load(Relaxed),
            refusals: self.refusals.load(Relaxed),
        }
    }
}
