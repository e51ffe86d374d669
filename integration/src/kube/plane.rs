//! etcd, the API server, and what else runs beside it.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    ops::Range,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::sys::signal::Signal;

use super::{
    audit::{self, Asked},
    certificates::{Authority, Pair, token_keys},
    folder::Folder,
    http1,
    process::{Keeper, Process, tied},
    tools::{self, Programs},
};

/// How long the API server may take to be ready; on a machine that is busy otherwise too.
const READY: Duration = Duration::from_secs(90);

/// How often it is asked.
const INTERVAL: Duration = Duration::from_millis(50);

/// Lines of each log that are shown when something does not start.
const TAIL: usize = 25;

/// The group whose members may do everything.
const MASTERS: &str = "system:masters";

/// What a control plane consists of.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address on which everything listens; without one, a loopback address of its own.
    pub address: Option<IpAddr>,
    /// Where cluster IPs come from, one prefix for each family; the first is the family by default.
    pub service_cidrs: String,
    /// Where NodePorts come from.
    pub node_ports: String,
    /// Whether the controllers of Kubernetes run: EndpointSlices, Deployments, garbage collection and so on.
    pub controller_manager: bool,
    /// Whether pods are given nodes.
    pub scheduler: bool,
    /// More flags for the API server; the last of two of one name counts.
    pub api_server_flags: Vec<String>,
    /// More flags for the controllers.
    pub controller_manager_flags: Vec<String>,
}

impl Default for Options {
    /// Both families, IPv4 first, room for 65,000 Services; an API server and nothing else.
    fn default() -> Self {
        Self {
            address: None,
            service_cidrs: "10.96.0.0/16,fd00:10:96::/112".to_owned(),
            node_ports: "30000-32767".to_owned(),
            controller_manager: false,
            scheduler: false,
            api_server_flags: Vec::new(),
            controller_manager_flags: Vec::new(),
        }
    }
}

/// A control plane that runs. Everything ends and is removed when this is dropped, or this process ends.
///
/// It belongs to the network namespace in which it was started. Processes are started there whoever asks; a client
/// that is not started by this must be there itself.
#[derive(Debug)]
pub struct ControlPlane {
    // Processes end before the folder they write to.
    processes: Mutex<Processes>,
    keeper: Keeper,
    folder: Folder,
    programs: Programs,
    authority: Authority,
    options: Options,
    address: IpAddr,
    etcd: SocketAddr,
    etcd_peers: SocketAddr,
    api_server: SocketAddr,
    controller_manager: SocketAddr,
    scheduler: SocketAddr,
}

#[derive(Debug, Default)]
struct Processes {
    /// What runs, the first to end first.
    others: Vec<Process>,
    api_server: Option<Process>,
    etcd: Option<Process>,
}

impl ControlPlane {
    /// Starts one and waits until it answers; its programs are built where they are not there yet.
    ///
    /// # Errors
    /// When something does not start; the text shows what it printed last.
    pub fn start(options: Options) -> Result<Self> {
        let programs = tools::KUBERNETES.build()?;
        let folder = Folder::new("ferrogate-kube-")?;
        let address = options.address.unwrap_or_else(loopback);
        let [etcd, etcd_peers, api_server, controller_manager, scheduler] = free(address)?;
        let plane = Self {
            processes: Mutex::default(),
            keeper: Keeper::start()?,
            folder,
            programs,
            authority: Authority::new()?,
            options,
            address,
            etcd,
            etcd_peers,
            api_server,
            controller_manager,
            scheduler,
        };
        plane.lay_out()?;
        plane.processes().etcd = Some(plane.run_etcd()?);
        plane.processes().api_server = Some(plane.run_api_server()?);
        plane.wait_ready()?;
        if plane.options.controller_manager {
            let process = plane.run_controller_manager()?;
            plane.processes().others.push(process);
        }
        if plane.options.scheduler {
            let process = plane.run_scheduler()?;
            plane.processes().others.push(process);
        }
        Ok(plane)
    }

    /// Where everything of this control plane lies: logs, certificates, kubeconfigs, data. Yours to add files to.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Kubernetes' own programs, of the version that runs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Starts processes in the namespace of this control plane, and ends them with it.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Where the API server is reached.
    pub fn api_server(&self) -> SocketAddr {
        self.api_server
    }

    /// The authority that signed the certificate of the API server, as a file.
    pub fn authority(&self) -> PathBuf {
        self.file("ca.crt")
    }

