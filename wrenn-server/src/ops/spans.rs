//! Spans go to an OpenTelemetry collector, as the environment says (`OTEL_…`,
//! <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>).

use anyhow::Context as _;
use axum::http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt as _};
use tracing_subscriber::registry::LookupSpan;

/// Sends spans, in a thread of its own, until [`end`](Self::end).
#[derive(Debug)]
pub(super) struct Spans(SdkTracerProvider);

impl Spans {
    /// What sends them; `None` where no collector is named.
    ///
    /// # Errors
    /// What is said of the collector cannot be used.
    pub(super) fn of_environment() -> anyhow::Result<Option<Self>> {
        let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|is| is.eq_ignore_ascii_case(value));
        let is_named = COLLECTORS.into_iter().any(|name| std::env::var_os(name).is_some_and(|url| !url.is_empty()));
        if !is_named || is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_http().build();
        let exporter =
            exporter.context("the collector of OTEL_EXPORTER_OTLP_ENDPOINT cannot be used: it has to be http://…")?;
        let provider = SdkTracerProvider::builder().with_resource(resource()).with_batch_exporter(exporter);
        Ok(Some(Self(provider.build())))
    }

    pub(super) fn layer<S: Subscriber + for<'span> LookupSpan<'span>>(&self) -> OpenTelemetryLayer<S, Tracer> {
        tracing_opentelemetry::layer().with_tracer(self.0.tracer("wrenn-server"))
    }

    /// Sends what is left. Blocks, for some seconds at most.
    pub(super) fn end(self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Has a span be a part of the client's trace, where the request names one (`traceparent`, W3C Trace Context).
pub(super) fn continue_trace(span: &Span, headers: &HeaderMap) {
    let parent = TraceContextPropagator::new().extract(&Headers(headers));
    // It fails where spans go nowhere.
    span.set_parent(parent).ok();
}

/// The server's name, unless the environment has another one.
fn resource() -> Resource {
    let is_named = std::env::var_os("OTEL_SERVICE_NAME").is_some()
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|all| all.contains("service.name="));
    let builder = Resource::builder();
    if is_named { builder.build() } else { builder.with_service_name("wrenn-server").build() }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

const COLLECTORS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
