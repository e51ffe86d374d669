//! Hands of the controller: hands each new snapshot to [`ferrogate_core::controller`] and its writes to whoever
//! carries them out. It decides nothing.
//!
//! One task, no sockets: it waits for the next snapshot, a change of leadership, or the deadline of a write that has
//! not shown; steps; sends the writes in order. While the channel of writes is full it waits there, and of the
//! snapshots that come meanwhile only the newest counts.

use std::sync::Arc;

use ferrogate_core::{
    configuration::{self, Keeper, Reporter},
    controller::{self as brain, Controller, Event},
    snapshot::Snapshot,
    write::{Severity, Write},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

mod metrics;

pub use self::metrics::Metrics;

/// What the controller needs to run.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Whether the built-in proxy carries every LoadBalancer Service, as it does on the directory source. Ports that
    /// it cannot carry are reported then.
    pub proxy_carries_services: bool,
}

/// Why the controller ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Nobody supplies facts any more.
    #[error("the source of facts ended")]
    SourceEnded,
    /// Nobody carries out writes any more.
    #[error("the sink of writes ended")]
    SinkEnded,
}

/// Runs until `shutdown`. `ready` becomes true once the first snapshot is worked in, whether this process leads or
/// not.
///
/// # Errors
///
/// When a channel is closed on the other side before `shutdown`.
pub async fn run(
    config: Config,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mut leads: watch::Receiver<bool>,
    writes: mpsc::Sender<Write>,
    metrics: Metrics,
    ready: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let settings = brain::Config { proxy_carries_services: config.proxy_carries_services, ..brain::Config::default() };
    let mut controller = Controller::new(settings);
    let mut keeper = Keeper::new(Reporter::Controller, false);
    // What is there already counts as the first change.
    snapshots.mark_changed();
    leads.mark_changed();
    loop {
        // Every arm is cancel-safe: the next round looks at the same channels and the same deadline again.
        let event = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            alive = leads.changed() => {
                alive.map_err(|_| RunError::SourceEnded)?;
                Event::Leads(*leads.borrow_and_update())
            }
            alive = snapshots.changed() => {
                alive.map_err(|_| RunError::SourceEnded)?;
                Event::Snapshot(Arc::clone(&snapshots.borrow_and_update()))
            }
            () = until([controller.deadline(), keeper.deadline()].into_iter().flatten().min()) => Event::Tick,
        };
        let mut is_snapshot = matches!(event, Event::Snapshot(_));
        if let Event::Leads(leads) = event {
            info!(leads, "leadership");
            if leads {
                // What was listed for a new leader is the first thing that it goes by.
                let snapshot = Arc::clone(&snapshots.borrow_and_update());
                let now = Instant::now().into_std();
                controller.step(now, Event::Snapshot(Arc::clone(&snapshot)));
                keeper.step(now, configuration::Event::Snapshot(snapshot));
                is_snapshot = true;
            }
        }
        let seen = match &event {
            Event::Leads(leads) => configuration::Event::Leads(*leads),
            Event::Snapshot(snapshot) => configuration::Event::Snapshot(Arc::clone(snapshot)),
            Event::Tick => configuration::Event::Tick,
        };
        let now = Instant::now().into_std();
        let mut wanted = controller.step(now, event);
        wanted.extend(keeper.step(now, seen));
        metrics.stepped(&mut controller, *leads.borrow());
        metrics.judged(keeper.state());
        for write in wanted {
            // What is left unsent when leadership goes is decided anew by whoever leads next.
            if !*leads.borrow() {
                break;
            }
            log(&write);
            metrics.wrote(&write);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                sent = writes.send(write) => sent.map_err(|_| RunError::SinkEnded)?,
            }
        }
        if is_snapshot {
            ready.send_replace(true);
        }
    }
    ready.send_replace(false);
    Ok(())
}

async fn until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// One line for the timeline of an incident, for what people look for; the rest at `debug`.
fn log(write: &Write) {
    match write {
        Write::ServiceStatus { service, status, .. } => {
            let reason = status.condition.as_ref().map(|condition| condition.reason.as_str());
            info!(%service, address = ?status.addresses, pool = ?status.pool, reason, "address of a service");
        }
        Write::IngressStatus { ingress, addresses } => info!(%ingress, address = ?addresses, "address of an ingress"),
        Write::EntryService { service, wish } => info!(%service, is_wanted = wish.is_some(), "service of the entry"),
        Write::Event(event) if event.severity == Severity::Warning => {
            warn!(object = %event.object, reason = event.reason, error = event.message, "event");
        }
        Write::Condition { object, condition } if !condition.holds => {
            warn!(%object, reason = condition.reason, error = condition.message, "object left out");
        }
        other => debug!(write = ?other, "write"),
    }
}

#[cfg(test)]
mod tests;
