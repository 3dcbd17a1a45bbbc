//! Event streams: server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>), compressed event
//! by event, and bounded in number.

use std::{
    io::{self, Write as _},
    sync::Arc,
};

use axum::{
    body::{Body, Bytes},
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_ENCODING, VARY},
    },
};
use flate2::{Compression, write::GzEncoder};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::answer::{Answer, accepts_gzip, answer, failed, set};

/// The most event streams at once, one for each open tab. What is beyond them is refused with 503.
pub const MAX_EVENT_STREAMS: usize = 64;

/// The event streams of one server.
#[derive(Debug, Clone)]
pub struct EventStreams {
    permits: Arc<Semaphore>,
    stop: CancellationToken,
}

impl EventStreams {
    /// Streams that end when `stop` is cancelled.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(MAX_EVENT_STREAMS)),
            stop,
        }
    }

    /// How many are open.
    #[must_use]
    pub fn open(&self) -> usize {
        MAX_EVENT_STREAMS - self.permits.available_permits()
    }

    /// Answers with a stream of events; 503 if there are too many. `events` gives the data of each, of which no line may
    /// begin an event: JSON has no line breaks. It is asked for the next one only when the client has taken the one before.
    pub fn answer(
        &self,
        request: &HeaderMap,
        path: &str,
        events: impl Stream<Item = String> + Send + 'static,
    ) -> Answer {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return failed(
                StatusCode::SERVICE_UNAVAILABLE,
                path,
                "Too many live pages are open. Close some of them; this one still shows what it has.",
            );
        };
        let is_gzip = accepts_gzip(request);
        let encoder = is_gzip.then(|| GzEncoder::new(Vec::new(), Compression::default()));
        let stop = self.stop.clone();
        let events = Box::pin(events.take_until(stop.cancelled_owned()));
        // A tab tries again after 2 s when its stream ends.
        let first = stream::iter(["retry: 2000\n\n".to_owned()]);
        let texts = first.chain(events.map(|data| format!("data: {data}\n\n")));
        let chunks = texts.scan((encoder, permit), |(encoder, _permit), text| {
            let chunk = match encoder {
                Some(encoder) => compress(encoder, &text).map(Bytes::from),
                None => Ok(Bytes::from(text)),
            };
            std::future::ready(Some(chunk))
        });
        let mut answer = answer(
            StatusCode::OK,
            "text/event-stream",
            Body::from_stream(chunks),
        );
        set(&mut answer, VARY, "accept-encoding");
        if is_gzip {
            set(&mut answer, CONTENT_ENCODING, "gzip");
        }
        answer
    }
}

/// Compresses one event so that the client can read all of it at once (`Z_SYNC_FLUSH`).
fn compress(encoder: &mut GzEncoder<Vec<u8>>, text: &str) -> io::Result<Vec<u8>> {
    encoder.write_all(text.as_bytes())?;
    encoder.flush()?;
    Ok(std::mem::take(encoder.get_mut()))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn every_event_can_be_read_when_it_was_sent() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let mut sent = Vec::new();
        for text in ["first", "second and longer", "third"] {
            sent.extend(compress(&mut encoder, text).unwrap());
            let mut read = vec![0; 100];
            let mut decoder = flate2::read::GzDecoder::new(sent.as_slice());
            let mut all = Vec::new();
            // The stream has no end yet, so reading fails behind what was sent.
            while let Ok(count @ 1..) = decoder.read(&mut read) {
                all.extend_from_slice(&read[..count]);
            }
            assert!(all.ends_with(text.as_bytes()), "{text}");
        }
    }
}
