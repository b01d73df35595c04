//! `foobar-lb backend` and `foobar-lb service`: the operator's word.

use std::{
    io::{IsTerminal, stderr, stdin},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use foobar_lb::{
    api::{Heard, Period, Say, SayOfService, ServiceWord, Weight, Word},
    client,
    config::MAX_WEIGHT,
};

use crate::{
    FAILED, Socket, socket_path, table,
    waiting::{Awaited, Interrupts, Outcome, deadline},
};

/// What may be said of backends.
#[derive(Subcommand)]
pub enum BackendCommand {
    /// No new flows; known ones stay until they end, or the service's drain time is over.
    ///
    /// `foobar-lb status` shows how many are left. Flows that have sent nothing since the drain began cannot be
    /// counted; it shows until when there may be any.
    Drain {
        #[command(flatten)]
        backends: Backends,
        #[command(flatten)]
        lasting: Lasting,
        #[command(flatten)]
        waiting: Waiting,
        #[command(flatten)]
        socket: Socket,
    },
    /// No flows at all: the flows it has are sent to other backends, whose resets tell TCP clients at once.
    Disable {
        #[command(flatten)]
        backends: Backends,
        #[command(flatten)]
        lasting: Lasting,
        #[command(flatten)]
        socket: Socket,
    },
    /// New flows again: takes back `drain` and `disable`, and a weight of 0 that was given here.
    Enable {
        #[command(flatten)]
        backends: Backends,
        #[command(flatten)]
        socket: Socket,
    },
    /// Another share of new flows relative to its siblings; 0 drains.
    Weight {
        /// The service's name.
        #[arg(value_name = "SERVICE")]
        service: String,
        /// The backend's name.
        #[arg(value_name = "BACKEND")]
        backend: String,
        /// 0 to 1000.
        #[arg(value_name = "WEIGHT", value_parser = clap::value_parser!(u16).range(..=i64::from(MAX_WEIGHT)))]
        weight: u16,
        #[command(flatten)]
        lasting: Lasting,
        #[command(flatten)]
        socket: Socket,
    },
}

/// What may be said of services.
#[derive(Subcommand)]
pub enum ServiceCommand {
    /// Treat its packets as if the configuration did not have it.
    ///
    /// They are passed, dropped or rejected as `unmatched` of its VIP says, those of known flows, too; other services of
    /// the VIP go on. Its backends are checked as before. To let its flows end first, drain its backends.
    Disable {
        /// The service's name.
        #[arg(value_name = "SERVICE")]
        service: String,
        /// Enable it again after so long, such as 30m.
        #[arg(long = "for", value_name = "DURATION", value_parser = period)]
        period: Option<Period>,
        #[command(flatten)]
        socket: Socket,
    },
    /// Serve it again.
    Enable {
        /// The service's name.
        #[arg(value_name = "SERVICE")]
        service: String,
        #[command(flatten)]
        socket: Socket,
    },
}

/// Whom it is said of.
#[derive(Args)]
pub struct Backends {
    /// The service's name.
    #[arg(value_name = "SERVICE")]
    service: String,
    /// The names of its backends: all are changed at once, or none.
    #[arg(value_name = "BACKEND", required = true)]
    backends: Vec<String>,
}

/// For how long, and whatever it leaves.
#[derive(Args)]
pub struct Lasting {
    /// Take it back by itself after so long, such as 30m: then the configuration counts again.
    #[arg(long = "for", value_name = "DURATION", value_parser = period)]
    period: Option<Period>,
    /// Do it also if it leaves no backend of the service that is enabled and up.
    ///
    /// Without it that is asked on a terminal, and else refused.
    #[arg(long)]
    force: bool,
}

/// Whether to wait for the end of a drain.
#[derive(Args)]
pub struct Waiting {
    /// Wait until they have no flows left.
    ///
    /// That is when no remembered flow is left, and when the service's transition time is over, as until then there may be
    /// flows that are silent and cannot be counted; or when the drain time is over. Ctrl-C ends the wait, not the drain.
    #[arg(long)]
    wait: bool,
    /// Wait for so long at most, and fail if there are flows left then; the drain goes on.
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = humantime::parse_duration)]
    #[arg(requires = "wait")]
    timeout: Duration,
}

