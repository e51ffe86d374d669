//! What the tests of `ferrogate standalone` stand on: a folder, loopback addresses nobody else uses, applications in
//! this process, the product as a child that is killed with its handle, and clients that count what fails.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ferrogate_integration::{lab::wait::until, workspace};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid},
};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take to become true.
pub const LIMIT: Duration = Duration::from_secs(20);

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Time between two questions of a stream.
const PACE: Duration = Duration::from_millis(2);

/// Room on a small disk: enough for a few statuses.
const SMALL_DISK: &str = "size=512k";

type Answer<T = ()> = Result<T, String>;

static BINARY: LazyLock<PathBuf> = LazyLock::new(|| workspace::ship().unwrap());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn contains_all(text: &str, words: &[&str]) -> bool {
    words.iter().all(|word| text.contains(word))
}

/// A folder with manifests and state, and the addresses its pool gives.
pub struct Stand {
    folder: TempDir,
    /// The first of sixteen addresses.
    net: Ipv4Addr,
    /// Free on every one of them.
    port: u16,
}

impl Stand {
    /// One whose folder is empty.
    pub fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [second, third, fourth] = rand::random::<[u8; 3]>();
        // Not 127.0: that is where everybody else is.
        let net = Ipv4Addr::new(127, second.max(1), third, fourth & 0xf0);
        let port = loop {
            let listener = TcpListener::bind((net, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            if UdpSocket::bind((net, port)).is_ok() {
                break port;
            }
        };
        let stand = Self { folder, net, port };
        fs::create_dir(stand.manifests()).unwrap();
        fs::create_dir(stand.state()).unwrap();
        stand
    }

    /// One with a pool called `main` that is announced.
    pub fn new() -> Self {
        let stand = Self::empty();
        stand.write("network.yaml", &stand.network());
        stand
    }

    pub fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Replaces a manifest as most editors do: by a rename.
    pub fn write(&self, name: &str, documents: &[String]) {
        let new = self.folder.path().join("new");
        fs::write(&new, documents.join("---\n")).unwrap();
        fs::rename(&new, self.manifests().join(name)).unwrap();
    }

    /// Replaces what a manifest says, but not the file.
    pub fn write_in_place(&self, name: &str, documents: &[String]) {
        let mut file = File::options().write(true).truncate(true).open(self.manifests().join(name)).unwrap();
        for document in documents {
            file.write_all(document.as_bytes()).unwrap();
            file.write_all(b"---\n").unwrap();
        }
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.manifests().join(name)).unwrap();
    }

    /// The addresses of pool `main`.
    pub fn range(&self) -> String {
        format!("{}/28", self.net)
    }

    pub fn network(&self) -> Vec<String> {
        let advertisement = "apiVersion: ferrogate.io/v1beta1\nkind: L2Advertisement\nmetadata: { name: main }\n";
        vec![self.pool("main", &self.range()), advertisement.to_owned()]
    }

    pub fn pool(&self, name: &str, range: &str) -> String {
        format!(
            "apiVersion: ferrogate.io/v1beta1\nkind: IPAddressPool\nmetadata: {{ name: {name} }}\n\
             spec: {{ addresses: [{range}] }}\n"
        )
    }

    /// The Service through which every Ingress is served; it is called `ingress`.
    pub fn entry(&self) -> String {
        let port = self.port;
        format!(
            "apiVersion: v1\nkind: Service\n\
             metadata: {{ name: ingress, labels: {{ ferrogate.io/entry: ingress }} }}\n\
             spec: {{ type: LoadBalancer, ports: [{{ name: http, port: {port} }}] }}\n"
        )
    }