    /// The kubeconfig of an administrator. Nothing of Ferrogate may run with it.
    pub fn kubeconfig(&self) -> PathBuf {
        self.file("admin.kubeconfig")
    }

    /// The kubeconfig of a user, made for whoever is asked for: `system:node:a` in `system:nodes`, say.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn user_kubeconfig(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let Pair { certificate, key } = self.authority.user(user, group)?;
        let stem = user.replace([':', '/'], "-");
        let certificate = self.write(&format!("{stem}.crt"), &certificate)?;
        let key = self.write(&format!("{stem}.key"), &key)?;
        let user = serde_json::json!({ "client-certificate": certificate, "client-key": key });
        self.write_kubeconfig(&stem, user)
    }

    /// The kubeconfig of a ServiceAccount that exists, with a token as a pod would get one, good for a day.
    ///
    /// # Errors
    /// When the API server gives no token.
    pub fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.kubectl(["create", "token", name, "--namespace", namespace, "--duration", "24h"])?;
        let user = serde_json::json!({ "token": token.trim() });
        self.write_kubeconfig(&format!("{namespace}-{name}"), user)
    }

    /// What an administrator's kubectl prints.
    ///
    /// # Errors
    /// When it fails; the text is what it said.
    pub fn kubectl<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let args: Vec<_> = args.into_iter().collect();
        let output = self.try_kubectl(&args, "")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {}", args.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Applies manifests as an administrator.
    ///
    /// # Errors
    /// When the API server refuses one; the text is what it said.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let output = self.try_kubectl(&["apply", "--filename", "-"], manifests)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}", said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// How an administrator's kubectl ends when it is given this to read.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn try_kubectl(&self, args: &[&str], input: &str) -> Result<Output> {
        let mut command = tied(self.programs.path("kubectl")?);
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(args);
        // Discovery is kept there, and a home of its own knows nothing of other clusters.
        command.env("HOME", self.folder()).env_remove("KUBECONFIG");
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.keeper.spawn(command)?;
        let stdin = child.stdin.take();
        std::thread::scope(|scope| {
            // It may end without reading all of it.
            scope.spawn(move || stdin.map(|mut stdin| std::io::Write::write_all(&mut stdin, input.as_bytes())));
            child.wait_with_output().context("waiting for kubectl")
        })
    }

    /// A client with the rights of an administrator, on the runtime that asks.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client(&self) -> Result<Client> {
        client(&self.kubeconfig()).await
    }

    /// What service accounts have asked for so far.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn asked(&self) -> Result<Vec<Asked>> {
        audit::read(&self.file("audit.log"))
    }

    /// What service accounts of a namespace were refused for want of a right, and were never granted. An API server
    /// that has just started refuses everything until it has read who may do what.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn forbidden(&self, namespace: &str) -> Result<Vec<Asked>> {
        let whose = format!("system:serviceaccount:{namespace}:");
        Ok(audit::never_granted(self.asked()?.into_iter().filter(|one| one.user.starts_with(&whose))))
    }

    /// Makes etcd forget every version but the latest, as it does by itself of those that are some minutes old. The API
    /// server remembers what it has seen until it is started again.
    ///
    /// # Errors
    /// When etcd does not do so.
    pub fn forget_versions(&self) -> Result<()> {
        let etcd = self.etcd;
        self.keeper.run(move || {
            let answer = http1::ask(etcd, "POST", "/v3/kv/range", r#"{"key":"Lw=="}"#)?;
            let revision = answer.split(r#""revision":""#).nth(1).and_then(|rest| rest.split('"').next());
            let revision = revision.with_context(|| format!("no revision in {answer}"))?;
            http1::ask(etcd, "POST", "/v3/kv/compaction", &format!(r#"{{"revision":"{revision}"}}"#)).map(|_| ())
        })?
    }

    /// Kills the API server without a warning; its data stay.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_api_server(&self) -> Result<()> {
        // Dropping it kills it and waits for its end.
        self.processes().api_server.take().map(drop).context("the API server does not run")
    }

    /// Starts the API server again where it was, and waits until it answers.
    ///
    /// # Errors
    /// When it runs already, or does not start.
    pub fn start_api_server(&self) -> Result<()> {
        ensure!(self.processes().api_server.is_none(), "the API server runs already");
        let process = self.run_api_server()?;
        self.processes().api_server = Some(process);
        self.wait_ready()
    }

    /// Stops the API server where it stands: connections stay open and nobody answers.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause_api_server(&self) -> Result<()> {
        self.signal_api_server(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume_api_server(&self) -> Result<()> {
        self.signal_api_server(Signal::SIGCONT)
    }

    fn signal_api_server(&self, signal: Signal) -> Result<()> {
        self.processes().api_server.as_ref().context("the API server does not run")?.signal(signal)
    }

    /// The end of everything that was printed, for a failure to show.
    pub fn tails(&self) -> String {
        let processes = self.processes();
        let all = processes.etcd.iter().chain(&processes.api_server).chain(&processes.others);
        all.map(|process| process.tail(TAIL)).collect::<Vec<_>>().join("\n")
    }

    fn processes(&self) -> MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.file(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    fn lay_out(&self) -> Result<()> {
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let first = self.options.service_cidrs.split(',').next().and_then(first_service);
        let loopbacks = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let addresses: Vec<_> = [self.address].into_iter().chain(loopbacks).chain(first).collect();
        let server = self.authority.server(&names, &addresses)?;
        self.write("ca.crt", &self.authority.certificate())?;
        self.write("server.crt", &server.certificate)?;
        self.write("server.key", &server.key)?;
        let (signs, checks) = token_keys()?;
        self.write("tokens.key", &signs)?;
        self.write("tokens.pub", &checks)?;
        self.write("audit.yaml", audit::POLICY)?;
        self.user_kubeconfig("admin", Some(MASTERS))?;
        Ok(())
    }

    fn write_kubeconfig(&self, stem: &str, user: serde_json::Value) -> Result<PathBuf> {
        let server = format!("https://{}", self.api_server);
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": { "server": server, "certificate-authority": self.authority() } }],
            "users": [{ "name": stem, "user": user }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": stem } }],
            "current-context": "test",
        });
        self.write(&format!("{stem}.kubeconfig"), &kubeconfig.to_string())
    }

    fn run(&self, program: &str, args: &[String]) -> Result<Process> {
        let mut command = tied(self.programs.path(program)?);
        command.args(args).current_dir(self.folder());
        Process::start(&self.keeper, program, command, &self.file(&format!("{program}.log")))
    }

    fn run_etcd(&self) -> Result<Process> {
        let clients = format!("http://{}", self.etcd);
        let peers = format!("http://{}", self.etcd_peers);
        self.run(
            "etcd",
            &[
                "--data-dir=etcd".to_owned(),
                // What is thrown away needs no care.
                "--unsafe-no-fsync".to_owned(),
                "--log-level=warn".to_owned(),
                format!("--listen-client-urls={clients}"),
                format!("--advertise-client-urls={clients}"),
                format!("--listen-peer-urls={peers}"),
                format!("--initial-advertise-peer-urls={peers}"),
                format!("--initial-cluster=default={peers}"),
            ],
        )
    }

    fn run_api_server(&self) -> Result<Process> {
        let Options { service_cidrs, node_ports, api_server_flags, .. } = &self.options;
        // Nobody else can reach a loopback address, so the Service `kubernetes` leads nowhere then.
        let reconciler = if self.address.is_loopback() { "none" } else { "lease" };
        let mut flags = vec![
            format!("--etcd-servers=http://{}", self.etcd),
            format!("--bind-address={}", self.address),
            format!("--advertise-address={}", self.address),
            format!("--secure-port={}", self.api_server.port()),
            format!("--endpoint-reconciler-type={reconciler}"),
            format!("--service-cluster-ip-range={service_cidrs}"),
            format!("--service-node-port-range={node_ports}"),
            "--cert-dir=api-server".to_owned(),
            "--tls-cert-file=server.crt".to_owned(),
            "--tls-private-key-file=server.key".to_owned(),
            "--client-ca-file=ca.crt".to_owned(),
            "--service-account-key-file=tokens.pub".to_owned(),
            "--service-account-signing-key-file=tokens.key".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--audit-log-path=audit.log".to_owned(),
            "--audit-policy-file=audit.yaml".to_owned(),
            "--profiling=false".to_owned(),
        ];
        flags.extend(api_server_flags.iter().cloned());
        self.run("kube-apiserver", &flags)
    }

    fn run_controller_manager(&self) -> Result<Process> {
        let kubeconfig = self.user_kubeconfig("system:kube-controller-manager", None)?;
        let mut flags = vec![
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--authentication-kubeconfig={}", kubeconfig.display()),
            format!("--authorization-kubeconfig={}", kubeconfig.display()),
            format!("--bind-address={}", self.address),
            format!("--secure-port={}", self.controller_manager.port()),
            "--cert-dir=controller-manager".to_owned(),
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            "--service-account-private-key-file=tokens.key".to_owned(),
            "--root-ca-file=ca.crt".to_owned(),
        ];
        flags.extend(self.options.controller_manager_flags.iter().cloned());
        self.run("kube-controller-manager", &flags)
    }

    fn run_scheduler(&self) -> Result<Process> {
        let kubeconfig = self.user_kubeconfig("system:kube-scheduler", None)?;
        self.run(
            "kube-scheduler",
            &[
                format!("--kubeconfig={}", kubeconfig.display()),
                format!("--authentication-kubeconfig={}", kubeconfig.display()),
                format!("--authorization-kubeconfig={}", kubeconfig.display()),
                format!("--bind-address={}", self.address),
                format!("--secure-port={}", self.scheduler.port()),
                "--cert-dir=scheduler".to_owned(),
                "--leader-elect=false".to_owned(),
            ],
        )
    }

    fn wait_ready(&self) -> Result<()> {
        let kubeconfig = self.kubeconfig();
        // A thread that is made there is in the namespace of the control plane, as the caller perhaps is not.
        let waiter = self.keeper.run(move || std::thread::spawn(move || ready(&kubeconfig)))?;
        while !waiter.is_finished() {
            std::thread::sleep(INTERVAL);
            let mut processes = self.processes();
            let Processes { etcd, api_server, .. } = &mut *processes;
            for process in [etcd, api_server].into_iter().flatten() {
                if let Some(status) = process.ended()? {
                    bail!("{} has ended: {status}\n{}", process.name(), process.tail(TAIL));
                }
            }
        }
        match waiter.join() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.context(self.tails())),
            Err(_) => bail!("the thread that waits for the API server has panicked"),
        }
    }
}

/// Waits until the API server says that it is ready.
fn ready(kubeconfig: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let begun = Instant::now();
    runtime.block_on(async {
        let client = client(kubeconfig).await?;
        loop {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            match tokio::time::timeout(READY, client.request_text(request)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) if begun.elapsed() > READY => return Err(error).context("the API server is not ready"),
                Ok(Err(_)) => tokio::time::sleep(INTERVAL).await,
                Err(_) => bail!("the API server does not answer"),
            }
        }
    })
}

