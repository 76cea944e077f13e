//! Logging: to stderr, as lines for people or as JSON, by a filter text such as `info,otonix_sdk::link=debug`.
//!
//! A log line is never worth the process: when stderr is closed or its reader is gone, lines are lost in silence.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Layer, Registry, registry};

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// Lines for people on a terminal, JSON elsewhere.
    pub fn of_stderr() -> Self {
        if io::stderr().is_terminal() { Self::Human } else { Self::Json }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Human => "human",
            Self::Json => "json",
        })
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            other => Err(format!("log format is `human` or `json`, not `{other}`")),
        }
    }
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("log filter `{filter}` is malformed")]
    Filter {
        /// As it was given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Something in this process logs already.
    #[error("logging was started before")]
    Twice,
}

/// Starts logging for the whole process, panics included.
///
/// # Errors
/// A malformed filter, or a second call.
pub fn init(filter: &str, format: Option<LogFormat>) -> Result<(), TelemetryError> {
    let format = format.unwrap_or_else(LogFormat::of_stderr);
    let subscriber = subscriber(filter, format, io::stderr().is_terminal(), io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::Twice)?;
    log_panics();
    Ok(())
}

/// Checks a filter text without using it.
///
/// # Errors
/// When it is malformed.
pub fn check_filter(filter: &str) -> Result<(), TelemetryError> {
    parse(filter).map(|_| ())
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })
}

type Boxed = Box<dyn Layer<Registry> + Send + Sync>;

fn subscriber<W>(
    filter: &str,
    format: LogFormat,
    ansi: bool,
    writer: W,
) -> Result<impl tracing::Subscriber + Send + Sync, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // The layer's own complaint about a failed write would go to stderr by a macro that panics.
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    let layer: Boxed = match format {
        LogFormat::Human => layer.with_ansi(ansi).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).boxed(),
    };
    Ok(registry().with(layer.with_filter(parse(filter)?)))
}

fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let what = panic_message(panic.payload());
        tracing::error!(panic.place = place, panic.message = what, "panicked");
    }));
}

/// What a panic said.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(not a text)")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    fn logged(filter: &str, format: LogFormat, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = subscriber(filter, format, false, move || writer.clone()).expect("a filter");
        tracing::subscriber::with_default(subscriber, log);
        let bytes = lines.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn a_json_line_is_one_object_with_its_fields_on_top() {
        let line = logged("info", LogFormat::Json, || tracing::info!(agent.id = 7, "registered"));
        let object: serde_json::Value = serde_json::from_str(&line).expect("one object");
        assert_eq!(object["message"], "registered");
        assert_eq!(object["agent.id"], 7);
        assert_eq!(object["level"], "INFO");
        assert!(object["timestamp"].as_str().expect("a time").ends_with('Z'));
    }

    #[test]
    fn a_line_for_people_has_no_colours_away_from_a_terminal() {
        let line = logged("info", LogFormat::Human, || tracing::warn!("low on credits"));
        assert!(line.contains("low on credits"));
        assert!(!line.contains('\u{1b}'));
    }

    #[test]
    fn the_filter_decides_what_is_written() {
        let log = || {
            tracing::debug!("hidden");
            tracing::info!("shown");
        };
        let lines = logged("info", LogFormat::Human, log);
        assert!(lines.contains("shown") && !lines.contains("hidden"));
        assert!(matches!(check_filter("a=b=c"), Err(TelemetryError::Filter { .. })));
        assert!(check_filter("warn,otonix_sdk::link=debug").is_ok());
    }

    #[test]
    fn a_writer_that_fails_is_nobodys_panic() {
        for format in [LogFormat::Human, LogFormat::Json] {
            let subscriber = subscriber("info", format, false, || Broken).expect("a filter");
            tracing::subscriber::with_default(subscriber, || tracing::info!("into the void"));
        }
    }
}
