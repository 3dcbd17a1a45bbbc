//! The streams that lapin reads and writes: TCP, or TLS over it.
//!
//! lapin has a TLS of its own, which neither trusts a single authority only nor reads private keys without a library for
//! PKCS#12. So lapin's runtime is wrapped here: its "TCP stream" is [`BrokerStream`], encrypted or not.
//!
//! Invariant: a stream that became TLS is never read or written without it.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use async_rs::{
    Tokio,
    traits::{Executor, Reactor, RuntimeKit},
    util::Task,
};
use futures_io::{AsyncRead, AsyncWrite};
use futures_rustls::{TlsConnector, client::TlsStream};
use futures_util::Stream;
use pingfleet_settings::keys::BrokerAuth;
use rustls::pki_types::ServerName;
use socket2::{SockRef, Socket};

use super::{connect_problem::ConnectProblem, mechanisms::MechanismCheck};

/// The TCP stream of lapin's runtime.
type TcpStream = <Tokio as Reactor>::TcpStream;

/// Either layer, to be written.
type Writer = dyn AsyncWrite + Send + Unpin;

/// The first two bytes of a TLS record with an alert: its type, and the major version (RFC 8446, section 5.1). AMQP answers
/// begin with another byte.
const TLS_ALERT: [u8; 2] = [21, 3];

/// One connection to a broker.
pub(super) struct BrokerStream {
    layer: Layer,
    /// Whether the broker sent anything, apart from the handshake of TLS.
    is_answered: bool,
    check: Option<MechanismCheck>,
}

enum Layer {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl BrokerStream {
    fn new(tcp: TcpStream) -> Self {
        Self {
            layer: Layer::Tcp(tcp),
            is_answered: false,
            check: None,
        }
    }

    /// The stream fails when the broker does not offer this way to log in.
    pub(super) fn with_check(mut self, auth: BrokerAuth) -> Self {
        self.check = Some(MechanismCheck::new(auth));
        self
    }

    /// A second handle of the socket.
    pub(super) fn socket(&self) -> io::Result<Socket> {
        let tcp = match &self.layer {
            Layer::Tcp(tcp) => tcp,
            Layer::Tls(tls) => tls.get_ref().0,
        };
        SockRef::from(tcp.get_ref()).try_clone()
    }

    /// Encrypts the stream. The broker's certificate must be for `host`, which is a name or an address.
    pub(super) async fn into_tls(self, connector: &TlsConnector, host: &str) -> io::Result<Self> {
        let Layer::Tcp(tcp) = self.layer else {
            return Err(io::ErrorKind::AlreadyExists.into());
        };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| io::Error::other("no certificate can be for the name of this host"))?;
        let tls = connector.connect(name, tcp).await?;
        Ok(Self {
            layer: Layer::Tls(Box::new(tls)),
            ..self
        })
    }

    /// The reason of a broken TLS connection. A broker that refuses this program's certificate says so after the handshake
    /// (RFC 8446, section 4.4.2.4), and closes; a write may fail before that alert is read.
    fn reason(&mut self, cx: &mut Context<'_>, error: io::Error) -> io::Error {
        if let Layer::Tls(tls) = &mut self.layer
            && !self.is_answered
            && let Poll::Ready(Err(alert)) = Pin::new(tls).poll_read(cx, &mut [0])
        {
            return alert;
        }
        error
    }

    fn write_with(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Writer>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.layer {
            Layer::Tcp(tcp) => write(Pin::new(tcp), cx),
            Layer::Tls(tls) => write(Pin::new(tls), cx),
        };
        written.map_err(|error| self.reason(cx, error))
    }
}

impl AsyncRead for BrokerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = match &mut self.layer {
            Layer::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Layer::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        };
        let Poll::Ready(Ok(length)) = read else {
            return read;
        };
        let was_answered = self.is_answered;
        self.is_answered |= length > 0;
        if !was_answered
            && matches!(self.layer, Layer::Tcp(_))
            && buf[..length].starts_with(&TLS_ALERT)
        {
            let problem = ConnectProblem::ExpectsTls;
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, problem)));
        }
        let checked = self.check.as_mut().map(|check| check.take(&buf[..length]));
        if let Some(Err(problem)) = checked {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, problem)));
        }
        read
    }
}

impl AsyncWrite for BrokerStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write_with(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write_with(cx, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_with(cx, |stream, cx| stream.poll_flush(cx).map_ok(|()| 0))
            .map_ok(drop)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.layer {
            Layer::Tcp(tcp) => Pin::new(tcp).poll_close(cx),
            Layer::Tls(tls) => Pin::new(tls).poll_close(cx),
        }
    }
}

/// lapin's tokio runtime, with streams of this module.
#[derive(Debug, Clone)]
pub(super) struct BrokerRuntime(Tokio);

impl BrokerRuntime {
    /// The runtime that calls this.
    pub(super) fn current() -> async_rs::Runtime<Self> {
        async_rs::Runtime::new(Self(Tokio::current()))
    }
}

impl RuntimeKit for BrokerRuntime {}

impl Executor for BrokerRuntime {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        future: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
        &self,
        work: F,
    ) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(work)
    }
}

impl Reactor for BrokerRuntime {
    type TcpStream = BrokerStream;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// lapin registers no sockets: all are made by [`Self::tcp_connect_addr`].
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<BrokerStream, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<BrokerStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move { connecting.await.map(BrokerStream::new) }
    }
}
