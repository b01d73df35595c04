//! foobar-site, the application server of www.foobar.com: its command line, its logs, its start and its end.

#![forbid(unsafe_code)]

mod database;
mod entry;
mod pages;
mod web;

use std::fs;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use sqlx::mysql::MySqlConnectOptions;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tracing::info;
use tracing_subscriber::EnvFilter;

use crate::database::Database;
use crate::web::Site;

/// The application server of www.foobar.com: a guestbook with a visit counter, kept in MySQL.
///
/// Nginx stands before it, and it reaches its database through the balancer. The verbosity of its logs
/// is set by RUST_LOG, "info" by default.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the database's schema up to date, then exit. May run on several servers at once.
    Migrate(DatabaseSettings),
    /// Serve the site until SIGTERM or Ctrl-C.
    Serve(ServeSettings),
}

#[derive(Args)]
struct DatabaseSettings {
    /// The database, as mysql://ACCOUNT:PASSWORD@HOST:PORT/DATABASE. Better set in the environment, where
    /// other users of the machine cannot read the password.
    #[arg(long, value_name = "URL", env = "FOOBAR_SITE_DATABASE_URL", hide_env_values = true)]
    database_url: MySqlConnectOptions,
    /// How long to try to reach the database at start before giving up.
    #[arg(long, value_name = "TIME", env = "FOOBAR_SITE_DATABASE_WAIT", default_value = "60s", value_parser = humantime::parse_duration)]
    database_wait: Duration,
}

#[derive(Args)]
struct ServeSettings {
    #[command(flatten)]
    database: DatabaseSettings,
    /// The address and port to serve HTTP on.
    #[arg(long, value_name = "ADDRESS", env = "FOOBAR_SITE_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// What this server calls itself on the pages it makes. Default: the host name.
    #[arg(long, env = "FOOBAR_SITE_NAME")]
    name: Option<String>,
    /// How long /healthz waits for the database. Keep it below the timeout of the balancer's health check.
    #[arg(long, value_name = "TIME", env = "FOOBAR_SITE_HEALTH_TIMEOUT", default_value = "200ms", value_parser = humantime::parse_duration)]
    health_timeout: Duration,
    /// How long to go on serving after SIGTERM while /healthz already answers 503, so that the balancer
    /// sends new connections elsewhere before this server refuses them.
    #[arg(long, value_name = "TIME", env = "FOOBAR_SITE_DRAIN_TIME", default_value = "3s", value_parser = humantime::parse_duration)]
    drain_time: Duration,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    start_logs();
    match arguments.command {
        Command::Migrate(settings) => migrate(settings).await,
        Command::Serve(settings) => serve(settings).await,
    }
}

async fn migrate(settings: DatabaseSettings) -> Result<()> {
    let database = Database::connect(settings.database_url, settings.database_wait).await?;
    database.migrate().await.context("cannot bring the schema up to date")
}

async fn serve(settings: ServeSettings) -> Result<()> {
    let DatabaseSettings { database_url, database_wait } = settings.database;
    let name = settings.name.map_or_else(host_name, Ok)?;
    let database = Database::connect(database_url, database_wait).await?;
    let site = Arc::new(Site::new(name, database, settings.health_timeout));

    let listen = settings.listen;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    info!(%listen, name = site.name, "serving");
    let stopped = wait_for_stop(Arc::clone(&site), settings.drain_time)?;
    axum::serve(listener, web::router(site)).with_graceful_shutdown(stopped).await?;
    info!("stopped");
    Ok(())
}

/// A future that ends when the server is to accept no more connections; those it has are still served.
///
/// # Errors
/// If the process cannot listen to signals.
fn wait_for_stop(site: Arc<Site>, drain_time: Duration) -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {
                info!(?drain_time, "draining: /healthz answers 503 from now on");
                site.draining.store(true, Ordering::Relaxed);
                sleep(drain_time).await;
            }
            _ = interrupt.recv() => {}
        }
        info!("stopping");
    })
}

fn start_logs() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}

fn host_name() -> Result<String> {
    let name =
        fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host name; set --name")?;
    Ok(name.trim().to_owned())
}
