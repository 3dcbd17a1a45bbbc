//! A private RabbitMQ node, with ports, data, cookie and port mapper (epmd) of its own.
//!
//! Runs the distribution's `rabbitmq-server`, 3.10 or 4.x, without the wrapper that would switch the user.

use std::{
    ffi::OsStr,
    fs,
    net::{Ipv6Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};

use crate::{CertificateFiles, Namespace, cleanup::Cleanup, ports::ReservedPort};

/// Where Debian and Ubuntu have the scripts themselves; the variable names another folder.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
const SCRIPTS_VARIABLE: &str = "RABBITMQ_BIN";

/// A node boots in a few seconds; a loaded machine takes its time.
const BOOT_TIMEOUT_S: u32 = 120;

/// How often a quorum queue of these nodes reports its messages. The default of 5 s is too slow for tests.
pub const QUEUE_TICK: Duration = Duration::from_millis(500);

/// How a node speaks TLS, on a port of its own beside that of plain AMQP.
#[derive(Debug, Clone)]
pub struct TlsListener {
    /// The authority that signs the certificates of clients.
    pub ca_file: PathBuf,
    /// The node's own certificate. Its file is read anew for connections that begin later.
    pub server: CertificateFiles,
    /// Whether a client without a certificate is refused.
    pub demands_certificate: bool,
    /// Whether a client may log in as the user whom its certificate names (SASL EXTERNAL).
    pub has_external: bool,
}

/// A running or stopped RabbitMQ node. Dropping it ends the node and removes its data.
#[derive(Debug)]
pub struct Rabbit {
    scripts: PathBuf,
    namespace: Option<String>,
    port: ReservedPort,
    tls: Option<(TlsListener, ReservedPort)>,
    /// Of the management API, if the node has it.
    management: Option<ReservedPort>,
    dist_port: ReservedPort,
    /// Of the first node of a cluster.
    _epmd_port: Option<ReservedPort>,
    epmd_port: u16,
    cookie: String,
    ipv6: bool,
    // Fields are dropped in this order: the node ends before what it needs is gone.
    node: Option<OwnedProcess>,
    /// Of the first node of a cluster.
    _epmd: Option<OwnedProcess>,
    folder: Folder,
}

/// A temporary folder that is removed when it is dropped, at the latest with the test process.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    _cleanup: Cleanup,
}

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("pingfleet-rabbit-")
            .tempdir()?;
        // The node may still write at this moment, when the test process was killed.
        let cleanup = Cleanup::new(
            "rm -rf \"$1\" || { sleep 1; rm -rf \"$1\"; }",
            &[&folder.path().to_string_lossy()],
        )?;
        Ok(Self {
            path: folder.keep(),
            _cleanup: cleanup,
        })
    }
}

/// A process that ends when it is dropped, at the latest with the test process.
#[derive(Debug)]
struct OwnedProcess {
    process: Child,
    cleanup: Option<Cleanup>,
}

impl OwnedProcess {
    fn spawn(command: &mut Command) -> anyhow::Result<Self> {
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let cleanup = Cleanup::new("kill -KILL \"$1\"", &[&process.id().to_string()])?;
        Ok(Self {
            process,
            cleanup: Some(cleanup),
        })
    }

    /// Stops it (SIGTERM) and waits until it has exited.
    fn stop(mut self) -> anyhow::Result<()> {
        let sent = Command::new("sh")
            .args(["-c", "kill -TERM \"$1\"", "stop"])
            .arg(self.process.id().to_string())
            .status()?;
        ensure!(sent.success(), "the process was gone before it was stopped");
        self.process.wait()?;
        // From here on another process may get the same process id.
        self.cleanup.take().map_or(Ok(()), Cleanup::dismiss)
    }
}

impl Drop for OwnedProcess {
    fn drop(&mut self) {
        drop(self.cleanup.take());
        if let Err(error) = self.process.wait() {
            eprintln!("a process of a test did not end: {error}");
        }
    }
}

