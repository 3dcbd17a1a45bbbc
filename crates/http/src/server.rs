//! The server: a listener, its connections, and their limits.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, middleware};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinError, JoinSet},
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tower_http::compression::CompressionLayer;

use crate::{
    HttpSettings, Limits, ServeError,
    access::{Access, check},
    connections::{Connections, Permit},
    token::Token,
};

/// The most bytes of a request's line and headers, and its most headers.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// What the kernel keeps of an answer that the client does not take.
const SEND_BUFFER: usize = 64 * 1024;

/// When the kernel asks whether a silent client is still there, and how often before it ends the connection.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(15))
    .with_interval(Duration::from_secs(5))
    .with_retries(3);

/// How long what was sent may lack its acknowledgement (`TCP_USER_TIMEOUT`, RFC 5482).
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// The pause after the system refused a connection: it has no files or no memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A listener with its rules.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    access: Arc<Access>,
    limits: Limits,
}

impl Server {
    /// Listens, and reads the token.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn bind(settings: &HttpSettings) -> Result<Self, ServeError> {
        let HttpSettings {
            listen,
            flag,
            section,
            ..
        } = *settings;
        let token = settings
            .token_file
            .as_deref()
            .map(Token::read)
            .transpose()
            .map_err(|why| ServeError::TokenFile { section, why })?;
        if token.is_none() && !listen.ip().to_canonical().is_loopback() {
            return Err(ServeError::NoToken {
                address: listen,
                section,
            });
        }
        let failed = |source| ServeError::Listen {
            address: listen,
            flag,
            source,
        };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let access = Access {
            section,
            name: settings.name.clone(),
            token,
        };
        Ok(Self {
            listener,
            address,
            access: Arc::new(access),
            limits: settings.limits,
        })
    }

    /// The address on which it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The limits of its settings, for its event streams.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether visitors need the token.
    #[must_use]
    pub fn needs_token(&self) -> bool {
        self.access.token.is_some()
    }

    /// Serves these routes until `stop`. Then it accepts no connection, and gives answers some time to end
    /// ([`Limits::stop_wait`]).
    pub async fn serve(self, routes: Router, stop: CancellationToken) {
        let routes = routes
            .layer(CompressionLayer::new())
            .layer(middleware::from_fn_with_state(self.access, check));
        let service = TowerToHyperService::new(routes);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.limits.request_timeout)
            .max_buf_size(MAX_HEADER_BYTES)
            .max_headers(MAX_HEADERS);
        let most = Connections::new(&self.limits);
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = connections.join_next() => {
                    log_panic(ended);
                    continue;
                }
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let Some(permit) = most.admit(peer.ip()) else {
                        continue;
                    };
                    let stream = limited(stream, self.limits.write_timeout);
                    let connection = http.serve_connection(stream, service.clone());
                    connections.spawn(hold(permit, graceful.watch(connection)));
                }
                Err(error) => {
                    tracing::debug!(%error, "connection to the page not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        let ended = tokio::time::timeout(self.limits.stop_wait, graceful.shutdown()).await;
        if ended.is_err() {
            tracing::debug!("clients of the page still took their answers at the end");
        }
        connections.shutdown().await;
    }
}

/// A connection that ends when its client takes nothing, or is gone.
fn limited(
    stream: TcpStream,
    write_timeout: Duration,
) -> TokioIo<std::pin::Pin<Box<TimeoutStream<TcpStream>>>> {
    if let Err(error) = limit_socket(&stream) {
        tracing::debug!(%error, "socket of a connection not limited");
    }
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(write_timeout));
    TokioIo::new(Box::pin(stream))
}

/// Bounds what the kernel keeps of an answer, and how long it keeps a connection whose client is gone.
fn limit_socket(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}

/// Serves a connection while it has its permit.
async fn hold(permit: Permit, connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection to the page ended early");
    }
    drop(permit);
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "an answer of the page failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_connection_whose_client_is_gone_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let socket = SockRef::from(&stream);
        // The control: the system's own settings.
        assert!(!socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        limit_socket(&stream).unwrap();
        assert!(socket.keepalive().unwrap());
        let seconds = Duration::from_secs;
        assert_eq!(socket.tcp_keepalive_time().unwrap(), seconds(15));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), seconds(5));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(seconds(20)));
    }
}
