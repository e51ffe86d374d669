//! The status of a pod, from what its containers do.

use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; 128 and the signal if it was killed by one.
    pub code: i32,
    /// When it had started.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
}

/// What a container does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It does not run, and why.
    Waiting {
        /// In one word, as the kubelet of Kubernetes says it: `ErrImagePull`.
        reason: &'static str,
        /// In a sentence.
        message: String,
    },
    /// It runs since then.
    Running(Timestamp),
    /// It has ended and is not started again.
    Ended(Ended),
}

/// Everything there is to say of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// What it does.
    pub doing: Doing,
    /// How it ended before.
    pub last: Option<Ended>,
    /// How often it was started again.
    pub restarts: i32,
    /// Whether it runs and its startup probe holds.
    pub started: bool,
    /// Whether its readiness probe holds, too.
    pub ready: bool,
}

impl Default for Container {
    fn default() -> Self {
        let doing = Doing::Waiting { reason: "ContainerCreating", message: String::new() };
        Self { doing, last: None, restarts: 0, started: false, ready: false }
    }
}

impl Container {
    /// A container that waits.
    pub fn wait(&mut self, reason: &'static str, message: impl Into<String>) {
        self.doing = Doing::Waiting { reason, message: message.into() };
        self.started = false;
        self.ready = false;
    }
}

/// Where a pod is.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// Its own addresses, none before it has a place on the network.
    pub pod: Vec<String>,
    /// Its node's.
    pub host: Vec<String>,
}

/// The status of a pod. Conditions that are not the kubelet's are left out: the patch keeps them.
pub fn pod(pod: &core::Pod, addresses: &Addresses, containers: &[Container], since: Timestamp) -> core::PodStatus {
    let specs: &[core::Container] = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let statuses: Vec<_> = specs.iter().zip(containers).map(|(spec, facts)| container(spec, facts)).collect();
    let unready: Vec<_> = statuses.iter().filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
    let ready = match unready.as_slice() {
        [] => Ok(()),
        names => Err(("ContainersNotReady", format!("containers with unready status: [{}]", names.join(" ")))),
    };
    let place = if addresses.pod.is_empty() { Err(("NoNetwork", String::new())) } else { Ok(()) };
    let conditions = [
        ("PodReadyToStartContainers", place),
        ("Initialized", Ok(())),
        ("Ready", gates(pod).and(ready.clone())),
        ("ContainersReady", ready),
    ];
    let known = pod.status.as_ref();
    let addresses_of = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    core::PodStatus {
        phase: Some(phase(containers).to_owned()),
        conditions: Some(conditions.into_iter().map(|(kind, holds)| condition(pod, kind, holds)).collect()),
        container_statuses: Some(statuses),
        host_ip: addresses.host.first().cloned(),
        host_ips: addresses_of(&addresses.host).map(|list| list.into_iter().map(|ip| core::HostIP { ip }).collect()),
        pod_ip: addresses.pod.first().cloned(),
        pod_ips: addresses_of(&addresses.pod).map(|list| list.into_iter().map(|ip| core::PodIP { ip }).collect()),
        start_time: known.and_then(|known| known.start_time.clone()).or(Some(Time(since))),
        ..core::PodStatus::default()
    }
}

fn phase(containers: &[Container]) -> &'static str {
    let begun = |container: &Container| container.last.is_some() || !matches!(container.doing, Doing::Waiting { .. });
    let codes: Option<Vec<_>> = containers
        .iter()
        .map(|container| if let Doing::Ended(ended) = &container.doing { Some(ended.code) } else { None })
        .collect();
    match codes {
        Some(codes) if !codes.is_empty() && codes.iter().all(|code| *code == 0) => "Succeeded",
        Some(codes) if !codes.is_empty() => "Failed",
        _ if containers.iter().all(begun) => "Running",
        _ => "Pending",
    }
}

/// Whether the conditions that others set, and that this pod waits for, hold.
fn gates(pod: &core::Pod) -> Result<(), (&'static str, String)> {
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let holds = |kind: &str| conditions.clone().any(|condition| condition.type_ == kind && condition.status == "True");
    match gates.map(|gate| gate.condition_type.as_str()).find(|kind| !holds(kind)) {
        None => Ok(()),
        Some(kind) => Err(("ReadinessGatesNotReady", format!("condition {kind:?} is not True"))),
    }
}

fn condition(pod: &core::Pod, kind: &str, holds: Result<(), (&'static str, String)>) -> core::PodCondition {
    let known = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let status = if holds.is_ok() { "True" } else { "False" };
    let same = known.into_iter().find(|known| known.type_ == kind && known.status == status);
    let (reason, message) = holds.err().unzip();
    core::PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.unwrap_or_default().to_owned()),
        message: Some(message.unwrap_or_default()),
        last_transition_time: same
            .and_then(|same| same.last_transition_time.clone())
            .or_else(|| Some(Time(Timestamp::now()))),
        ..core::PodCondition::default()
    }
}