impl Rabbit {
    /// Starts a node that listens on the loopback addresses, and waits until it serves.
    ///
    /// # Errors
    /// When RabbitMQ is not installed, or does not start; the end of its log is part of the error.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_where(None, None, None)
    }

    /// The same with a second port, for TLS.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn start_with_tls(tls: TlsListener) -> anyhow::Result<Self> {
        Self::start_where(None, Some(tls), None)
    }

    /// The same with the management API, at [`Self::management_url`]. It takes some seconds more.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn start_with_management() -> anyhow::Result<Self> {
        Self::start_where(None, None, Some(ReservedPort::new()?))
    }

    /// The same with TLS, also for the management API.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn start_with_tls_and_management(tls: TlsListener) -> anyhow::Result<Self> {
        Self::start_where(None, Some(tls), Some(ReservedPort::new()?))
    }

    /// The same inside a namespace, on its loopback addresses: only what [`Namespace::command`] runs reaches it.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn start_in(namespace: &Namespace) -> anyhow::Result<Self> {
        Self::start_where(Some(namespace.prober().to_owned()), None, None)
    }

    fn start_where(
        namespace: Option<String>,
        tls: Option<TlsListener>,
        management: Option<ReservedPort>,
    ) -> anyhow::Result<Self> {
        let scripts = std::env::var_os(SCRIPTS_VARIABLE)
            .map_or_else(|| PathBuf::from(SCRIPTS), PathBuf::from);
        ensure!(
            scripts.join("rabbitmq-server").exists(),
            "no RabbitMQ in {}: apt-get install rabbitmq-server, or name the folder of its scripts in {SCRIPTS_VARIABLE}",
            scripts.display()
        );
        let folder = Folder::new()?;
        let port = ReservedPort::new()?;
        let epmd_port = ReservedPort::new()?;
        let mut epmd = within(namespace.as_deref(), "epmd");
        epmd.args(["-address", "127.0.0.1"]);
        epmd.args(["-port", &epmd_port.number().to_string()]);
        let mut rabbit = Self {
            scripts,
            folder,
            namespace,
            cookie: format!("PINGFLEET{}", port.number()),
            port,
            tls: match tls {
                Some(tls) => Some((tls, ReservedPort::new()?)),
                None => None,
            },
            management,
            dist_port: ReservedPort::new()?,
            epmd_port: epmd_port.number(),
            _epmd_port: Some(epmd_port),
            ipv6: TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok(),
            _epmd: Some(OwnedProcess::spawn(&mut epmd)?),
            node: None,
        };
        rabbit.write_configuration()?;
        rabbit.boot()?;
        Ok(rabbit)
    }

    /// Starts one more node, and makes it a member of this one's cluster. This one has to outlive it.
    ///
    /// # Errors
    /// As for [`Self::start`]; also when it is not let in.
    pub fn start_member(&self) -> anyhow::Result<Self> {
        let mut member = Self {
            scripts: self.scripts.clone(),
            folder: Folder::new()?,
            namespace: self.namespace.clone(),
            port: ReservedPort::new()?,
            tls: None,
            management: None,
            dist_port: ReservedPort::new()?,
            _epmd_port: None,
            epmd_port: self.epmd_port,
            cookie: self.cookie.clone(),
            ipv6: self.ipv6,
            _epmd: None,
            node: None,
        };
        member.write_configuration()?;
        member.boot()?;
        member.ctl(&["stop_app"])?;
        member.ctl(&["join_cluster", &self.node_name()])?;
        member.ctl(&["start_app"])?;
        Ok(member)
    }

    /// The node's name, as `rabbitmqctl` shows it.
    #[must_use]
    pub fn node_name(&self) -> String {
        format!("pingfleet{}@localhost", self.port())
    }

    /// Where the node listens, as the user `guest`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/", self.port())
    }

    /// The same by IPv6.
    ///
    /// # Errors
    /// When this machine has no IPv6 loopback.
    pub fn ipv6_url(&self) -> anyhow::Result<String> {
        ensure!(self.ipv6, "this machine has no IPv6 loopback address");
        Ok(format!("amqp://guest:guest@[::1]:{}/", self.port()))
    }

    /// The port of AMQP over TLS.
    ///
    /// # Errors
    /// When the node was started without TLS.
    pub fn tls_port(&self) -> anyhow::Result<u16> {
        let (_, port) = self.tls.as_ref().context("this node speaks no TLS")?;
        Ok(port.number())
    }

    /// The port of AMQP.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Where the management API listens.
    ///
    /// # Errors
    /// When the node was not started with it.
    pub fn management_url(&self) -> anyhow::Result<String> {
        let port = self.management.as_ref();
        let port = port.context("the node has no management API")?.number();
        Ok(if self.tls.is_some() {
            format!("https://localhost:{port}")
        } else {
            format!("http://127.0.0.1:{port}")
        })
    }

    /// Stops the node in order (SIGTERM) and waits until it is gone. Its data stays.
    ///
    /// # Errors
    /// When the signal cannot be sent. It is no error when the node does not run.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.node.take().map_or(Ok(()), OwnedProcess::stop)
    }

    /// Freezes the node (SIGSTOP): its connections stay open, and nothing is read from them, until it is killed.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self) -> anyhow::Result<()> {
        let node = self.node.as_ref().context("the node does not run")?;
        let frozen = Command::new("sh")
            .args(["-c", "kill -STOP \"$1\"", "freeze"])
            .arg(node.process.id().to_string())
            .status()?;
        ensure!(frozen.success(), "the node was gone before it was frozen");
        Ok(())
    }

    /// Kills the node (SIGKILL) and waits until it is gone. Its data stays.
    pub fn kill(&mut self) {
        drop(self.node.take());
    }

    /// Starts the stopped or killed node again, on the same ports and data, and waits until it serves.
    ///
    /// # Errors
    /// As for [`Self::start`]; also when it runs already.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        ensure!(self.node.is_none(), "the node runs already");
        self.boot()
    }

    /// Drops everything that is ready in a queue.
    ///
    /// # Errors
    /// When there is no such queue, or no node.
    pub fn purge(&self, queue: &str) -> anyhow::Result<()> {
        self.ctl(&["purge_queue", queue]).map(drop)
    }

    /// What the node has logged since it started.
    ///
    /// # Errors
    /// When it has no log.
    pub fn log(&self) -> anyhow::Result<String> {
        newest_log(&self.folder.path.join("log")).context("the node has no log")
    }

    /// How many messages of all queues were delivered again since the node started.
    ///
    /// # Errors
    /// When `rabbitmqctl` fails.
    pub fn redelivered(&self) -> anyhow::Result<u64> {
        let sum = "maps:fold(fun(_, #{messages_redelivered_total := N}, Sum) -> Sum + N; (_, _, Sum) -> Sum end, \
                   0, rabbit_global_counters:overview()).";
        let printed = self.ctl(&["eval", sum])?;
        printed.trim().parse().context(printed)
    }

    /// Runs `rabbitmqctl` on the node, and returns its output.
    ///
    /// # Errors
    /// When it fails, with its output.
    pub fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut ctl = self.script("rabbitmqctl");
        let Output {
            status,
            stdout,
            stderr,
        } = ctl.arg("--quiet").args(arguments).output()?;
        let said = String::from_utf8_lossy(&stdout);
        ensure!(
            status.success(),
            "rabbitmqctl {arguments:?} failed: {said}{}",
            String::from_utf8_lossy(&stderr)
        );
        Ok(said.into_owned())
    }

    fn boot(&mut self) -> anyhow::Result<()> {
        let mut server = self.script("rabbitmq-server");
        let node = self.node.insert(OwnedProcess::spawn(&mut server)?);
        // Not by its file: between its creation and its first byte the wait would fail.
        let process = node.process.id().to_string();
        let timeout = BOOT_TIMEOUT_S.to_string();
        let waited = self.ctl(&["wait", "--pid", &process, "--timeout", &timeout]);
        if let Err(error) = waited {
            bail!("RabbitMQ does not start: {error:#}\n{}", self.end_of_log());
        }
        Ok(())
    }

    fn script(&self, name: &str) -> Command {
        let mut command = within(self.namespace.as_deref(), self.scripts.join(name));
        let folder = &self.folder.path;
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LANG", "C.UTF-8")
            .env("HOME", folder)
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            // A port mapper that Erlang starts would outlive the test.
            .env("ERL_FLAGS", "-start_epmd false")
            .env("RABBITMQ_NODENAME", self.node_name())
            .env("RABBITMQ_DIST_PORT", self.dist_port.number().to_string())
            .env("RABBITMQ_CTL_DIST_PORT_MIN", "0")
            .env("RABBITMQ_CTL_DIST_PORT_MAX", "0")
            .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_PID_FILE", folder.join("pid"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("plugins"))
            .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
            .env(
                "RABBITMQ_ADVANCED_CONFIG_FILE",
                folder.join("advanced.config"),
            )
            .env("RABBITMQ_CONF_ENV_FILE", folder.join("none.conf"))
            // With this the script replaces itself by the node, so its process id is the node's.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .stdin(Stdio::null());
        command
    }

    fn write_configuration(&self) -> anyhow::Result<()> {
        let folder = &self.folder.path;
        let port = self.port();
        let ipv6 = if self.ipv6 {
            format!("listeners.tcp.2 = ::1:{port}\n")
        } else {
            String::new()
        };
        let tls = self.tls.as_ref();
        let management = self.management.as_ref().map_or_else(String::new, |port| {
            let port = port.number();
            tls.map_or_else(
                || format!("management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port}\n"),
                |(tls, _)| tls.management(port),
            )
        });
        // Neither a full disk nor a busy machine may block publishers by accident.
        let configuration = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\n{ipv6}{management}\
            disk_free_limit.absolute = 1MB\n\
            vm_memory_high_watermark.relative = 0.8\n\
            log.file.level = info\n"
        );
        let tls = tls.map(|(tls, port)| tls.configuration(port.number()));
        let configuration = configuration + &tls.unwrap_or_default();
        fs::write(folder.join("rabbitmq.conf"), configuration)?;
        let tick = QUEUE_TICK.as_millis();
        let ticks = format!("[{{rabbit, [{{quorum_tick_interval, {tick}}}]}}].\n");
        fs::write(folder.join("advanced.config"), ticks)?;
        let mut plugins = Vec::new();
        if matches!(&self.tls, Some((tls, _)) if tls.has_external) {
            plugins.push("rabbitmq_auth_mechanism_ssl");
        }
        if self.management.is_some() {
            plugins.push("rabbitmq_management");
        }
        let plugins = format!("[{}].\n", plugins.join(","));
        fs::write(folder.join("plugins"), plugins)?;
        let cookie = folder.join(".erlang.cookie");
        fs::write(&cookie, &self.cookie)?;
        fs::set_permissions(cookie, fs::Permissions::from_mode(0o400))?;
        Ok(())
    }

    fn end_of_log(&self) -> String {
        let log = self.folder.path.join("log");
        newest_log(&log).map_or_else(
            || format!("it left no log in {}", log.display()),
            |text| {
                let lines: Vec<_> = text.lines().collect();
                lines[lines.len().saturating_sub(30)..].join("\n")
            },
        )
    }
}

