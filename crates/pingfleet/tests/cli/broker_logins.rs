//! `broker init`, `add-worker`, `remove-worker` and `show`: the logins of the roles, and what each of them may do.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
        ExchangeBindOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
        QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
    },
    types::FieldTable,
};
use pingfleet_testbed::{Rabbit, TestAuthority, TlsListener, Validity};

use crate::rig::{Finished, TestDir};

/// The virtual host of these tests.
const VHOST: &str = "fleet one";

/// A broker with its management API, and a folder for the credentials.
struct Site {
    dir: TestDir,
    rabbit: Rabbit,
    management: String,
    /// Signs the broker's certificate, if it speaks TLS.
    authority: Option<TestAuthority>,
}

impl Site {
    fn new() -> Result<Self> {
        let rabbit = Rabbit::start_with_management()?;
        Ok(Self {
            dir: TestDir::new()?,
            management: rabbit.management_url()?,
            rabbit,
            authority: None,
        })
    }

    /// A broker that is reached by TLS.
    fn new_with_tls() -> Result<Self> {
        let authority = TestAuthority::new()?;
        let rabbit = Rabbit::start_with_tls_and_management(TlsListener {
            ca_file: authority.ca_file().to_owned(),
            server: authority.server(&["localhost"], Validity::Now)?,
            demands_certificate: false,
            has_external: false,
        })?;
        Ok(Self {
            dir: TestDir::new()?,
            management: rabbit.management_url()?,
            rabbit,
            authority: Some(authority),
        })
    }

    /// `pingfleet broker COMMAND` as the administrator.
    fn broker(&self, arguments: &[&str]) -> Result<Finished> {
        let management = ["--management", &self.management];
        let arguments = [&["broker"], arguments, &management].concat();
        let broker = match &self.authority {
            None => format!("amqp://guest@127.0.0.1:{}", self.rabbit.port()),
            Some(_) => format!("amqps://guest@localhost:{}", self.rabbit.tls_port()?),
        };
        let mut call = self
            .dir
            .call("pingfleet", &arguments)?
            .env("PINGFLEET_BROKER__URL", &format!("{broker}/fleet%20one"))
            .env("PINGFLEET_BROKER__PASSWORD", "guest");
        if let Some(authority) = &self.authority {
            let ca_file = authority.ca_file().to_string_lossy();
            call = call.env("PINGFLEET_BROKER__CA_FILE", &ca_file);
        }
        call.end()
    }

    /// Runs a command that has to succeed.
    fn changed(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.broker(arguments)?.ends_with(0).stdout)
    }

    /// `rabbitmqctl` in the virtual host.
    fn ctl(&self, command: &str, arguments: &[&str]) -> Result<String> {
        self.rabbit
            .ctl(&[&[command, "-p", VHOST], arguments].concat())
    }

    /// What the management API answers to a login (HTTP status).
    fn status(&self, login: &str, path: &str) -> Result<u16> {
        let agent = ureq::Agent::config_builder().http_status_as_error(false);
        let agent = ureq::Agent::from(agent.build());
        let request = agent.get(format!("{}/api/{path}", self.management));
        let request = request.header("authorization", format!("Basic {}", STANDARD.encode(login)));
        Ok(request.call()?.status().as_u16())
    }

    /// No login of a role may use the management API.
    fn refuses_management(&self, file: &str, url: &str) -> Result<()> {
        let (login, _) = url
            .trim_start_matches("amqp://")
            .split_once('@')
            .context("a login")?;
        for path in [
            "whoami",
            "overview",
            "queues",
            "users",
            "connections",
            "definitions",
        ] {
            let status = self.status(login, path)?;
            ensure!(status == 401, "{file} {path}: {status}");
        }
        for path in [
            "queues/fleet%20one/pingfleet.work",
            "users/guest",
            "vhosts/fleet%20one",
        ] {
            let request = ureq::delete(format!("{}/api/{path}", self.management));
            let request =
                request.header("authorization", format!("Basic {}", STANDARD.encode(login)));
            let refused = request.call();
            ensure!(
                matches!(refused, Err(ureq::Error::StatusCode(401))),
                "{file} {path}: {refused:?}"
            );
        }
        Ok(())
    }

    /// The URL in a file with a login, with its password.
    fn url(&self, file: &str) -> Result<String> {
        let text = fs::read_to_string(self.dir.path(file))?;
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            let value = line.and_then(|line| line.strip_prefix(" = \"")?.strip_suffix('"'));
            value
                .map(str::to_owned)
                .context(format!("no {key} in {text}"))
        };
        let (url, password) = (value("url")?, value("password")?);
        Ok(url.replacen('@', &format!(":{password}@"), 1))
    }
}

