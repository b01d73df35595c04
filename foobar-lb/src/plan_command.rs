//! `foobar-lb plan`: what a reload would change, told by the running daemon or by two files.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use foobar_lb::{
    api::{Change, PlannedBackend, PlannedService, Proposal, Turn},
    client, config,
    model::{Share, percentage},
    review::Review,
};
use humantime::format_duration;

use crate::{FAILED, Socket, WRONG, socket_path};

/// What would change, and on whose word.
#[derive(Args)]
pub struct Plan {
    /// The configuration that is to come into force.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Compare with this file, as if it were in force and all of its backends up; no daemon is asked.
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    from: Option<PathBuf>,
    /// The largest share of the slots of a service that may move, such as 10% [default: `max_moved` in force].
    #[arg(long, value_name = "SHARE")]
    max_moved: Option<Share>,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

impl Plan {
    /// Prints the plan. Fails if a reload would.
    pub async fn run(self) -> Result<ExitCode> {
        let plan = match &self.from {
            Some(before) => self.compare(before),
            None => self.ask().await?,
        };
        let plan = match plan {
            Ok(plan) => plan,
            Err(errors) => {
                eprintln!("{errors}");
                return Ok(ExitCode::from(WRONG));
            }
        };
        let text = if self.json {
            serde_json::to_string_pretty(&plan)? + "\n"
        } else {
            plan.warnings.iter().for_each(|warning| eprintln!("{warning}"));
            render(&plan)
        };
        match io::stdout().write_all(text.as_bytes()) {
            // Whoever reads it has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written.context("cannot print the plan")?,
        }
        Ok(if plan.refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
    }

    /// What the daemon says; the inner error is about the file.
    async fn ask(&self) -> Result<Result<foobar_lb::api::Plan, String>> {
        let text = match config::read_once(&self.file) {
            Ok(text) => text,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let name = self.file.display().to_string();
        let proposal = Proposal { name, text, max_moved: self.max_moved.map(|most| most.to_string()) };
        match client::plan(&socket_path(self.socket.clone()), &proposal).await {
            Ok(plan) => Ok(Ok(plan)),
            Err(client::Error::Invalid(errors)) => Ok(Err(errors)),
            Err(error @ client::Error::NotRunning { .. }) => {
                Err(error).context("nothing is in force to compare with; `--from FILE` compares with a file")
            }
            Err(error) => Err(error.into()),
        }
    }

    fn compare(&self, before: &Path) -> Result<foobar_lb::api::Plan, String> {
        let load = |file: &Path| config::load_once(file).map_err(|error| error.to_string());
        let (before, after) = (load(before)?, load(&self.file)?);
        Ok(Review::of_file(before).judge(&after, self.max_moved).plan)
    }
}

fn render(plan: &foobar_lb::api::Plan) -> String {
    let mut text = String::new();
    let count = |turn| plan.services.iter().filter(|service| service.turn == turn).count();
    let (added, removed, changed) = (count(Turn::Added), count(Turn::Removed), count(Turn::Changed));
    if plan.services.is_empty() && plan.keys.is_empty() {
        writeln!(text, "nothing changes").expect("a string can be written to");
    } else {
        let unchanged = plan.unchanged;
        writeln!(
            text,
            "services: {added} added, {removed} removed, {changed} changed, {unchanged} unchanged"
        )
        .expect("a string can be written to");
    }
    plan.keys.iter().for_each(|change| text += &format!("{}\n", render_key(change)));
    plan.services.iter().for_each(|service| text += &format!("\n{}", render_service(service)));
    if !plan.refused.is_empty() {
        text.push('\n');
    }
    plan.refused.iter().for_each(|why| text += &format!("A RELOAD WOULD BE REFUSED: {why}\n"));
    text
}

fn render_service(service: &PlannedService) -> String {
    let PlannedService { name, address, protocol, turn, keys, backends, .. } = service;
    let mut lines = vec![format!("{} {name}  {protocol} {address}{}", sign(*turn), render_end(service))];
    lines.extend(keys.iter().map(|change| format!("    {}", render_key(change))));
    lines.extend(backends.iter().map(|backend| format!("    {}", render_backend(backend))));
    lines.extend(render_moves(service).map(|moves| format!("    {moves}")));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn render_end(service: &PlannedService) -> String {
    match (service.turn, service.flows_on_moved) {
        (Turn::Removed, Some(flows)) => {
            format!(": its flows ({flows} are remembered) end")
        }
        (Turn::Removed, None) => ": its flows end".to_owned(),
        _ => String::new(),
    }
}

/// `33.3 % of its slots move, 336 of 1009; ...`
fn render_moves(service: &PlannedService) -> Option<String> {
    let PlannedService { slots, slots_moved, max_moved, flows_on_moved, transition_seconds, .. } = service;
    let moved = slots_moved.filter(|_| service.turn == Turn::Changed)?;
    if moved == 0 {
        return Some("no slot moves".to_owned());
    }
    let most = max_moved.as_ref().map_or_else(String::new, |most| format!(" (max_moved is {most})"));
    let flows = flows_on_moved.map_or_else(String::new, |flows| format!(" ({flows} are remembered)"));
    let silent = format_duration(Duration::from_secs(*transition_seconds));
    Some(format!(
        "{} of its slots move, {moved} of {slots}{most}: new flows go elsewhere, known ones{flows} stay unless they are \
         silent for {silent}",
        percentage(moved, *slots)
    ))
}

fn render_backend(backend: &PlannedBackend) -> String {
    let PlannedBackend { name, address, turn, keys, flows, flows_stay_seconds } = backend;
    let keys: Vec<String> = keys.iter().map(render_key).collect();
    let what = match (turn, keys.is_empty()) {
        (Turn::Removed, _) => {
            let flows = flows.map_or_else(String::new, |flows| format!(" ({flows} are remembered)"));
            let stay = flows_stay_seconds.map(|seconds| format_duration(Duration::from_secs(seconds)));
            match (flows_stay_seconds, stay) {
                (Some(0), _) => format!(": in use elsewhere then, its flows{flows} end"),
                (_, Some(stay)) => {
                    format!(": no new flows, known ones{flows} stay until they end, at most {stay}")
                }
                (_, None) => format!(": no new flows, known ones{flows} stay until they end"),
            }
        }
        (_, false) => format!(": {}", keys.join(", ")),
        (_, true) => String::new(),
    };
    format!("{} {name}  {address}{what}", sign(*turn))
}

fn render_key(Change { key, from, to }: &Change) -> String {
    format!("{key}: {from} -> {to}")
}

fn sign(turn: Turn) -> char {
    match turn {
        Turn::Added => '+',
        Turn::Removed => '-',
        Turn::Changed => '~',
    }
}
