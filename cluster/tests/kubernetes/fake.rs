//! As much of an API server as a test needs: list, watch, create, replace, delete, patch and apply, over HTTP.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex},
};

use futures::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};

/// One request that changes something, as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub query: HashMap<String, String>,
    pub content_type: String,
    pub body: Value,
}

/// How it behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Answers 503 to everything.
    Down,
    /// Answers nothing at all.
    Hung,
    /// Answers 500 to what would change something.
    ReadOnly,
    /// Answers 429 to everything, and says to come back in this many seconds.
    Busy(u32),
    /// Answers 403 to whoever asks for Secrets.
    Discreet,
    /// Answers every third request, and others with one error after another.
    Stormy,
}

/// What it says in a storm.
const STORM: [(u16, &str); 4] =
    [(500, "InternalError"), (503, "ServiceUnavailable"), (429, "TooManyRequests"), (504, "Timeout")];

type Place = (String, String, String);

struct Store {
    /// How many requests there were.
    asked: usize,
    version: u64,
    objects: BTreeMap<Place, Value>,
    history: Vec<(u64, &'static str, Place, Value)>,
    watchers: Vec<(String, String, mpsc::UnboundedSender<Value>)>,
    /// Versions up to this one are forgotten: a watch from there gets 410.
    forgotten: u64,
}

/// An API server on a loopback port of its own.
pub struct Fake {
    store: Arc<Mutex<Store>>,
    seen: watch::Sender<Vec<Seen>>,
    mood: watch::Sender<Mood>,
    uri: hyper::Uri,
    _tasks: JoinSet<()>,
}

impl Fake {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let store = Store {
            asked: 0,
            version: 1,
            objects: BTreeMap::new(),
            history: Vec::new(),
            watchers: Vec::new(),
            forgotten: 0,
        };
        let store = Arc::new(Mutex::new(store));
        let (seen, mood) = (watch::Sender::new(Vec::new()), watch::Sender::new(Mood::Well));
        let mut tasks = JoinSet::new();
        let shared = (store.clone(), seen.clone(), mood.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shared = shared.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let (store, seen, mood) = shared.clone();
                    async move { Ok::<_, Infallible>(answer(request, store, seen, mood).await) }
                });
                connections.spawn(async move {
                    // A client that goes away is no failure of a test.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { store, seen, mood, uri, _tasks: tasks }
    }

    pub fn client(&self) -> kube::Client {
        let mut config = kube::Config::new(self.uri.clone());
        config.default_retry = false;
        kube::Client::try_from(config).unwrap()
    }

    /// A client that reaches it without a network, so that a test can let time fly.
    pub fn direct(&self) -> kube::Client {
        let shared = (self.store.clone(), self.seen.clone(), self.mood.clone());
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let (store, seen, mood) = shared.clone();
            async move { Ok::<_, Infallible>(answer(request, store, seen, mood).await) }
        });
        kube::Client::new(service, "default")
    }

    /// How many requests there were so far, of any kind.
    pub fn asked(&self) -> usize {
        self.store.lock().unwrap().asked
    }

    pub fn set_mood(&self, mood: Mood) {
        self.mood.send_replace(mood);
        if mood != Mood::Well {
            self.disconnect();
        }
    }

    /// Ends every watch.
    pub fn disconnect(&self) {
        self.store.lock().unwrap().watchers.clear();
    }

    /// Forgets what happened so far, so that no watch can go on from there.
    pub fn forget_history(&self) {
        let mut store = self.store.lock().unwrap();
        store.forgotten = store.version;
        store.history.clear();
    }

    /// Creates or replaces an object; `collection` is such as `/api/v1/services`.
    pub fn put(&self, collection: &str, object: Value) {
        let mut store = self.store.lock().unwrap();
        let place = place(collection, &object);
        store.put(place, object);
    }

    pub fn delete(&self, collection: &str, namespace: &str, name: &str) {
        let mut store = self.store.lock().unwrap();
        store.delete(&(collection.to_owned(), namespace.to_owned(), name.to_owned()));
    }

    pub fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        let place = (collection.to_owned(), namespace.to_owned(), name.to_owned());
        self.store.lock().unwrap().objects.get(&place).cloned()
    }

    /// How many requests that change something have arrived that are as described.
    pub fn count(&self, what: impl Fn(&Seen) -> bool) -> usize {
        self.seen.borrow().iter().filter(|one| what(one)).count()
    }

    /// Waits until a request that changes something has arrived that is as described.
    pub async fn seen(&self, what: impl Fn(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.subscribe();
        let all = seen.wait_for(|all| all.iter().any(&what)).await.unwrap();
        all.iter().find(|one| what(one)).unwrap().clone()
    }
}

fn place(collection: &str, object: &Value) -> Place {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (collection.to_owned(), text("namespace"), text("name"))
}

