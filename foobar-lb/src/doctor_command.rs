//! `foobar-lb doctor`: prints what is found wrong, the worst first, for people or as JSON.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use foobar_lb::{
    config,
    doctor::{Finding, Severity, Subject},
};
use serde_json::{Value, json};

use crate::{ConfigFile, FAILED, Socket, show};

/// Where each finding is explained.
const MANUAL: &str = "docs/doctor.md";

/// What is to be looked at.
#[derive(Args)]
pub struct Doctor {
    /// Interfaces that the program runs on or will [default: those of the running daemon].
    #[arg(value_name = "IFACE")]
    interfaces: Vec<String>,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    socket: Socket,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Prints the findings. Fails if there are errors or warnings.
    pub async fn run(self) -> Result<ExitCode> {
        let config = match show(config::load(&self.config.config)) {
            Ok(config) => config,
            Err(code) => return Ok(code),
        };
        let socket = self.socket.socket.clone().unwrap_or_else(|| config.daemon.socket.clone());
        let findings = Subject { config, socket, interfaces: self.interfaces }.examine().await;
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(&describe(&findings))?),
            false => print!("{}", render(&findings)),
        }
        let is_well = findings.iter().all(|finding| finding.kind.severity() == Severity::Note);
        Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
    }
}

fn describe(findings: &[Finding]) -> Value {
    let finding = |Finding { kind, place, seen, remedy }: &Finding| {
        json!({
            "id": kind.id(),
            "severity": kind.severity().to_string(),
            "place": place,
            "seen": seen,
            "remedy": remedy,
            "manual": format!("{MANUAL}#{}", kind.id()),
        })
    };
    json!({
        "findings": findings.iter().map(finding).collect::<Vec<_>>(),
        "errors": count(findings, Severity::Error),
        "warnings": count(findings, Severity::Warning),
        "notes": count(findings, Severity::Note),
    })
}

fn render(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { kind, place, seen, remedy } in findings {
        text += &format!("{} {}: {place}\n    {seen}\n", kind.severity(), kind.id());
        if let Some(remedy) = remedy {
            text += &format!("    remedy: {remedy}\n");
        }
        text.push('\n');
    }
    let [errors, warnings, notes] =
        [Severity::Error, Severity::Warning, Severity::Note].map(|severity| count(findings, severity));
    text += &format!("errors: {errors}, warnings: {warnings}, notes: {notes}");
    text += &match findings.is_empty() {
        true => "\n".to_owned(),
        false => format!("; {MANUAL} explains each\n"),
    };
    text
}

fn count(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|finding| finding.kind.severity() == severity).count()
}
