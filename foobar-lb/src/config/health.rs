//! The `[service.health]` section -> [`Settings`]. What a probe does with them is left to the health checks.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use hyper::http::uri::{Authority, PathAndQuery};
use serde_spanned::Spanned;

use super::{
    report::{Problem, Problems, Span},
    service::BackendDraft,
    shape,
    values::{self, Fault},
};
use crate::{
    health::{Http, Kind, Settings},
    model::{Destination, Protocol},
};

/// From probe to probe.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(2);
/// For one probe; the interval where that is shorter.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
/// Successes in a row that turn a backend up.
pub const DEFAULT_RISE: u32 = 2;
/// Failures in a row that turn a backend down.
pub const DEFAULT_FALL: u32 = 2;
/// What an `http` check asks for.
pub const DEFAULT_PATH: &str = "/";
/// Status codes that are a success.
pub const DEFAULT_STATUS: RangeInclusive<u16> = 200..=399;

const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
const STREAKS: RangeInclusive<u32> = 1..=1000;

/// A body text is sought in the beginning of the body only.
const MAX_BODY_TEXT: usize = 1024;

/// Kinds by their words.
const KINDS: [(&str, Word); 3] = [("tcp", Word::Tcp), ("http", Word::Http), ("none", Word::None)];
const UNAVAILABLE_KINDS: [&str; 2] = ["https", "mysql"];

/// A kind, without what it expects.
#[derive(Clone, Copy, PartialEq)]
enum Word {
    None,
    Tcp,
    Http,
}

/// The health check of a service at `service`: an absent section stands for the defaults.
pub(super) fn validate(
    section: Option<shape::Health>,
    protocol: Protocol,
    ports: Ports<'_>,
    service: &Span,
    problems: &mut Problems,
) -> Option<Settings> {
    let section = section.unwrap_or_default();
    if section.kind.is_none() && protocol == Protocol::Udp {
        warn_unchecked(service, problems);
    }
    let default = if protocol == Protocol::Udp { Word::None } else { Word::Tcp };
    let word = problems.read_or(section.kind.clone(), default, |text| {
        values::choice(text, "kind of health check", &KINDS, &UNAVAILABLE_KINDS)
    });
    if let Some(word) = word {
        check_use(&section, word, problems);
    }

    let shape::Health { kind: _, port, path, host, status, body, interval, timeout, rise, fall } = section;
    let is_probed = word.is_some_and(|word| word != Word::None);
    let port = read_port(port, ports, is_probed, problems);
    let http = validate_http(path, host, status, body, problems);
    let (interval, timeout) = validate_times(interval, timeout, problems);
    let rise = problems.read_or(rise, DEFAULT_RISE, |&value| values::integer(value, "rise", STREAKS));
    let fall = problems.read_or(fall, DEFAULT_FALL, |&value| values::integer(value, "fall", STREAKS));
    let kind = match word? {
        Word::None => Kind::None,
        Word::Tcp => Kind::Tcp,
        Word::Http => Kind::Http(http?),
    };
    Some(Settings { kind, port: port?, interval: interval?, timeout: timeout?, rise: rise?, fall: fall? })
}

/// What is known of the ports of a service's backends.
pub(super) struct Ports<'d> {
    /// The one that all packets reach a backend on that has none of its own.
    own: Option<u16>,
    /// The first backend that has none of its own.
    without: Option<&'d Spanned<SocketAddr>>,
}

impl<'d> Ports<'d> {
    /// Those of a service on this address.
    pub(super) fn of(address: Option<&Spanned<Destination>>, backends: &'d [BackendDraft]) -> Self {
        let ports = address.map(|address| address.get_ref().ports);
        let own = ports.filter(|ports| ports.first == ports.last).map(|ports| ports.first);
        let mut addresses = backends.iter().flat_map(|backend| &backend.address);
        // Where the service is not known, neither is what its backends lack.
        let without = addresses.find(|backend| address.is_some() && backend.get_ref().port() == 0);
        Self { own, without }
    }
}

/// The port that is probed, if it is not the backend's own. Absent if that cannot be told.
fn read_port(
    section: shape::Number,
    ports: Ports<'_>,
    is_probed: bool,
    problems: &mut Problems,
) -> Option<Option<u16>> {
    let port = problems.read_or(section, None, |&value| values::port(value, "port").map(Some))?;
    let Some(without) = ports.without.filter(|_| is_probed && port.is_none()) else { return Some(port) };
    if ports.own.is_none() {
        let message = format!("no port to check the health of backend {} on", without.get_ref().ip());
        let help = "set `port` of `[service.health]` to one that the servers answer on, or `kind` to `none`";
        problems.error(Problem::new(without.span(), message).help(help));
        return None;
    }
    Some(ports.own)
}

