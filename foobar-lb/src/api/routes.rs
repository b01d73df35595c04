//! The routes of the API: each sends the daemon an event and waits for the answer. They are described where they are
//! made, so that [`openapi`] has all of them and no others.

use std::{fmt, marker::PhantomData};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequest, Path, Request, State},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor, value::MapAccessDeserializer},
};
use tokio::sync::{mpsc, oneshot};
use utoipa::{OpenApi as _, openapi::OpenApi};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Backend, Detach, Detached, Failure, Heard, Operator, Plan, Probe, Probed, Proposal, Reload, Reloaded,
    Say, SayOfService, Status,
    description::{Description, complete},
};
use crate::{
    config,
    daemon::{self, Event},
};

/// Where the description is served. It does not describe itself.
const DESCRIPTION: &str = "/v1/openapi.json";
/// No request is longer, in bytes: JSON may take two for one of the largest configuration.
const LONGEST: usize = 2 * config::MAX_FILE as usize + 4096;

/// What may be asked for at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// What changes nothing.
    Read,
    /// Everything.
    Change,
}

/// What every route has at hand.
#[derive(Clone)]
pub(super) struct Api {
    events: mpsc::Sender<Event>,
    pub(super) rights: Rights,
}

/// All routes, answered by whoever receives `events`.
pub fn routes(events: mpsc::Sender<Event>, rights: Rights) -> Router {
    let (routes, description) = described().split_for_parts();
    let description = Json(complete(description));
    routes
        .route(DESCRIPTION, get(|| async { description }))
        .fallback(refuse_path)
        .method_not_allowed_fallback(refuse_method)
        .layer(DefaultBodyLimit::max(LONGEST))
        .with_state(Api { events, rights })
}

/// The description of the routes.
pub fn openapi() -> OpenApi {
    complete(described().into_openapi())
}

fn described() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(status))
        .routes(routes!(backend))
        .routes(routes!(detach))
        .routes(routes!(say))
        .routes(routes!(say_of_service))
        .routes(routes!(plan))
        .routes(routes!(probe))
        .routes(routes!(reload))
}

type Answer<T> = Result<Json<T>, Refusal>;

/// What the daemon says of itself.
#[utoipa::path(get, path = "/v1/status", responses((status = OK, body = Status)))]
async fn status(State(api): State<Api>) -> Answer<Status> {
    api.ask(Event::Status).await
}

/// What the daemon says of one backend.
#[utoipa::path(
    get,
    path = "/v1/services/{service}/backends/{backend}",
    params(
        ("service" = String, Path, description = "Name of the service."),
        ("backend" = String, Path, description = "Name of the backend.")
    ),
    responses((status = OK, body = Backend))
)]
async fn backend(
    State(api): State<Api>,
    Path((service, backend)): Path<(String, String)>,
) -> Answer<Backend> {
    api.ask(|answer| Event::Backend(service, backend, answer)).await
}

/// Takes the data path off interfaces.
#[utoipa::path(post, path = "/v1/detach", request_body = Detach, responses((status = OK, body = Detached)))]
async fn detach(State(api): State<Api>, _: Operator, Body(request): Body<Detach>) -> Answer<Detached> {
    api.ask(|answer| Event::Detach(request, answer)).await
}

/// The operator says something of backends of a service.
#[utoipa::path(post, path = "/v1/backends", request_body = Say, responses((status = OK, body = Heard)))]
async fn say(State(api): State<Api>, operator: Operator, Body(request): Body<Say>) -> Answer<Heard> {
    api.ask(|answer| Event::Say(request, operator, answer)).await
}

/// The operator says something of a service.
#[utoipa::path(post, path = "/v1/services", request_body = SayOfService, responses((status = OK, body = Heard)))]
async fn say_of_service(
    State(api): State<Api>,
    operator: Operator,
    Body(request): Body<SayOfService>,
) -> Answer<Heard> {
    api.ask(|answer| Event::SayOfService(request, operator, answer)).await
}

/// What a configuration would change.
#[utoipa::path(post, path = "/v1/plan", request_body = Proposal, responses((status = OK, body = Plan)))]
async fn plan(State(api): State<Api>, Body(proposal): Body<Proposal>) -> Answer<Plan> {
    api.ask(|answer| Event::Plan(proposal, answer)).await
}

/// Sends a client's first packet through the data path to each backend of a service.
#[utoipa::path(post, path = "/v1/probe", request_body = Probe, responses((status = OK, body = Probed)))]
async fn probe(State(api): State<Api>, _: Operator, Body(request): Body<Probe>) -> Answer<Probed> {
    api.ask(|answer| Event::Probe(request, answer)).await
}

/// Reads the configuration again.
#[utoipa::path(post, path = "/v1/reload", request_body = Reload, responses((status = OK, body = Reloaded)))]
async fn reload(State(api): State<Api>, _: Operator, Body(request): Body<Reload>) -> Answer<Reloaded> {
    api.ask(|answer| Event::Reload(request, Some(answer))).await
}

impl Api {
    async fn ask<T>(self, event: impl FnOnce(daemon::Answer<T>) -> Event) -> Answer<T> {
        let (answer, answered) = oneshot::channel();
        let ending =
            || Refusal(StatusCode::SERVICE_UNAVAILABLE, Failure::new("the daemon is ending".to_owned()));
        self.events.send(event(answer)).await.map_err(|_| ending())?;
        match answered.await {
            Ok(Ok(value)) => Ok(Json(value)),
            Ok(Err(failure)) => Err(Refusal(code(&failure), failure)),
            Err(_) => Err(ending()),
        }
    }
}

fn code(failure: &Failure) -> StatusCode {
    match failure {
        Failure { invalid: true, .. } => StatusCode::UNPROCESSABLE_ENTITY,
        Failure { unknown: true, .. } => StatusCode::NOT_FOUND,
        _ => StatusCode::CONFLICT,
    }
}

/// A request that was not granted.
pub(super) struct Refusal(pub(super) StatusCode, pub(super) Failure);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

/// What a request says: a JSON object.
struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        match Json::<Object<T>>::from_request(request, state).await {
            Ok(Json(Object(said))) => Ok(Self(said)),
            Err(rejection) => Err(Refusal(rejection.status(), Failure::new(rejection.body_text()))),
        }
    }
}

/// Takes objects only: by itself serde would take an array, too, whose elements are fields in the order of the code.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(entries)).map(Object)
    }
}

async fn refuse_path(uri: Uri) -> Refusal {
    let error = format!("there is nothing at {}: GET {DESCRIPTION} describes what there is", uri.path());
    Refusal(StatusCode::NOT_FOUND, Failure::new(error))
}

async fn refuse_method(request: Request) -> Refusal {
    let (method, path) = (request.method(), request.uri().path());
    let error = format!("{path} does not take {method}: GET {DESCRIPTION} describes what it takes");
    Refusal(StatusCode::METHOD_NOT_ALLOWED, Failure::new(error))
}
