//! One connection, and the patience with it: the client library waits for ever, this does not.

use std::{
    net::Shutdown,
    sync::{Arc, OnceLock},
    time::Duration,
};

use lapin::{
    AsyncTcpStream, Channel, Connection, ConnectionProperties, ConnectionStatus, runtime,
    tcp::OwnedTLSConfig, uri::AMQPScheme,
};
use socket2::{SockRef, Socket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{endpoint::Endpoint, fault::Moment};
use crate::{BrokerError, REPLY_TIMEOUT};

/// How long a connection may take, name resolution, TLS and login included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long closing in order may take; after it the connection is dropped, which returns what is unsettled too.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Into how many parts [`patiently`] cuts its waiting, to look whether the broker blocks us.
const LOOKS: u32 = 10;

/// An open connection. Dropping it closes it in the background.
pub(super) struct Link {
    pub(super) endpoint: Arc<Endpoint>,
    connection: Connection,
}

impl Link {
    pub(super) async fn open(endpoint: &Arc<Endpoint>) -> Result<Self, BrokerError> {
        let attempt = Attempt::default();
        let connection = timeout(CONNECT_TIMEOUT, attempt.connect(endpoint))
            .await
            .map_err(|_| endpoint.silence(Moment::Connecting))?
            .map_err(|error| endpoint.fault(Moment::Connecting, error))?;
        attempt.succeeded();
        Ok(Self {
            endpoint: Arc::clone(endpoint),
            connection,
        })
    }

    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        self.reply(Moment::Working, self.connection.create_channel())
            .await
    }

    /// Waits for the broker's reply, and translates its errors.
    pub(super) async fn reply<T>(
        &self,
        moment: Moment,
        reply: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, BrokerError> {
        self.within(moment, reply)
            .await?
            .map_err(|error| self.endpoint.fault(moment, error))
    }

    /// Waits for the broker's reply, whatever it is.
    pub(super) async fn within<F: Future>(
        &self,
        moment: Moment,
        reply: F,
    ) -> Result<F::Output, BrokerError> {
        timeout(REPLY_TIMEOUT, reply)
            .await
            .map_err(|_| self.endpoint.silence(moment))
    }

    pub(super) fn status(&self) -> &ConnectionStatus {
        self.connection.status()
    }

    pub(super) async fn close(self) {
        let closing = self.connection.close(200, "OK".into());
        match timeout(CLOSE_TIMEOUT, closing).await {
            Ok(Ok(())) => {}
            // Whatever was worth keeping is confirmed or comes back; the connection goes with the process anyway.
            Ok(Err(error)) => debug!(%error, "broker connection was not closed in order"),
            Err(_) => debug!("broker connection was not closed in time"),
        }
    }
}

/// Waits until `future` is done, or until `patience` has passed in which the broker did not block the connection (a
/// memory or disk alarm, `connection.blocked`). An alarm may last for hours and loses nothing.
pub(super) async fn patiently<F: Future>(
    status: &ConnectionStatus,
    patience: Duration,
    future: F,
) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut silent_looks = 0;
    while silent_looks < LOOKS {
        if let Ok(output) = timeout(patience / LOOKS, &mut future).await {
            return Some(output);
        }
        silent_looks = if status.blocked() {
            0
        } else {
            silent_looks + 1
        };
    }
    None
}

/// One try to connect. The client library does it on a thread of its own that nothing ends while the peer is silent,
/// so an attempt that is dropped before it succeeded ends the thread by what it waits for.
#[derive(Default)]
struct Attempt {
    abandoned: CancellationToken,
    socket: Arc<OnceLock<Socket>>,
    succeeded: bool,
}

impl Attempt {
    async fn connect(&self, endpoint: &Endpoint) -> lapin::Result<Connection> {
        let properties = ConnectionProperties::default()
            .with_connection_name(endpoint.connection_name.as_str().into());
        let abandoned = self.abandoned.clone();
        let socket = Arc::clone(&self.socket);
        Connection::connector(
            endpoint.uri.clone(),
            runtime::default_runtime()?,
            async move |uri, runtime| {
                let host = (uri.authority.host.clone(), uri.authority.port);
                let connecting = async {
                    let stream =
                        AsyncTcpStream::connect(&runtime, runtime.to_socket_addrs(host)).await?;
                    if let AsyncTcpStream::Plain(plain) = &stream {
                        let handle = SockRef::from(plain.get_ref()).try_clone()?;
                        socket.get_or_init(|| handle);
                    }
                    match uri.scheme {
                        AMQPScheme::AMQP => Ok(stream),
                        AMQPScheme::AMQPS => {
                            let tls = OwnedTLSConfig::default();
                            stream.into_tls(&uri.authority.host, tls.as_ref()).await
                        }
                    }
                };
                let connected: std::io::Result<_> = abandoned
                    .run_until_cancelled(connecting)
                    .await
                    .unwrap_or_else(|| Err(std::io::ErrorKind::TimedOut.into()));
                Ok(connected?)
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
            debug!(%error, "abandoned broker connection was closed by the other side");
        }
    }
}
