//! `[service.quic]` and the `quic_id` of its backends: what the connection ids look like that servers issue. What a
//! packet has to do with that is left to the data path.

use std::ops::RangeInclusive;

use serde_spanned::Spanned;

use super::{
    conflicts::repeated,
    report::{Problem, Problems, Span},
    service::BackendDraft,
    shape::{self, Integer},
    values::{self, Fault, count},
};
use crate::model::{Protocol, Quic};

/// Of a section that does not say.
pub const DEFAULT_CONFIG_ROTATION: u8 = 0;

/// With four bytes behind it and one before, the longest just fits into a connection id.
const SERVER_ID_LENGTHS: RangeInclusive<u32> = 1..=15;
/// Seven says that an id names nobody.
const CONFIG_ROTATIONS: RangeInclusive<u32> = 0..=6;

/// Reads the section, and with it what its backends say; the inner option is absent where the section is.
pub(super) fn read(
    section: Option<Spanned<shape::Quic>>,
    protocol: Protocol,
    backends: &mut [BackendDraft],
    problems: &mut Problems,
) -> Option<Option<Quic>> {
    let Some(section) = section else {
        backends.iter_mut().for_each(|backend| refuse_id(backend, problems));
        return Some(None);
    };
    let place = section.span();
    if protocol == Protocol::Tcp {
        let problem = Problem::new(place.clone(), "`quic` has no effect on a tcp service")
            .help("remove it, or set `protocol` to \"udp\", which QUIC is carried by");
        problems.error(problem);
    }
    let shape::Quic { server_id_length, config_rotation } = section.into_inner();
    let length = read_length(server_id_length, &place, problems);
    let rotation = problems.read_or(config_rotation, DEFAULT_CONFIG_ROTATION, config_rotation_bits);
    let length = length?;
    backends.iter_mut().for_each(|backend| read_id(backend, length, problems));
    check_ids(backends, problems);
    Some(Some(Quic { server_id_length: length, config_rotation: rotation? }))
}

fn read_length(section: shape::Number, quic: &Span, problems: &mut Problems) -> Option<u8> {
    let Some(section) = section else {
        let problem = Problem::new(quic.clone(), "this quic section has no `server_id_length`")
            .help("for example `server_id_length = 2`, the number of bytes of each `quic_id`");
        problems.error(problem);
        return None;
    };
    let length = problems
        .read(section, |&value: &Integer| values::integer(value, "server_id_length", SERVER_ID_LENGTHS))?;
    Some(length.into_inner().try_into().expect("the range fits"))
}

fn config_rotation_bits(value: &Integer) -> Result<u8, Fault> {
    let rotation = values::integer(*value, "config_rotation", CONFIG_ROTATIONS)
        .map_err(|fault| Fault { help: format!("{}; 7 is of ids that name nobody", fault.help), ..fault })?;
    Ok(rotation.try_into().expect("the range fits"))
}

fn refuse_id(backend: &mut BackendDraft, problems: &mut Problems) {
    if let Some(text) = backend.quic_text.take() {
        let problem = Problem::new(text.span(), "`quic_id` has no effect: the service has no `quic`")
            .help("remove it, or give the service `quic = { server_id_length = 2 }` or another length");
        problems.error(problem);
        backend.quic_id = None;
    }
}

fn read_id(backend: &mut BackendDraft, length: u8, problems: &mut Problems) {
    let Some(text) = &backend.quic_text else {
        let title = backend.name.as_ref().map_or("?", |name| name.get_ref());
        let message = format!("backend `{title}` has no `quic_id`, and its service has `quic`");
        let help =
            format!("for example `quic_id = \"{}\"`, and its server issues ids with that", example(length));
        problems.error(Problem::new(backend.place.clone(), message).help(help));
        backend.quic_id = None;
        return;
    };
    let id = problems.read(text.clone(), |text: &str| server_id(text, length));
    backend.quic_id = id.map(|id| Some(id.into_inner()));
}

fn server_id(text: &str, length: u8) -> Result<Vec<u8>, Fault> {
    let wanted = count(length.into(), "byte");
    let help = || format!("{wanted} in hexadecimal, as in \"{}\"", example(length));
    let bytes = values::bytes(text)
        .ok_or_else(|| Fault::new(format!("{text:?} is not bytes in hexadecimal"), help()))?;
    if bytes.len() != usize::from(length) {
        let actual = count(bytes.len().try_into().unwrap_or(u32::MAX), "byte");
        return Err(Fault::new(format!("{actual} in {text:?}, and `server_id_length` is {length}"), help()));
    }
    Ok(bytes)
}

/// A server id of this length.
fn example(length: u8) -> String {
    (1..=length).map(|byte| format!("{byte:02x}")).collect()
}

fn check_ids(backends: &[BackendDraft], problems: &mut Problems) {
    let ids = backends.iter().filter_map(|backend| {
        let id = backend.quic_id.as_ref()?.as_ref()?;
        Some((id, backend.quic_text.as_ref()?.span()))
    });
    for (_, first, again) in repeated(ids) {
        let message =
            format!("another backend of this service has this id at line {}", problems.line(&first));
        let help = "give each server an id of its own: by it alone its packets are known";
        problems.error(Problem::new(again, message).help(help).related(first, "the first"));
    }
}