#[test]
fn init_makes_what_is_missing_once_and_repairs_it() -> Result<()> {
    let site = Site::new()?;
    let first = site.changed(&["init"])?;
    for part in [
        "made virtual host fleet one",
        "made queue pingfleet.work",
        "made exchange pingfleet.x.results",
        "set policy pingfleet-results",
        "made user pingfleet-producer; its password is in credentials/producer.toml",
        "made user pingfleet-writer; its password is in credentials/writer.toml",
    ] {
        ensure!(first.contains(part), "no {part:?} in {first}");
    }
    ensure!(
        site.changed(&["init"])?
            .starts_with("nothing to change on ")
    );
    let added = site.changed(&["add-worker", "berlin-1"])?;
    ensure!(
        added.contains("made user pingfleet-worker-berlin-1"),
        "{added}"
    );
    let again = site.changed(&["add-worker", "berlin-1"])?;
    ensure!(
        again.starts_with("nothing to change: pingfleet-worker-berlin-1 "),
        "{again}"
    );
    for file in ["producer", "writer", "worker-berlin-1"] {
        let path = site.dir.path(&format!("credentials/{file}.toml"));
        let mode = fs::metadata(path)?.permissions().mode();
        ensure!(mode & 0o777 == 0o600, "{file}: {mode:o}");
    }
    let users = site.rabbit.ctl(&["list_users"])?;
    let of_fleet: Vec<_> = users
        .lines()
        .filter(|line| line.starts_with("pingfleet-"))
        .collect();
    ensure!(
        of_fleet.len() == 3 && of_fleet.iter().all(|line| line.ends_with("[]")),
        "{users}"
    );

    // Whatever is taken away or added comes back or goes.
    let worker = "pingfleet-worker-berlin-1";
    site.rabbit
        .ctl(&["set_user_tags", worker, "administrator"])?;
    site.ctl("set_permissions", &[worker, ".*", ".*", ".*"])?;
    site.rabbit
        .ctl(&["clear_user_limits", worker, "max-connections"])?;
    site.rabbit
        .ctl(&["change_password", "pingfleet-writer", "another"])?;
    site.rabbit.ctl(&["delete_user", "pingfleet-producer"])?;
    site.ctl("clear_policy", &["pingfleet-results"])?;
    let shown = site.changed(&["show", "--json"])?;
    for part in [
        "User pingfleet-worker-berlin-1 has tags",
        "User pingfleet-worker-berlin-1 has other permissions",
        "User pingfleet-worker-berlin-1 has another limit",
        "User pingfleet-producer is missing",
        "Policy pingfleet-results is missing or differs",
    ] {
        ensure!(shown.contains(part), "no {part:?} in {shown}");
    }
    let repaired = site.changed(&["init"])?;
    for part in [
        "took the tags of the management API from pingfleet-worker-berlin-1",
        "gave pingfleet-worker-berlin-1 its permissions",
        "limited pingfleet-worker-berlin-1",
        "set the password of pingfleet-writer to that in credentials/writer.toml",
        "made user pingfleet-producer; its password is in credentials/producer.toml",
        "set policy pingfleet-results",
    ] {
        ensure!(repaired.contains(part), "no {part:?} in {repaired}");
    }
    let shown = site.changed(&["show", "--json"])?;
    ensure!(shown.contains("\"problems\":[]"), "{shown}");
    let table = site.changed(&["show"])?;
    ensure!(
        table.contains("pingfleet-worker-berlin-1") && !table.contains("repairs"),
        "{table}"
    );

    // A login whose file is gone keeps its password, until it gets a new one.
    let old = site.url("credentials/writer.toml")?;
    fs::remove_file(site.dir.path("credentials/writer.toml"))?;
    let kept = site.broker(&["init"])?.ends_with(0);
    ensure!(kept.stderr.contains("--renew"), "{kept:#?}");
    ensure!(!site.dir.path("credentials/writer.toml").exists());
    // What is connected with the old one is closed.
    let runtime = tokio::runtime::Runtime::new()?;
    let _thief = runtime.block_on(Connection::connect(&old, ConnectionProperties::default()))?;
    let renewed = site.changed(&["init", "--renew"])?;
    ensure!(
        renewed.contains("gave pingfleet-writer a new password")
            && renewed.contains("closed 1 connection of pingfleet-writer"),
        "{renewed}"
    );
    ensure!(
        site.changed(&["init"])?
            .starts_with("nothing to change on ")
    );
    Ok(())
}

