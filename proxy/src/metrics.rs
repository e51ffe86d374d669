//! What the proxy counts.
//!
//! Every thread counts for itself and is alone in writing its counters, so no request waits for another core; they
//! are added up when somebody asks.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::Registry,
};

use crate::respond::Refusal;

/// Metrics of the proxy.
#[derive(Clone, Debug)]
pub struct Metrics {
    threads: Threads,
    /// Listeners that are open.
    pub(crate) listeners: Gauge,
    /// Listeners that could not be bound.
    pub(crate) unbound: Gauge,
    /// Attempts to bind that failed, by reason.
    pub(crate) bind_failures: Family<[(&'static str, &'static str); 1], Counter>,
    /// Tables that were put in force.
    pub(crate) tables: Counter,
}

impl Metrics {
    /// Registers every metric of the proxy.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            threads: Threads::default(),
            listeners: Gauge::default(),
            unbound: Gauge::default(),
            bind_failures: Family::default(),
            tables: Counter::default(),
        };
        registry.register(
            "ferrogate_proxy_listeners",
            "Addresses and ports on which the proxy listens",
            metrics.listeners.clone(),
        );
        registry.register(
            "ferrogate_proxy_listeners_unbound",
            "Addresses and ports on which the proxy should listen but cannot",
            metrics.unbound.clone(),
        );
        registry.register(
            "ferrogate_proxy_bind_failures",
            "Attempts to listen that failed, by what the system said",
            metrics.bind_failures.clone(),
        );
        registry.register("ferrogate_proxy_tables", "Routing tables that were put in force", metrics.tables.clone());
        registry.register_collector(Box::new(metrics.threads.clone()));
        metrics
    }

    /// Counters for one more thread.
    pub(crate) fn thread(&self) -> Arc<Counters> {
        let counters = Arc::new(Counters::default());
        self.threads.lock().push(Arc::clone(&counters));
        counters
    }

    /// Forgets the counters of threads that ended.
    pub(crate) fn forget_threads(&self) {
        self.threads.lock().clear();
    }
}

/// A number that one thread writes and others read.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// One more. Only the owning thread may call it: a plain store is enough then, and cheaper than an exchange.
    pub(crate) fn add(&self, more: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(more), Relaxed);
    }

    /// One less; only for the owning thread.
    pub(crate) fn remove(&self, less: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(less), Relaxed);
    }

    /// The number now.
    pub(crate) fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What one thread counts. Aligned so that no two threads write to one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    /// Answers by the first digit of their status, from 1.
    pub(crate) answers: [Count; 5],
    /// Answers of our own, by kind of [`Refusal`].
    pub(crate) refusals: [Count; Refusal::WORDS.len()],
    /// Client connections that are open.
    pub(crate) connections: Count,
    /// Client connections that were accepted.
    pub(crate) accepted: Count,
    /// Client connections refused because their address is not in the Service's source ranges.
    pub(crate) forbidden: Count,
    /// Times accepting had to wait because of the connection limit.
    pub(crate) full: Count,
    /// Connections made to endpoints.
    pub(crate) dialled: Count,
    /// Requests sent over a connection that was open already.
    pub(crate) reused: Count,
    /// Connections to endpoints that could not be made.
    pub(crate) dial_failures: Count,
    /// Requests sent once more because the first connection broke before any answer.
    pub(crate) retries: Count,
    /// TCP connections of clients that were reset because no endpoint could be connected to.
    pub(crate) unconnected: Count,
    /// UDP flows that began.
    pub(crate) flows: Count,
    /// UDP flows that were given another endpoint.
    pub(crate) flows_moved: Count,
    /// UDP flows that were ended to make room.
    pub(crate) flows_displaced: Count,
    /// Datagrams passed on to endpoints.
    pub(crate) datagrams_in: Count,
    /// Datagrams passed on to clients.
    pub(crate) datagrams_out: Count,
    /// Datagrams that could not be passed on.
    pub(crate) datagrams_lost: Count,
    /// Requests that the access log had no room for.
    pub(crate) unlogged: Count,
}

impl Counters {
    /// Counts an answer.
    pub(crate) fn answered(&self, status: u16) {
        let class = usize::from(status / 100).wrapping_sub(1);
        if let Some(count) = self.answers.get(class) {
            count.add(1);
        }
    }

