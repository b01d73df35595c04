//! `foobar-lb status` for people.

use std::{fmt::Write as _, time::Duration};

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use foobar_lb::api::{Service, Status};

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
    if let Some(failure) = &status.failure {
        writeln!(text, "FAILED to update the maps: {failure}").expect("a string can be written to");
    }
    for service in &status.services {
        text.push('\n');
        text.push_str(&render_service(service));
    }
    text.push_str(&render_reasons(status));
    text
}

fn render_service(service: &Service) -> String {
    let Service { name, protocol, address, slots_moving, fails_open, when_empty, .. } = service;
    let mut notes = String::new();
    if *fails_open {
        notes.push_str(", NO BACKEND ELIGIBLE: new flows go to all that are enabled");
    } else if !service.backends.iter().any(|backend| backend.eligible) {
        write!(notes, ", NO BACKEND ELIGIBLE ({when_empty}): new flows are dropped")
            .expect("a string can be written to");
    }
    if *slots_moving > 0 {
        write!(notes, ", {slots_moving} slots not settled").expect("a string can be written to");
    }
    let mut table = new_table(&[
        "backend", "address", "admin", "health", "for", "weight", "slots", "packets", "replies", "why",
    ]);
    for backend in &service.backends {
        let since = backend.since_seconds.map(Duration::from_secs).map(humantime::format_duration);
        table.add_row([
            backend.name.clone(),
            backend.address.to_string(),
            backend.admin.clone(),
            backend.health.clone(),
            since.map_or_else(|| "-".to_owned(), |since| since.to_string()),
            backend.weight.to_string(),
            format!("{:.1}%", 100.0 * f64::from(backend.slots) / f64::from(service.slots)),
            backend.packets.to_string(),
            backend.reply_packets.to_string(),
            backend.reason.clone(),
        ]);
    }
    align_right(&mut table, 5..=8);
    format!("{name}  {protocol} {address}{notes}\n{table}\n")
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
