//! One container: its program is started, watched, asked by its probes, started again, and ended when it is told to.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{api::core::v1 as core, jiff::Timestamp};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Context, environment,
    image::{self, Image},
    launch::{Bind, Launch},
    network::Place,
    probe::{Exec, Kind, Probe},
    status::{self, Ended},
    volume::Volumes,
};

/// What every container may do that does not say otherwise, as container runtimes have it.
const CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Pause before the first attempt again, and the longest. The first is short, because nobody's registry is spared.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Who runs for this long is well again.
const WELL: Duration = Duration::from_secs(60);

/// What a container is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Run.
    Run,
    /// End: be asked at once, and be killed at that moment.
    End(Instant),
}

/// A container of a pod that has its place.
pub struct Container {
    /// What the node has for every container.
    pub context: Arc<Context>,
    /// The pod, as it was when it started; what of it may change later changes nothing here.
    pub pod: Arc<core::Pod>,
    /// Which of its containers.
    pub spec: core::Container,
    /// Where the pod is on the network.
    pub place: Arc<Place>,
    /// What it is told of the pod.
    pub facts: environment::Facts,
    /// Where the pod's files lie.
    pub folder: PathBuf,
    /// Where its volumes lie.
    pub volumes: Arc<BTreeMap<String, PathBuf>>,
}

/// Why a container cannot be started now.
struct Obstacle {
    reason: &'static str,
    message: String,
}

impl Obstacle {
    fn new(reason: &'static str, message: impl ToString) -> Self {
        Self { reason, message: message.to_string() }
    }
}

/// A process that runs, and what it is asked.
struct Running {
    child: Child,
    probes: Vec<Probe>,
    since: Timestamp,
}

