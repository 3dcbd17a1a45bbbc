//! TLS over RabbitMQ: each fault has its own message and is final at the start, and nothing falls back to plain.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener},
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use pingfleet_broker::{
    Broker, BrokerError, Confirmed, QueueName, RabbitBroker, RabbitConfig, TlsFiles,
};
use pingfleet_settings::{Failure, keys::BrokerAuth};
use pingfleet_testbed::{CertificateFiles, Rabbit, TestAuthority, TlsListener, Validity};

/// A password that no text may show.
const SECRET: &str = "hunter2-hunter2";

/// A node that demands certificates of this authority and accepts logins by them. Its own is for `localhost` only.
struct Fleet {
    authority: TestAuthority,
    rabbit: Rabbit,
}

fn fleet() -> Result<&'static Fleet> {
    static FLEET: LazyLock<Result<Fleet>> = LazyLock::new(|| {
        let authority = TestAuthority::new()?;
        let rabbit = Rabbit::start_with_tls(TlsListener {
            ca_file: authority.ca_file().to_owned(),
            server: authority.server(&["localhost"], Validity::Now)?,
            demands_certificate: true,
            has_external: true,
        })?;
        Ok(Fleet { authority, rabbit })
    });
    FLEET.as_ref().map_err(|error| anyhow!("{error:#}"))
}

impl Fleet {
    /// A user without a password, with all permissions, and a certificate of that name.
    fn user(&self, name: &str) -> Result<CertificateFiles> {
        self.rabbit.ctl(&["add_user", name, SECRET])?;
        self.rabbit.ctl(&["clear_password", name])?;
        self.rabbit
            .ctl(&["set_permissions", name, ".*", ".*", ".*"])?;
        self.authority.client(name, Validity::Now)
    }

    /// A configuration that connects by TLS with a password.
    fn config(&self, client: Option<&CertificateFiles>) -> Result<RabbitConfig> {
        let port = self.rabbit.tls_port()?;
        let mut config = RabbitConfig::new(format!("amqps://guest:guest@localhost:{port}"));
        config.tls = files(&self.authority, client);
        Ok(config)
    }

    /// A configuration that logs in by its certificate.
    fn external(&self, client: &CertificateFiles) -> Result<RabbitConfig> {
        let mut config = self.config(Some(client))?;
        config.url = config.url.replace("guest:guest@", "");
        config.auth = BrokerAuth::External;
        Ok(config)
    }

    /// A certificate of a client, for those tests that log in with a password.
    fn any_client(&self) -> Result<CertificateFiles> {
        self.authority.client("any", Validity::Now)
    }
}

fn files(authority: &TestAuthority, client: Option<&CertificateFiles>) -> TlsFiles {
    TlsFiles {
        ca: Some(authority.ca_file().to_owned()),
        certificate: client.map(|client| client.certificate.clone()),
        key: client.map(|client| client.key.clone()),
    }
}

async fn connect(config: &RabbitConfig) -> Result<(), BrokerError> {
    let broker = RabbitBroker::new(config)?;
    broker.ensure(&[QueueName::HEARTBEATS]).await
}

/// It is final, and its message has all these parts.
#[track_caller]
fn assert_final(connected: Result<(), BrokerError>, parts: &[&str]) {
    let error = connected.expect_err("the connection was opened");
    assert!(!error.is_transient(), "{error:?}");
    let text = Failure::from(error).message;
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    assert!(!text.contains(SECRET), "{text}");
}

