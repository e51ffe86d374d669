//! One pod, from the moment it is bound to the node until its object is gone.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1 as core, jiff::Timestamp};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Context,
    container::{Container, Order},
    environment,
    network::Place,
    status,
    volume::Volumes,
};

/// Time before something that failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// How often volumes are compared with what they are made of.
const REFRESH: Duration = Duration::from_secs(10);

/// What is known of the object: as it was last seen, or that it is gone.
pub type Seen = Option<Arc<core::Pod>>;

/// Runs a pod until its object is gone.
pub async fn run(context: Arc<Context>, pod: Arc<core::Pod>, seen: watch::Receiver<Seen>) {
    let folder = context.pods.join(pod.metadata.uid.as_deref().unwrap_or_default());
    let mut life = Life { context, folder, since: Timestamp::now(), reported: None, seen };
    life.say("seen", &pod);
    let place = life.begin(&pod).await;
    if let Some((place, addresses, volumes)) = place {
        life.live(&pod, &place, &addresses, volumes).await;
        life.leave(place).await;
    }
    // A folder that is left lies in one that will be removed.
    let _ = fs::remove_dir_all(&life.folder);
    life.forget(&pod).await;
    life.say("gone", &pod);
}

struct Life {
    context: Arc<Context>,
    folder: PathBuf,
    since: Timestamp,
    reported: Option<core::PodStatus>,
    seen: watch::Receiver<Seen>,
}

impl Life {
    fn say(&self, what: &str, pod: &core::Pod) {
        let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
        let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
        self.context.log.line(format_args!("{namespace}/{name}: {what}"));
    }

    fn api(&self, pod: &core::Pod) -> Api<core::Pod> {
        Api::namespaced(self.context.client.clone(), pod.metadata.namespace.as_deref().unwrap_or("default"))
    }

    /// Whether somebody wants the pod to end; and when at the latest.
    fn end(&self) -> Option<Instant> {
        let now = Instant::now();
        match &*self.seen.borrow() {
            None => Some(now),
            Some(pod) => {
                pod.metadata.deletion_timestamp.as_ref()?;
                let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
                Some(now + Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
            }
        }
    }

    /// Gives the pod its place and its volumes. Nothing is returned when it has to end before.
    async fn begin(
        &mut self,
        pod: &Arc<core::Pod>,
    ) -> Option<(Arc<Place>, status::Addresses, BTreeMap<String, PathBuf>)> {
        let mut place = None;
        while self.end().is_none() {
            let refused = match &place {
                None => match self.place(pod).await {
                    Ok(made) => {
                        place = Some(Arc::new(made));
                        continue;
                    }
                    Err(error) => ("FailedCreatePodSandBox", format!("{error:#}")),
                },
                Some(made) => {
                    let addresses = self.addresses(made);
                    let facts = facts(&addresses);
                    let folder = self.folder.join("volumes");
                    let volumes = Volumes { client: &self.context.client, pod, facts: &facts, folder: &folder };
                    match volumes.make().await {
                        Ok(volumes) => return Some((Arc::clone(made), addresses, volumes)),
                        Err(error) => ("FailedMount", error),
                    }
                }
            };
            let (reason, message) = refused;
            self.say(&format!("{reason}: {message}"), pod);
            let mut waiting = status::Container::default();
            waiting.wait("ContainerCreating", format!("{reason}: {message}"));
            let containers = vec![waiting; pod.spec.as_ref().map_or(0, |spec| spec.containers.len())];
            let addresses = place.as_ref().map(|place| self.addresses(place)).unwrap_or_default();
            self.report(&addresses, &containers).await;
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                _ = self.seen.changed() => {}
            }
        }
        if let Some(place) = place {
            self.leave(place).await;
        }
        None
    }

    async fn place(&self, pod: &Arc<core::Pod>) -> anyhow::Result<Place> {
        let spec = pod.spec.clone().unwrap_or_default();
        anyhow::ensure!(spec.init_containers.is_none_or(|list| list.is_empty()), "init containers are not run here");
        fs::create_dir_all(&self.folder)?;
        let context = Arc::clone(&self.context);
        let pod = Arc::clone(pod);
        let make = move || {
            if spec.host_network == Some(true) {
                return Place::on_node(context.identity.addresses.clone());
            }
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let uid: String = pod.metadata.uid.iter().flat_map(|uid| uid.chars()).take(8).collect();
            Place::of_its_own(&context.addresses, name, &format!("veth{uid}"))
        };
        tokio::task::spawn_blocking(make).await?
    }

