//! Who may see a page: checks of the method, the Host, the Origin, `Sec-Fetch-Site` and the token, before any route.
//!
//! A page of another site can make the browser of an administrator send requests to this machine, and can give its own
//! name the address of this machine (DNS rebinding). Then the Host is that name, which is refused. An address cannot be
//! rebound.
//!
//! An image, a script or a frame of another site is asked for without an Origin. Browsers say so in `Sec-Fetch-Site`
//! (<https://www.w3.org/TR/fetch-metadata/>) when the address is `localhost`, loopback or HTTPS. Elsewhere they do not,
//! and then `Cross-Origin-Resource-Policy` and `frame-ancestors` keep the answer from the page that asked for it.

use std::{net::IpAddr, sync::Arc};

use askama::Template;
use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
        header::{
            ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, COOKIE, HOST,
            ORIGIN, REFERRER_POLICY, SET_COOKIE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
        },
        uri::Authority,
    },
    middleware::Next,
};
use http_body::Body as _;
use url::form_urlencoded;

use crate::{
    answer::{Answer, answer, failed, set},
    token::Token,
};

/// Everything comes from this server, and no other site may show a page of it in a frame.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Where a request comes from, and what it is for.
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const DESTINATION: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Headers that every answer has, for the browser: only pages of this server may use it.
const BOUNDS: [(HeaderName, &str); 4] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
];

/// The answer to the first visit with the token: it leads on to the address without the token.
#[derive(Template)]
#[template(path = "visit.html")]
struct Visit {
    address: String,
}

/// What requests must have.
pub(crate) struct Access {
    /// The section of the settings, for messages.
    pub(crate) section: &'static str,
    pub(crate) name: Option<String>,
    pub(crate) token: Option<Token>,
}

/// Answers what is refused, passes on the rest, and adds the headers that every answer has.
pub(crate) async fn check(
    State(access): State<Arc<Access>>,
    request: Request,
    next: Next,
) -> Answer {
    let refused = access.refuse(request.method(), request.uri(), request.headers());
    let mut answer = match refused {
        Some(refused) => refused,
        None if !request.body().is_end_stream() => without_body(request.uri().path()),
        None => next.run(request).await,
    };
    let headers = answer.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (CACHE_CONTROL, "no-store"),
    ] {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(value));
    }
    for (name, value) in BOUNDS {
        set(&mut answer, name, value);
    }
    answer
}

/// An error after which the connection ends, so that clients who may see nothing do not keep one.
fn refused(status: StatusCode, path: &str, sentence: &str) -> Answer {
    let mut answer = failed(status, path, sentence);
    set(&mut answer, CONNECTION, "close");
    answer
}

/// Refuses a request with a body. The rest of the body is not read: the connection ends.
fn without_body(path: &str) -> Answer {
    refused(
        StatusCode::PAYLOAD_TOO_LARGE,
        path,
        "Requests have no body here.",
    )
}