/// A duration as people write it, in whole seconds.
fn period(text: &str) -> Result<Period, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    Period::try_from(duration.as_secs())
}

impl BackendCommand {
    /// Says it, and waits if that is wanted.
    pub async fn run(self) -> Result<ExitCode> {
        let forever = Lasting { period: None, force: false };
        let (Backends { service, backends }, word, lasting, waiting, socket) = match self {
            Self::Drain { backends, lasting, waiting, socket } => {
                (backends, Word::Drain, lasting, Some(waiting), socket)
            }
            Self::Disable { backends, lasting, socket } => (backends, Word::Disable, lasting, None, socket),
            Self::Enable { backends, socket } => (backends, Word::Enable, forever, None, socket),
            Self::Weight { service, backend, weight, lasting, socket } => {
                let backends = Backends { service, backends: vec![backend] };
                (backends, Word::Weight(Weight(weight)), lasting, None, socket)
            }
        };
        let socket = socket_path(socket);
        let Lasting { period, force } = lasting;
        let said = Say { service, backends, word, for_seconds: period, min_up: None, force };
        let Some(heard) = say(&socket, said.clone()).await? else { return Ok(ExitCode::from(FAILED)) };
        let Say { service, backends, .. } = said;
        println!("{} of {service}: {word}{}", backends.join(", "), lasting_until(&heard));
        heard.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
        match waiting.filter(|waiting| waiting.wait) {
            Some(waiting) => wait(&socket, &service, &backends, waiting.timeout).await,
            None => Ok(ExitCode::SUCCESS),
        }
    }
}

/// Says it; if it must be forced, asks whoever sits at the terminal. None: he says no.
async fn say(socket: &Path, said: Say) -> Result<Option<Heard>> {
    match client::say(socket, &said).await {
        Err(client::Error::NeedsForce(why)) if stdin().is_terminal() && stderr().is_terminal() => {
            if !agrees(&why)? {
                return Ok(None);
            }
            Ok(Some(client::say(socket, &Say { force: true, ..said }).await?))
        }
        Err(client::Error::NeedsForce(why)) => bail!("{why}; pass --force if that is meant"),
        heard => Ok(Some(heard?)),
    }
}

fn agrees(why: &str) -> Result<bool> {
    eprint!("{why}. Go on? [y/N] ");
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

async fn wait(socket: &Path, service: &str, backends: &[String], timeout: Duration) -> Result<ExitCode> {
    let mut interrupts = Interrupts::expect()?;
    let deadline = deadline(timeout);
    let names = backends.join(" ");
    for backend in backends {
        let awaited = Awaited { socket, service, backend };
        let ends = match awaited.until_drained(deadline, &mut interrupts).await? {
            Outcome::Reached => continue,
            Outcome::TimedOut => {
                format!("{} are over and flows are left", humantime::format_duration(timeout))
            }
            Outcome::Interrupted => "not waiting any more".to_owned(),
        };
        eprintln!(
            "foobar-lb: {ends}; the drain goes on: `foobar-lb status` shows it, `foobar-lb backend enable {service} \
             {names}` ends it"
        );
        return Ok(ExitCode::from(FAILED));
    }
    println!("{} of {service}: no flows to wait for are left", backends.join(", "));
    Ok(ExitCode::SUCCESS)
}

impl ServiceCommand {
    /// Says it.
    pub async fn run(self) -> Result<ExitCode> {
        let (service, word, period, socket) = match self {
            Self::Disable { service, period, socket } => (service, ServiceWord::Disable, period, socket),
            Self::Enable { service, socket } => (service, ServiceWord::Enable, None, socket),
        };
        let said = SayOfService { service, word, for_seconds: period };
        let heard = client::say_of_service(&socket_path(socket), &said).await?;
        let word = if word == ServiceWord::Disable { "disabled" } else { "enabled" };
        println!("{}: {word}{}", said.service, lasting_until(&heard));
        heard.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
        Ok(ExitCode::SUCCESS)
    }
}

fn lasting_until(heard: &Heard) -> String {
    heard.until.as_deref().map_or_else(String::new, |until| format!(", until {}", table::local(until)))
}
