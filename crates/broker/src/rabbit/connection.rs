//! One connection, with a timeout on everything that waits for the broker. lapin itself has none.

use std::{
    net::Shutdown,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_rs::traits::Reactor as _;
use futures_util::stream::{BoxStream, StreamExt};
use lapin::{
    AsyncTcpStream, Channel, Connection, ConnectionProperties, ConnectionStatus, Event,
    uri::AMQPScheme,
};
use socket2::Socket;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{debug, info, warn};

use super::{endpoint::Endpoint, error::Operation, stream::BrokerRuntime};
use crate::{BrokerError, REPLY_TIMEOUT};

/// How long one try to connect may take, with name resolution, TLS and login.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a connection is tried that the broker closes right after the handshake of TLS. It does so when it refuses this
/// program's certificate, and about once in a hundred times before its alert, which has the reason, is on its way (measured
/// with RabbitMQ 3.10.8).
const MAX_TLS_TRIES: u32 = 3;

/// How long closing may take. After that the connection is dropped, which also returns what is unsettled.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often [`while_blocked`] checks during its timeout whether the broker blocks the connection.
const BLOCKED_CHECKS: u32 = 10;

/// An open connection. Dropping it closes it in the background.
pub(super) struct RabbitConnection {
    pub(super) endpoint: Arc<Endpoint>,
    connection: Connection,
    /// Logs its alarms, as long as the connection is used.
    alarms: Option<AbortOnDropHandle<()>>,
}

impl RabbitConnection {
    pub(super) async fn open(endpoint: &Arc<Endpoint>) -> Result<Self, BrokerError> {
        let mut connection = Self::connect(endpoint).await?;
        let reporting = report_alarms(connection.events(), endpoint.place());
        connection.alarms = Some(AbortOnDropHandle::new(tokio::spawn(reporting)));
        Ok(connection)
    }

    /// Opens a connection whose alarms are not logged.
    pub(super) async fn connect(endpoint: &Arc<Endpoint>) -> Result<Self, BrokerError> {
        let mut tries = 1;
        loop {
            match Self::try_connect(endpoint).await {
                Err(error) if tries < MAX_TLS_TRIES && error.is_closed_early_over_tls() => {
                    tries += 1;
                }
                ended => return ended,
            }
        }
    }

    async fn try_connect(endpoint: &Arc<Endpoint>) -> Result<Self, BrokerError> {
        let attempt = Attempt::default();
        let connection = timeout(ATTEMPT_TIMEOUT, attempt.connect(endpoint))
            .await
            .map_err(|_| endpoint.timed_out(Operation::Connect))?
            .map_err(|error| endpoint.broker_error(Operation::Connect, error))?;
        attempt.succeeded();
        endpoint.note_connected();
        Ok(Self {
            endpoint: Arc::clone(endpoint),
            connection,
            alarms: None,
        })
    }

    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        self.reply(Operation::Transfer, self.connection.create_channel())
            .await
    }

    /// Closes a channel in order. One that is only dropped closes in the background, and a connection that is closed
    /// meanwhile ends without a goodbye: lapin takes the close of the channel for an error then.
    pub(super) async fn close_channel(&self, channel: Channel) {
        if !channel.status().connected() {
            // The broker has closed it.
            return;
        }
        let closing = channel.close(200, "OK".into());
        if let Err(error) = self.reply(Operation::Transfer, closing).await {
            debug!(%error, "closing a channel failed");
        }
    }

    /// Waits for the broker's reply, and translates its errors.
    pub(super) async fn reply<T>(
        &self,
        operation: Operation,
        reply: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BrokerError> {
        self.within(operation, reply)
            .await?
            .map_err(|error| self.endpoint.broker_error(operation, error))
    }

    /// Waits for the broker's reply.
    pub(super) async fn within<F: Future>(
        &self,
        operation: Operation,
        reply: F,
    ) -> Result<F::Output, BrokerError> {
        timeout(REPLY_TIMEOUT, reply)
            .await
            .map_err(|_| self.endpoint.timed_out(operation))
    }

    /// What happens to the connection. Each event goes to one listener only.
    pub(super) fn events(&self) -> BoxStream<'static, Event> {
        self.connection.events_listener().boxed()
    }

    pub(super) fn status(&self) -> &ConnectionStatus {
        self.connection.status()
    }

    pub(super) async fn close(self) {
        let closing = self.connection.close(200, "OK".into());
        match timeout(CLOSE_TIMEOUT, closing).await {
            Ok(Ok(())) => {}
            // Confirmed messages are stored and unsettled ones return to the queue, so this is harmless.
            Ok(Err(error)) => debug!(%error, "closing the broker connection failed"),
            Err(_) => debug!("closing the broker connection timed out"),
        }
    }
}