impl Container {
    /// Runs it until it has ended for good, telling what it does.
    pub async fn run(self, tell: impl Fn(&status::Container), mut orders: watch::Receiver<Order>) {
        let mut facts = status::Container::default();
        let mut pause = FIRST_PAUSE;
        let mut attempts = 0_u32;
        while *orders.borrow() == Order::Run {
            let begun = Instant::now();
            match self.start().await {
                Err(Obstacle { reason, message }) => {
                    // Real kubelets tell the attempt and the pause apart, and people look for both words.
                    let reason =
                        if reason == "ErrImagePull" && attempts % 2 == 1 { "ImagePullBackOff" } else { reason };
                    self.say(format_args!("{reason}: {message}"));
                    facts.wait(reason, message);
                }
                Ok(running) => {
                    facts.restarts += i32::from(facts.last.is_some());
                    let ended = self.watch(running, &mut facts, &tell, &mut orders).await;
                    self.say(format_args!("ended with {}", ended.code));
                    facts.started = false;
                    facts.ready = false;
                    facts.doing = status::Doing::Ended(ended.clone());
                    if *orders.borrow() != Order::Run || !self.is_restarted(ended.code) {
                        break;
                    }
                    if begun.elapsed() > WELL {
                        pause = FIRST_PAUSE;
                    }
                    facts.wait("CrashLoopBackOff", format!("starting it again in {pause:?}"));
                    facts.last = Some(ended);
                }
            }
            tell(&facts);
            attempts = attempts.wrapping_add(1);
            tokio::select! {
                _ = tokio::time::sleep(pause) => {}
                // Told to end, or nobody is left to tell.
                _ = orders.changed() => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        if let status::Doing::Waiting { .. } = facts.doing {
            // It never ran, or will not again: for the status of a pod that is going away it has ended.
            let now = Timestamp::now();
            facts.doing = status::Doing::Ended(Ended { code: 0, started: now, finished: now });
        }
        tell(&facts);
    }

    fn is_restarted(&self, code: i32) -> bool {
        match self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
            Some("Never") => false,
            Some("OnFailure") => code != 0,
            _ => true,
        }
    }

    fn say(&self, what: std::fmt::Arguments<'_>) {
        let metadata = &self.pod.metadata;
        let (namespace, pod) = (metadata.namespace.as_deref(), metadata.name.as_deref());
        let (namespace, pod) = (namespace.unwrap_or_default(), pod.unwrap_or_default());
        self.context.log.line(format_args!("{namespace}/{pod} {}: {what}", self.spec.name));
    }

    async fn start(&self) -> Result<Running, Obstacle> {
        let name = self.spec.image.as_deref().unwrap_or_default();
        let image = self.context.images.find(name).ok_or_else(|| {
            Obstacle::new("ErrImagePull", format!("no program of this machine stands for image {name:?}"))
        })?;
        let launch = self.launch(image).await?;
        let probes = self.probes(&launch).map_err(|error| Obstacle::new("CreateContainerConfigError", error))?;
        let file = self.folder.join(format!("{}.json", self.spec.name));
        let child = self.spawn(&launch, &file).map_err(|error| Obstacle::new("CreateContainerError", error))?;
        self.say(format_args!("started {} as process {}", launch.program.display(), child.id().unwrap_or_default()));
        Ok(Running { child, probes, since: Timestamp::now() })
    }

    fn probes(&self, launch: &Launch) -> Result<Vec<Probe>, String> {
        let kinds = [
            (Kind::Startup, &self.spec.startup_probe),
            (Kind::Readiness, &self.spec.readiness_probe),
            (Kind::Liveness, &self.spec.liveness_probe),
        ];
        let address = *self.place.addresses().first().ok_or("the pod has no address")?;
        let probes = kinds.into_iter().filter_map(|(kind, probe)| Some((kind, probe.as_ref()?)));
        let probe = |(kind, probe)| {
            let exec = |command: &[String]| self.exec(launch, kind, command);
            Probe::new(kind, probe, address, &self.spec, exec)
        };
        probes.map(probe).collect()
    }

    /// Prepares a program that a probe runs.
    fn exec(&self, launch: &Launch, kind: Kind, command: &[String]) -> Result<Exec, String> {
        let (program, args) = command.split_first().ok_or("a probe runs a program and names none")?;
        let launch = Launch { program: PathBuf::from(program), args: args.to_vec(), ..launch.clone() };
        let file = self.folder.join(format!("{}-{kind:?}.json", self.spec.name));
        let written = serde_json::to_vec(&launch).map_err(io::Error::from).and_then(|text| fs::write(&file, text));
        written.map_err(|error| format!("writing {}: {error}", file.display()))?;
        let network = self.place.descriptor().map_err(|error| format!("naming the network of the pod: {error}"))?;
        Ok(Exec { launcher: self.context.launcher.clone(), file, network: Arc::new(network) })
    }

    async fn launch(&self, image: &Image) -> Result<Launch, Obstacle> {
        let refused = |error: String| Obstacle::new("CreateContainerConfigError", error);
        let spec = self.pod.spec.as_ref();
        let on_node = spec.is_some_and(|spec| spec.host_network == Some(true));
        let hostname = if on_node {
            self.context.identity.name.clone()
        } else {
            let name = spec.and_then(|spec| spec.hostname.clone()).or_else(|| self.pod.metadata.name.clone());
            // The kernel allows 64 characters, Kubernetes 63.
            name.unwrap_or_default().chars().take(63).collect()
        };
        let (host, port) = &self.context.api_server;
        let mut environment = environment::first(&hostname, (host, *port));
        let sources = self.sources().await.map_err(refused)?;
        environment::add(&mut environment, &self.spec, &self.pod, &self.facts, &sources).map_err(refused)?;
        let words = |words: &Option<Vec<String>>| -> Vec<String> {
            words.iter().flatten().map(|word| environment::expand(word, &environment)).collect()
        };
        let (program, args) = image::command(image, &words(&self.spec.command), &words(&self.spec.args))
            .map_err(|error| Obstacle::new("CreateContainerError", error))?;
        let root = self.folder.join(format!("{}.root", self.spec.name));
        fs::create_dir_all(&root).map_err(|error| Obstacle::new("CreateContainerError", error))?;
        let mut binds = vec![Bind { source: image.source.clone(), target: image.path.clone(), read_only: true }];
        for mount in self.spec.volume_mounts.iter().flatten() {
            let volume = self.volumes.get(&mount.name);
            let volume = volume.ok_or_else(|| refused(format!("there is no volume {:?}", mount.name)))?;
            let source = mount.sub_path.as_ref().map_or_else(|| volume.clone(), |path| volume.join(path));
            let read_only = mount.read_only == Some(true);
            binds.push(Bind { source, target: PathBuf::from(&mount.mount_path), read_only });
        }
        let rights = Rights::of(&self.pod, &self.spec).map_err(refused)?;
        Ok(Launch {
            hostname,
            root,
            binds,
            read_only: rights.read_only,
            user: rights.user,
            group: rights.group,
            groups: rights.groups,
            capabilities: rights.capabilities,
            no_new_privileges: rights.no_new_privileges,
            program,
            args,
            environment,
            directory: self.spec.working_dir.clone().map_or_else(|| PathBuf::from("/"), PathBuf::from),
        })
    }

    /// Reads the Secrets and ConfigMaps that its variables name.
    async fn sources(&self) -> Result<environment::Sources, String> {
        let mut wanted = Vec::new();
        for from in self.spec.env_from.iter().flatten() {
            wanted.extend(from.config_map_ref.as_ref().map(|map| ("ConfigMap", map.name.clone())));
            wanted.extend(from.secret_ref.as_ref().map(|secret| ("Secret", secret.name.clone())));
        }
        for from in self.spec.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            wanted.extend(from.config_map_key_ref.as_ref().map(|map| ("ConfigMap", map.name.clone())));
            wanted.extend(from.secret_key_ref.as_ref().map(|secret| ("Secret", secret.name.clone())));
        }
        let client = &self.context.client;
        let volumes = Volumes { client, pod: &self.pod, facts: &self.facts, folder: &self.folder };
        let mut sources = environment::Sources::new();
        for (kind, name) in wanted {
            // Whether one may be missing is decided where it is used.
            let data = match kind {
                "Secret" => volumes.secret(&name, Some(true)).await?,
                _ => volumes.config_map(&name, Some(true)).await?,
            };
            if !data.is_empty() {
                let texts = data.into_iter().map(|(key, value)| (key, String::from_utf8_lossy(&value).into_owned()));
                sources.insert((kind, name), texts.collect());
            }
        }
        Ok(sources)
    }

