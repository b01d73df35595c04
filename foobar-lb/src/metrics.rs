//! Prometheus metrics at `/metrics`, in the words and units of the status. Counters of a service are the sums
//! of its backends'.

use std::{io, net::SocketAddr, sync::atomic::AtomicU64};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};

use crate::{
    api::{Backend, Service, Status},
    daemon::Event,
};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics cannot be served.
#[derive(Debug, Error)]
#[error("cannot serve metrics at {address}")]
pub struct Error {
    address: SocketAddr,
    source: io::Error,
}

/// Opens the listener, so that an address in use is known before anything is attached.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error { address, source })
}

/// Serves the metrics until it is dropped.
pub async fn serve(listener: TcpListener, events: mpsc::Sender<Event>) -> io::Result<()> {
    let routes = Router::new().route("/metrics", get(metrics)).with_state(events);
    axum::serve(listener, routes).await
}

async fn metrics(State(events): State<mpsc::Sender<Event>>) -> Response {
    let (answer, answered) = oneshot::channel();
    let asked = events.send(Event::Status(answer)).await.is_ok();
    match answered.await {
        Ok(Ok(status)) if asked => match render(&status) {
            Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        },
        Ok(Err(failure)) => (StatusCode::INTERNAL_SERVER_ERROR, failure.error).into_response(),
        _ => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ServiceLabels {
    service: String,
    address: String,
    protocol: String,
    mode: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct BackendLabels {
    service: String,
    backend: String,
    /// One that lingers may have the name of the one that takes its place.
    address: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TrafficLabels {
    service: String,
    backend: String,
    address: String,
    direction: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: String,
}

type Counts<L> = Family<L, Counter<u64, AtomicU64>>;

/// All metrics as they are now. The counters live in the data path, so the registry is made for each scrape.
fn render(status: &Status) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("foobar_lb");
    registry.register("build", "Of the daemon", Info::new(vec![("version", status.version.clone())]));
    let failing = Gauge::<i64>::default();
    failing.set(i64::from(status.failure.is_some()));
    registry.register("update_failing", "1 while the maps are not as they should be", failing);
    register_services(&mut registry, status);
    register_backends(&mut registry, status);
    register_traffic(&mut registry, status);
    let reasons = Counts::<ReasonLabels>::default();
    for (reason, count) in &status.reasons {
        reasons.get_or_create(&ReasonLabels { reason: reason.clone() }).inc_by(count.packets);
    }
    registry.register("reason_packets", "Packets that were not simply forwarded, by reason", reasons);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn register_services(registry: &mut Registry, status: &Status) {
    let services = Family::<ServiceLabels, Gauge>::default();
    for service in &status.services {
        let labels = ServiceLabels {
            service: service.name.clone(),
            address: service.address.clone(),
            protocol: service.protocol.clone(),
            mode: service.mode.clone(),
        };
        services.get_or_create(&labels).set(1);
    }
    registry.register("service_info", "1 for each service, with where and how it is reached", services);
}

fn register_backends(registry: &mut Registry, status: &Status) {
    let gauges: [Family<BackendLabels, Gauge>; 4] = Default::default();
    let [up, eligible, slots, draining] = &gauges;
    let repicked = Counts::<BackendLabels>::default();
    for (labels, _, backend) in labelled(status) {
        up.get_or_create(&labels).set(i64::from(backend.health == "up"));
        eligible.get_or_create(&labels).set(i64::from(backend.eligible));
        slots.get_or_create(&labels).set(i64::from(backend.slots));
        if let Some(seen) = backend.drain.as_ref().and_then(|drain| drain.seen) {
            draining.get_or_create(&labels).set(i64::try_from(seen).unwrap_or(i64::MAX));
        }
        repicked.get_or_create(&labels).inc_by(backend.repicked);
    }
    let [up, eligible, slots, draining] = gauges;
    registry.register("backend_up", "1 while the health check succeeds", up);
    registry.register("backend_eligible", "1 while new flows are sent to it", eligible);
    registry.register("backend_slots", "Slots of the service's table that it owns", slots);
    let help = "Remembered flows on it, while it drains; flows that are silent since are not seen";
    registry.register("backend_draining_flows", help, draining);
    let help = "Remembered flows that had to leave it while they were alive";
    registry.register("backend_repicked_flows", help, repicked);
}

fn register_traffic(registry: &mut Registry, status: &Status) {
    let (packets, bytes) = (Counts::<TrafficLabels>::default(), Counts::<TrafficLabels>::default());
    for (labels, service, backend) in labelled(status) {
        let forward = ("forward", backend.packets, backend.bytes);
        // Replies of other modes pass the balancer by: a 0 would say that there are none.
        let reply = ("reply", backend.reply_packets, backend.reply_bytes);
        let reply = service.passes_replies().then_some(reply);
        for (direction, frames, size) in [forward].into_iter().chain(reply) {
            let BackendLabels { service, backend, address } = labels.clone();
            let labels = TrafficLabels { service, backend, address, direction };
            packets.get_or_create(&labels).inc_by(frames);
            bytes.get_or_create(&labels).inc_by(size);
        }
    }
    let help = "Frames forwarded to it and, in mode nat, replied by it";
    registry.register("backend_packets", help, packets);
    registry.register_with_unit("backend", "Bytes of those frames", Unit::Bytes, bytes);
}

fn labelled(status: &Status) -> impl Iterator<Item = (BackendLabels, &Service, &Backend)> {
    status.services.iter().flat_map(|service| {
        let labels = |backend: &Backend| BackendLabels {
            service: service.name.clone(),
            backend: backend.name.clone(),
            address: backend.address.clone(),
        };
        service.backends.iter().map(move |backend| (labels(backend), service, backend))
    })
}
