//! The routes: the page, its stream, its assets, the reports of runs, and the API.

use std::{collections::VecDeque, path::PathBuf, sync::Arc};

use askama::Template as _;
use axum::{
    Router,
    body::Bytes,
    extract::{Path, RawQuery, Request, State, rejection::PathRejection},
    http::{HeaderValue, StatusCode, header::CONTENT_SECURITY_POLICY},
    routing::get,
};
use futures_util::stream;
use pingfleet_http::{
    Answer, answer,
    exposition::{self, exposition},
    failed, kept,
};
use pingfleet_report::{PageError, parts::STYLE};
use pingfleet_store::{Reader, RunState, StoreError};
use prometheus_client::registry::Registry;
use serde_json::{Map, Value, json};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::{
    PageSources, api_run, metrics,
    snapshot::{Look, Snapshot},
    view::LivePage,
};
use crate::WriterSummary;

const LIVE_STYLE: &str = include_str!("../../assets/live.css");
const CHARTS: &str = include_str!("../../assets/charts.js");
const SCRIPT: &str = include_str!("../../assets/live.js");
const PLOT_SCRIPT: &str = include_str!("../../assets/uplot.js");
const PLOT_STYLE: &str = include_str!("../../assets/uplot.css");
const ICON: &str = include_str!("../../assets/icon.svg");

/// Reports of finished runs that are kept.
const MAX_REPORTS: usize = 4;

/// The map is a picture inside of its section. Everything else comes from this server as well.
const PAGE_POLICY: &str = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// A report is a file of its own with its styles, its pictures and its script; its own policy admits only these.
const REPORT_POLICY: &str = "default-src 'self'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the handlers share.
struct Site {
    look: Arc<Look>,
    database: PathBuf,
    flags: String,
    stop: CancellationToken,
    registry: Registry,
    writer: watch::Receiver<WriterSummary>,
    /// The newest reports of finished runs. Who makes one holds the lock until it is made, even if the visitor has left: so
    /// there is one at a time.
    reports: Arc<Mutex<VecDeque<(i64, Bytes)>>>,
    /// Held by who reads a run for the API.
    run_turn: Arc<Mutex<()>>,
}

type Shared = State<Arc<Site>>;

/// All routes.
pub(super) fn routes(look: Arc<Look>, sources: &PageSources, stop: &CancellationToken) -> Router {
    let site = Site {
        registry: metrics::registry(sources.transport, look.follow_metrics()),
        look,
        database: sources.database.clone(),
        flags: sources.flags.clone(),
        writer: sources.summary.clone(),
        stop: stop.clone(),
        reports: Arc::default(),
        run_turn: Arc::default(),
    };
    Router::new()
        .route("/", get(page))
        .route("/events", get(events))
        .route("/runs/{run}/report", get(report))
        .route("/assets/{name}", get(asset))
        // A report names no icon, as it is a file of its own.
        .route("/favicon.ico", get(icon))
        .route(exposition::PATH, get(serve_metrics))
        .route("/api/v1/runs", get(api_runs))
        .route("/api/v1/runs/{run}", get(api_one_run))
        .route("/api/v1/workers", get(api_workers))
        .route("/api/v1/queues", get(api_queues))
        .fallback(nothing)
        .with_state(Arc::new(site))
}

async fn nothing(request: Request) -> Answer {
    let path = request.uri().path();
    failed(
        StatusCode::NOT_FOUND,
        path,
        "There is nothing under this address. The page is at /",
    )
}

fn not_ready(path: &str) -> Answer {
    let sentence =
        "The database does not answer at the moment. Load the page again in some seconds.";
    failed(StatusCode::SERVICE_UNAVAILABLE, path, sentence)
}

async fn page(State(site): Shared) -> Answer {
    let Some(snapshot) = site.look.fresh().await else {
        return not_ready("/");
    };
    let page = LivePage {
        title: &snapshot.title,
        fragments: &snapshot.fragments,
    };
    match page.render() {
        Ok(html) => {
            let page = answer(StatusCode::OK, "text/html; charset=utf-8", html);
            with_policy(page, PAGE_POLICY)
        }
        Err(error) => {
            tracing::error!(%error, "the live page cannot be drawn");
            not_ready("/")
        }
    }
}

async fn events(State(site): Shared, request: Request) -> Answer {
    let events = stream::unfold(
        (site.look.follow(), Vec::new()),
        |(mut follow, mut sent)| async move {
            loop {
                let snapshot = follow.next().await?;
                if let Some(event) = changes(&snapshot, &mut sent) {
                    return Some((event, (follow, sent)));
                }
            }
        },
    );
    let path = request.uri().path();
    site.look.streams.answer(request.headers(), path, events)
}

/// The fragments that differ from what was sent, as JSON. None if there are none.
fn changes(snapshot: &Snapshot, sent: &mut Vec<Option<String>>) -> Option<String> {
    sent.resize(snapshot.fragments.len(), None);
    let mut changed = Map::new();
    for (fragment, sent) in snapshot.fragments.iter().zip(sent) {
        if sent.as_ref() != Some(&fragment.html) {
            *sent = Some(fragment.html.clone());
            changed.insert(fragment.id.to_owned(), json!(fragment.html));
        }
    }
    let event = json!({
        "version": env!("CARGO_PKG_VERSION"), "title": snapshot.title, "parts": changed, "end": snapshot.is_end,
    });
    (snapshot.is_end || !changed.is_empty()).then(|| event.to_string())
}