#[test]
fn bindings_that_nobody_of_the_fleet_made_are_removed_and_missing_ones_made() -> Result<()> {
    let site = Site::new()?;
    site.changed(&["init"])?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let url = format!(
            "amqp://guest:guest@127.0.0.1:{}/fleet%20one",
            site.rabbit.port()
        );
        let channel = channel(&url).await?;
        let none = FieldTable::default;
        let queue = QueueDeclareOptions::default();
        channel.queue_declare("tap".into(), queue, none()).await?;
        let bind = QueueBindOptions::default;
        for (queue, exchange, key) in [
            // Who reads it sees all results.
            ("tap", "pingfleet.x.results", "pingfleet.results"),
            // Who may publish to it forges results.
            ("pingfleet.results", "amq.topic", "#"),
        ] {
            channel
                .queue_bind(queue.into(), exchange.into(), key.into(), bind(), none())
                .await?;
        }
        let work = "pingfleet.work";
        channel
            .queue_unbind(work.into(), "pingfleet.x.work".into(), work.into(), none())
            .await?;
        anyhow::Ok(())
    })?;
    let shown = site.changed(&["show"])?;
    ensure!(
        shown.contains("\"tap\"") && shown.contains("amq.topic"),
        "{shown}"
    );
    let repaired = site.changed(&["init"])?;
    for part in [
        "removed the binding of exchange \"pingfleet.x.results\" to queue \"tap\"",
        "removed the binding of exchange \"amq.topic\" to queue \"pingfleet.results\"",
        "made binding of pingfleet.x.work to pingfleet.work",
    ] {
        ensure!(repaired.contains(part), "no {part:?} in {repaired}");
    }
    let bindings = site.ctl("list_bindings", &["source_name", "destination_name"])?;
    ensure!(
        !bindings.contains("amq.topic") && !bindings.contains("pingfleet.x.results\ttap"),
        "{bindings}"
    );
    ensure!(
        bindings.contains("pingfleet.x.work\tpingfleet.work"),
        "{bindings}"
    );
    // The control: the queue itself is not ours.
    ensure!(bindings.contains("tap"), "{bindings}");
    ensure!(
        site.changed(&["init"])?
            .starts_with("nothing to change on ")
    );
    Ok(())
}