    /// An application for Ingresses.
    pub fn app(&self, name: &str, backend: &Backend) -> String {
        let slice = slice(name, &format!("{{ name: http, port: {} }}", backend.port));
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\n\
             spec: {{ ports: [{{ name: http, port: 80 }}] }}\n---\n{slice}"
        )
    }

    /// A Service with an address of its own, TCP and UDP; `wish` is one more field of its spec.
    pub fn service(&self, name: &str, wish: &str, backend: &Backend) -> String {
        let (port, to) = (self.port, backend.port);
        let ports = |port: u16| {
            format!("{{ name: tcp, protocol: TCP, port: {port} }}, {{ name: udp, protocol: UDP, port: {port} }}")
        };
        let slice = slice(name, &ports(to));
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\n\
             spec:\n  type: LoadBalancer\n  ports: [{}]\n  {wish}\n---\n{slice}",
            ports(port)
        )
    }

    /// An Ingress for every host, of path prefixes and applications.
    pub fn ingress(&self, name: &str, paths: &[(&str, &str)]) -> String {
        let path = |(path, app): &(&str, &str)| {
            let backend = format!("{{ service: {{ name: {app}, port: {{ name: http }} }} }}");
            format!("{{ path: {path}, pathType: Prefix, backend: {backend} }}")
        };
        let paths: Vec<String> = paths.iter().map(path).collect();
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{ name: {name} }}\n\
             spec: {{ ingressClassName: ferrogate, rules: [{{ http: {{ paths: [{}] }} }}] }}\n",
            paths.join(", ")
        )
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.env("FERROGATE_MANIFESTS", self.manifests()).env("FERROGATE_STATE", self.state());
        command.env("NODE_NAME", "node-1");
        command
    }

    /// Starts the product.
    pub fn start(&self) -> Product {
        let mut command = self.command(&BINARY);
        command.args(["standalone", "--admin", "127.0.0.1:0"]);
        Product::new(command, self)
    }

    /// Starts the product with a state folder on a disk of its own, which nobody else sees, and which is small.
    pub fn start_with_small_disk(&self) -> Product {
        let mut command = self.command(Path::new("unshare"));
        if !Uid::effective().is_root() {
            command.arg("--map-root-user");
        }
        let mount = format!("mount -t tmpfs -o {SMALL_DISK} none \"$0\" && exec \"$@\"");
        command.args(["--mount", "sh", "-c", &mount]).arg(self.state());
        command.arg(&*BINARY).args(["standalone", "--admin", "127.0.0.1:0"]);
        Product::new(command, self)
    }

    /// Runs one of the other commands to its end; an error is what it says when it fails.
    pub fn run(&self, args: &[&str]) -> Answer<String> {
        let mut command = self.command(&BINARY);
        let mut child = command.args(args).stdout(Stdio::piped()).spawn().unwrap();
        let (output, errors) = (read_all(child.stdout.take().unwrap()), read_all(child.stderr.take().unwrap()));
        let ended =
            until(LIMIT, || child.try_wait().map_err(|error| error.to_string())?.ok_or("still runs".to_owned()));
        let _ = child.kill();
        let _ = child.wait();
        let (output, errors) = (output.join().unwrap(), errors.join().unwrap());
        match ended {
            Ok(status) if status.success() => Ok(output),
            ended => Err(format!("{args:?}: {ended:?}: {errors}")),
        }
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.run(&["status", "-o", "json"]).unwrap()).unwrap()
    }

    /// A problem that `status` tells with all of these words.
    pub fn problem(&self, words: &[&str]) -> Answer {
        let status = self.status();
        let problems = status["problems"].as_array().unwrap();
        let text = |one: &Value| format!("{} {} {}", str(one, "origin"), str(one, "reason"), str(one, "message"));
        let told = problems.iter().any(|one| contains_all(&text(one), words));
        told.then_some(()).ok_or_else(|| format!("no problem with {words:?} in {problems:#?}"))
    }

    pub fn no_problem(&self) -> Answer {
        let status = self.status();
        let problems = status["problems"].as_array().unwrap();
        problems.is_empty().then_some(()).ok_or_else(|| format!("{problems:#?}"))
    }

    /// What `status` tells of a Service, when all of these words are in it.
    pub fn says(&self, service: &str, words: &[&str]) -> Answer<String> {
        let status = self.status();
        let services = status["services"].as_array().unwrap();
        let row = services.iter().find(|row| row["service"] == format!("default/{service}"));
        let message = str(row.ok_or_else(|| format!("no {service} in {services:#?}"))?, "message").to_owned();
        if contains_all(&message, words) { Ok(message) } else { Err(format!("{words:?} are not in {message:?}")) }
    }

    /// An Event of the controller with all of these words.
    pub fn event(&self, words: &[&str]) -> Answer {
        let path = self.state().join("events/controller.yaml");
        let list: Value = yaml(&path)?;
        let items = list["items"].as_array().ok_or("no Events")?;
        let told = items.iter().any(|item| contains_all(&item.to_string(), words));
        told.then_some(()).ok_or_else(|| format!("no Event with {words:?} in {items:#?}"))
    }

    /// The address a Service has.
    pub fn address(&self, service: &str) -> Answer<IpAddr> {
        address(&self.state(), service)
    }

    /// Where a Service is served, as soon as it has an address.
    pub fn at(&self, service: &str) -> SocketAddr {
        SocketAddr::new(until(LIMIT, || self.address(service)).unwrap(), self.port)
    }

    /// A line by TCP, answered by this application.
    pub fn tcp(&self, service: &str, backend: &str) -> Answer {
        self.tcp_at(SocketAddr::new(self.address(service)?, self.port), backend)
    }

    pub fn tcp_at(&self, to: SocketAddr, backend: &str) -> Answer {
        Line::open(to)?.ask(backend)
    }

    /// A datagram by UDP, answered by this application.
    pub fn udp(&self, service: &str, backend: &str) -> Answer {
        let to = SocketAddr::new(self.address(service)?, self.port);
        let ask = || -> io::Result<String> {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(b"ping")?;
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        expect(ask(), &format!("{backend}: ping"))
    }
}