impl TlsListener {
    /// The files of TLS in rabbitmq.conf, as options of `ssl_options` or of the management API.
    fn files(&self, options: &str) -> String {
        format!(
            "{options}.cacertfile = {}\n{options}.certfile = {}\n{options}.keyfile = {}\n",
            self.ca_file.display(),
            self.server.certificate.display(),
            self.server.key.display(),
        )
    }

    /// The lines of the management API in rabbitmq.conf.
    fn management(&self, port: u16) -> String {
        let files = self.files("management.ssl");
        format!("management.ssl.ip = 127.0.0.1\nmanagement.ssl.port = {port}\n{files}")
    }

    /// Its lines in rabbitmq.conf.
    fn configuration(&self, port: u16) -> String {
        let external = if self.has_external {
            "auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = EXTERNAL\nssl_cert_login_from = common_name\n"
        } else {
            ""
        };
        format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\n{}\
            ssl_options.verify = verify_peer\n\
            ssl_options.fail_if_no_peer_cert = {}\n{external}",
            self.files("ssl_options"),
            self.demands_certificate
        )
    }
}

/// A command that runs in a namespace where one is named.
fn within(namespace: Option<&str>, program: impl AsRef<OsStr>) -> Command {
    match namespace {
        None => Command::new(program),
        Some(namespace) => Namespace::command_in(namespace, program),
    }
}

fn newest_log(folder: &Path) -> Option<String> {
    let newest = fs::read_dir(folder)
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_file())
        .max_by_key(|entry| entry.metadata().and_then(|data| data.modified()).ok())?;
    fs::read_to_string(newest.path()).ok()
}
