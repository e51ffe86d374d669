//! The one-process product on loopback addresses, as `examples/quickstart/README.md` starts it, in a namespace of its
//! own so that no port of the machine is taken.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    lab::{
        probe::{self, Stream, Targets},
        report::Report,
        wait::until,
    },
    netns::Namespace,
};

/// How long anything may take to become true.
const LIMIT: Duration = Duration::from_secs(10);

/// How long an edited file may take to have its effect.
const EDIT: Duration = Duration::from_secs(1);

/// As many datagrams in a row must be answered before nothing is lost on purpose any more.
const STEADY: usize = 250;

/// The applications, as the README starts them.
const BACKENDS: &[(&str, &str, &str)] =
    &[("shop", "--http", "127.0.0.1:9001"), ("cart", "--http", "127.0.0.1:9002"), ("echo", "--echo", "127.0.0.1:9003")];

/// One host with its applications, and the product on it.
pub struct Host {
    /// The host.
    pub namespace: Namespace,
    binary: PathBuf,
    folder: PathBuf,
    product: Option<Child>,
    _backends: Vec<Child>,
}

impl Host {
    /// Makes the host, starts its applications and lays out a copy of the manifests below `folder`.
    ///
    /// # Errors
    /// When the kernel refuses, or an application does not start.
    pub fn new(binary: &Path, folder: &Path, example: &Path) -> Result<Self> {
        let namespace = Namespace::new("host")?;
        let mut backends = Vec::new();
        for (name, what, address) in BACKENDS {
            let mut command = Command::new("/proc/self/exe");
            command.args(["backend", "--name", name, what, address]).stdin(Stdio::null()).stdout(Stdio::piped());
            let mut backend = namespace.spawn(&mut command).with_context(|| format!("starting {name}"))?;
            let output = backend.stdout.take().context("a backend without output")?;
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line)?;
            ensure!(line.ends_with("listens\n"), "{name} did not start: {line:?}");
            backends.push(backend);
        }
        let host = Self {
            namespace,
            binary: binary.to_owned(),
            folder: folder.to_owned(),
            product: None,
            _backends: backends,
        };
        fs::create_dir_all(host.manifests())?;
        for entry in fs::read_dir(example.join("manifests")).context("reading the example")? {
            let path = entry?.path();
            fs::copy(&path, host.manifests().join(path.file_name().context("a file without a name")?))?;
        }
        Ok(host)
    }

    /// What users write.
    pub fn manifests(&self) -> PathBuf {
        self.folder.join("manifests")
    }

    /// What the product writes.
    pub fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// What the product prints.
    pub fn log(&self) -> PathBuf {
        self.folder.join("standalone.log")
    }

    fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log()).context("opening the log")?;
        let mut command = Command::new(&self.binary);
        command.arg("standalone").arg("--manifests").arg(self.manifests()).arg("--state").arg(self.state());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.product = Some(self.namespace.spawn(&mut command).context("starting the product")?);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        let mut product = self.product.take().context("nothing runs")?;
        product.kill()?;
        product.wait()?;
        Ok(())
    }

    /// The addresses of the Services of the quickstart, as the state folder has them.
    fn addresses(&self) -> Result<(IpAddr, IpAddr)> {
        let of = |name: &str| -> Result<IpAddr> {
            let path = self.state().join(format!("services/default/{name}.yaml"));
            let text = fs::read_to_string(&path).with_context(|| format!("{name} has no status yet"))?;
            let service: Value =
                serde_saphyr::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
            let ip = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().context("no address yet")?;
            Ok(ip.parse()?)
        };
        Ok((of("ingress")?, of("echo")?))
    }

    fn page(&self, http: SocketAddr, path: &str, from: &str) -> Result<String> {
        let (code, body) = self.namespace.run(|| probe::get(http, "shop.example", path))?;
        ensure!(code == 200, "status {code}: {}", body.trim_end());
        ensure!(body.starts_with(from), "{from} was to answer, but: {}", body.trim_end());
        Ok(body.trim_end().to_owned())
    }

    fn edit(&self, from: &str, to: &str) -> Result<()> {
        let path = self.manifests().join("apps.yaml");
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(from), "{} does not contain {from:?}", path.display());
        // As editors do: by a rename.
        let new = path.with_extension("new");
        fs::write(&new, text.replace(from, to))?;
        fs::rename(&new, &path)?;
        Ok(())
    }

    /// Shows the scenario.
    pub fn show(&mut self, report: &mut Report) {
        let mut found = None;
        report.check("each Service has its address", || {
            self.start()?;
            let (ingress, echo) = until(LIMIT, || self.addresses())?;
            found = Some((SocketAddr::new(ingress, 8080), SocketAddr::new(echo, 7000)));
            anyhow::Ok(format!("ingress {ingress}, echo {echo}"))
        });
        let Some((http, echo)) = found else { return };
        report.check("GET / through the Ingress", || until(LIMIT, || self.page(http, "/", "shop")));
        report.check("GET /cart goes to the other backend", || self.page(http, "/cart", "cart"));
        let targets = Targets { udp: echo, tcp: echo, http: (http, "shop.example".to_owned()) };
        let Ok(stream) = until(LIMIT, || Stream::start(&self.namespace, &targets)) else {
            report.add("a stream of questions", LIMIT, Err::<String, _>("TCP or UDP is not served"));
            return;
        };

        let begun = Instant::now();
        let moved = self.edit("path: /cart", "path: /basket");
        let moved = moved.and_then(|()| until(EDIT, || self.page(http, "/basket", "cart")));
        report.add("an edited file takes effect within a second", begun.elapsed(), moved);
        let steady = until(LIMIT, || stream.steady_since(STEADY).context("answers are missing"));
        let losses = stream.finish();
        report.check("no request was dropped meanwhile", || steady.and_then(|_| losses.none()));
        report.set_failover(losses);

        let before = self.addresses().ok();
        report.check("killed and started again: the same addresses", || {
            self.kill()?;
            self.start()?;
            let body = until(LIMIT, || self.page(http, "/basket", "cart"))?;
            let now = self.addresses()?;
            ensure!(Some(now) == before, "{now:?} instead of {before:?}");
            anyhow::Ok(format!("{}, {}; {body}", now.0, now.1))
        });
    }
}
