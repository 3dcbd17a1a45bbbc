//! The server: a listener, its connections, and their limits.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, middleware};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use pingfleet_settings::open_files_limit;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinSet},
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tower_http::compression::CompressionLayer;

use crate::{
    HttpSettings, ServeError,
    access::{Access, check},
    token::Token,
};

/// The most connections at once; a further one is closed at once. Fewer where the process may open few files.
pub const MAX_CONNECTIONS: usize = 256;

/// Open files that the rest of the program may need.
const OTHER_FILES: u64 = 96;

/// The most bytes of a request's line and headers, and its most headers.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// How long a client may take to send a request, or to send the next one on the same connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take nothing of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// What the kernel keeps of an answer that the client does not take.
const SEND_BUFFER: usize = 64 * 1024;

/// How long answers may take at the end.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// The pause after the system refused a connection: it has no files or no memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A listener with its rules.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    access: Arc<Access>,
}

impl Server {
    /// Listens, and reads the token.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn bind(settings: &HttpSettings) -> Result<Self, ServeError> {
        let HttpSettings { listen, flag, .. } = *settings;
        let token = settings
            .token_file
            .as_deref()
            .map(Token::read)
            .transpose()?;
        if token.is_none() && !listen.ip().to_canonical().is_loopback() {
            return Err(ServeError::NoToken { address: listen });
        }
        let failed = |source| ServeError::Listen {
            address: listen,
            flag,
            source,
        };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let access = Access {
            name: settings.name.clone(),
            token,
            port: address.port(),
        };
        Ok(Self {
            listener,
            address,
            access: Arc::new(access),
        })
    }

    /// The address on which it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether visitors need the token.
    #[must_use]
    pub fn needs_token(&self) -> bool {
        self.access.token.is_some()
    }

    /// Serves these routes until `stop`. Then it accepts no connection, and gives answers 2 s to end.
    pub async fn serve(self, routes: Router, stop: CancellationToken) {
        let routes = routes
            .layer(CompressionLayer::new())
            .layer(middleware::from_fn_with_state(self.access, check));
        let service = TowerToHyperService::new(routes);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(REQUEST_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES)
            .max_headers(MAX_HEADERS);
        let permits = Arc::new(Semaphore::new(most_connections(open_files_limit())));
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
                Ok((stream, _)) => {
                    let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                        continue;
                    };
                    let connection = http.serve_connection(limited(stream), service.clone());
                    connections.spawn(hold(permit, graceful.watch(connection)));
                }
                Err(error) => {
                    tracing::debug!(%error, "connection to the page not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        let ended = tokio::time::timeout(STOP_WAIT, graceful.shutdown()).await;
        if ended.is_err() {
            tracing::debug!("clients of the page still took their answers at the end");
        }
        connections.shutdown().await;
    }
}

/// A connection that ends when its client takes nothing.
fn limited(stream: TcpStream) -> TokioIo<std::pin::Pin<Box<TimeoutStream<TcpStream>>>> {
    if let Err(error) = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER) {
        tracing::debug!(%error, "send buffer of a connection not limited");
    }
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    TokioIo::new(Box::pin(stream))
}

/// Serves a connection while it has its permit.
async fn hold(permit: OwnedSemaphorePermit, connection: impl Future<Output = hyper::Result<()>>) {
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

/// The most connections of a process that may open so many files.
fn most_connections(files: Option<u64>) -> usize {
    files.map_or(MAX_CONNECTIONS, |files| {
        let share = files.saturating_sub(OTHER_FILES) / 2;
        usize::try_from(share).map_or(MAX_CONNECTIONS, |share| share.clamp(4, MAX_CONNECTIONS))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_rest_of_the_program() {
        assert_eq!(most_connections(None), MAX_CONNECTIONS);
        assert_eq!(most_connections(Some(1 << 20)), MAX_CONNECTIONS);
        assert_eq!(most_connections(Some(128)), 16);
        assert_eq!(most_connections(Some(64)), 4);
    }
}