fn warn_unchecked(service: &Span, problems: &mut Problems) {
    let message = "the backends of this udp service are not checked: a dead one keeps its share of the flows";
    let help = "add `[service.health]`, with `kind = \"tcp\"` if the backends accept TCP connections on the \
                same port, with `kind = \"none\"` if not";
    problems.warn(Problem::new(service.clone(), message).help(help));
}

/// Refuses keys that would have no effect, so that nobody believes in them.
fn check_use(section: &shape::Health, word: Word, problems: &mut Problems) {
    let shape::Health { kind: _, port, path, host, status, body, interval, timeout, rise, fall } = section;
    let of_http = [("path", path), ("host", host), ("status", status), ("body", body)];
    let of_probes = [
        ("port", span(port)),
        ("interval", span(interval)),
        ("timeout", span(timeout)),
        ("rise", span(rise)),
        ("fall", span(fall)),
    ];
    let mut refuse = |key: &str, span: Option<Span>, kinds: &str| {
        if let Some(span) = span {
            let message = format!("`{key}` has no effect on this kind of health check");
            problems.error(Problem::new(span, message).help(format!("remove it, or set `kind` to {kinds}")));
        }
    };
    if word != Word::Http {
        of_http.into_iter().for_each(|(key, value)| refuse(key, span(value), "`http`"));
    }
    if word == Word::None {
        of_probes.into_iter().for_each(|(key, span)| refuse(key, span, "`tcp` or `http`"));
    }
}

fn span<T>(value: &Option<Spanned<T>>) -> Option<Span> {
    value.as_ref().map(Spanned::span)
}

fn validate_http(
    path: shape::Text,
    host: shape::Text,
    status: shape::Text,
    body: shape::Text,
    problems: &mut Problems,
) -> Option<Http> {
    let path = problems.read_or(path, DEFAULT_PATH.into(), request_path);
    let host = problems.read_or(host, None, |text| host_header(text).map(Some));
    let status = problems.read_or(status, DEFAULT_STATUS, statuses);
    let body = problems.read_or(body, None, |text| body_text(text).map(Some));
    Some(Http { path: path?, host: host?, status: status?, body: body? })
}

fn validate_times(
    interval: shape::Text,
    timeout: shape::Text,
    problems: &mut Problems,
) -> (Option<Duration>, Option<Duration>) {
    let interval =
        problems.read_or(interval, DEFAULT_INTERVAL, |text| values::duration(text, "interval", INTERVALS));
    let longest = interval.unwrap_or(*TIMEOUTS.end());
    let timeout = problems.read_or(timeout, DEFAULT_TIMEOUT.min(longest), |text| {
        let timeout = values::duration(text, "timeout", TIMEOUTS)?;
        if timeout > longest {
            let interval = humantime::format_duration(longest);
            let message = format!("timeout {text} is longer than the interval of {interval}");
            return Err(Fault::new(message, format!("{interval} or less, or a longer `interval`")));
        }
        Ok(timeout)
    });
    (interval, timeout)
}

fn request_path(text: &str) -> Result<String, Fault> {
    // A fragment would be cut off without a word.
    let valid = text.starts_with('/') && !text.contains('#') && PathAndQuery::try_from(text).is_ok();
    let fault = || {
        Fault::new(
            format!("{text:?} is not a path"),
            "such as \"/healthz\": begin it with `/`, write odd characters as %20",
        )
    };
    valid.then(|| text.to_owned()).ok_or_else(fault)
}

fn host_header(text: &str) -> Result<String, Fault> {
    let valid = !text.contains('@') && Authority::try_from(text).is_ok();
    let fault = || {
        Fault::new(
            format!("{text:?} is not a host"),
            "such as \"www.foobar.com\", with a port where clients send one",
        )
    };
    valid.then(|| text.to_owned()).ok_or_else(fault)
}

fn statuses(text: &str) -> Result<RangeInclusive<u16>, Fault> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if 100 <= first && first <= last && last <= 599 => Ok(first..=last),
        _ => Err(Fault::new(
            format!("{text:?} is not a range of status codes"),
            "one code such as \"200\" or two such as \"200-299\", from 100 to 599",
        )),
    }
}

fn body_text(text: &str) -> Result<String, Fault> {
    if text.is_empty() || text.len() > MAX_BODY_TEXT {
        let message = format!("{} bytes are no text to look for in the body", text.len());
        return Err(Fault::new(message, format!("1 to {MAX_BODY_TEXT} bytes, or leave `body` out")));
    }
    Ok(text.to_owned())
}