/// Logs when the broker begins and ends to block a connection, with its reason. Ends with the connection.
async fn report_alarms(mut events: BoxStream<'static, Event>, broker: String) {
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => warn!(
                broker,
                reason,
                "the broker has an alarm and takes no messages; nothing is lost, it goes on after the alarm"
            ),
            Event::ConnectionUnblocked => info!(broker, "the broker takes messages again"),
            _ => {}
        }
    }
}

/// Waits for `future`, at most for `limit`. Time in which the broker blocks the connection (a memory or disk alarm,
/// `connection.blocked`) does not count: an alarm may last for hours and loses nothing.
pub(super) async fn while_blocked<F: Future>(
    status: &ConnectionStatus,
    limit: Duration,
    future: F,
) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut silent_checks = 0;
    while silent_checks < BLOCKED_CHECKS {
        if let Ok(output) = timeout(limit / BLOCKED_CHECKS, &mut future).await {
            return Some(output);
        }
        silent_checks = if status.blocked() {
            0
        } else {
            silent_checks + 1
        };
    }
    None
}

/// One try to connect. lapin connects on a thread of its own that does not end while the peer is silent. Dropping an
/// attempt before it succeeded shuts the socket down, and that ends the thread.
#[derive(Default)]
struct Attempt {
    abandoned: CancellationToken,
    socket: Arc<OnceLock<Socket>>,
    succeeded: bool,
}

impl Attempt {
    async fn connect(&self, endpoint: &Arc<Endpoint>) -> lapin::Result<Connection> {
        let properties = ConnectionProperties::default()
            .with_connection_name(endpoint.connection_name.as_str().into());
        let abandoned = self.abandoned.clone();
        let socket = Arc::clone(&self.socket);
        let settings = Arc::clone(endpoint);
        Connection::connector(
            endpoint.uri.clone(),
            BrokerRuntime::current(),
            async move |uri, runtime| {
                let host = uri.authority.host.clone();
                let connecting = async {
                    // Read now, and not kept: a certificate may have been renewed. This is a thread of lapin's.
                    let tls = match uri.scheme {
                        AMQPScheme::AMQP => None,
                        AMQPScheme::AMQPS => {
                            Some(settings.tls.connector().map_err(std::io::Error::other)?)
                        }
                    };
                    let addresses = runtime.to_socket_addrs((host.clone(), uri.authority.port));
                    let stream = runtime.tcp_connect(addresses).await?;
                    let stream = stream.with_check(settings.auth);
                    let handle = stream.socket()?;
                    socket.get_or_init(|| handle);
                    match tls {
                        None => Ok(stream),
                        Some(tls) => stream.into_tls(&tls, &host).await,
                    }
                };
                let connected: std::io::Result<_> = abandoned
                    .run_until_cancelled(connecting)
                    .await
                    .unwrap_or_else(|| Err(std::io::ErrorKind::TimedOut.into()));
                // Plain for lapin, which knows no other streams here.
                Ok(AsyncTcpStream::Plain(connected?))
            },
            properties,
        )
        .await
    }

    fn succeeded(mut self) {
        self.succeeded = true;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.succeeded {
            return;
        }
        self.abandoned.cancel();
        if let Some(Err(error)) = self
            .socket
            .get()
            .map(|socket| socket.shutdown(Shutdown::Both))
        {
            debug!(%error, "shutting down an abandoned broker connection failed");
        }
    }
}
