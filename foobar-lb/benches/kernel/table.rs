//! Measurements as tables for people.

use comfy_table::{CellAlignment, Table, presets::NOTHING};

use crate::{
    counters::EVENTS,
    generator::ENDLESS,
    report::{Measurement, Program, min},
    suite::Subject,
};

/// The measurements of a suite. Ratios are of least costs: to the same with one flow, and to a program that does
/// nothing but find out the flow. What is executed are BPF instructions.
pub fn of_suite(name: &str, measurements: &[Measurement]) -> String {
    let has_events = measurements.iter().any(|one| one.net_event(0).is_some());
    let events = if has_events { &EVENTS[..] } else { &[] };
    let header = [name, "flows", "net min", "net median", "/ 1 flow", "/ parse", "generator", "executed"];
    let mut table = new(&[&header[..], events].concat());
    let of = |subject: Subject, flows: u64| {
        measurements.iter().find(|one| one.subject == subject && one.flows == flows)
    };
    for one in measurements {
        let parse = one.subject.family().and_then(|family| of(Subject::Parse(family), one.flows));
        let mut row = vec![
            one.subject.name(),
            flows(one.flows),
            format!("{:.1}", one.net_min()),
            format!("{:.1}", one.net_median()),
            ratio(one, of(one.subject, 1)),
            ratio(one, parse),
            format!("{:.1}", min(&one.generator.nanoseconds)),
            one.executed.map_or_else(|| "-".to_owned(), |executed| executed.to_string()),
        ];
        row.extend((0..events.len()).map(|event| number(one.net_event(event))));
        table.add_row(row);
    }
    table.to_string()
}

/// The programs that were measured.
pub fn of_programs(measurements: &[Measurement]) -> String {
    let mut table = new(&["program", "instructions", "JITed bytes", "instructions verified"]);
    let mut seen: Vec<(&str, &Program)> = vec![];
    for Measurement { subject, program, .. } in measurements {
        let named = (subject.program_name().unwrap_or(&program.name), program);
        if !seen.contains(&named) {
            seen.push(named);
            let Program { instructions, verified, jited_bytes, .. } = program;
            let numbers = [*instructions, Some(*jited_bytes), *verified];
            let numbers =
                numbers.map(|number| number.map_or_else(|| "-".to_owned(), |number| number.to_string()));
            table.add_row([vec![named.0.to_owned()], numbers.to_vec()].concat());
        }
    }
    table.to_string()
}

/// One whose columns of numbers are aligned.
pub fn new(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn flows(flows: u64) -> String {
    if flows == ENDLESS { "all new".to_owned() } else { flows.to_string() }
}

fn ratio(one: &Measurement, other: Option<&Measurement>) -> String {
    /// Nanoseconds below which a cost is no more than noise.
    const NOISE: f64 = 5.0;
    let nets = other.map(|other| [one.net_min(), other.net_min()]);
    let ratio = nets.filter(|nets| nets.iter().all(|net| *net > NOISE)).map(|[one, other]| one / other);
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}