#[tokio::test]
async fn a_message_goes_through_tls_to_a_broker_of_a_private_authority() -> Result<()> {
    let fleet = fleet()?;
    let broker = RabbitBroker::new(&fleet.config(Some(&fleet.any_client()?))?)?;
    broker.ensure(&[QueueName::RESULTS]).await?;
    let mut publisher = broker.publisher().await?;
    let confirm = publisher.publish(QueueName::RESULTS, b"sealed").await?;
    assert_eq!(confirm.await?, Confirmed::Stored);
    let mut consumer = broker.consumer(QueueName::RESULTS, 1).await?;
    let delivery = tokio::time::timeout(Duration::from_mins(1), consumer.next()).await??;
    assert_eq!(delivery.body, b"sealed");
    consumer.ack(&[delivery.tag]).await?;
    let tls = fleet.rabbit.ctl(&["list_connections", "ssl"])?;
    assert!(tls.contains("true"), "{tls}");
    Ok(())
}

#[tokio::test]
async fn only_the_authority_of_ca_file_is_trusted() -> Result<()> {
    let fleet = fleet()?;
    let client = fleet.any_client()?;
    let mut config = fleet.config(Some(&client))?;
    connect(&config).await?;
    let other = TestAuthority::new()?;
    config.tls.ca = Some(other.ca_file().to_owned());
    assert_final(
        connect(&config).await,
        &[
            "does not trust the authority that signed it",
            "the right authority in broker.ca_file",
        ],
    );
    config.tls.ca = None;
    assert_final(
        connect(&config).await,
        &[
            "does not trust the authority that signed it",
            "broker.ca_file",
        ],
    );
    Ok(())
}

#[tokio::test]
async fn a_certificate_for_another_host_is_refused() -> Result<()> {
    let fleet = fleet()?;
    let mut config = fleet.config(Some(&fleet.any_client()?))?;
    connect(&config).await?;
    config.url = config.url.replace("localhost", "127.0.0.1");
    assert_final(
        connect(&config).await,
        &["it is for another host name", "as the certificate names it"],
    );
    Ok(())
}

#[tokio::test]
async fn what_the_broker_finds_wrong_with_the_programs_certificate_is_named() -> Result<()> {
    let fleet = fleet()?;
    connect(&fleet.config(Some(&fleet.any_client()?))?).await?;
    let missing = connect(&fleet.config(None)?).await;
    assert_final(
        missing,
        &["demands a certificate of this program", "broker.cert_file"],
    );
    let expired = fleet.authority.client("any", Validity::Expired)?;
    let expired = connect(&fleet.config(Some(&expired))?).await;
    assert_final(
        expired,
        &["this program's certificate has expired", "renew"],
    );
    let others = TestAuthority::new()?;
    let stranger = others.client("any", Validity::Now)?;
    let stranger = connect(&fleet.config(Some(&stranger))?).await;
    assert_final(
        stranger,
        &[
            "does not trust the authority that signed this program's certificate",
            "ssl_options.cacertfile",
        ],
    );
    Ok(())
}

#[tokio::test]
async fn a_port_with_or_without_tls_is_named() -> Result<()> {
    let fleet = fleet()?;
    let plain = fleet.rabbit.url().replace("guest:guest", "guest");
    let mut config = RabbitConfig::new(plain);
    config.password = Some("guest".into());
    connect(&config).await?;
    let tls_port = fleet.rabbit.tls_port()?;
    config.url = format!("amqp://guest@127.0.0.1:{tls_port}");
    config.password = Some(SECRET.into());
    assert_final(
        connect(&config).await,
        &["this port expects TLS", "write amqps://"],
    );
    config.url = format!("amqps://guest@127.0.0.1:{}", fleet.rabbit.port());
    assert_final(
        connect(&config).await,
        &["this port does not speak TLS", "write amqp://"],
    );
    Ok(())
}