/// Users belong to the whole broker, and files to a folder: what belongs to another fleet is left alone.
#[test]
fn another_fleet_on_the_same_broker_is_left_alone() -> Result<()> {
    let site = Site::new()?;
    site.changed(&["init"])?;
    site.changed(&["add-worker", "one"])?;
    let before = site.url("credentials/writer.toml")?;
    let other = |arguments: &[&str], prefix: &str| {
        let management = ["--management", &site.management];
        let url = format!("amqp://guest:guest@127.0.0.1:{}/two", site.rabbit.port());
        site.dir
            .call("pingfleet", &[&["broker"], arguments, &management].concat())?
            .env("PINGFLEET_BROKER__URL", &url)
            .env("PINGFLEET_BROKER__PREFIX", prefix)
            .end()
    };
    let taken = other(&["init", "--credentials", "two"], "pingfleet")?.ends_with(4);
    ensure!(
        taken
            .stderr
            .contains("belongs to the fleet in virtual host fleet one"),
        "{taken:#?}"
    );
    let folder = other(&["init"], "second")?.ends_with(3);
    ensure!(
        folder.stderr.contains("it is the login of another fleet"),
        "{folder:#?}"
    );
    let removed = other(&["remove-worker", "one"], "pingfleet")?.ends_with(3);
    ensure!(
        removed.stderr.contains("belongs to the fleet"),
        "{removed:#?}"
    );
    ensure!(site.url("credentials/writer.toml")? == before);
    let permissions = site.rabbit.ctl(&["list_permissions", "-p", "two"])?;
    ensure!(!permissions.contains("pingfleet-"), "{permissions}");
    // The control: with names and a folder of its own it is made.
    other(&["init", "--credentials", "two"], "second")?.ends_with(0);
    let permissions = site.rabbit.ctl(&["list_permissions", "-p", "two"])?;
    ensure!(permissions.contains("second-writer"), "{permissions}");
    ensure!(
        site.changed(&["init"])?
            .starts_with("nothing to change on ")
    );
    Ok(())
}

#[test]
fn a_file_gets_another_address_and_a_worker_that_was_removed_another_password() -> Result<()> {
    let site = Site::new()?;
    site.changed(&["init"])?;
    let file = "credentials/worker-one.toml";
    let added = site.broker(&["add-worker", "one"])?.ends_with(0);
    ensure!(added.stderr.contains("give --address HOST"), "{added:#?}");
    let first = site.url(file)?;
    let moved = site.changed(&["add-worker", "one", "--address", "10.0.0.5"])?;
    ensure!(
        moved.contains("changed the broker's address in credentials/worker-one.toml"),
        "{moved}"
    );
    let second = site.url(file)?;
    ensure!(
        second == first.replace("127.0.0.1", "10.0.0.5"),
        "the password stays"
    );
    let again = site.changed(&["add-worker", "one"])?;
    ensure!(again.starts_with("nothing to change"), "{again}");
    site.changed(&["remove-worker", "one"])?;
    site.changed(&["add-worker", "one"])?;
    let third = site.url(file)?;
    ensure!(third != first && third != second);
    Ok(())
}

async fn channel(url: &str) -> Result<Channel> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    // The channel keeps the connection.
    Ok(channel)
}

/// What a role's login may do with a queue or the exchange that feeds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Publish,
    Consume,
    Get,
    Purge,
    Declare,
    Delete,
    Bind,
    Unbind,
    BindExchange,
    DeclareExchange,
    DeleteExchange,
}

impl Action {
    const ALL: [Self; 11] = [
        Self::Publish,
        Self::Consume,
        Self::Get,
        Self::Purge,
        Self::Declare,
        Self::Delete,
        Self::Bind,
        Self::Unbind,
        Self::BindExchange,
        Self::DeclareExchange,
        Self::DeleteExchange,
    ];

