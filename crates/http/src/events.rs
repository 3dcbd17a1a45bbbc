//! Event streams: server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>), compressed event
//! by event, and bounded in number.

use std::{
    io::{self, Write as _},
    sync::Arc,
    time::Duration,
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

use crate::{
    Limits,
    answer::{Answer, accepts_gzip, answer, failed, set},
};

/// What a stream without an event has from time to time. Browsers skip it.
const COMMENT: &str = ": nothing new\n\n";

/// The event streams of one server.
#[derive(Debug, Clone)]
pub struct EventStreams {
    most: usize,
    silence: Duration,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
}

impl EventStreams {
    /// Streams within these limits of a server, which end when `stop` is cancelled.
    #[must_use]
    pub fn new(limits: &Limits, stop: CancellationToken) -> Self {
        Self {
            most: limits.event_streams,
            silence: limits.stream_silence,
            permits: Arc::new(Semaphore::new(limits.event_streams)),
            stop,
        }
    }

    /// How many are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.most - self.permits.available_permits()
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
        let texts = first.chain(without_silence(events, self.silence));
        // What ends the stream is one more item, behind which a compressed stream has its trailer.
        let texts = texts.map(Some).chain(stream::iter([None]));
        let chunks = texts.scan((encoder, permit), |(encoder, _permit), text| {
            let chunk = match (encoder.as_mut(), text) {
                (Some(encoder), Some(text)) => Some(compress(encoder, &text).map(Bytes::from)),
                (Some(_), None) => encoder
                    .take()
                    .map(|encoder| encoder.finish().map(Bytes::from)),
                (None, text) => text.map(Bytes::from).map(Ok),
            };
            std::future::ready(chunk)
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

/// The events as text, with a comment after each silence of this length.
fn without_silence(
    events: impl Stream<Item = String> + Unpin,
    silence: Duration,
) -> impl Stream<Item = String> {
    stream::unfold(events, move |mut events| async move {
        let text = match tokio::time::timeout(silence, events.next()).await {
            Ok(data) => format!("data: {}\n\n", data?),
            Err(_) => COMMENT.to_owned(),
        };
        Some((text, events))
    })
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

    use axum::{body::to_bytes, http::header::ACCEPT_ENCODING};

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn streams(stream_silence: Duration, stop: &CancellationToken) -> EventStreams {
        let limits = Limits {
            stream_silence,
            ..Limits::default()
        };
        EventStreams::new(&limits, stop.clone())
    }

    #[tokio::test]
    async fn a_compressed_stream_is_whole_when_the_server_stops() {
        let stop = CancellationToken::new();
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, "gzip".parse().unwrap());
        let last = stop.clone();
        // The stop comes while the next event is waited for.
        let events =
            stream::iter(["first", "second"].map(str::to_owned)).chain(stream::once(async move {
                last.cancel();
                std::future::pending().await
            }));
        let answer = streams(HOUR, &stop).answer(&headers, "/events", events);
        let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        let read = |bytes: &[u8]| {
            let mut text = String::new();
            let mut decoder = flate2::read::GzDecoder::new(bytes);
            decoder.read_to_string(&mut text).map(|_| text)
        };
        let text = read(&body).unwrap();
        assert_eq!(text, "retry: 2000\n\ndata: first\n\ndata: second\n\n");
        // The control: without the last byte of the trailer it is not whole.
        assert!(read(&body[..body.len() - 1]).is_err());
    }

    #[tokio::test]
    async fn a_stream_without_events_has_comments() {
        let stop = CancellationToken::new();
        let streams = streams(Duration::from_millis(1), &stop);
        let silent = streams.answer(&HeaderMap::new(), "/events", stream::pending());
        let mut chunks = silent.into_body().into_data_stream();
        for expected in ["retry: 2000\n\n", COMMENT, COMMENT] {
            assert_eq!(chunks.next().await.unwrap().unwrap(), expected);
        }
        assert_eq!(streams.open(), 1);
        stop.cancel();
        while let Some(chunk) = chunks.next().await {
            assert_eq!(chunk.unwrap(), COMMENT);
        }
        assert_eq!(streams.open(), 0);
    }

    #[tokio::test]
    async fn a_stream_with_events_has_no_comments() {
        let streams = streams(HOUR, &CancellationToken::new());
        let events = stream::iter(["1".to_owned(), "2".to_owned()]);
        let answer = streams.answer(&HeaderMap::new(), "/events", events);
        let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        assert_eq!(body, "retry: 2000\n\ndata: 1\n\ndata: 2\n\n");
    }

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
