//! What is logged on a sandbox's behalf is in a span with its id, from the public call to its agent.

use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::host::lifecycle_tests::fake_host;
use crate::sandbox::handle::Sandbox;

/// The spans that were made: their names and their fields.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<String>>>);

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!(" {}={value:?}", field.name()));
    }
}

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("wrenn_core")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields = Fields(span.metadata().name().to_owned());
        span.record(&mut fields);
        let mut spans = self.0.lock().unwrap();
        spans.push(fields.0);
        Id::from_u64(spans.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test(start_paused = true)]
async fn what_is_done_for_a_sandbox_is_in_a_span_with_its_id() {
    let spans = Spans::default();
    let _listening = tracing::subscriber::set_default(spans.clone());
    let (_dir, host, _script) = fake_host().await;
    let mut made = Vec::new();
    // Another test's thread may have come upon a span for the first time just now, and noted that nobody listens to it.
    for _ in 0..20 {
        tracing::callsite::rebuild_interest_cache();
        let sandbox = Sandbox::create(&host, "fake").await.unwrap();
        sandbox.ping().await.unwrap();
        made = spans.0.lock().unwrap().clone();
        let id = sandbox.id();
        let start = format!("sandbox sandbox={id}");
        let call = format!("call sandbox={id} operation=\"be asked whether it is there\"");
        if made.contains(&start) && made.contains(&call) {
            return;
        }
    }
    panic!("{made:?}");
}