    /// Tries it with this queue or exchange.
    async fn attempt(self, channel: &Channel, queue: &str, exchange: &str) -> lapin::Result<()> {
        let none = FieldTable::default;
        match self {
            Self::Publish => {
                channel
                    .confirm_select(ConfirmSelectOptions::default())
                    .await?;
                let options = BasicPublishOptions::default();
                let key = "nowhere".into();
                let properties = BasicProperties::default();
                channel
                    .basic_publish(exchange.into(), key, options, b"", properties)
                    .await?
                    .await?;
            }
            Self::Consume => {
                let options = BasicConsumeOptions::default();
                channel
                    .basic_consume(queue.into(), "".into(), options, none())
                    .await?;
            }
            Self::Get => {
                channel
                    .basic_get(queue.into(), BasicGetOptions::default())
                    .await?;
            }
            Self::Purge => {
                channel
                    .queue_purge(queue.into(), QueuePurgeOptions::default())
                    .await?;
            }
            Self::Declare => {
                // With other arguments, so that nothing comes of it.
                let options = QueueDeclareOptions::default();
                channel.queue_declare(queue.into(), options, none()).await?;
            }
            Self::Delete => {
                // None that is there is unused: the one consumer stays.
                let options = QueueDeleteOptions {
                    if_unused: true,
                    ..QueueDeleteOptions::default()
                };
                channel.queue_delete(queue.into(), options).await?;
            }
            Self::Bind => {
                let options = QueueBindOptions::default();
                let key = "key".into();
                channel
                    .queue_bind(queue.into(), exchange.into(), key, options, none())
                    .await?;
            }
            Self::Unbind => {
                let key = "key".into();
                channel
                    .queue_unbind(queue.into(), exchange.into(), key, none())
                    .await?;
            }
            Self::BindExchange => {
                let options = ExchangeBindOptions::default();
                let (key, fanout) = ("key".into(), "amq.fanout".into());
                channel
                    .exchange_bind(fanout, exchange.into(), key, options, none())
                    .await?;
            }
            Self::DeclareExchange => {
                let (kind, options) = (ExchangeKind::Fanout, ExchangeDeclareOptions::default());
                channel
                    .exchange_declare(exchange.into(), kind, options, none())
                    .await?;
            }
            Self::DeleteExchange => {
                let options = ExchangeDeleteOptions {
                    if_unused: true,
                    ..ExchangeDeleteOptions::default()
                };
                channel.exchange_delete(exchange.into(), options).await?;
            }
        }
        Ok(())
    }
}

/// Whether the broker refused it because of a permission (AMQP 0-9-1, 403 access-refused).
fn is_refused(error: &lapin::Error) -> bool {
    error.to_string().contains("ACCESS_REFUSED")
}

