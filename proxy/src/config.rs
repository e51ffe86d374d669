//! What the proxy needs to run, as flags.

use std::{num::NonZeroUsize, time::Duration};

use ferrogate_core::model::NodeName;
use ferrogate_wire::http1;

use crate::access::{AccessLog, Destination};

/// Connections of one thread: with the memory an idle one takes, 16 MiB at the most.
pub const DEFAULT_MAX_CONNECTIONS: usize = 16_384;
/// Bytes of a head: browsers send 8 KiB of cookies at the worst, single sign-on more.
pub const DEFAULT_HEADER_BYTES: usize = 32 * 1024;
/// Header lines: real clients send 30.
pub const DEFAULT_HEADERS: usize = 100;
/// Bytes of a request target: what RFC 9110 §4.1 asks for, and what most others take.
pub const DEFAULT_TARGET_BYTES: usize = 8 * 1024;
/// For a whole head: a slow mobile client needs a few seconds.
pub const DEFAULT_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// For the next request: browsers reuse connections within a minute.
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// For the next bytes of a body or of a client that reads.
pub const DEFAULT_BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// For a connection inside a data centre.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For a backend that thinks: what users know from other gateways.
pub const DEFAULT_RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// For a WebSocket without a word in either direction.
pub const DEFAULT_TUNNEL_TIMEOUT: Duration = Duration::from_secs(3600);
/// For a UDP flow: clients that keep one open (WireGuard, QUIC) speak every 30 s at the latest.
pub const DEFAULT_UDP_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// UDP flows of one listener on one thread: each holds a socket.
pub const DEFAULT_UDP_FLOWS: usize = 4096;
/// For every node of a cluster to hear that this proxy leaves, and to send its traffic elsewhere.
pub const DEFAULT_LEAVE_TIME: Duration = Duration::from_secs(5);
/// With the time to leave before it, what Kubernetes grants a pod by default.
pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(25);
/// Below the idle timeout of usual backends, so that we close first.
pub const DEFAULT_UPSTREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(45);
/// Idle connections that one thread keeps to one endpoint.
pub const DEFAULT_UPSTREAM_IDLE_CONNECTIONS: usize = 256;
/// Endpoints tried for one request.
pub const DEFAULT_TRIES: usize = 3;

