//! The newest Events of one writer; equal ones are counted.

use std::collections::VecDeque;

use ferrogate_core::{
    model::ObjectRef,
    write::{Event, Severity},
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::{document::documents, write::seconds};

/// How many Events are kept.
pub const MAX_EVENTS: usize = 256;

/// The newest Events, oldest first.
#[derive(Debug, Default)]
pub struct Events(VecDeque<Seen>);

#[derive(Debug)]
struct Seen {
    event: Event,
    count: u64,
    first: String,
    last: String,
}

impl Events {
    /// The Events of a list; what cannot be read is left out, as an Event is only news.
    pub fn read(text: &str) -> Self {
        let list = documents(text).into_iter().find_map(|document| document.value.ok());
        let items = list.as_ref().and_then(|list| list["items"].as_array());
        Self(items.into_iter().flatten().filter_map(read_one).collect())
    }

    /// Adds one, or counts it.
    pub fn add(&mut self, event: Event, now: Timestamp) {
        let now = seconds(now);
        let known = self.0.iter().position(|seen| seen.event == event);
        let seen = match known.and_then(|place| self.0.remove(place)) {
            Some(seen) => Seen { count: seen.count.saturating_add(1), last: now, ..seen },
            None => Seen { event, count: 1, first: now.clone(), last: now },
        };
        self.0.push_back(seen);
        while self.0.len() > MAX_EVENTS {
            self.0.pop_front();
        }
    }

    /// All of them as a Kubernetes list.
    pub fn list(&self, writer: &str) -> Value {
        let items: Vec<Value> = self.0.iter().map(|seen| one(seen, writer)).collect();
        json!({ "apiVersion": "v1", "kind": "List", "items": items })
    }
}

fn one(seen: &Seen, writer: &str) -> Value {
    let Seen { event, count, first, last } = seen;
    let object = &event.object;
    let namespace = object.namespace.as_deref().unwrap_or("default");
    let mut involved = json!({ "apiVersion": object.api_version, "kind": object.kind, "name": object.name });
    if let Some(namespace) = &object.namespace {
        involved["namespace"] = json!(namespace);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": format!("{}.{}", object.name, event.reason.to_lowercase()), "namespace": namespace },
        "involvedObject": involved,
        "type": match event.severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        },
        "reason": event.reason,
        "message": event.message,
        "count": count,
        "firstTimestamp": first,
        "lastTimestamp": last,
        "source": { "component": format!("ferrogate-{writer}") },
    })
}

fn read_one(from: &Value) -> Option<Seen> {
    let text = |pointer: &str| from.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let object = ObjectRef {
        api_version: text("/involvedObject/apiVersion")?,
        kind: text("/involvedObject/kind")?,
        namespace: text("/involvedObject/namespace"),
        name: text("/involvedObject/name")?,
    };
    let severity = if text("/type")? == "Normal" { Severity::Normal } else { Severity::Warning };
    let event = Event { object, severity, reason: text("/reason")?, message: text("/message")? };
    let count = from["count"].as_u64().unwrap_or(1);
    Some(Seen { event, count, first: text("/firstTimestamp")?, last: text("/lastTimestamp")? })
}
