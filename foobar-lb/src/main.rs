//! The command line: parses the words, runs the daemon or asks it, and turns the outcome into an exit code.

mod backend_command;
mod completions_command;
mod decap_command;
mod doctor_command;
mod maintain_command;
mod manual_command;
mod plan_command;
mod reload_command;
mod status_command;
mod table;
mod verify_command;
mod waiting;

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use backend_command::{BackendCommand, ServiceCommand};
use clap::{Parser, Subcommand, ValueEnum};
use completions_command::Completions;
use decap_command::Decap;
use doctor_command::Doctor;
use foobar_lb::{
    attach,
    bpf::{Mode, next::Which, pins},
    client,
    config::{self, Config, DEFAULT_PIN_PATH, DEFAULT_SOCKET, DEFAULT_STATE_PATH},
    start::{Options, restore_settings, saved_settings},
};
use maintain_command::Maintain;
use manual_command::Manual;
use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};
use plan_command::Plan;
use reload_command::Reload;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tracing_subscriber::EnvFilter;

/// A layer-4 load balancer: XDP spreads the flows in the kernel, this daemon decides.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Attach to interfaces and balance until Ctrl-C.
    ///
    /// Loads the XDP program, attaches it to every named interface, checks the backends' health and keeps the
    /// tables up to date. Ctrl-C or SIGTERM takes everything off again and restores what was set. Name the
    /// interfaces that clients come in by and those that backends are reached by; one may be both.
    Attach {
        /// Interfaces to attach to.
        #[arg(required = true, value_name = "IFACE")]
        interfaces: Vec<String>,
        #[command(flatten)]
        config: ConfigFile,
        /// Where the program runs: in the driver (native) or in the network stack (generic, slower).
        #[arg(long, value_enum, default_value_t = XdpMode::Auto, value_name = "MODE")]
        xdp_mode: XdpMode,
        /// Set the kernel settings that are missing (forwarding, rp_filter, accept_local), and restore them at
        /// the end.
        #[arg(long)]
        sysctl: bool,
        /// Have the data path outlive this process: it stays when this ends in any way, and the next `attach --pin` takes it
        /// over without a lost packet. `foobar-lb detach` takes it off.
        #[arg(long)]
        pin: bool,
        /// Have another XDP program get the packets that the balancer passes, before the kernel gets what that passes: where
        /// it is pinned, or its id.
        ///
        /// It must not be on these interfaces itself: only one program can be. docs/coexist.md says how to bring it behind the
        /// balancer.
        #[arg(long, value_name = "PIN|ID")]
        next: Option<Which>,
        /// How log lines are written to standard error. RUST_LOG chooses which.
        #[arg(long, value_enum, default_value_t = LogFormat::Human, value_name = "FORMAT")]
        log_format: LogFormat,
    },
    /// Take the running balancer off interfaces.
    ///
    /// Off the last interface, the daemon ends. Where none is running, what `attach --pin` has left is taken off, and
    /// kernel settings that it left changed are restored.
    Detach {
        /// Interfaces to detach from; all if none is named.
        #[arg(value_name = "IFACE")]
        interfaces: Vec<String>,
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        socket: Socket,
    },
    /// Make this machine a backend of `tunnel` or `dsr` services until Ctrl-C.
    ///
    /// Not for the balancer: it is for backends whose kernel has no devices that take outer headers off, or that have
    /// no use for such. Puts the VIPs on lo, keeps ARP quiet about them, and attaches a small XDP program to every
    /// named interface that takes the outer headers off packets for them (IP in IP and GUE, both families in either).
    /// Ctrl-C or SIGTERM undoes all of it and prints what was counted. `--print-recipe` shows how to do without it.
    #[command(override_usage = "foobar-lb decap [OPTIONS] <IFACE>... --vip <ADDRESS>...")]
    Decap(Decap),
    /// Validate a configuration.
    ///
    /// Exit code 0, or 2 with the place of each mistake, what is wrong and what would be right.
    Check {
        /// The file to read.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Load the XDP programs into this machine's kernel, attached nowhere, and print how large they are.
    ///
    /// Shows whether this kernel takes them; where it does not, what it says. Needs root, and disturbs nothing that
    /// runs.
    Verify,
    /// Find what is wrong with a set-up, running or not yet, and what would mend it.
    ///
    /// Looks at privileges, kernel, interfaces, kernel settings, firewalls and the ways to the backends, and changes
    /// nothing. docs/doctor.md has a section for each finding. Exit code 0 if nothing is wrong (there may be notes), 1 if
    /// there are errors or warnings, 2 if the configuration is.
    Doctor(Doctor),
    /// Have the running balancer read its configuration again.
    ///
    /// It is the file that `attach` was given; SIGHUP does the same. It is validated whole, then applied, or refused
    /// whole with the old one still in force: exit code 2 if it is wrong, 1 if it cannot replace the old one.
    /// Connections stay with their backends. A backend that the new configuration has no more gets no new flows and
    /// lingers until those it has are gone, or `drain_time` is over. What was said with `backend` still counts, but
    /// for a weight that the file changes. A reload that would move more slots than `max_moved` allows is refused, too.
    Reload(Reload),
    /// Show what a reload would change: services and backends, the share of slots that moves, flows that this concerns.
    ///
    /// The running balancer is asked, and changes nothing; it says also why it would refuse. New backends count as if
    /// they were up. Exit code 0 if a reload would be done, 1 if it would be refused, 2 if the configuration is wrong.
    #[command(override_usage = "foobar-lb plan [OPTIONS] <FILE>")]
    Plan(Plan),
    /// Take backends out of service or back in, or change their share.
    ///
    /// It takes effect at once and counts more than the configuration, until `enable`, or for as long as `--for` says. It
    /// survives restarts of the daemon.
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Take a service out or back in, whatever its backends are.
    ///
    /// It takes effect at once and counts more than the configuration, as with `backend`.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Drain a backend, run a command when it has no flows left, and enable it when it is up again.
    ///
    /// Refused unless enough of the service's other backends are up. If the command fails, or the backend is not found to be
    /// up after it, it is left drained. Ctrl-C while flows are waited for enables it again; later, it leaves it drained.
    /// Either says so.
    #[command(override_usage = "foobar-lb maintain [OPTIONS] <SERVICE> <BACKEND> -- <COMMAND>...")]
    Maintain(Maintain),
    /// Show services, backends, their health and traffic, and why packets were not forwarded.
    ///
    /// Where no daemon answers, shows what `attach --pin` has left, and for how long nobody has looked after it; exit
    /// code 1.
    Status {
        /// Print everything as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        socket: Socket,
    },
    /// Print what has a shell complete the words of `foobar-lb` when Tab is pressed.
    ///
    /// For a session of bash: `source <(foobar-lb completions bash)`; for good: put it where the shell looks for such, as
    /// Debian's package does.
    Completions(Completions),
    /// Write a manual page for each command, as packages have them.
    Manual(Manual),
}