    fn spawn(&self, launch: &Launch, file: &Path) -> anyhow::Result<Child> {
        fs::write(file, serde_json::to_vec(launch)?)?;
        let metadata = &self.pod.metadata;
        let log = format!(
            "{}_{}_{}.log",
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default(),
            self.spec.name
        );
        let log = File::options().create(true).append(true).open(self.context.logs.join(log))?;
        let mut command = Command::new(&self.context.launcher);
        command.arg("container").arg(file).stdin(Stdio::from(self.place.descriptor()?));
        command.stdout(log.try_clone()?).stderr(log).process_group(0).kill_on_drop(true);
        Ok(command.spawn()?)
    }

    /// Watches the process until it ends, whatever makes it.
    async fn watch(
        &self,
        running: Running,
        facts: &mut status::Container,
        tell: &impl Fn(&status::Container),
        orders: &mut watch::Receiver<Order>,
    ) -> Ended {
        let Running { mut child, mut probes, since } = running;
        let group = child.id().map(|id| Pid::from_raw(id.cast_signed()));
        let send = |signal| group.map(|group| killpg(group, signal));
        let (heard, mut verdicts) = mpsc::channel(8);
        let mut asking = JoinSet::new();
        let has = |probes: &[Probe], kind| probes.iter().any(|probe| probe.kind == kind);
        facts.doing = status::Doing::Running(since);
        facts.started = !has(&probes, Kind::Startup);
        facts.ready = facts.started && !has(&probes, Kind::Readiness);
        let has_readiness = has(&probes, Kind::Readiness);
        let (first, later): (Vec<_>, Vec<_>) =
            probes.drain(..).partition(|probe| facts.started || probe.kind == Kind::Startup);
        first.into_iter().for_each(|probe| drop(asking.spawn(probe.ask(heard.clone()))));
        let mut later = Some(later);
        tell(facts);
        let (mut ask_at, mut kill_at) = (None::<Instant>, None::<Instant>);
        let end_at = |ask_at: &mut Option<Instant>, kill_at: &mut Option<Instant>, moment: Instant| {
            if kill_at.is_none() {
                *ask_at = Some(Instant::now() + self.pause_before_end());
            }
            *kill_at = Some(kill_at.map_or(moment, |known| known.min(moment)));
        };
        if let Order::End(moment) = *orders.borrow_and_update() {
            end_at(&mut ask_at, &mut kill_at, moment);
        }
        let status = loop {
            tokio::select! {
                status = child.wait() => break status.ok(),
                Some((kind, holds)) = verdicts.recv() => match (kind, holds) {
                    (Kind::Startup, true) => {
                        facts.started = true;
                        facts.ready = !has_readiness;
                        for probe in later.take().into_iter().flatten() {
                            asking.spawn(probe.ask(heard.clone()));
                        }
                        tell(facts);
                    }
                    (Kind::Startup | Kind::Liveness, false) => {
                        self.say(format_args!("{kind:?} probe failed; it is ended to be started again"));
                        end_at(&mut ask_at, &mut kill_at, Instant::now() + self.grace());
                    }
                    (Kind::Liveness, true) => {}
                    (Kind::Readiness, holds) => {
                        facts.ready = holds;
                        tell(facts);
                    }
                },
                Ok(()) = orders.changed() => {
                    if let Order::End(moment) = *orders.borrow_and_update() {
                        end_at(&mut ask_at, &mut kill_at, moment);
                    }
                }
                () = sleep_until(ask_at.unwrap_or_else(Instant::now)), if ask_at.is_some() => {
                    ask_at = None;
                    // It may have ended by itself.
                    let _ = send(Signal::SIGTERM);
                }
                () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                    let _ = send(Signal::SIGKILL);
                    break child.wait().await.ok();
                }
            }
        };
        // What it left behind goes with it.
        let _ = send(Signal::SIGKILL);
        Ended { code: code(status), started: since, finished: Timestamp::now() }
    }

    /// How long it goes on after it was told to end, by its `preStop` hook.
    fn pause_before_end(&self) -> Duration {
        let hook = self.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
        let seconds = hook.and_then(|hook| hook.sleep.as_ref()).map_or(0, |sleep| sleep.seconds);
        Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    }

    fn grace(&self) -> Duration {
        let seconds = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    }
}

