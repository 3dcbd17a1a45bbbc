//! Answers: errors in words, and what a browser keeps.

use axum::{
    body::{Body, Bytes},
    http::{
        HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
        header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH},
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// An answer of the server.
pub type Answer = Response<Body>;

/// An answer with a body of one type.
pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Answer {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = status;
    set(&mut answer, CONTENT_TYPE, content_type);
    answer
}

/// An error in words: `{"error": "..."}` below `/api/`, else text.
#[must_use]
pub fn failed(status: StatusCode, path: &str, sentence: &str) -> Answer {
    if path.starts_with("/api/") {
        let text = json!({ "error": sentence }).to_string() + "\n";
        answer(status, "application/json", text)
    } else {
        answer(status, "text/plain; charset=utf-8", format!("{sentence}\n"))
    }
}

/// A body that a browser keeps, and asks for each time whether it is still the same (RFC 9110, section 8.8.3). The tag is
/// a weak one, because the body may be compressed on its way.
#[must_use]
pub fn kept(request: &HeaderMap, content_type: &'static str, body: Bytes) -> Answer {
    let hash = Sha256::digest(&body);
    let tag = format!("W/\"{}\"", URL_SAFE_NO_PAD.encode(hash));
    let known = request.get_all(IF_NONE_MATCH).iter();
    let mut known = known.filter_map(|tags| tags.to_str().ok());
    let is_known = known.any(|tags| tags.split(',').any(|known| known.trim() == tag));
    let mut answer = if is_known {
        let mut unchanged = Answer::default();
        *unchanged.status_mut() = StatusCode::NOT_MODIFIED;
        unchanged
    } else {
        answer(StatusCode::OK, content_type, body)
    };
    if let Ok(tag) = HeaderValue::try_from(tag) {
        answer.headers_mut().insert(ETAG, tag);
    }
    set(&mut answer, CACHE_CONTROL, "no-cache");
    answer
}

/// Whether a client accepts gzip (RFC 9110, section 12.5.3).
pub(crate) fn accepts_gzip(request: &HeaderMap) -> bool {
    weight(request, &ACCEPT_ENCODING, "gzip").is_some_and(|weight| weight > 0.0)
}

/// The largest weight that a header of this name gives to a value, from 0 to 1 (RFC 9110, section 12.4.2). None if it is
/// not named, or its weight is no number.
pub(crate) fn weight(request: &HeaderMap, header: &HeaderName, value: &str) -> Option<f32> {
    let lists = request.get_all(header).iter();
    let lists = lists.filter_map(|list| list.to_str().ok());
    let weights = lists.flat_map(|list| list.split(',')).filter_map(|item| {
        let mut parts = item.split(';').map(str::trim);
        let is_named = parts
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case(value));
        let weight = parts.find_map(|part| part.strip_prefix("q="));
        let weight = weight.map_or(Some(1.0), |weight| weight.parse().ok())?;
        is_named.then_some(weight)
    });
    weights.reduce(f32::max)
}

/// Sets a header.
pub(crate) fn set(answer: &mut Answer, name: HeaderName, value: &'static str) {
    answer
        .headers_mut()
        .insert(name, HeaderValue::from_static(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_used_only_when_it_is_accepted() {
        for (accepted, is_gzip) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5, br", true),
            ("gzip;q=0", false),
            ("br", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(accepted));
            assert_eq!(accepts_gzip(&headers), is_gzip, "{accepted}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[test]
    fn a_body_that_the_browser_has_is_not_sent_again() {
        let mut headers = HeaderMap::new();
        let first = kept(&headers, "text/css", Bytes::from_static(b"a{}"));
        let tag = first.headers()[ETAG].clone();
        assert_eq!(first.status(), StatusCode::OK);
        headers.insert(IF_NONE_MATCH, tag);
        let again = kept(&headers, "text/css", Bytes::from_static(b"a{}"));
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        let changed = kept(&headers, "text/css", Bytes::from_static(b"b{}"));
        assert_eq!(changed.status(), StatusCode::OK);
    }
}