fn slice(service: &str, ports: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{ name: {service}-1, labels: {{ kubernetes.io/service-name: {service} }} }}\n\
         addressType: IPv4\nports: [{ports}]\nendpoints: [{{ addresses: [127.0.0.1] }}]\n"
    )
}

fn str<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn yaml(path: &Path) -> Answer<Value> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_saphyr::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn address(state: &Path, service: &str) -> Answer<IpAddr> {
    let object = yaml(&state.join(format!("services/default/{service}.yaml")))?;
    let ip = object["status"]["loadBalancer"]["ingress"][0]["ip"].as_str();
    ip.and_then(|ip| ip.parse().ok()).ok_or_else(|| format!("{service} has no address: {object}"))
}

fn read_all(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The product while it runs; killed when this is dropped.
pub struct Product {
    child: Child,
    log: Arc<Mutex<String>>,
    state: PathBuf,
    port: u16,
}

impl Product {
    fn new(mut command: Command, stand: &Stand) -> Self {
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (errors, into) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                lock(&into).push_str(&format!("{line}\n"));
            }
        });
        Self { child, log, state: stand.state(), port: stand.port }
    }

    pub fn log(&self) -> String {
        lock(&self.log).clone()
    }

    /// Waits for a line with all of these words.
    pub fn logged(&self, words: &[&str]) -> Answer {
        until(LIMIT, || self.logged_since(0, words))
    }

    /// Whether there is a line with all of these words beyond so many bytes of the log.
    pub fn logged_since(&self, bytes: usize, words: &[&str]) -> Answer {
        let log = self.log();
        let logged = log[bytes..].lines().any(|line| contains_all(line, words));
        logged.then_some(()).ok_or_else(|| format!("no line with {words:?} in:\n{log}"))
    }

    /// Asks the admin listener.
    pub fn admin(&self, path: &str) -> Answer {
        let log = self.log();
        let line = log.lines().find(|line| line.contains("admin listener is open")).ok_or("not open")?;
        let (_, address) = line.rsplit_once("address=").ok_or("no address")?;
        let address = address.trim().parse().map_err(|error| format!("{address:?}: {error}"))?;
        Page::open(address)?.ask(path, "ready")
    }

    /// As a power cut would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        until(LIMIT, || self.child.try_wait().unwrap().ok_or_else(|| self.log())).unwrap()
    }

    /// The state folder as the product sees it, where it is on a disk of its own.
    fn disk(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        root.join(self.state.strip_prefix("/").unwrap())
    }

    /// Where a Service is served, as the disk of the product says.
    pub fn disk_address(&self, service: &str) -> Answer<SocketAddr> {
        Ok(SocketAddr::new(address(&self.disk(), service)?, self.port))
    }

    /// Leaves no room on the disk.
    pub fn fill_disk(&self) {
        let mut filler = File::create(self.disk().join("filler")).unwrap();
        while let Err(error) = fill(&mut filler) {
            assert_ne!(error.kind(), ErrorKind::Interrupted);
            if error.kind() == ErrorKind::StorageFull {
                return;
            }
        }
    }

    pub fn free_disk(&self) {
        fs::remove_file(self.disk().join("filler")).unwrap();
    }
}

