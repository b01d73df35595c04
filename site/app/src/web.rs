//! What the site answers: routes, requests and responses. Pages are left to `pages`, statements to `database`.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use askama::Template;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Form, Json, Router};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tower_http::trace::{DefaultOnResponse, TraceLayer};
use tracing::{Level, error, info, info_span, warn};

use crate::database::{Database, Entry, Server, Visits};
use crate::entry::{self, Complaints, NewEntry};
use crate::pages;

/// Says which Nginx passed the request on; Nginx sets it, whatever the client sent.
const WEB_SERVER: &str = "x-web-server";
/// Says in a response which application server made it.
const APP_SERVER: &str = "x-app-server";
/// The client's address; Nginx sets it.
const CLIENT: &str = "x-real-ip";

/// Far above the longest valid form, each character escaped.
const BODY_LIMIT: usize = 16 * 1024;
const PAGE_LENGTH: u32 = 20;
const API_LIMIT: u32 = 200;

/// The site: what every request needs.
#[derive(Debug)]
pub(crate) struct Site {
    /// What this application server calls itself.
    pub(crate) name: String,
    /// Whether this server is about to stop, and its health check says so.
    pub(crate) draining: AtomicBool,
    database: Database,
    health_timeout: Duration,
}

impl Site {
    /// A site called `name` whose health check waits no longer than `health_timeout` for the database.
    pub(crate) fn new(name: String, database: Database, health_timeout: Duration) -> Self {
        Self { name, draining: AtomicBool::new(false), database, health_timeout }
    }
}

/// The way a request came, as Nginx tells it.
#[derive(Debug, Serialize)]
pub(crate) struct Path {
    /// The Nginx that passed it on; "none" if it came directly.
    pub(crate) web_server: String,
    /// The client's address.
    pub(crate) client: Option<String>,
}

impl<S: Sync> FromRequestParts<S> for Path {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let web_server = text(&parts.headers, WEB_SERVER).unwrap_or("none").to_owned();
        Ok(Self { web_server, client: text(&parts.headers, CLIENT).map(str::to_owned) })
    }
}

/// Every route of the application server.
pub(crate) fn router(site: Arc<Site>) -> Router {
    let visitors = Router::new()
        .route("/", get(show_guestbook))
        .route("/entries", post(sign_guestbook))
        .route("/api/visits", get(list_visits))
        .route("/api/entries", get(list_entries))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(span)
                .on_response(DefaultOnResponse::new().level(Level::INFO))
                // The status is in the line above, the cause in a line of `Failure`.
                .on_failure(()),
        );
    // Outside the layer that logs: the balancer asks several times a second.
    Router::new()
        .merge(visitors)
        .route("/healthz", get(report_health))
        .fallback(reject_unknown_page)
        .layer(middleware::from_fn_with_state(Arc::clone(&site), name_app_server))
        .with_state(site)
}

/// Which part of a list is wanted: entries with an id below `before`, at most `limit`.
#[derive(Debug, Deserialize)]
struct Section {
    before: Option<u64>,
    limit: Option<u32>,
}

async fn show_guestbook(
    State(site): State<Arc<Site>>,
    path: Path,
    Query(section): Query<Section>,
) -> Result<Response, Failure> {
    site.database.count_visit(&site.name).await.map_err(Failure::of(&site))?;
    let page = render_guestbook(&site, &path, section, entry::Form::default(), Complaints::default()).await?;
    Ok(page.into_response())
}

async fn sign_guestbook(
    State(site): State<Arc<Site>>,
    path: Path,
    Form(form): Form<entry::Form>,
) -> Result<Response, Failure> {
    match NewEntry::try_from(&form) {
        Ok(entry) => {
            let stored = site.database.add_entry(&entry, &path.web_server, &site.name).await;
            let id = stored.map_err(Failure::of(&site))?;
            info!(id, "entry stored");
            Ok(Redirect::to(&format!("/#entry-{id}")).into_response())
        }
        Err(complaints) => {
            let newest = Section { before: None, limit: None };
            let page = render_guestbook(&site, &path, newest, form, complaints).await?;
            Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response())
        }
    }
}