async fn asset(Path(name): Path<String>, request: Request) -> Answer {
    const CSS: &str = "text/css; charset=utf-8";
    const JS: &str = "text/javascript; charset=utf-8";
    let (content_type, text) = match name.as_str() {
        "style.css" => (CSS, [STYLE, LIVE_STYLE].concat()),
        "uplot.css" => (CSS, PLOT_STYLE.to_owned()),
        "live.js" => (JS, [CHARTS, SCRIPT].concat()),
        "uplot.js" => (JS, PLOT_SCRIPT.to_owned()),
        "icon.svg" => ("image/svg+xml", ICON.to_owned()),
        _ => return nothing(request).await,
    };
    kept(request.headers(), content_type, text.into())
}

async fn icon(request: Request) -> Answer {
    asset(Path("icon.svg".to_owned()), request).await
}

async fn report(State(site): Shared, Path(run): Path<String>, request: Request) -> Answer {
    let path = request.uri().path().to_owned();
    let no_run = || {
        failed(
            StatusCode::NOT_FOUND,
            &path,
            "There is no such run. All runs are listed at /",
        )
    };
    let Ok(run) = run.parse::<i64>() else {
        return no_run();
    };
    let mut reports = Arc::clone(&site.reports).lock_owned().await;
    let known = reports.iter().find(|(known, _)| *known == run);
    let page = if let Some((_, page)) = known {
        page.clone()
    } else {
        let (database, flags, stop) =
            (site.database.clone(), site.flags.clone(), site.stop.clone());
        let made = tokio::task::spawn_blocking(move || {
            let (page, is_final) = make_report(&database, run, &flags, stop)?;
            if is_final {
                reports.truncate(MAX_REPORTS - 1);
                reports.push_front((run, page.clone()));
            }
            Ok(page)
        });
        match made.await {
            Ok(Ok(page)) => page,
            Ok(Err(PageError::Store(StoreError::NoSuchRun { .. }))) => return no_run(),
            Ok(Err(error)) => {
                tracing::warn!(%error, run, "no report for the live page");
                return not_ready(&path);
            }
            Err(error) => {
                tracing::error!(%error, run, "no report for the live page");
                return not_ready(&path);
            }
        }
    };
    let answer = kept(request.headers(), "text/html; charset=utf-8", page);
    with_policy(answer, REPORT_POLICY)
}

fn with_policy(mut answer: Answer, policy: &'static str) -> Answer {
    let policy = HeaderValue::from_static(policy);
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    answer
}

/// The page of `report --html`, and whether it stays as it is. Scans the run.
fn make_report(
    database: &std::path::Path,
    run: i64,
    flags: &str,
    stop: CancellationToken,
) -> Result<(Bytes, bool), PageError> {
    let reader = Reader::open(database)?.interrupted_by(stop);
    let is_final = reader.summary(run)?.state == RunState::Complete;
    let page = pingfleet_report::page(&reader, run, flags)?;
    Ok((page.into(), is_final))
}

fn as_json(value: &Value) -> Answer {
    answer(StatusCode::OK, "application/json", format!("{value}\n"))
}

/// Answers from a fresh snapshot.
async fn from_snapshot(site: &Site, answer: impl FnOnce(&Snapshot) -> Answer) -> Answer {
    match site.look.fresh().await {
        Some(snapshot) => answer(&snapshot),
        None => not_ready("/api/"),
    }
}

async fn serve_metrics(State(site): Shared, request: Request) -> Answer {
    match site.look.fresh_metrics().await {
        None if !site.look.note_unreadable(&site.writer.borrow()) => not_ready(exposition::PATH),
        _ => exposition(request.headers(), &site.registry),
    }
}

async fn api_runs(State(site): Shared, RawQuery(query): RawQuery) -> Answer {
    let query = query.unwrap_or_default();
    from_snapshot(&site, |snapshot| match snapshot.api.runs(&query) {
        Ok(runs) => as_json(&runs),
        Err(why) => failed(StatusCode::BAD_REQUEST, "/api/", &why),
    })
    .await
}

async fn api_one_run(State(site): Shared, run: Result<Path<String>, PathRejection>) -> Answer {
    // A name that is no UTF-8 is that of no run.
    let run = run.map_or_else(
        |_| String::from(char::REPLACEMENT_CHARACTER),
        |Path(run)| run,
    );
    let no_run = || {
        let sentence = format!("There is no run {run}.");
        failed(StatusCode::NOT_FOUND, "/api/", &sentence)
    };
    let Ok(number) = run.parse::<i64>() else {
        return no_run();
    };
    let Some(snapshot) = site.look.fresh().await else {
        return not_ready("/api/");
    };
    // One at a time, even if the visitor has left.
    let turn = Arc::clone(&site.run_turn).lock_owned().await;
    let (database, stop) = (site.database.clone(), site.stop.clone());
    let read = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        api_run::read(&Reader::open(&database)?.interrupted_by(stop), number)
    });
    match read.await {
        Ok(Ok((summary, progress))) => {
            let pace = snapshot.api.pace(number);
            as_json(&api_run::run_object(&summary, progress.as_ref(), pace))
        }
        Ok(Err(StoreError::NoSuchRun { .. })) => no_run(),
        Ok(Err(error)) => {
            tracing::warn!(%error, run = number, "a run cannot be read for the API of the live page");
            not_ready("/api/")
        }
        Err(error) => {
            tracing::error!(%error, run = number, "a run cannot be read for the API of the live page");
            not_ready("/api/")
        }
    }
}

async fn api_workers(State(site): Shared) -> Answer {
    from_snapshot(&site, |snapshot| as_json(snapshot.api.workers())).await
}

async fn api_queues(State(site): Shared) -> Answer {
    from_snapshot(&site, |snapshot| as_json(snapshot.api.queues())).await
}