/// Everything that each role's login can do, over AMQP and the management API.
#[test]
fn a_login_may_do_what_its_role_needs_and_nothing_else() -> Result<()> {
    use Action::{Consume, Get, Publish, Purge};
    let site = Site::new()?;
    site.changed(&["init"])?;
    site.changed(&["add-worker", "berlin-1"])?;
    // Read permission for a queue includes purging it.
    let reads = [Consume, Get, Purge];
    let allowed = |file: &str, queue: &str, action: Action| match (file, queue) {
        ("writer", "results" | "dead" | "foreign") => action == Publish || reads.contains(&action),
        ("writer", "heartbeats") | ("worker-berlin-1", "work") => reads.contains(&action),
        ("producer", "work") | ("worker-berlin-1", "results" | "heartbeats") => action == Publish,
        _ => false,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let mut permitted = 0;
    for file in ["producer", "writer", "worker-berlin-1"] {
        let url = site.url(&format!("credentials/{file}.toml"))?;
        runtime.block_on(async {
            let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
            for queue in ["work", "results", "dead", "heartbeats", "foreign"] {
                let (name, exchange) =
                    (format!("pingfleet.{queue}"), format!("pingfleet.x.{queue}"));
                for action in Action::ALL {
                    // A refusal closes the channel.
                    let channel = connection.create_channel().await?;
                    let attempt = action.attempt(&channel, &name, &exchange).await;
                    let may = allowed(file, queue, action);
                    let refused = match attempt {
                        Ok(()) => false,
                        // A queue with a single active consumer knows no basic.get.
                        Err(error) if error.to_string().contains("RESOURCE_LOCKED") => false,
                        Err(error) if is_refused(&error) => true,
                        Err(error) => {
                            return Err(error).context(format!("{file} {action:?} {queue}"));
                        }
                    };
                    ensure!(
                        refused != may,
                        "{file} {action:?} {queue}: refused {refused}"
                    );
                    permitted += u32::from(may);
                }
            }
            // The default exchange reaches every queue, and others are nobody's business.
            for exchange in ["", "amq.direct", "amq.topic", "amq.fanout"] {
                let channel = connection.create_channel().await?;
                let refused = Publish.attempt(&channel, "", exchange).await;
                ensure!(
                    refused.is_err_and(|error| is_refused(&error)),
                    "{file} {exchange:?}"
                );
            }
            anyhow::Ok(())
        })?;
        // The virtual host is another one.
        let elsewhere = url.replace("/fleet%20one", "/%2f");
        let refused = runtime.block_on(Connection::connect(
            &elsewhere,
            ConnectionProperties::default(),
        ));
        ensure!(refused.is_err(), "{file} may use another virtual host");
        site.refuses_management(file, &url)?;
    }
    // The controls: what is permitted was tried; a user who may do everything is never refused, whatever else is wrong with an
    // action; and an administrator may use the API.
    ensure!(permitted == 21, "{permitted}");
    site.rabbit.ctl(&["add_user", "control", "secret"])?;
    site.ctl("set_permissions", &["control", ".*", ".*", ".*"])?;
    let url = format!(
        "amqp://control:secret@127.0.0.1:{}/fleet%20one",
        site.rabbit.port()
    );
    runtime.block_on(async {
        for action in Action::ALL {
            let channel = channel(&url).await?;
            let attempt = action
                .attempt(&channel, "pingfleet.work", "pingfleet.x.work")
                .await;
            ensure!(
                !attempt.is_err_and(|error| is_refused(&error)),
                "{action:?}"
            );
        }
        anyhow::Ok(())
    })?;
    ensure!(site.status("guest:guest", "whoami")? == 200);
    Ok(())
}

/// A worker that is removed is out at once, and the run completes with the other one. All of it by TLS.
#[test]
fn a_worker_is_removed_in_the_middle_of_a_run() -> Result<()> {
    let site = Site::new_with_tls()?;
    site.changed(&["init"])?;
    for name in ["one", "two"] {
        let added = site.changed(&["add-worker", name])?;
        ensure!(added.contains("ca.pem to the same place"), "{added}");
    }
    let login = |name: &str| format!("credentials/{name}.toml");
    let start = |program: &str, name: &str, arguments: &[&str]| {
        site.dir
            .start_with_login(program, &login(name), arguments, &format!("{name}.log"))
    };
    let _writer = start("consumer-writer", "writer", &["--db", "fleet.db"])?;
    let mut one = start("ping-worker", "worker-one", &["--name", "one"])?;
    let _two = start("ping-worker", "worker-two", &["--name", "two"])?;
    // Or the first one might be done before the other begins.
    until("both workers are ready", || {
        let logs = ["worker-one.log", "worker-two.log"];
        let logs = logs.map(|log| fs::read_to_string(site.dir.path(log)));
        Ok(logs
            .iter()
            .flatten()
            .filter(|log| log.contains("worker ready"))
            .count()
            == 2)
    })?;
    let targets = [
        "127.0.0.0/22",
        "--rate",
        "100",
        "--chunk-size",
        "5",
        "--db",
        "fleet.db",
    ];
    let mut producer = start("producer", "producer", &targets)?;
    // Both work.
    let workers = "SELECT count(DISTINCT worker) FROM chunks WHERE worker IS NOT NULL";
    until("both workers have results", || {
        let is_there = site.dir.path("fleet.db").exists();
        Ok(is_there
            && site
                .dir
                .sqlite3("fleet.db", workers)
                .is_ok_and(|count| count == "2"))
    })?;
    let connections = || site.rabbit.ctl(&["list_connections", "user", "ssl"]);
    // The control: it has connections.
    let before = connections()?;
    ensure!(
        before.contains("pingfleet-worker-one\ttrue") && !before.contains("\tfalse"),
        "{before}"
    );
    let removed = site.changed(&["remove-worker", "one"])?;
    ensure!(
        removed.starts_with("removed user pingfleet-worker-one; its "),
        "{removed}"
    );
    let left = connections()?;
    ensure!(
        !left.contains("pingfleet-worker-one") && left.contains("pingfleet-worker-two"),
        "{left}"
    );
    // It cannot come back.
    ensure!(
        one.wait()? == Some(4),
        "{}",
        fs::read_to_string(site.dir.path("worker-one.log"))?
    );
    ensure!(
        producer.wait()? == Some(0),
        "{}",
        fs::read_to_string(site.dir.path("producer.log"))?
    );
    site.dir
        .pingfleet(&["verify", "--db", "fleet.db"])?
        .ends_with(0);
    let again = site.changed(&["remove-worker", "one"])?;
    ensure!(
        again.starts_with("nothing to change: there is no user"),
        "{again}"
    );
    Ok(())
}

/// Waits for something that happens by itself.
fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is_so()? {
        ensure!(
            began.elapsed() < Duration::from_mins(2),
            "not after 2 minutes: {what}"
        );
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Runs the commands of `rabbitmqctl` in an output.
fn run_printed(dir: &TestDir, rabbit: &Rabbit, output: &str) -> Result<()> {
    let commands = output
        .lines()
        .filter(|line| line.starts_with("  rabbitmqctl "));
    let mut count = 0;
    for line in commands {
        let words = dir.shell(&format!("printf '%s\\0' {line}"))?;
        let mut words: Vec<_> = words
            .stdout
            .trim_end_matches('\0')
            .split('\0')
            .skip(1)
            .collect();
        if words[0] == "add_user" {
            if rabbit.ctl(&["list_users"])?.contains(words[1]) {
                continue;
            }
            // It asks for the password.
            words.push("secret");
        }
        rabbit.ctl(&words)?;
        count += 1;
    }
    ensure!(count >= 7, "{output}");
    Ok(())
}

/// Without the plugin the printed commands do the same.
#[test]
fn without_the_management_plugin_the_commands_are_printed() -> Result<()> {
    let dir = TestDir::new()?;
    let rabbit = Rabbit::start()?;
    let said = dir
        .call("pingfleet", &["broker", "init"])?
        .env("PINGFLEET_BROKER__URL", &rabbit.url())
        .end()?
        .ends_with(0);
    ensure!(
        said.stdout.starts_with("exchanges and queues are ready")
            && said.stdout.contains("--management"),
        "{said:#?}"
    );
    run_printed(&dir, &rabbit, &said.stdout)?;
    let url = format!(
        "amqp://pingfleet-producer:secret@127.0.0.1:{}/",
        rabbit.port()
    );
    let published = dir.call("producer", &["127.0.0.1", "--detach"])?;
    published
        .env("PINGFLEET_BROKER__URL", &url)
        .end()?
        .ends_with(0);
    let permissions = rabbit.ctl(&["list_permissions"])?;
    for login in ["pingfleet-writer", "pingfleet-worker-NAME"] {
        ensure!(
            permissions.contains(&format!("{login}\t^$\t^")),
            "{permissions}"
        );
    }
    // Without the virtual host they make it, too.
    let elsewhere = format!("amqp://guest:guest@127.0.0.1:{}/a%20b", rabbit.port());
    let init = || {
        let call = dir.call("pingfleet", &["broker", "init"])?;
        call.env("PINGFLEET_BROKER__URL", &elsewhere).end()
    };
    let refused = init()?.ends_with(4);
    run_printed(&dir, &rabbit, &refused.stdout)?;
    init()?.ends_with(0);
    // An API that was named has to be there, and a worker cannot be added without it.
    dir.call(
        "pingfleet",
        &["broker", "init", "--management", "http://127.0.0.1:1"],
    )?
    .env("PINGFLEET_BROKER__URL", &rabbit.url())
    .end()?
    .fails(
        4,
        &["the management API at http://127.0.0.1:1 cannot be used"],
    );
    dir.call(
        "pingfleet",
        &[
            "broker",
            "add-worker",
            "one",
            "--management",
            "http://127.0.0.1:1",
        ],
    )?
    .env("PINGFLEET_BROKER__URL", &rabbit.url())
    .end()?
    .fails(
        4,
        &[
            "cannot be used",
            "rabbitmq-plugins enable rabbitmq_management",
        ],
    );
    Ok(())
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_made() -> Result<()> {
    let dir = TestDir::new()?;
    for (arguments, part) in [
        (&["add-worker", "a b"][..], "a worker's login is named by"),
        (&["add-worker", "one", "--address", "a/b"], "--address"),
        (
            &["init", "--management", "ftp://h"],
            "must begin with http:// or https://",
        ),
        (
            &["init", "--management", "http://u:p@h"],
            "may have no user",
        ),
    ] {
        dir.call("pingfleet", &[&["broker"], arguments].concat())?
            .end()?
            .fails(3, &[part]);
    }
    ensure!(dir.files()?.is_empty());
    Ok(())
}