async fn render_guestbook(
    site: &Site,
    path: &Path,
    section: Section,
    form: entry::Form,
    complaints: Complaints,
) -> Result<Html<String>, Failure> {
    let before = section.before.unwrap_or(u64::MAX);
    let contents = async {
        let entries = site.database.entries(before, PAGE_LENGTH).await?;
        Ok((site.database.server().await?, site.database.visits().await?, entries))
    };
    let (database, visits, entries) = contents.await.map_err(Failure::of(site))?;
    let is_full = entries.len() == PAGE_LENGTH as usize;
    let older_before = entries.last().filter(|_| is_full).map(|oldest| oldest.id);
    let app_server = &site.name;
    let page =
        pages::Guestbook { path, app_server, database, visits, form, complaints, entries, older_before };
    Ok(Html(page.render().expect("a template that only writes to a string cannot fail")))
}

/// The answer of `/api/visits`.
#[derive(Serialize)]
struct VisitsAnswer {
    visits: Visits,
    served_by: ServedBy,
}

#[derive(Serialize)]
struct ServedBy {
    web_server: String,
    app_server: String,
    database: Server,
}

async fn list_visits(State(site): State<Arc<Site>>, path: Path) -> Result<Json<VisitsAnswer>, Failure> {
    let visits = site.database.visits().await.map_err(Failure::of(&site))?;
    let database = site.database.server().await.map_err(Failure::of(&site))?;
    let served_by = ServedBy { web_server: path.web_server, app_server: site.name.clone(), database };
    Ok(Json(VisitsAnswer { visits, served_by }))
}

async fn list_entries(
    State(site): State<Arc<Site>>,
    Query(section): Query<Section>,
) -> Result<Json<Vec<Entry>>, Failure> {
    let limit = section.limit.unwrap_or(PAGE_LENGTH).min(API_LIMIT);
    let entries = site.database.entries(section.before.unwrap_or(u64::MAX), limit).await;
    entries.map(Json).map_err(Failure::of(&site))
}

/// 200 while this server can do its work, 503 with the reason otherwise.
async fn report_health(State(site): State<Arc<Site>>) -> (StatusCode, String) {
    if site.draining.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".into());
    }
    let limit = site.health_timeout;
    let reason = match timeout(limit, site.database.check()).await {
        Ok(Ok(())) => return (StatusCode::OK, "ok\n".into()),
        Ok(Err(error)) => format!("the database failed: {error}"),
        Err(_) => format!("the database has not answered within {limit:?}"),
    };
    warn!("unhealthy: {reason}");
    (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))
}

async fn reject_unknown_page(State(site): State<Arc<Site>>) -> Response {
    let (title, explanation) = ("No such page", "The guestbook is on the front page.");
    render_failure(&site.name, StatusCode::NOT_FOUND, title, explanation)
}

/// Names this server in every response, and keeps caches from storing what changes with each visit.
async fn name_app_server(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Ok(name) = HeaderValue::from_str(&site.name) {
        response.headers_mut().insert(APP_SERVER, name);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn span(request: &Request) -> tracing::Span {
    let client = text(request.headers(), CLIENT).unwrap_or("-");
    let web_server = text(request.headers(), WEB_SERVER).unwrap_or("-");
    info_span!("request", method = %request.method(), path = request.uri().path(), client, web_server)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A request that the database could not serve: the visitor learns that, the log learns why.
#[derive(Debug)]
struct Failure {
    app_server: String,
    error: sqlx::Error,
}

impl Failure {
    fn of(site: &Site) -> impl FnOnce(sqlx::Error) -> Self {
        let app_server = site.name.clone();
        |error| Self { app_server, error }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        error!(error = %self.error, "the database failed");
        let explanation = "The guestbook cannot be read or written right now. Please try again in a moment.";
        render_failure(&self.app_server, StatusCode::SERVICE_UNAVAILABLE, "The database is away", explanation)
    }
}

fn render_failure(app_server: &str, status: StatusCode, title: &str, explanation: &str) -> Response {
    let page = pages::Failure { title, explanation, app_server };
    let html = page.render().expect("a template that only writes to a string cannot fail");
    (status, Html(html)).into_response()
}