impl Access {
    fn refuse(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Answer> {
        let path = uri.path();
        let Some(host) = self.host(uri, headers) else {
            let sentence = format!(
                "This page is not known under that name. Open it by the address of this machine, as localhost, or under \
                 the name that {}.name sets.",
                self.section
            );
            return Some(refused(StatusCode::MISDIRECTED_REQUEST, path, &sentence));
        };
        if !is_of_same_host(headers, &host) || is_part_of_other_site(headers) {
            return Some(refused(
                StatusCode::FORBIDDEN,
                path,
                "Another site asked for this page, so it is not shown.",
            ));
        }
        if *method != Method::GET && *method != Method::HEAD {
            let mut answer = refused(
                StatusCode::METHOD_NOT_ALLOWED,
                path,
                "Nothing can be changed here: the only methods are GET and HEAD.",
            );
            set(&mut answer, ALLOW, "GET, HEAD");
            return Some(answer);
        }
        let token = self.token.as_ref()?;
        self.refuse_without(token, uri, headers)
    }

    /// The host that the request is for, if there is exactly one and it is allowed (RFC 9112, section 3.2).
    fn host(&self, uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
        let mut given = headers.get_all(HOST).iter();
        let (Some(header), None) = (given.next(), given.next()) else {
            return None;
        };
        let header: Authority = header.to_str().ok()?.parse().ok()?;
        let authority = uri.authority().unwrap_or(&header);
        let is_allowed = |authority: &Authority| {
            let host = authority.host();
            let literal = host.trim_start_matches('[').trim_end_matches(']');
            let is_name = |name: &str| host.eq_ignore_ascii_case(name);
            !authority.as_str().contains('@')
                && (literal.parse::<IpAddr>().is_ok()
                    || is_name("localhost")
                    || self.name.as_deref().is_some_and(is_name))
        };
        (is_allowed(&header) && is_allowed(authority)).then_some(header)
    }

    /// Answers a request that lacks the token, and the first one that has it in its address.
    fn refuse_without(&self, token: &Token, uri: &Uri, headers: &HeaderMap) -> Option<Answer> {
        let bearer = headers.get(AUTHORIZATION).and_then(|value| {
            let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then_some(token.trim())
        });
        if bearer.is_some_and(|given| token.is(given)) || has_cookie(token, headers) {
            return first_visit(token, uri);
        }
        if let Some(answer) = first_visit(token, uri) {
            return Some(answer);
        }
        let sentence = format!(
            "This page needs a token: open it once with ?token=TOKEN behind its address. The token is the first line of \
             the file that {}.token_file names on this machine. Programs send it as `Authorization: Bearer TOKEN`.",
            self.section
        );
        let mut answer = refused(StatusCode::UNAUTHORIZED, uri.path(), &sentence);
        set(&mut answer, WWW_AUTHENTICATE, "Bearer");
        Some(answer)
    }
}

/// When the address has the right token: a page with the cookie, which leads to the same address without the token.
///
/// A redirect would belong to the visit that another site's link began, and `SameSite=Strict` withholds the cookie
/// from all of that visit. What a page of this server opens is of the same site.
fn first_visit(token: &Token, uri: &Uri) -> Option<Answer> {
    let pairs = uri.query()?.split('&');
    let (tokens, rest): (Vec<_>, Vec<_>) = pairs.partition(|pair| is_token_pair(pair));
    if !tokens.into_iter().any(|pair| is_right_pair(token, pair)) {
        return None;
    }
    let cookie = format!(
        "{}={}; Path=/; HttpOnly; SameSite=Strict",
        token.cookie_name(),
        token.cookie()
    );
    let page = Visit {
        address: local_address(uri.path(), &rest.join("&")),
    };
    let mut answer = answer(
        StatusCode::OK,
        "text/html; charset=utf-8",
        page.render().expect("text is written to a string"),
    );
    let cookie = HeaderValue::try_from(cookie).expect("a cookie has letters and digits only");
    answer.headers_mut().insert(SET_COOKIE, cookie);
    Some(answer)
}

/// An address of this server. Browsers read a backslash as a slash, and two slashes at the start as another host.
fn local_address(path: &str, query: &str) -> String {
    let path = path.trim_start_matches(['/', '\\']);
    let question = if query.is_empty() { "" } else { "?" };
    format!("/{path}{question}{query}").replace('\\', "%5C")
}

/// Whether a part of the query is named `token`.
fn is_token_pair(pair: &str) -> bool {
    form_urlencoded::parse(pair.as_bytes()).any(|(name, _)| name == "token")
}

/// Whether the token is the value as it stands, or as it was before a program encoded it. `+` is itself: no token has
/// a blank.
fn is_right_pair(token: &Token, pair: &str) -> bool {
    let raw = pair.split_once('=').unwrap_or_default().1;
    let pair = pair.replace('+', "%2B");
    let mut decoded = form_urlencoded::parse(pair.as_bytes());
    token.is(raw) || decoded.any(|(_, value)| token.is(&value))
}

fn has_cookie(token: &Token, headers: &HeaderMap) -> bool {
    let cookies = headers.get_all(COOKIE).iter();
    let cookies = cookies.filter_map(|cookies| cookies.to_str().ok());
    cookies
        .flat_map(|cookies| cookies.split(';'))
        .any(|cookie| {
            let (name, value) = cookie.trim().split_once('=').unwrap_or_default();
            name == token.cookie_name() && token.is_cookie(value)
        })
}

/// Whether a page of another site asks for a part of itself: an image, a script, a frame. Following a link from there
/// is allowed.
fn is_part_of_other_site(headers: &HeaderMap) -> bool {
    let is = |name: &HeaderName, expected: &str| {
        let mut values = headers.get_all(name).iter();
        values.next().is_some_and(|value| value == expected) && values.next().is_none()
    };
    let is_own = !headers.contains_key(&SITE) || is(&SITE, "same-origin") || is(&SITE, "none");
    let is_link = is(&MODE, "navigate") && is(&DESTINATION, "document");
    !is_own && !is_link
}

/// Whether the request comes from a page of the same host, or from no page.
fn is_of_same_host(headers: &HeaderMap, host: &Authority) -> bool {
    headers.get_all(ORIGIN).iter().all(|origin| {
        let origin = origin
            .to_str()
            .ok()
            .and_then(|origin| origin.parse::<Uri>().ok());
        let authority = origin.as_ref().and_then(Uri::authority);
        authority.is_some_and(|authority| authority == host)
    })
}