fn fill(file: &mut File) -> io::Result<()> {
    loop {
        file.write_all(&[0; 4096])?;
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("the product logged:\n{}", self.log());
        }
    }
}

/// An application in this process.
pub struct Backend {
    port: u16,
    gate: Gate,
}

impl Backend {
    /// Answers every request with its name; `/gate` only while the gate is open.
    pub fn http(name: &'static str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let gate = Gate(Arc::new((Mutex::new(At { open: true, asked: false }), Condvar::new())));
        let at = gate.clone();
        serve(listener, move |stream| {
            let (mut reader, mut writer) = (BufReader::new(stream.try_clone()?), stream);
            while let Some(head) = read_head(&mut reader)? {
                if head.starts_with("GET /gate ") {
                    at.pass();
                }
                let length = name.len();
                writer.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{name}").as_bytes())?;
            }
            Ok(())
        });
        Self { port, gate }
    }

    /// Sends lines and datagrams back after its name.
    pub fn echo(name: &'static str) -> Self {
        let (listener, socket) = loop {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            if let Ok(socket) = UdpSocket::bind(listener.local_addr().unwrap()) {
                break (listener, socket);
            }
        };
        let port = listener.local_addr().unwrap().port();
        serve(listener, move |stream| {
            let (mut reader, mut writer) = (BufReader::new(stream.try_clone()?), stream);
            let mut line = String::new();
            while reader.read_line(&mut line)? > 0 {
                writer.write_all(format!("{name}: {line}").as_bytes())?;
                line.clear();
            }
            Ok(())
        });
        thread::spawn(move || {
            let mut buffer = [0; 64];
            loop {
                // An error is what a client that went away left behind.
                if let Ok((length, client)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&[name.as_bytes(), b": ", &buffer[..length]].concat(), client);
                }
            }
        });
        Self { port, gate: Gate(Arc::default()) }
    }

    pub fn close_gate(&self) -> Gate {
        lock(&self.gate.0.0).open = false;
        self.gate.clone()
    }
}

fn serve(listener: TcpListener, answer: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            thread::spawn(move || stream.set_nodelay(true).and_then(|()| answer(stream)));
        }
    });
}

/// The head of a request or a response; `None` at the end of the connection.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        match reader.read_line(&mut head)? {
            0 if head.is_empty() => return Ok(None),
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            _ if head.ends_with("\r\n\r\n") => return Ok(Some(head)),
            _ => {}
        }
    }
}

/// Holds up requests while it is closed.
#[derive(Clone)]
pub struct Gate(Arc<(Mutex<At>, Condvar)>);

#[derive(Default)]
struct At {
    open: bool,
    asked: bool,
}

impl Gate {
    fn pass(&self) {
        let mut at = lock(&self.0.0);
        at.asked = true;
        self.0.1.notify_all();
        drop(self.0.1.wait_while(at, |at| !at.open));
    }

    pub fn wait_for_a_request(&self) {
        let waited = self.0.1.wait_timeout_while(lock(&self.0.0), LIMIT, |at| !at.asked).unwrap();
        assert!(!waited.1.timed_out(), "no request came to the gate");
    }

    pub fn open(&self) {
        lock(&self.0.0).open = true;
        self.0.1.notify_all();
    }
}

fn connect(to: SocketAddr) -> Answer<BufReader<TcpStream>> {
    let open = || {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(BufReader::new(stream))
    };
    open().map_err(|error: io::Error| format!("connecting to {to}: {error}"))
}

