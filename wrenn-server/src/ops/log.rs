//! The server's log, on its standard error.

use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing::Level;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt};

#[cfg(feature = "otel")]
use crate::ops::spans::Spans;

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// An object in each line, for programs: `timestamp`, `level`, `target`, `message`, the fields of the line, and in
    /// `spans` what it belongs to, the request with its `request_id` first.
    Json,
}

/// A log that was begun, until [`end`](Self::end).
#[derive(Debug)]
#[must_use = "what is left has to be sent at the end"]
pub struct Log {
    #[cfg(feature = "otel")]
    spans: Option<Spans>,
}

impl Log {
    /// Has this program log. `RUST_LOG` says what, in the words of `tracing-subscriber`'s `EnvFilter`; without it, what
    /// happens to sandboxes and what an operator should know.
    ///
    /// # Errors
    /// What the environment says of a collector of spans cannot be used.
    pub fn start(format: Format) -> anyhow::Result<Self> {
        #[cfg(feature = "otel")]
        let spans = Spans::of_environment()?;
        let filter = EnvFilter::builder().with_default_directive(Level::INFO.into()).from_env_lossy();
        let lines = fmt::layer().with_writer(std::io::stderr);
        let lines = match format {
            Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
            Format::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
        };
        let all = tracing_subscriber::registry().with(filter).with(lines);
        #[cfg(feature = "otel")]
        let all = all.with(spans.as_ref().map(Spans::layer));
        all.init();
        Ok(Self {
            #[cfg(feature = "otel")]
            spans,
        })
    }

    /// Sends what is left.
    ///
    /// # Cancel-Safety
    /// It goes on.
    pub async fn end(self) {
        #[cfg(feature = "otel")]
        if let Some(spans) = self.spans {
            tokio::task::spawn_blocking(|| spans.end()).await.ok();
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("it is text or json".to_owned()),
        }
    }
}
