//! The server's log, on its standard error.

use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

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

/// Has this program log. `RUST_LOG` says what, in the words of `tracing-subscriber`'s `EnvFilter`; without it, what happens to
/// sandboxes and what an operator should know.
pub fn start(format: Format) {
    let filter = EnvFilter::builder().with_default_directive(Level::INFO.into()).from_env_lossy();
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).init(),
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