fn expect(answer: io::Result<String>, expected: &str) -> Answer {
    match answer {
        Ok(answer) if answer.starts_with(expected) => Ok(()),
        Ok(answer) => Err(format!("{answer:?} instead of {expected:?}")),
        Err(error) => Err(error.to_string()),
    }
}

/// A connection on which lines are echoed.
struct Line(BufReader<TcpStream>);

impl Line {
    fn open(to: SocketAddr) -> Answer<Self> {
        connect(to).map(Self)
    }

    fn ask(&mut self, backend: &str) -> Answer {
        let mut ask = || -> io::Result<String> {
            self.0.get_mut().write_all(b"ping\n")?;
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            Ok(line)
        };
        expect(ask(), &format!("{backend}: ping"))
    }
}

/// A connection on which pages are asked for.
struct Page(BufReader<TcpStream>);

impl Page {
    fn open(to: SocketAddr) -> Answer<Self> {
        connect(to).map(Self)
    }

    /// `backend` may be empty: then any body will do, if only the code is 200.
    fn ask(&mut self, path: &str, backend: &str) -> Answer {
        let mut ask = || -> io::Result<String> {
            let request = format!("GET {path} HTTP/1.1\r\nhost: site.example\r\n\r\n");
            self.0.get_mut().write_all(request.as_bytes())?;
            let head = read_head(&mut self.0)?.ok_or(ErrorKind::UnexpectedEof)?;
            let mut fields = head.lines().filter_map(|line| line.split_once(':'));
            let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length = length.and_then(|(_, value)| value.trim().parse().ok());
            let mut body = vec![0; length.ok_or_else(|| io::Error::other(format!("no content-length in {head}")))?];
            self.0.read_exact(&mut body)?;
            let body = String::from_utf8_lossy(&body).into_owned();
            let ok = head.starts_with("HTTP/1.1 200");
            if ok { Ok(body) } else { Err(io::Error::other(format!("{head}{body}"))) }
        };
        expect(ask(), backend)
    }
}

/// One page by a connection of its own, answered by this application.
pub fn get(to: SocketAddr, path: &str, backend: &str) -> Answer {
    Page::open(to)?.ask(path, backend)
}

/// A stream of questions, by one connection that lasts and by fresh ones.
pub struct Steady {
    stop: Vec<Sender<()>>,
    streams: Vec<JoinHandle<(u32, Vec<String>)>>,
}

impl Steady {
    /// Pages, from whichever application.
    pub fn http(to: SocketAddr) -> Self {
        let mut lasting = Page::open(to).unwrap();
        Self::of(move || lasting.ask("/", ""), move || get(to, "/", ""))
    }

    /// Echoes of this application.
    pub fn tcp(to: SocketAddr, backend: &'static str) -> Self {
        let mut lasting = Line::open(to).unwrap();
        Self::of(move || lasting.ask(backend), move || Line::open(to)?.ask(backend))
    }

    fn of(lasting: impl FnMut() -> Answer + Send + 'static, fresh: impl FnMut() -> Answer + Send + 'static) -> Self {
        let (stop_lasting, lasting_stops) = channel();
        let (stop_fresh, fresh_stops) = channel();
        let streams = vec![
            thread::spawn(move || stream("a connection that lasts", lasting, &lasting_stops)),
            thread::spawn(move || stream("a fresh connection", fresh, &fresh_stops)),
        ];
        Self { stop: vec![stop_lasting, stop_fresh], streams }
    }

    /// Ends the stream; every question must have been answered.
    pub fn none_failed(self, product: &Product) {
        drop(self.stop);
        for stream in self.streams {
            let (asked, failed) = stream.join().unwrap();
            assert!(asked > 0, "nothing was asked");
            assert_eq!(failed, [""; 0], "of {asked} questions; the product logged:\n{}", product.log());
        }
    }
}

fn stream(name: &str, mut ask: impl FnMut() -> Answer, stop: &Receiver<()>) -> (u32, Vec<String>) {
    let begun = Instant::now();
    let (mut asked, mut failed) = (0, Vec::new());
    while stop.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
        asked += 1;
        if let Err(error) = ask() {
            failed.push(format!("{name}, after {:?}: {error}", begun.elapsed()));
        }
    }
    (asked, failed)
}