/// Flags of the proxy.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "proxy")]
#[command(next_help_heading = "Proxy")]
pub struct Config {
    /// Threads that serve traffic; by default one for each CPU this process may use.
    #[arg(long = "proxy-threads", value_name = "COUNT")]
    pub threads: Option<NonZeroUsize>,
    /// Whether each thread stays on one CPU; only done when there are as many threads as CPUs.
    #[arg(long = "proxy-pin-threads", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub pin_threads: bool,
    /// Client connections that each thread holds at most; beyond it idle ones are closed and new ones wait.
    #[arg(long = "proxy-max-connections", value_name = "COUNT", default_value_t = DEFAULT_MAX_CONNECTIONS)]
    pub max_connections: usize,
    /// Bytes of a request or response head at most, up to 65536.
    #[arg(long = "proxy-max-header-bytes", value_name = "BYTES", default_value_t = DEFAULT_HEADER_BYTES)]
    pub max_header_bytes: usize,
    /// Header lines of a request or response at most, up to 128.
    #[arg(long = "proxy-max-headers", value_name = "COUNT", default_value_t = DEFAULT_HEADERS)]
    pub max_headers: usize,
    /// Bytes of a request target at most.
    #[arg(long = "proxy-max-target-bytes", value_name = "BYTES", default_value_t = DEFAULT_TARGET_BYTES)]
    pub max_target_bytes: usize,
    /// Time a client has for a whole request head, from its first byte (such as 500ms, 10s, 2m, 1h).
    #[arg(long = "proxy-header-timeout", value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub header_timeout: Duration,
    /// Time a client connection may wait for its next request.
    #[arg(long = "proxy-idle-timeout", value_name = "TIME", default_value = "75s", value_parser = duration)]
    pub idle_timeout: Duration,
    /// Time between two successful reads or writes of a body.
    #[arg(long = "proxy-body-timeout", value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub body_timeout: Duration,
    /// Time to connect to an endpoint before the next one is tried.
    #[arg(long = "proxy-connect-timeout", value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub connect_timeout: Duration,
    /// Time an endpoint has to begin its response once it has the request.
    #[arg(long = "proxy-response-timeout", value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub response_timeout: Duration,
    /// Time an upgraded (WebSocket) or a plain TCP connection may be silent.
    #[arg(long = "proxy-tunnel-timeout", value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub tunnel_timeout: Duration,
    /// Time the datagrams between a client and an endpoint may pause before the client counts as a new one.
    #[arg(long = "proxy-udp-idle-timeout", value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub udp_idle_timeout: Duration,
    /// UDP clients that each thread serves at each listener at the same time; beyond it old ones make room.
    #[arg(long = "proxy-udp-flows", value_name = "COUNT", default_value_t = DEFAULT_UDP_FLOWS)]
    pub udp_flows: usize,
    /// Time that a proxy behind kube-proxy still takes new connections after it was asked to end.
    #[arg(long = "proxy-leave-time", value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub leave_time: Duration,
    /// Time that requests in flight have to finish after the proxy was asked to end.
    #[arg(long = "proxy-drain-timeout", value_name = "TIME", default_value = "25s", value_parser = duration)]
    pub drain_timeout: Duration,
    /// Time an idle connection to an endpoint is kept.
    #[arg(long = "proxy-upstream-idle-timeout", value_name = "TIME", default_value = "45s", value_parser = duration)]
    pub upstream_idle_timeout: Duration,
    /// Idle connections that each thread keeps to each endpoint at most.
    #[arg(
        long = "proxy-upstream-idle-connections",
        value_name = "COUNT",
        default_value_t = DEFAULT_UPSTREAM_IDLE_CONNECTIONS
    )]
    pub upstream_idle_connections: usize,
    /// Times a request is tried at most while no byte of an answer has come.
    #[arg(long = "proxy-tries", value_name = "COUNT", default_value_t = DEFAULT_TRIES)]
    pub tries: usize,
    /// Log every request to standard output, in this form; query strings and headers are left out.
    #[arg(long = "access-log", value_name = "FORMAT", default_value = "off")]
    pub access_log: AccessLog,
    /// Where the access log goes.
    #[arg(skip)]
    pub access_log_to: Destination,
    /// The node this proxy runs on, where known: `externalTrafficPolicy: Local` needs it.
    #[arg(skip)]
    pub node: Option<NodeName>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            threads: None,
            pin_threads: true,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            max_header_bytes: DEFAULT_HEADER_BYTES,
            max_headers: DEFAULT_HEADERS,
            max_target_bytes: DEFAULT_TARGET_BYTES,
            header_timeout: DEFAULT_HEADER_TIMEOUT,
            idle_timeout: DEFAULT_IDLE_TIMEOUT,
            body_timeout: DEFAULT_BODY_TIMEOUT,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            response_timeout: DEFAULT_RESPONSE_TIMEOUT,
            tunnel_timeout: DEFAULT_TUNNEL_TIMEOUT,
            udp_idle_timeout: DEFAULT_UDP_IDLE_TIMEOUT,
            udp_flows: DEFAULT_UDP_FLOWS,
            leave_time: DEFAULT_LEAVE_TIME,
            drain_timeout: DEFAULT_DRAIN_TIMEOUT,
            upstream_idle_timeout: DEFAULT_UPSTREAM_IDLE_TIMEOUT,
            upstream_idle_connections: DEFAULT_UPSTREAM_IDLE_CONNECTIONS,
            tries: DEFAULT_TRIES,
            access_log: AccessLog::Off,
            access_log_to: Destination::Stdout,
            node: None,
        }
    }
}

