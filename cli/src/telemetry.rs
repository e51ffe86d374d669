//! Logs: their format and their filter.

use anyhow::bail;
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How logs are written.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// What is logged: a level (none, error, warn, info, debug, all) or a filter such as `info,ferrogate_speaker=debug`
    #[arg(long, value_name = "FILTER", default_value = "info", env = "FERROGATE_LOG", global = true)]
    log: String,
    /// How a log line looks; it goes to standard error
    #[arg(long, value_name = "FORMAT", default_value = "text", global = true)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The words for a level, each with the one that the filter knows.
const LEVELS: [(&str, &str); 8] = [
    ("none", "off"),
    ("off", "off"),
    ("error", "error"),
    ("warn", "warn"),
    ("info", "info"),
    ("debug", "debug"),
    ("trace", "trace"),
    ("all", "trace"),
];

/// Starts logging; fails on a filter that cannot be read, naming it.
pub fn start(args: &LogArgs) -> anyhow::Result<()> {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(&args.log)?).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// A filter of which every level is one. The library takes a word that it does not know for the name of a module, and
/// logs nothing but that: a misspelt level would silence everything.
fn filter(text: &str) -> anyhow::Result<EnvFilter> {
    let mut directives = Vec::new();
    for directive in text.split(',').map(str::trim) {
        let (module, word) = match directive.rsplit_once('=') {
            Some((module, word)) => (Some(module), word),
            None => (None, directive),
        };
        let lower = word.to_ascii_lowercase();
        let Some((_, level)) = LEVELS.iter().find(|(known, _)| *known == lower) else {
            let known = LEVELS.map(|(known, _)| known).join(", ");
            bail!("--log {text:?}: {word:?} is not a level; use one of {known}, for one part of the program PART=LEVEL")
        };
        directives.push(module.map_or_else(|| (*level).to_owned(), |module| format!("{module}={level}")));
    }
    let directives = directives.join(",");
    EnvFilter::try_new(&directives)
        .map_err(|error| anyhow::anyhow!("--log {text:?} is not a filter: {error}; try `info` or `debug`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        filter(text).map_or_else(|error| error.to_string(), |filter| filter.to_string())
    }

    #[test]
    fn m_155_every_level_and_its_other_names_are_taken_in_any_case() {
        for (word, level) in LEVELS {
            assert_eq!(shown(word), level);
            assert_eq!(shown(&word.to_uppercase()), level);
        }
        assert_eq!(shown("info, ferrogate_speaker=all"), "ferrogate_speaker=trace,info");
    }

    #[test]
    fn m_155_a_misspelt_level_is_refused_with_the_list_of_levels() {
        for wrong in ["inof", "", "info,", "5", "ferrogate_speaker", "ferrogate_speaker=", "ferrogate_speaker=debg"] {
            let text = shown(wrong);
            assert!(text.contains("is not a level") && text.contains("error, warn, info"), "{wrong}: {text}");
        }
        assert!(shown("a[b=info").contains("is not a filter"));
    }
}