impl Store {
    fn put(&mut self, place: Place, mut object: Value) -> Value {
        self.version += 1;
        let uid = match self.objects.get(&place) {
            Some(before) => before["metadata"]["uid"].clone(),
            None => json!(format!("uid-{}", self.version)),
        };
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        object["metadata"]["uid"] = uid;
        if !place.1.is_empty() {
            object["metadata"]["namespace"] = json!(place.1);
        }
        let kind = if self.objects.insert(place.clone(), object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        self.tell(kind, place, object.clone());
        object
    }

    fn delete(&mut self, place: &Place) -> Option<Value> {
        let object = self.objects.remove(place)?;
        self.version += 1;
        self.tell("DELETED", place.clone(), object.clone());
        Some(object)
    }

    fn tell(&mut self, kind: &'static str, place: Place, object: Value) {
        let event = json!({ "type": kind, "object": object });
        self.watchers.retain(|(collection, namespace, watcher)| {
            let concerns = *collection == place.0 && (namespace.is_empty() || *namespace == place.1);
            !concerns || watcher.send(event.clone()).is_ok()
        });
        self.history.push((self.version, kind, place, object));
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

fn reply(code: StatusCode, value: &Value) -> Response<Body> {
    let text = Bytes::from(value.to_string());
    let body = http_body_util::Full::new(text).boxed_unsync();
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

fn failure(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason })
}

fn refuse(code: u16, reason: &str) -> Response<Body> {
    reply(StatusCode::from_u16(code).unwrap(), &failure(code, reason))
}

/// Collection, namespace, name and subresource of a path.
fn parse(path: &str) -> (String, String, String, String) {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let root = if parts[0] == "api" { 2 } else { 3 };
    let (base, rest) = parts.split_at(root);
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let at = |index: usize| rest.get(index).map(|part| (*part).to_owned()).unwrap_or_default();
    (format!("/{}/{}", base.join("/"), at(0)), namespace.to_owned(), at(1), at(2))
}

async fn answer<B: hyper::body::Body>(
    request: Request<B>,
    store: Arc<Mutex<Store>>,
    seen: watch::Sender<Vec<Seen>>,
    mood: watch::Sender<Mood>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let query: HashMap<String, String> = head
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.replace("%2F", "/")))
        .collect();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let content_type =
        head.headers.get("content-type").map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    let changes = head.method != Method::GET;
    if changes {
        let one = Seen {
            method: head.method.clone(),
            path: path.clone(),
            query: query.clone(),
            content_type: content_type.clone(),
            body: body.clone(),
        };
        seen.send_modify(|all| all.push(one));
    }
    let now = *mood.borrow();
    let number = {
        let mut store = store.lock().unwrap();
        store.asked += 1;
        store.asked
    };
    match now {
        Mood::Hung => {
            let _ = mood.subscribe().wait_for(|mood| *mood != Mood::Hung).await;
            return refuse(503, "ServiceUnavailable");
        }
        Mood::Down => return refuse(503, "ServiceUnavailable"),
        Mood::Discreet if path.ends_with("/secrets") => return refuse(403, "Forbidden"),
        Mood::ReadOnly if changes => return refuse(500, "InternalError"),
        Mood::Busy(seconds) => {
            let mut status = failure(429, "TooManyRequests");
            status["details"] = json!({ "retryAfterSeconds": seconds });
            return reply(StatusCode::TOO_MANY_REQUESTS, &status);
        }
        Mood::Stormy if !number.is_multiple_of(3) => {
            let (code, reason) = STORM[number % STORM.len()];
            return refuse(code, reason);
        }
        _ => {}
    }
    let (collection, namespace, name, subresource) = parse(&path);
    let place = (collection.clone(), namespace.clone(), name.clone());
    let mut store = store.lock().unwrap();
    match head.method {
        Method::GET if name.is_empty() && query.contains_key("watch") => {
            let from: u64 = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
            let (sender, receiver) = mpsc::unbounded_channel();
            if from < store.forgotten {
                let _ = sender.send(json!({ "type": "ERROR", "object": failure(410, "Expired") }));
            } else {
                for (version, kind, place, object) in &store.history {
                    let concerns = place.0 == collection && (namespace.is_empty() || place.1 == namespace);
                    if *version > from && concerns {
                        let _ = sender.send(json!({ "type": kind, "object": object }));
                    }
                }
                store.watchers.push((collection, namespace, sender));
            }
            let lines = stream::unfold(receiver, |mut receiver| async {
                let event: Value = receiver.recv().await?;
                Some((Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{event}\n")))), receiver))
            });
            Response::new(StreamBody::new(lines.boxed()).boxed_unsync())
        }
        Method::GET if name.is_empty() => {
            let items: Vec<&Value> = store
                .objects
                .iter()
                .filter(|(place, _)| place.0 == collection && (namespace.is_empty() || place.1 == namespace))
                .map(|(_, object)| object)
                .collect();
            let list = json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": store.version.to_string() }, "items": items });
            reply(StatusCode::OK, &list)
        }
        Method::GET => match store.objects.get(&place) {
            Some(object) => reply(StatusCode::OK, object),
            None => refuse(404, "NotFound"),
        },
        Method::POST => {
            let name = body["metadata"]["name"].as_str().unwrap().to_owned();
            let place = (collection, namespace, name);
            if store.objects.contains_key(&place) {
                return refuse(409, "AlreadyExists");
            }
            reply(StatusCode::CREATED, &store.put(place, body))
        }
        Method::PUT => match store.objects.get(&place) {
            Some(before) if before["metadata"]["resourceVersion"] == body["metadata"]["resourceVersion"] => {
                reply(StatusCode::OK, &store.put(place, body))
            }
            Some(_) => refuse(409, "Conflict"),
            None => refuse(404, "NotFound"),
        },
        Method::DELETE => match store.delete(&place) {
            Some(object) => reply(StatusCode::OK, &object),
            None => refuse(404, "NotFound"),
        },
        Method::PATCH => {
            let before = store.objects.get(&place).cloned();
            let applies = content_type.starts_with("application/apply-patch");
            match before {
                None if subresource.is_empty() && applies => reply(StatusCode::CREATED, &store.put(place, body)),
                None => refuse(404, "NotFound"),
                Some(object)
                    if body["metadata"]
                        .get("resourceVersion")
                        .is_some_and(|version| *version != object["metadata"]["resourceVersion"]) =>
                {
                    refuse(409, "Conflict")
                }
                Some(mut object) => {
                    merge(&mut object, &body);
                    reply(StatusCode::OK, &store.put(place, object))
                }
            }
        }
        _ => refuse(405, "MethodNotAllowed"),
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                if value.is_null() {
                    into.remove(key);
                    continue;
                }
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}