/// A flag whose value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--{flag} {value}: must be {allowed}")]
pub struct ConfigError {
    flag: &'static str,
    value: String,
    allowed: String,
}

impl Config {
    /// Checks every flag.
    ///
    /// # Errors
    /// The first flag whose value is out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let buffer = crate::buffer::BUFFER_BYTES;
        let ranges = [
            ("proxy-threads", self.threads.map_or(1, NonZeroUsize::get), 1, 1024),
            ("proxy-max-connections", self.max_connections, 1, 1 << 24),
            ("proxy-max-header-bytes", self.max_header_bytes, 256, buffer),
            ("proxy-max-headers", self.max_headers, 1, http1::MAX_HEADERS),
            ("proxy-max-target-bytes", self.max_target_bytes, 1, self.max_header_bytes),
            ("proxy-upstream-idle-connections", self.upstream_idle_connections, 0, 1 << 20),
            ("proxy-tries", self.tries, 1, 64),
            ("proxy-udp-flows", self.udp_flows, 1, 1 << 20),
        ];
        for (flag, value, least, most) in ranges {
            if value < least || value > most {
                let (value, allowed) = (value.to_string(), format!("from {least} to {most}"));
                return Err(ConfigError { flag, value, allowed });
            }
        }
        let times = [
            ("proxy-header-timeout", self.header_timeout),
            ("proxy-idle-timeout", self.idle_timeout),
            ("proxy-body-timeout", self.body_timeout),
            ("proxy-connect-timeout", self.connect_timeout),
            ("proxy-response-timeout", self.response_timeout),
            ("proxy-tunnel-timeout", self.tunnel_timeout),
            ("proxy-udp-idle-timeout", self.udp_idle_timeout),
            ("proxy-upstream-idle-timeout", self.upstream_idle_timeout),
        ];
        let (least, most) = (Duration::from_millis(10), Duration::from_secs(7 * 24 * 3600));
        for (flag, value) in times {
            if value < least || value > most {
                let (value, allowed) = (format!("{value:?}"), "from 10ms to 168h".to_owned());
                return Err(ConfigError { flag, value, allowed });
            }
        }
        Ok(())
    }

    /// Limits of a head.
    pub(crate) fn limits(&self) -> http1::Limits {
        http1::Limits {
            head_bytes: self.max_header_bytes,
            headers: self.max_headers,
            target_bytes: self.max_target_bytes,
        }
    }

    /// How often time limits are looked at: a quarter of the shortest, so that none is exceeded by much.
    pub(crate) fn tick(&self) -> Duration {
        let shortest = [self.header_timeout, self.idle_timeout, self.body_timeout, self.connect_timeout]
            .into_iter()
            .chain([self.response_timeout, self.tunnel_timeout, self.upstream_idle_timeout])
            .min()
            .unwrap_or_default();
        (shortest / 4).clamp(Duration::from_millis(5), Duration::from_millis(250))
    }
}

/// Reads a time such as `500ms`, `10s`, `2m` or `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("must be a number with a unit: ms, s, m or h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "must be a whole number with a unit, such as 10s".to_owned())?;
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(|| "is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        proxy: Config,
    }

    #[test]
    fn the_flags_default_to_the_documented_constants() {
        let parsed = Cli::parse_from(["x"]).proxy;

        assert_eq!(format!("{parsed:?}"), format!("{:?}", Config::default()));
        assert_eq!(parsed.check(), Ok(()));
    }

    #[test]
    fn a_value_out_of_range_is_named_with_what_is_allowed() {
        let config = Config { max_headers: 500, ..Config::default() };

        assert_eq!(config.check().unwrap_err().to_string(), "--proxy-max-headers 500: must be from 1 to 128");
    }

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("10").is_err());
        assert!(duration("s").is_err());
        assert!(duration("99999999999999999999h").is_err());
    }
}
