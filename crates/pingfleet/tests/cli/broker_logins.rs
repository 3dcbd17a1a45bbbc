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
        ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
        QueueDeleteOptions, QueuePurgeOptions,
    },
    types::FieldTable,
};
use pingfleet_testbed::Rabbit;

use crate::rig::{Finished, TestDir};

/// The virtual host of these tests.
const VHOST: &str = "fleet one";

/// A broker with its management API, and a folder for the credentials.
struct Site {
    dir: TestDir,
    rabbit: Rabbit,
    management: String,
}

impl Site {
    fn new() -> Result<Self> {
        let rabbit = Rabbit::start_with_management()?;
        Ok(Self {
            dir: TestDir::new()?,
            management: rabbit.management_url()?,
            rabbit,
        })
    }

    /// `pingfleet broker COMMAND` as the administrator.
    fn broker(&self, arguments: &[&str]) -> Result<Finished> {
        let management = ["--management", &self.management];
        let arguments = [&["broker"], arguments, &management].concat();
        let url = format!("amqp://guest@127.0.0.1:{}/fleet%20one", self.rabbit.port());
        self.dir
            .call("pingfleet", &arguments)?
            .env("PINGFLEET_BROKER__URL", &url)
            .env("PINGFLEET_BROKER__PASSWORD", "guest")
            .end()
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
        "Policy pingfleet-results is missing",
    ] {
        ensure!(shown.contains(part), "no {part:?} in {shown}");
    }
    let repaired = site.changed(&["init"])?;
    for part in [
        "took the tags of the management API from pingfleet-worker-berlin-1",
        "gave pingfleet-worker-berlin-1 its permissions",
        "limited pingfleet-worker-berlin-1",
        "set the password of pingfleet-writer to that in credentials/writer.toml",
        "made user pingfleet-producer; the password in credentials/producer.toml",
        "set policy pingfleet-results",
    ] {
        ensure!(repaired.contains(part), "no {part:?} in {repaired}");
    }
    let shown = site.changed(&["show", "--json"])?;
    ensure!(shown.contains("\"problems\":[]"), "{shown}");
    let table = site.changed(&["show"])?;
    ensure!(
        table.contains("pingfleet-worker-berlin-1") && !table.contains("remedy"),
        "{table}"
    );

    // A login whose file is gone keeps its password, until it gets a new one.
    fs::remove_file(site.dir.path("credentials/writer.toml"))?;
    let kept = site.broker(&["init"])?.ends_with(0);
    ensure!(kept.stderr.contains("--renew"), "{kept:#?}");
    ensure!(!site.dir.path("credentials/writer.toml").exists());
    let renewed = site.changed(&["init", "--renew"])?;
    ensure!(
        renewed.contains("set the password of pingfleet-writer"),
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
    DeclareExchange,
    DeleteExchange,
}

impl Action {
    const ALL: [Self; 9] = [
        Self::Publish,
        Self::Consume,
        Self::Get,
        Self::Purge,
        Self::Declare,
        Self::Delete,
        Self::Bind,
        Self::DeclareExchange,
        Self::DeleteExchange,
    ];

    /// Tries it with a new queue or exchange of this name, or with one that is there.
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
                let options = QueueDeclareOptions::default();
                channel
                    .queue_declare(format!("{queue}.new").into(), options, none())
                    .await?;
            }
            Self::Delete => {
                // Never one that is in use: what a role may do must stay testable.
                let options = QueueDeleteOptions {
                    if_empty: true,
                    ..QueueDeleteOptions::default()
                };
                channel
                    .queue_delete(format!("{queue}.old").into(), options)
                    .await?;
            }
            Self::Bind => {
                let options = QueueBindOptions::default();
                let key = "key".into();
                channel
                    .queue_bind(queue.into(), exchange.into(), key, options, none())
                    .await?;
            }
            Self::DeclareExchange => {
                let (kind, options) = (ExchangeKind::Direct, ExchangeDeclareOptions::default());
                let name = format!("{exchange}.new").into();
                channel
                    .exchange_declare(name, kind, options, none())
                    .await?;
            }
            Self::DeleteExchange => {
                let options = ExchangeDeleteOptions::default();
                channel
                    .exchange_delete(format!("{exchange}.old").into(), options)
                    .await?;
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
        ("writer", "results") => action == Publish || reads.contains(&action),
        ("writer", "dead" | "heartbeats") | ("worker-berlin-1", "work") => reads.contains(&action),
        ("producer", "work") | ("worker-berlin-1", "results" | "heartbeats") => action == Publish,
        _ => false,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let mut permitted = 0;
    for file in ["producer", "writer", "worker-berlin-1"] {
        let url = site.url(&format!("credentials/{file}.toml"))?;
        runtime.block_on(async {
            let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
            for queue in ["work", "results", "dead", "heartbeats"] {
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
        // None of them may use the management API.
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
            let status = site.status(login, path)?;
            ensure!(status == 401, "{file} {path}: {status}");
        }
    }
    // The control: what is permitted was tried, and an administrator may use the API.
    ensure!(permitted == 16, "{permitted}");
    ensure!(site.status("guest:guest", "whoami")? == 200);
    Ok(())
}

/// A worker that is removed is out at once, and the run completes with the other one.
#[test]
fn a_worker_is_removed_in_the_middle_of_a_run() -> Result<()> {
    let site = Site::new()?;
    site.changed(&["init"])?;
    for name in ["one", "two"] {
        site.changed(&["add-worker", name])?;
    }
    let login = |name: &str| format!("credentials/{name}.toml");
    let start = |program: &str, name: &str, arguments: &[&str]| {
        site.dir
            .start_with_login(program, &login(name), arguments, &format!("{name}.log"))
    };
    let _writer = start("consumer-writer", "writer", &["--db", "fleet.db"])?;
    let mut one = start("ping-worker", "worker-one", &["--name", "one"])?;
    let _two = start("ping-worker", "worker-two", &["--name", "two"])?;
    let targets = [
        "127.0.0.0/22",
        "--rate",
        "150",
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
    let connections = || site.rabbit.ctl(&["list_connections", "user"]);
    // The control: it has connections.
    ensure!(connections()?.contains("pingfleet-worker-one"));
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
    let (reason, commands) = said
        .stdout
        .split_once("\n\n  rabbitmqctl")
        .context("commands")?;
    ensure!(
        reason.contains("exchanges and queues are ready") && reason.contains("--management"),
        "{reason}"
    );
    for line in format!("  rabbitmqctl{commands}").lines() {
        let words = dir.shell(&format!("printf '%s\\0' {line}"))?;
        let mut words: Vec<_> = words
            .stdout
            .trim_end_matches('\0')
            .split('\0')
            .skip(1)
            .collect();
        if words[0] == "add_user" {
            // It asks for the password.
            words.push("secret");
        }
        rabbit.ctl(&words)?;
    }
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
    // Something else than the API is no reason to make nothing.
    let elsewhere = dir
        .call(
            "pingfleet",
            &["broker", "init", "--management", "http://127.0.0.1:1"],
        )?
        .env("PINGFLEET_BROKER__URL", &rabbit.url())
        .end()?
        .ends_with(0);
    ensure!(
        elsewhere
            .stdout
            .contains("the management API at http://127.0.0.1:1 cannot be used")
    );
    // But a worker cannot be added without it.
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