#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

#[derive(Clone, clap::Args)]
struct Socket {
    /// The running daemon's socket [default: as in /etc/foobar-lb/foobar-lb.toml, else
    /// /run/foobar-lb/foobar-lb.sock].
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

const DEFAULT_CONFIG: &str = "/etc/foobar-lb/foobar-lb.toml";

#[derive(Clone, Copy, ValueEnum)]
enum XdpMode {
    /// Native where the driver can, else generic with a warning.
    Auto,
    /// Native or not at all.
    Native,
    /// Generic.
    Generic,
}

impl XdpMode {
    fn chosen(self) -> Option<Mode> {
        match self {
            Self::Auto => None,
            Self::Native => Some(Mode::Native),
            Self::Generic => Some(Mode::Generic),
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

const FAILED: u8 = 1;
const WRONG: u8 = 2;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.context("cannot start").and_then(|runtime| {
        let outcome = runtime.block_on(run(Cli::parse()));
        // A sweep under way is of no use any more.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("foobar-lb: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Attach { interfaces, config, xdp_mode, sysctl, pin, next, log_format } => {
            start_log(log_format);
            let file = std::path::absolute(&config.config)?;
            let options =
                Options { file, interfaces, mode: xdp_mode.chosen(), set_sysctls: sysctl, pin, next };
            match show(config::load(&config.config)) {
                Ok(config) => attach(config, options).await,
                Err(code) => Ok(code),
            }
        }
        Command::Decap(decap) => decap.run().await,
        Command::Detach { interfaces, config, socket } => detach(interfaces, &config.config, socket).await,
        Command::Check { file } => Ok(check(&file)),
        Command::Verify => verify_command::verify(),
        Command::Doctor(doctor) => doctor.run().await,
        Command::Plan(plan) => plan.run().await,
        Command::Reload(reload) => reload.run().await,
        Command::Backend(command) => command.run().await,
        Command::Service(command) => command.run().await,
        Command::Maintain(maintain) => maintain.run().await,
        Command::Status { json, config, socket } => {
            status_command::status(json, &config.config, socket.socket).await
        }
        Command::Completions(completions) => completions.run(),
        Command::Manual(manual) => manual.run(),
    }
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env_lossy();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Human => log.with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// The configuration, its warnings shown; or its errors shown.
fn show(loaded: Result<Config, config::Error>) -> Result<Config, ExitCode> {
    match loaded {
        Ok(config) => {
            if !config.warnings.is_empty() {
                eprintln!("{}", config.warnings);
            }
            Ok(config)
        }
        Err(error) => {
            eprintln!("{error}");
            Err(ExitCode::from(WRONG))
        }
    }
}

async fn attach(config: Config, options: Options) -> Result<ExitCode> {
    let shutdown = asked_to_end()?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
    let (ask, reloads) = mpsc::channel(1);
    tokio::spawn(async move { while hangup.recv().await.is_some() && ask.send(()).await.is_ok() {} });
    attach::attach(config, options, reloads, shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

/// Comes to its end when the operator or the service manager wants this process to. From now on neither kills it.
fn asked_to_end() -> Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

async fn detach(interfaces: Vec<String>, file: &Path, socket: Socket) -> Result<ExitCode> {
    let config = config::load(file).ok();
    let socket = socket
        .socket
        .or_else(|| config.as_ref().map(|config| config.daemon.socket.clone()))
        .unwrap_or_else(|| DEFAULT_SOCKET.into());
    match client::detach(&socket, interfaces.clone()).await {
        Ok(detached) => {
            let ends = if detached.ends { "; the daemon ends" } else { "" };
            println!("detached from {}{ends}", detached.interfaces.join(", "));
        }
        Err(client::Error::NotRunning { path }) => {
            println!("{}", take_off(interfaces, config.as_ref(), &path)?);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// What is left where no daemon runs.
fn take_off(interfaces: Vec<String>, config: Option<&Config>, socket: &Path) -> Result<String> {
    let configured = |path: fn(&Config) -> &PathBuf, default: &str| {
        config.map_or(default.into(), |config| path(config).clone())
    };
    let pin_path = configured(|config| &config.daemon.pin_path, DEFAULT_PIN_PATH);
    let (taken, is_all) = pins::take_off(&pin_path, &interfaces)?;
    let mut done = match taken.is_empty() {
        true => format!("nothing is attached: nobody listens at {}", socket.display()),
        false => format!("what was pinned is taken off {}", taken.join(", ")),
    };
    if is_all {
        let saved = saved_settings(&configured(|config| &config.daemon.state_path, DEFAULT_STATE_PATH));
        if saved.exists() {
            done.push_str("; kernel settings that were left changed are restored");
        }
        restore_settings(&saved, !taken.is_empty())?;
    }
    Ok(done)
}

fn check(file: &Path) -> ExitCode {
    match show(config::load_once(file)) {
        Ok(config) => {
            let backends: usize = config.services.iter().map(|service| service.backends.len()).sum();
            let services = config.services.len();
            println!("{}: valid: services {services}, backends {backends}", file.display());
            config.notes().iter().for_each(|note| println!("{note}"));
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

fn socket_path(socket: Socket) -> PathBuf {
    socket
        .socket
        .or_else(|| configured_socket(Path::new(DEFAULT_CONFIG)))
        .unwrap_or_else(|| DEFAULT_SOCKET.into())
}

/// The one for reading only, for those who may not use the other.
fn configured_socket(file: &Path) -> Option<PathBuf> {
    let daemon = config::load(file).ok()?.daemon;
    let is_denied = access(&daemon.socket, AccessFlags::W_OK) == Err(Errno::EACCES);
    daemon.read_only_socket.filter(|_| is_denied).or(Some(daemon.socket))
}