    /// Counts an answer of our own.
    pub(crate) fn refused(&self, refusal: Refusal) {
        self.answered(refusal.reply().status);
        if let Some(count) = self.refusals.get(refusal.index()) {
            count.add(1);
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Threads(Arc<Mutex<Vec<Arc<Counters>>>>);

impl Threads {
    /// The lock is held when a thread begins and when somebody reads the metrics, never by a request.
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Counters>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sum(&self, count: impl Fn(&Counters) -> u64) -> u64 {
        self.lock().iter().map(|thread| count(thread)).fold(0, u64::wrapping_add)
    }
}

impl Collector for Threads {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let classes = ["1xx", "2xx", "3xx", "4xx", "5xx"];
        let answers: Vec<_> = classes
            .iter()
            .enumerate()
            .map(|(index, class)| (*class, self.sum(|thread| thread.answers.get(index).map_or(0, Count::value))))
            .collect();
        let name = "ferrogate_proxy_requests";
        by_label(&mut encoder, name, "Requests answered, by class of status", "code", &answers)?;

        let refusals: Vec<_> = Refusal::WORDS
            .iter()
            .enumerate()
            .map(|(index, word)| (*word, self.sum(|thread| thread.refusals.get(index).map_or(0, Count::value))))
            .collect();
        let name = "ferrogate_proxy_refusals";
        by_label(&mut encoder, name, "Requests the proxy answered itself, by reason", "reason", &refusals)?;

        let counters: [(&str, &str, u64); 15] = [
            (
                "ferrogate_proxy_connections_accepted",
                "Client connections accepted",
                self.sum(|thread| thread.accepted.value()),
            ),
            (
                "ferrogate_proxy_connections_forbidden",
                "Client connections closed because of loadBalancerSourceRanges",
                self.sum(|thread| thread.forbidden.value()),
            ),
            (
                "ferrogate_proxy_connections_delayed",
                "Times that accepting waited because of the connection limit",
                self.sum(|thread| thread.full.value()),
            ),
            (
                "ferrogate_proxy_upstream_connections",
                "Connections made to endpoints",
                self.sum(|thread| thread.dialled.value()),
            ),
            (
                "ferrogate_proxy_upstream_reuses",
                "Requests sent over a connection to an endpoint that was open already",
                self.sum(|thread| thread.reused.value()),
            ),
            (
                "ferrogate_proxy_upstream_connect_failures",
                "Connections to endpoints that could not be made",
                self.sum(|thread| thread.dial_failures.value()),
            ),
            (
                "ferrogate_proxy_upstream_retries",
                "Requests sent once more because a connection broke before any answer",
                self.sum(|thread| thread.retries.value()),
            ),
            (
                "ferrogate_proxy_tcp_unconnected",
                "TCP connections of clients reset because no endpoint could be connected to",
                self.sum(|thread| thread.unconnected.value()),
            ),
            ("ferrogate_proxy_udp_flows", "UDP flows that began", self.sum(|thread| thread.flows.value())),
            (
                "ferrogate_proxy_udp_flows_moved",
                "UDP flows that were given another endpoint",
                self.sum(|thread| thread.flows_moved.value()),
            ),
            (
                "ferrogate_proxy_udp_flows_displaced",
                "UDP flows ended early to make room for others",
                self.sum(|thread| thread.flows_displaced.value()),
            ),
            (
                "ferrogate_proxy_udp_datagrams_in",
                "Datagrams passed on from clients to endpoints",
                self.sum(|thread| thread.datagrams_in.value()),
            ),
            (
                "ferrogate_proxy_udp_datagrams_out",
                "Datagrams passed on from endpoints to clients",
                self.sum(|thread| thread.datagrams_out.value()),
            ),
            (
                "ferrogate_proxy_udp_datagrams_lost",
                "Datagrams that could not be passed on, for want of an endpoint or of room in a socket",
                self.sum(|thread| thread.datagrams_lost.value()),
            ),
            (
                "ferrogate_proxy_access_log_lines_dropped",
                "Lines of the access log that were dropped because whoever reads it is too slow",
                self.sum(|thread| thread.unlogged.value()),
            ),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let open = ConstGauge::new(i64::try_from(self.sum(|thread| thread.connections.value())).unwrap_or(i64::MAX));
        let help = "Client connections that are open";
        open.encode(encoder.encode_descriptor("ferrogate_proxy_connections", help, None, open.metric_type())?)
    }
}

fn by_label(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &'static str,
    values: &[(&'static str, u64)],
) -> Result<(), fmt::Error> {
    let counter = ConstCounter::new(0u64);
    let mut metric: MetricEncoder<'_> = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
    for (word, value) in values {
        ConstCounter::new(*value).encode(metric.encode_family(&[(label, *word)])?)?;
    }
    Ok(())
}
