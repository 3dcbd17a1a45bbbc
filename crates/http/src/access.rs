//! Who may see a page: checks of the method, the Host, the Origin and the token, before any route.
//!
//! A page of another site can make the browser of an administrator send requests to this machine, and can give its own
//! name the address of this machine (DNS rebinding). Then the Host is that name, which is refused. An address cannot be
//! rebound.

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode, Uri,
        header::{
            ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, COOKIE, HOST,
            LOCATION, ORIGIN, REFERRER_POLICY, SET_COOKIE, WWW_AUTHENTICATE,
            X_CONTENT_TYPE_OPTIONS,
        },
        uri::Authority,
    },
    middleware::Next,
};
use http_body::Body as _;
use url::form_urlencoded;

use crate::{
    answer::{Answer, failed, set},
    token::Token,
};

/// Everything comes from this server, and no other site may show a page of it in a frame.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What requests must have.
pub(crate) struct Access {
    pub(crate) name: Option<String>,
    pub(crate) token: Option<Token>,
    pub(crate) port: u16,
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
    set(&mut answer, X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(&mut answer, REFERRER_POLICY, "no-referrer");
    answer
}

/// Refuses a request with a body. The rest of the body is not read: the connection ends.
fn without_body(path: &str) -> Answer {
    let mut answer = failed(
        StatusCode::PAYLOAD_TOO_LARGE,
        path,
        "Requests have no body here.",
    );
    set(&mut answer, CONNECTION, "close");
    answer
}

impl Access {
    fn refuse(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Answer> {
        let path = uri.path();
        let Some(host) = self.host(uri, headers) else {
            return Some(failed(
                StatusCode::MISDIRECTED_REQUEST,
                path,
                "This page is not known under that name. Open it by the address of this machine, as localhost, or under \
                 the name that dashboard.name sets.",
            ));
        };
        if !is_of_same_host(headers, &host) {
            return Some(failed(
                StatusCode::FORBIDDEN,
                path,
                "Another site asked for this page, so it is not shown.",
            ));
        }
        if *method != Method::GET && *method != Method::HEAD {
            let mut answer = failed(
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
        if bearer.is_some_and(|given| token.is(given)) || self.has_cookie(token, headers) {
            return self.shed_token(token, uri);
        }
        if let Some(answer) = self.shed_token(token, uri) {
            return Some(answer);
        }
        let mut answer = failed(
            StatusCode::UNAUTHORIZED,
            uri.path(),
            "This page needs a token: open it once with ?token=TOKEN behind its address. The token is the first line of \
             the file that dashboard.token_file names on the master. Programs send it as `Authorization: Bearer TOKEN`.",
        );
        set(&mut answer, WWW_AUTHENTICATE, "Bearer");
        Some(answer)
    }

    /// When the address has the right token: a redirect to the same address without it, with the cookie.
    fn shed_token(&self, token: &Token, uri: &Uri) -> Option<Answer> {
        let mut is_right = false;
        let mut rest = form_urlencoded::Serializer::new(String::new());
        let mut is_bare = true;
        for (name, value) in form_urlencoded::parse(uri.query()?.as_bytes()) {
            if name == "token" {
                is_right |= token.is(&value);
            } else {
                rest.append_pair(&name, &value);
                is_bare = false;
            }
        }
        if !is_right {
            return None;
        }
        // Two slashes at the start would name another host.
        let path = format!("/{}", uri.path().trim_start_matches('/'));
        let target = if is_bare {
            path
        } else {
            format!("{path}?{}", rest.finish())
        };
        let cookie = format!(
            "{}={}; Path=/; HttpOnly; SameSite=Strict",
            self.cookie_name(),
            token.cookie()
        );
        let mut answer = Answer::new(Body::empty());
        *answer.status_mut() = StatusCode::SEE_OTHER;
        for (name, value) in [(LOCATION, target), (SET_COOKIE, cookie)] {
            let value = HeaderValue::try_from(value).ok()?;
            answer.headers_mut().insert(name, value);
        }
        Some(answer)
    }

    fn has_cookie(&self, token: &Token, headers: &HeaderMap) -> bool {
        let cookies = headers.get_all(COOKIE).iter();
        let cookies = cookies.filter_map(|cookies| cookies.to_str().ok());
        cookies
            .flat_map(|cookies| cookies.split(';'))
            .any(|cookie| {
                let (name, value) = cookie.trim().split_once('=').unwrap_or_default();
                name == self.cookie_name() && token.is_cookie(value)
            })
    }

    /// A browser sends a cookie to all ports of a host, so its name has the port.
    fn cookie_name(&self) -> String {
        format!("pingfleet_{}", self.port)
    }
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
