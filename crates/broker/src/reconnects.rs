//! Requests to close the sessions with the broker in order and to open new ones, which read the certificates anew.

use tokio::sync::watch;

/// Requests for new sessions. Each holder sees each request once; several that come together count as one.
#[derive(Debug, Clone, Default)]
pub struct Reconnects(Option<watch::Receiver<u64>>);

impl Reconnects {
    /// Requests are counted there.
    #[must_use]
    pub fn new(requests: watch::Receiver<u64>) -> Self {
        Self(Some(requests))
    }

    /// Those that come from now on.
    #[must_use]
    pub fn from_now(&self) -> Self {
        let mut requests = self.0.clone();
        if let Some(requests) = &mut requests {
            requests.mark_unchanged();
        }
        Self(requests)
    }

    /// Waits for the next request. Cancel-safe.
    pub async fn next(&mut self) {
        if let Some(requests) = &mut self.0
            && requests.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, |requests| *requests.borrow())
    }
}