#[tokio::test]
async fn a_certificate_logs_in_without_a_password_and_an_unknown_one_is_named() -> Result<()> {
    let fleet = fleet()?;
    let known = fleet.user("logs-in")?;
    let broker = RabbitBroker::new(&fleet.external(&known)?)?;
    let _consumer = {
        broker.ensure(&[QueueName::DEAD]).await?;
        broker.consumer(QueueName::DEAD, 1).await?
    };
    let users = fleet.rabbit.ctl(&["list_connections", "user"])?;
    assert!(users.lines().any(|user| user == "logs-in"), "{users}");

    // What it publishes has the login, which is in the certificate and not in the URL.
    broker.ensure(&[QueueName::RESULTS]).await?;
    let mut results = broker.consumer(QueueName::RESULTS, 1).await?;
    let mut publisher = broker.publisher().await?;
    let confirm = publisher.publish(QueueName::RESULTS, b"result").await?;
    assert_eq!(confirm.await?, Confirmed::Stored);
    let delivery = results.next().await?;
    assert_eq!(delivery.login.as_deref(), Some("logs-in"));
    results.ack(&[delivery.tag]).await?;
    // A URL that names another one: the broker refuses the first message.
    let mut other = fleet.external(&known)?;
    other.url = other.url.replace("amqps://", "amqps://other@");
    let mut publisher = RabbitBroker::new(&other)?.publisher().await?;
    let confirm = publisher.publish(QueueName::RESULTS, b"result").await?;
    assert_final(
        confirm.await.map(drop),
        &[
            "user_id property set to 'other'",
            "write the login in broker.url",
        ],
    );

    let unknown = fleet.authority.client("nobody", Validity::Now)?;
    assert_final(
        connect(&fleet.external(&unknown)?).await,
        &[
            "refuses the login by the certificate",
            "certificate.pem",
            "pingfleet broker add-worker",
        ],
    );
    Ok(())
}

/// It has a node of its own: the plugin is a property of a node.
#[tokio::test]
async fn a_broker_without_logins_by_certificate_is_named_and_a_renewed_certificate_is_used()
-> Result<()> {
    let authority = TestAuthority::new()?;
    let server = authority.server(&["localhost"], Validity::Now)?;
    let rabbit = Rabbit::start_with_tls(TlsListener {
        ca_file: authority.ca_file().to_owned(),
        server: server.clone(),
        demands_certificate: false,
        has_external: false,
    })?;
    let client = authority.client("guest", Validity::Now)?;
    let url = format!("amqps://localhost:{}", rabbit.tls_port()?);
    let mut config = RabbitConfig::new(url.clone());
    config.tls = files(&authority, Some(&client));
    connect(&config).await?;
    config.auth = BrokerAuth::External;
    assert_final(
        connect(&config).await,
        &[
            "does not offer logins by certificate (SASL EXTERNAL)",
            "rabbitmq_auth_mechanism_ssl",
        ],
    );

    // A program that was connected waits for a renewed certificate. One that starts does not.
    config.auth = BrokerAuth::Plain;
    config.tls = files(&authority, None);
    let connected = RabbitBroker::new(&config)?;
    connected.ensure(&[QueueName::DEAD]).await?;
    renew(
        &rabbit,
        &server,
        &authority.server(&["localhost"], Validity::Expired)?,
    )?;
    let error = connected.ensure(&[QueueName::DEAD]).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    let text = Failure::from(error).message;
    assert!(
        text.contains("it has expired, or is not valid yet"),
        "{text}"
    );
    assert_final(
        connect(&config).await,
        &["it has expired, or is not valid yet", "renew"],
    );
    renew(
        &rabbit,
        &server,
        &authority.server(&["localhost"], Validity::Now)?,
    )?;
    connected.ensure(&[QueueName::DEAD]).await?;
    connect(&config).await?;
    Ok(())
}

/// Gives the node another certificate, in the files that it has. Erlang keeps their contents for two minutes.
fn renew(rabbit: &Rabbit, server: &CertificateFiles, renewed: &CertificateFiles) -> Result<()> {
    fs::copy(&renewed.certificate, &server.certificate)?;
    fs::copy(&renewed.key, &server.key)?;
    rabbit.ctl(&["eval", "ssl:clear_pem_cache()."]).map(drop)
}