    fn addresses(&self, place: &Place) -> status::Addresses {
        let text = |addresses: &[std::net::IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        status::Addresses { pod: text(place.addresses()), host: text(&self.context.identity.addresses) }
    }

    /// Runs the containers until all have ended and the pod may go.
    async fn live(
        &mut self,
        pod: &Arc<core::Pod>,
        place: &Arc<Place>,
        addresses: &status::Addresses,
        volumes: BTreeMap<String, PathBuf>,
    ) {
        let specs = pod.spec.as_ref().map(|spec| spec.containers.clone()).unwrap_or_default();
        let (tell, mut told) = watch::channel(vec![status::Container::default(); specs.len()]);
        let (order, orders) = watch::channel(Order::Run);
        let facts = facts(addresses);
        let volumes = Arc::new(volumes);
        let mut containers = JoinSet::new();
        for (number, spec) in specs.into_iter().enumerate() {
            let container = Container {
                context: Arc::clone(&self.context),
                pod: Arc::clone(pod),
                spec,
                place: Arc::clone(place),
                facts: facts.clone(),
                folder: self.folder.clone(),
                volumes: Arc::clone(&volumes),
            };
            let tell = tell.clone();
            let tell = move |facts: &status::Container| {
                tell.send_modify(|all| all.iter_mut().skip(number).take(1).for_each(|one| one.clone_from(facts)));
            };
            containers.spawn(container.run(tell, orders.clone()));
        }
        let mut refresh = Instant::now() + REFRESH;
        loop {
            if let Some(latest) = self.end() {
                order.send_if_modified(|order| match order {
                    // It may be asked to hurry, not to take its time.
                    Order::End(known) if *known <= latest => false,
                    _ => {
                        *order = Order::End(latest);
                        true
                    }
                });
            }
            let current = told.borrow_and_update().clone();
            let is_told = self.report(addresses, &current).await;
            if containers.is_empty() && self.end().is_some() {
                return;
            }
            tokio::select! {
                _ = told.changed() => {}
                changed = self.seen.changed() => if changed.is_err() { return },
                Some(_) = containers.join_next() => {}
                () = tokio::time::sleep(AGAIN), if !is_told => {}
                () = sleep_until(refresh) => {
                    refresh = Instant::now() + REFRESH;
                    let folder = self.folder.join("volumes");
                    let volumes = Volumes { client: &self.context.client, pod, facts: &facts, folder: &folder };
                    // What cannot be read now stays as it is.
                    if let Err(error) = volumes.make().await {
                        self.say(&error, pod);
                    }
                }
            }
        }
    }

    /// Writes the status, if it is not what was written last. Returns whether it stands.
    async fn report(&mut self, addresses: &status::Addresses, containers: &[status::Container]) -> bool {
        let Some(pod) = self.seen.borrow().clone() else { return true };
        let status = status::pod(&pod, addresses, containers, self.since);
        if self.reported.as_ref().is_some_and(|reported| is_same(reported, &status)) {
            return true;
        }
        // With the identity, so that a pod of the same name that came later is not spoken for.
        let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": status });
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let api = self.api(&pod);
        match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => {
                self.reported = Some(status);
                true
            }
            Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => true,
            Err(error) => {
                self.say(&format!("writing its status: {error}"), &pod);
                false
            }
        }
    }

    async fn leave(&self, place: Arc<Place>) {
        let Some(place) = Arc::into_inner(place) else { return };
        let context = Arc::clone(&self.context);
        let left = tokio::task::spawn_blocking(move || place.leave(&context.addresses)).await;
        if let Ok(Err(error)) = left {
            self.context.log.line(format_args!("unplugging a pod: {error:#}"));
        }
    }

    /// Lets the object go; until then it stands for processes that may still run.
    async fn forget(&mut self, pod: &core::Pod) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let api = self.api(pod);
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let parameters = DeleteParams::default().grace_period(0).preconditions(preconditions);
        while self.seen.borrow().is_some() {
            match api.delete(name, &parameters).await {
                Ok(_) => return,
                Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => return,
                Err(error) => self.say(&format!("letting it go: {error}"), pod),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Whether two statuses say the same, but for moments that nothing else came with.
fn is_same(one: &core::PodStatus, other: &core::PodStatus) -> bool {
    let without = |status: &core::PodStatus| {
        let mut status = status.clone();
        status.start_time = None;
        status.conditions.iter_mut().flatten().for_each(|condition| condition.last_transition_time = None);
        status
    };
    without(one) == without(other)
}

fn facts(addresses: &status::Addresses) -> environment::Facts {
    environment::Facts {
        pod_ip: addresses.pod.first().cloned().unwrap_or_default(),
        pod_ips: addresses.pod.clone(),
        host_ip: addresses.host.first().cloned().unwrap_or_default(),
        host_ips: addresses.host.clone(),
    }
}
