//! `foobar-lb verify`: whether this machine's kernel takes the programs, and what it makes of them.

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use foobar_lb::{
    bpf::{Attach, Bpf, Capacities, Decap, Frames, Size},
    decap::DEFAULT_GUE_PORT,
};

/// Maps of the least size: the kernel makes nothing else of a program for large ones.
const SMALL: Capacities = Capacities { slots: 1, backends: 1, flows: 2, half_open: 1, mappings: 1 };

/// Loads each program, and forgets it.
pub fn verify() -> Result<ExitCode> {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["program", "instructions", "verified", "machine code"]);
    for column in 1..=3 {
        let column = table.column_mut(column).expect("the header has so many");
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.add_row(row("balancer", Bpf::load(Frames::All, SMALL, 0)?.size()?));
    table.add_row(row("decap", Decap::load(&BTreeSet::new(), DEFAULT_GUE_PORT)?.size()?));
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

fn row(program: &str, Size { instructions, verified, machine_code }: Size) -> [String; 4] {
    let known = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    [program.to_owned(), known(instructions), known(verified), format!("{machine_code} bytes")]
}