#[tokio::test]
async fn the_programs_own_files_are_read_at_each_connect() -> Result<()> {
    let fleet = fleet()?;
    let (first, second) = (fleet.user("before")?, fleet.user("after")?);
    let broker = RabbitBroker::new(&fleet.external(&first)?)?;
    // RabbitMQ goes on to list connections that are closed.
    let next_is_of = async |user: &str| -> Result<()> {
        broker.ensure(&[QueueName::DEAD]).await?;
        let consumer = broker.consumer(QueueName::DEAD, 1).await?;
        let began = Instant::now();
        loop {
            let listed = fleet.rabbit.ctl(&["list_connections", "user", "state"])?;
            let running: Vec<_> = (listed.lines())
                .filter_map(|line| line.strip_suffix("\trunning"))
                .filter(|user| ["before", "after"].contains(user))
                .collect();
            if running == [user] {
                break;
            }
            ensure!(began.elapsed() < Duration::from_mins(1), "{user}: {listed}");
        }
        consumer.close().await;
        Ok(())
    };
    next_is_of("before").await?;
    fs::copy(&second.certificate, &first.certificate)?;
    // A certificate whose key is not there yet is a problem that passes.
    let error = broker.ensure(&[QueueName::DEAD]).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    let text = Failure::from(error).message;
    assert!(text.contains("is not the private key of"), "{text}");
    fs::copy(&second.key, &first.key)?;
    next_is_of("after").await?;
    Ok(())
}

/// Accepts this many connections, gives each `answer` and then the end, and returns what each sent.
fn listener(
    answer: &'static [u8],
    connections: usize,
) -> Result<(u16, thread::JoinHandle<Vec<Vec<u8>>>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let accepting = thread::spawn(move || {
        let mut all = Vec::new();
        for _ in 0..connections {
            let (mut peer, _) = listener.accept().expect("a connection");
            let mut first = [0; 5];
            peer.read_exact(&mut first).expect("the first bytes");
            peer.write_all(answer).expect("an answer");
            peer.shutdown(Shutdown::Write).expect("an end");
            let mut sent = first.to_vec();
            // The program may end the connection with a reset, after all that it sent.
            if let Err(error) = peer.read_to_end(&mut sent) {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            }
            all.push(sent);
        }
        all
    });
    Ok((port, accepting))
}

#[tokio::test]
async fn nothing_is_ever_sent_in_plain_over_amqps() -> Result<()> {
    // What a broker without TLS answers, a page, a TLS alert (handshake failure), and nothing.
    let answers: [(&[u8], usize); 4] = [
        (b"AMQP\0\0\x09\x01", 1),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 1),
        (b"\x15\x03\x03\0\x02\x02\x28", 1),
        (b"", 3),
    ];
    for (answer, connections) in answers {
        let tries = 2;
        let (port, accepting) = listener(answer, tries * connections)?;
        let url = format!("amqps://user:{SECRET}@localhost:{port}");
        let broker = RabbitBroker::new(&RabbitConfig::new(url))?;
        for _ in 0..tries {
            let error = broker.ensure(&[QueueName::WORK]).await.unwrap_err();
            assert!(!Failure::from(error).message.contains(SECRET));
        }
        for sent in accepting.join().expect("no panic") {
            assert_eq!(sent[0], 22, "not a handshake of TLS");
            for plain in [&b"AMQP"[..], b"PLAIN", SECRET.as_bytes()] {
                let is_part = sent.windows(plain.len()).any(|part| part == plain);
                assert!(!is_part, "{sent:?}");
            }
        }
    }
    // The control: without TLS the same listener sees plain bytes.
    let (port, accepting) = listener(b"", 1)?;
    let broker = RabbitBroker::new(&RabbitConfig::new(format!("amqp://localhost:{port}")))?;
    broker.ensure(&[QueueName::WORK]).await.unwrap_err();
    let sent = accepting.join().expect("no panic");
    assert!(sent[0].starts_with(b"AMQP"), "{sent:?}");
    Ok(())
}