/// An exit code as container runtimes write it.
fn code(status: Option<ExitStatus>) -> i32 {
    let Some(status) = status else { return i32::from(super::launch::FAILED) };
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}

/// What a container may do.
#[derive(Debug, PartialEq, Eq)]
struct Rights {
    user: u32,
    group: u32,
    groups: Vec<u32>,
    capabilities: Vec<String>,
    no_new_privileges: bool,
    read_only: bool,
}

impl Rights {
    /// As its pod and it say together; it has the last word.
    fn of(pod: &core::Pod, container: &core::Container) -> Result<Self, String> {
        let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
        let own = container.security_context.clone().unwrap_or_default();
        let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
        let user = number(own.run_as_user.or(of_pod.run_as_user)).unwrap_or(0);
        if user == 0 && own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
            return Err("container has runAsNonRoot and image will run as root".to_owned());
        }
        let groups = of_pod.supplemental_groups.into_iter().flatten().chain(of_pod.fs_group);
        let mut capabilities: Vec<_> = CAPABILITIES.iter().map(|&name| name.to_owned()).collect();
        if own.privileged == Some(true) {
            capabilities = vec!["ALL".to_owned()];
        } else if let Some(change) = own.capabilities {
            let plain = |name: String| name.strip_prefix("CAP_").map(str::to_owned).unwrap_or(name);
            let dropped: Vec<_> = change.drop.into_iter().flatten().map(plain).collect();
            capabilities.retain(|name| !dropped.contains(name) && !dropped.iter().any(|dropped| dropped == "ALL"));
            capabilities.extend(change.add.into_iter().flatten().map(plain));
        }
        Ok(Self {
            user,
            group: number(own.run_as_group.or(of_pod.run_as_group)).unwrap_or(0),
            groups: groups.filter_map(|group| number(Some(group))).collect(),
            capabilities,
            no_new_privileges: own.allow_privilege_escalation == Some(false),
            read_only: own.read_only_root_filesystem == Some(true),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rights(of_pod: serde_json::Value, own: serde_json::Value) -> Result<Rights, String> {
        let pod = json!({ "spec": { "containers": [], "securityContext": of_pod } });
        let container = json!({ "name": "c", "securityContext": own });
        Rights::of(&serde_json::from_value(pod).unwrap(), &serde_json::from_value(container).unwrap())
    }

    #[test]
    fn a_container_keeps_only_the_capabilities_it_adds_to_none() {
        let own = json!({ "capabilities": { "drop": ["ALL"], "add": ["CAP_NET_RAW"] } });

        assert_eq!(rights(json!({}), own).unwrap().capabilities, ["NET_RAW"]);
        assert_eq!(rights(json!({}), json!({})).unwrap().capabilities, CAPABILITIES);
    }

    #[test]
    fn a_container_has_the_last_word_over_its_pod() {
        let found =
            rights(json!({ "runAsUser": 1, "runAsGroup": 2, "fsGroup": 3 }), json!({ "runAsUser": 4 })).unwrap();

        assert_eq!((found.user, found.group, found.groups), (4, 2, vec![3]));
    }

    #[test]
    fn root_is_refused_where_the_pod_promises_not_to_be() {
        assert!(rights(json!({ "runAsNonRoot": true }), json!({})).is_err());
        assert!(rights(json!({ "runAsNonRoot": true }), json!({ "runAsUser": 65532 })).is_ok());
    }

    #[test]
    fn a_signal_is_an_exit_code_above_128() {
        assert_eq!(code(Some(ExitStatus::from_raw(9))), 137);
        assert_eq!(code(Some(ExitStatus::from_raw(3 << 8))), 3);
    }
}