fn container(spec: &core::Container, facts: &Container) -> core::ContainerStatus {
    let state = match &facts.doing {
        Doing::Waiting { reason, message } => core::ContainerState {
            waiting: Some(core::ContainerStateWaiting {
                reason: Some((*reason).to_owned()),
                message: Some(message.clone()).filter(|message| !message.is_empty()),
            }),
            ..core::ContainerState::default()
        },
        Doing::Running(since) => core::ContainerState {
            running: Some(core::ContainerStateRunning { started_at: Some(Time(*since)) }),
            ..core::ContainerState::default()
        },
        Doing::Ended(end) => ended(end),
    };
    core::ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        image_id: spec.image.clone().unwrap_or_default(),
        state: Some(state),
        last_state: facts.last.as_ref().map(ended),
        restart_count: facts.restarts,
        started: Some(facts.started),
        ready: facts.ready,
        ..core::ContainerStatus::default()
    }
}

fn ended(end: &Ended) -> core::ContainerState {
    let reason = match end.code {
        0 => "Completed",
        code if code == i32::from(super::launch::FAILED) => "StartError",
        _ => "Error",
    };
    core::ContainerState {
        terminated: Some(core::ContainerStateTerminated {
            exit_code: end.code,
            reason: Some(reason.to_owned()),
            started_at: Some(Time(end.started)),
            finished_at: Some(Time(end.finished)),
            ..core::ContainerStateTerminated::default()
        }),
        ..core::ContainerState::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> core::Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": { "name": "p" },
            "spec": { "containers": [{ "name": "c", "image": "web" }] },
        }))
        .unwrap()
    }

    fn holds(status: &core::PodStatus, kind: &str) -> bool {
        status.conditions.iter().flatten().any(|condition| condition.type_ == kind && condition.status == "True")
    }

    fn status_of(facts: Container) -> core::PodStatus {
        let addresses = Addresses { pod: vec!["198.51.100.18".into()], host: vec!["192.0.2.11".into()] };
        pod(&one(), &addresses, &[facts], Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_pod_is_pending_until_its_containers_run_and_ready_when_they_are() {
        let waiting = status_of(Container::default());
        let running = Container { doing: Doing::Running(Timestamp::UNIX_EPOCH), started: true, ..Container::default() };
        let unready = status_of(running.clone());
        let ready = status_of(Container { ready: true, ..running });

        assert_eq!(waiting.phase.as_deref(), Some("Pending"));
        assert_eq!((unready.phase.as_deref(), holds(&unready, "Ready")), (Some("Running"), false));
        assert_eq!((ready.phase.as_deref(), holds(&ready, "Ready")), (Some("Running"), true));
        assert_eq!(ready.pod_ips.unwrap()[0].ip, "198.51.100.18");
    }

    #[test]
    fn a_container_between_two_runs_keeps_its_pod_running() {
        let end = Ended { code: 1, started: Timestamp::UNIX_EPOCH, finished: Timestamp::UNIX_EPOCH };
        let mut facts = Container { last: Some(end), restarts: 1, ..Container::default() };
        facts.wait("CrashLoopBackOff", "back-off");

        let status = status_of(facts);

        assert_eq!(status.phase.as_deref(), Some("Running"));
        let container = &status.container_statuses.unwrap()[0];
        assert_eq!(
            container.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref(),
            Some("CrashLoopBackOff")
        );
        assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
    }

    #[test]
    fn all_that_ended_well_succeeded_and_otherwise_failed() {
        let end = |code| {
            let ended = Ended { code, started: Timestamp::UNIX_EPOCH, finished: Timestamp::UNIX_EPOCH };
            status_of(Container { doing: Doing::Ended(ended), ..Container::default() }).phase
        };

        assert_eq!(end(0).as_deref(), Some("Succeeded"));
        assert_eq!(end(1).as_deref(), Some("Failed"));
    }

    #[test]
    fn a_condition_that_did_not_change_keeps_its_time() {
        let mut before = one();
        let time = Some(Time(Timestamp::UNIX_EPOCH));
        let condition = core::PodCondition {
            type_: "Initialized".into(),
            status: "True".into(),
            last_transition_time: time.clone(),
            ..core::PodCondition::default()
        };
        before.status = Some(core::PodStatus { conditions: Some(vec![condition]), ..core::PodStatus::default() });

        let status = pod(&before, &Addresses::default(), &[Container::default()], Timestamp::now());

        let found = status.conditions.unwrap().into_iter().find(|condition| condition.type_ == "Initialized");
        assert_eq!(found.unwrap().last_transition_time, time);
    }
}
