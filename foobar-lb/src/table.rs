//! `foobar-lb status` for people.

use std::{fmt::Write as _, time::Duration};

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use foobar_lb::api::{Backend, Drain, Saying, Service, Status};
use jiff::{SignedDuration, Timestamp, Zoned, tz::TimeZone};

/// The status as text, each service with its backends, then the reasons that occurred.
pub fn render(status: &Status) -> String {
    let mut text = String::new();
    let interfaces: Vec<_> = status
        .interfaces
        .iter()
        .map(|interface| format!("{} ({})", interface.name, interface.mode))
        .collect();
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    writeln!(text, "foobar-lb {} on {}, up {uptime}", status.version, interfaces.join(", "))
        .expect("a string can be written to");
    if let Some(next) = &status.next_program {
        writeln!(text, "what is passed goes to the XDP program {next}").expect("a string can be written to");
    }
    if let Some(failure) = &status.failure {
        writeln!(text, "FAILED to update the maps: {failure}").expect("a string can be written to");
    }
    if let Some(failure) = &status.reload_failure {
        let ago = status.reload_failed_seconds.map(Duration::from_secs).map(humantime::format_duration);
        let ago = ago.map_or_else(String::new, |ago| format!(" {ago} ago"));
        writeln!(text, "NOT RELOADED{ago}, the configuration from before is in force: {failure}")
            .expect("a string can be written to");
    }
    if let Some(why) = &status.words_lost {
        writeln!(text, "FORGOTTEN is what was said of backends and services before this start: {why}")
            .expect("a string can be written to");
    }
    if let Some(why) = &status.words_unkept {
        writeln!(text, "NOT KEPT for the next start is what is said of backends and services: {why}")
            .expect("a string can be written to");
    }
    for service in &status.services {
        text.push('\n');
        text.push_str(&render_service(service));
    }
    text.push_str(&render_reasons(status));
    text
}

fn render_service(service: &Service) -> String {
    let Service { name, protocol, address, mode, .. } = service;
    let mut table = new_table(&[
        "backend", "address", "admin", "health", "for", "weight", "slots", "packets", "replies", "why",
    ]);
    for backend in &service.backends {
        let since = backend.since_seconds.map(Duration::from_secs).map(humantime::format_duration);
        table.add_row([
            backend.name.clone(),
            backend.address.clone(),
            backend.admin.clone(),
            backend.health.clone(),
            since.map_or_else(|| "-".to_owned(), |since| since.to_string()),
            backend.weight.to_string(),
            format!("{:.1}%", 100.0 * f64::from(backend.slots) / f64::from(service.slots)),
            backend.packets.to_string(),
            if service.passes_replies() { backend.reply_packets.to_string() } else { "direct".to_owned() },
            backend.reason.clone(),
        ]);
    }
    align_right(&mut table, 5..=8);
    let words: String = service.backends.iter().map(render_words).collect();
    let drains: String = service.backends.iter().filter_map(render_drain).collect();
    let notes = render_notes(service);
    format!("{name}  {protocol} {address}  {mode}{notes}\n{table}\n{words}{drains}")
}

/// What is special about a service, and its fingerprint.
fn render_notes(service: &Service) -> String {
    let Service { slots_unsettled, fails_open, when_empty, .. } = service;
    let mut notes = String::new();
    if let Some(saying) = &service.disabled {
        write!(notes, ", DISABLED by {}", source(saying)).expect("a string can be written to");
    }
    if *fails_open {
        notes.push_str(", NO BACKEND ELIGIBLE: new flows go to all that are enabled");
    } else if !service.backends.iter().any(|backend| backend.eligible) {
        write!(notes, ", NO BACKEND ELIGIBLE ({when_empty}): new flows are dropped")
            .expect("a string can be written to");
    }
    if *slots_unsettled > 0 {
        write!(notes, ", {slots_unsettled} slots not settled").expect("a string can be written to");
    }
    if let Some(fingerprint) = &service.fingerprint {
        write!(notes, ", fingerprint {fingerprint}").expect("a string can be written to");
    }
    notes
}

