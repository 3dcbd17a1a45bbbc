//! What a process logs about its sockets: once, for all probing threads.

use std::sync::atomic::{AtomicBool, Ordering};

use socket2::Type;
use tracing::{info, warn};

use super::Buffers;

/// A smaller receive buffer holds fewer replies than may arrive at once.
const SMALL_RECEIVE_BUFFER: usize = 8 << 20;

/// Remembers what has been logged.
#[derive(Debug, Default)]
pub(crate) struct LogOnce {
    sockets: AtomicBool,
    small_buffer: AtomicBool,
}

impl LogOnce {
    /// Logs the kind and the buffers of the first socket, and the first receive buffer that is small, with its
    /// `consequence`.
    pub(crate) fn log_socket(
        &self,
        kind: Type,
        preferred: Type,
        buffers: Buffers,
        consequence: &str,
    ) {
        let Buffers {
            receive: receive_buffer,
            send: send_buffer,
        } = buffers;
        if !self.sockets.swap(true, Ordering::Relaxed) {
            if kind == preferred {
                info!(
                    kind = kind_name(kind),
                    receive_buffer, send_buffer, "ICMP sockets open"
                );
            } else {
                info!(
                    kind = kind_name(kind),
                    receive_buffer,
                    send_buffer,
                    "ICMP sockets open, not of the preferred kind, which is not permitted"
                );
            }
        }
        if receive_buffer < SMALL_RECEIVE_BUFFER && !self.small_buffer.swap(true, Ordering::Relaxed)
        {
            warn!(
                receive_buffer,
                "small receive buffer, {consequence}: run `sysctl -w net.core.rmem_max=67108864` as root"
            );
        }
    }
}

/// The word for a kind of ICMP socket.
fn kind_name(kind: Type) -> &'static str {
    if kind == Type::RAW { "raw" } else { "datagram" }
}