/// A client for whoever a kubeconfig names, on the runtime that asks.
///
/// # Errors
/// When it cannot be read.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig).with_context(|| format!("reading {}", kubeconfig.display()))?;
    let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// One of the sixteen million loopback addresses, and not the one that everybody uses.
fn loopback() -> IpAddr {
    let [second, third, fourth] = rand::random::<[u8; 3]>();
    IpAddr::V4(Ipv4Addr::new(127, second.max(1), third, fourth.clamp(1, 254)))
}

/// Where the kernel takes no port from for a connection, which would keep it from whoever is to listen there, and
/// kube-proxy none for a Service.
const PORTS: Range<u16> = 10_000..30_000;

/// Ports that are free on an address, no two of them the same.
fn free<const N: usize>(address: IpAddr) -> Result<[SocketAddr; N]> {
    let mut listeners = Vec::with_capacity(N);
    for _ in PORTS {
        if listeners.len() == N {
            break;
        }
        match TcpListener::bind((address, rand::random_range(PORTS))) {
            Ok(listener) => listeners.push(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).with_context(|| format!("listening on {address}")),
        }
    }
    let free: Vec<SocketAddr> = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?;
    free.try_into().ok().with_context(|| format!("{N} free ports on {address}"))
}

/// The address of the Service `kubernetes`: the first of the prefix.
fn first_service(prefix: &str) -> Option<IpAddr> {
    match prefix.split_once('/')?.0.parse().ok()? {
        IpAddr::V4(address) => Some(Ipv4Addr::from_bits(address.to_bits().checked_add(1)?).into()),
        IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits().checked_add(1)?).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_of_the_api_server_has_the_first_address_of_the_prefix() {
        assert_eq!(first_service("10.96.0.0/16"), Some(IpAddr::from([10, 96, 0, 1])));
        assert_eq!(first_service("fd00::/112"), "fd00::1".parse().ok());
        assert_eq!(first_service("nonsense"), None);
    }
}