/// `web1: draining said by alice (uid 1000) at 14:05, until 14:35; the configuration says enabled`
fn render_words(backend: &Backend) -> String {
    let Backend { name, admin_configured, weight_configured, .. } = backend;
    let admin =
        backend.admin_said.as_ref().map(|saying| (saying.word.clone(), saying, admin_configured.clone()));
    let weight = backend.weight_said.as_ref();
    let weight = weight
        .map(|saying| (format!("weight {}", saying.word), saying, format!("weight {weight_configured}")));
    let line = |(word, saying, configured): (String, &Saying, String)| {
        format!("{name}: {word} said by {}; the configuration says {configured}\n", source(saying))
    };
    admin.into_iter().chain(weight).map(line).collect()
}

/// `alice (uid 1000) at 14:05, until 14:35`
fn source(saying: &Saying) -> String {
    let until = saying.until.as_deref().map_or_else(String::new, |until| format!(", until {}", local(until)));
    format!("{} at {}{until}", saying.by, local(&saying.at))
}

/// A time (RFC 3339) as the clock on the wall says it, with the date if it is not today's.
pub fn local(time: &str) -> String {
    let Ok(time) = time.parse::<Timestamp>() else { return time.to_owned() };
    let time = time.to_zoned(TimeZone::system());
    time.strftime(if time.date() == Zoned::now().date() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" })
        .to_string()
}

/// `web1 is draining: 12 flows seen, silent ones unknown until 14:05; those left are re-picked at 14:50`.
pub fn render_drain(backend: &Backend) -> Option<String> {
    let Drain { seen, closing, quietest_seconds, silent_for_seconds, remaining_seconds, over, .. } =
        backend.drain.as_ref()?;
    let Backend { name, admin, repicked, eligible, .. } = backend;
    if *eligible {
        return Some(format!("{name} is {admin} and stands in, because no other backend is up\n"));
    }
    if *over {
        return Some(format!(
            "{name} is {admin}, its drain time is over: {repicked} flows re-picked so far\n"
        ));
    }
    let flows = match (seen, closing, silent_for_seconds) {
        (Some(0), Some(0), None) => return Some(format!("{name} is {admin}: no flows are left\n")),
        (Some(seen), Some(0), _) => format!("{seen} flows seen"),
        (Some(seen), Some(closing), _) => format!("{seen} flows seen, {closing} closing"),
        _ => "flows not counted yet".to_owned(),
    };
    let quietest = quietest_seconds
        .map_or_else(String::new, |seconds| format!(", the quietest last at {}", time_ago(seconds)));
    let silent = match silent_for_seconds {
        Some(seconds) => format!("silent ones unknown until {}", time_in(*seconds)),
        None => "no others".to_owned(),
    };
    let end = remaining_seconds
        .map_or_else(String::new, |seconds| format!("; those left are re-picked at {}", time_in(seconds)));
    Some(format!("{name} is {admin}: {flows}{quietest}, {silent}{end}\n"))
}

/// The time of day so many seconds ago, with the date if it is not today's.
fn time_ago(seconds: u64) -> String {
    let now = Zoned::now();
    let then = now.saturating_sub(SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX)));
    time_of(&then, &now)
}

/// The time of day in so many seconds, in whole minutes and not before, with the date if it is not today's.
fn time_in(seconds: u64) -> String {
    let now = Zoned::now();
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_add(59);
    let then = now.saturating_add(SignedDuration::from_secs(seconds));
    time_of(&then, &now)
}

fn time_of(then: &Zoned, now: &Zoned) -> String {
    let format = if then.date() == now.date() { "%H:%M" } else { "%Y-%m-%d %H:%M" };
    then.strftime(format).to_string()
}

fn render_reasons(status: &Status) -> String {
    let mut table = new_table(&["reason", "packets", "what it means"]);
    for (name, count) in status.reasons.iter().filter(|(_, count)| count.packets > 0) {
        table.add_row([name.clone(), count.packets.to_string(), count.help.clone()]);
    }
    align_right(&mut table, 1..=1);
    if table.is_empty() { String::new() } else { format!("\n{table}\n") }
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header);
    table
}

fn align_right(table: &mut Table, columns: std::ops::RangeInclusive<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}
