//! The guestbook's database: the connection pool, the schema, and every statement the site sends.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use sqlx::migrate::Migrator;
use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
use sqlx::{FromRow, MySqlPool};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::entry::NewEntry;

const CONNECTIONS: u32 = 16;
/// A visitor is told that the database is away rather than kept waiting for longer than this.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// Shorter than any balancer or firewall on the way forgets a silent connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

const MIGRATION_LOCK: &str = "foobar-site-migrations";
const MIGRATION_LOCK_SECONDS: u32 = 60;

static MIGRATIONS: Migrator = sqlx::migrate!();

/// The database of the site, reached through a pool of connections.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pool: MySqlPool,
}

/// An entry of the guestbook, as stored.
#[derive(Debug, FromRow, Serialize)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) message: String,
    /// When it was written, in UTC: "2026-01-31 12:00".
    pub(crate) created_at: String,
    pub(crate) web_server: String,
    pub(crate) app_server: String,
}

/// How often the guestbook was shown.
#[derive(Debug, Serialize)]
pub(crate) struct Visits {
    pub(crate) total: u64,
    pub(crate) by_app_server: BTreeMap<String, u64>,
}

/// What a database server says of itself.
#[derive(Debug, FromRow, Serialize)]
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) version: String,
}

impl Server {
    /// Which product it is and its version, without what a distribution adds: "MariaDB 10.11.6".
    pub(crate) fn product(&self) -> String {
        let product = if self.version.contains("MariaDB") { "MariaDB" } else { "MySQL" };
        let number = self.version.split('-').next().unwrap_or_default();
        format!("{product} {number}")
    }
}

impl Database {
    /// Connects, trying again for as long as `wait`: after a power cut all servers start at once.
    pub(crate) async fn connect(options: MySqlConnectOptions, wait: Duration) -> Result<Self> {
        let address = format!("{}:{}", options.get_host(), options.get_port());
        let pool = MySqlPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(IDLE_TIMEOUT)
            .connect_lazy_with(options);
        let deadline = Instant::now() + wait;
        while let Err(error) = pool.acquire().await {
            if Instant::now() > deadline {
                return Err(error).context(format!("cannot reach the database {address} within {wait:?}"));
            }
            warn!(address, %error, "the database is not reachable yet");
            sleep(RETRY_INTERVAL).await;
        }
        info!(address, "the database is reachable");
        Ok(Self { pool })
    }

    /// Brings the schema up to date. Any number of servers may do this at once.
    pub(crate) async fn migrate(&self) -> Result<()> {
        let mut connection = self.pool.acquire().await?.detach();
        // The migrator's own lock asks for a negative time, which MariaDB answers with NULL and no lock,
        // and sqlx does not look. This one is known to be held, and goes with the connection.
        let locked: Option<i64> = sqlx::query_scalar("SELECT GET_LOCK(?, ?)")
            .bind(MIGRATION_LOCK)
            .bind(MIGRATION_LOCK_SECONDS)
            .fetch_one(&mut connection)
            .await?;
        ensure!(locked == Some(1), "another server has been migrating for {MIGRATION_LOCK_SECONDS} s");
        MIGRATIONS.run(&mut connection).await?;
        info!("the schema is up to date");
        Ok(())
    }

    /// Whether the database answers.
    pub(crate) async fn check(&self) -> Result<(), sqlx::Error> {
        sqlx::query("SELECT 1").execute(&self.pool).await.map(drop)
    }

    /// The server that answers: behind a balancer, not known from its address.
    pub(crate) async fn server(&self) -> Result<Server, sqlx::Error> {
        sqlx::query_as("SELECT @@hostname AS name, @@version AS version").fetch_one(&self.pool).await
    }

    /// Counts one visit that `app_server` answered.
    pub(crate) async fn count_visit(&self, app_server: &str) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO visits (app_server, count) VALUES (?, 1) ON DUPLICATE KEY UPDATE count = count + 1",
        )
        .bind(app_server)
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// The visits counted so far.
    pub(crate) async fn visits(&self) -> Result<Visits, sqlx::Error> {
        let rows: Vec<(String, u64)> =
            sqlx::query_as("SELECT app_server, count FROM visits").fetch_all(&self.pool).await?;
        Ok(Visits {
            total: rows.iter().map(|(_, count)| count).sum(),
            by_app_server: rows.into_iter().collect(),
        })
    }

    /// Stores an entry and returns its id.
    pub(crate) async fn add_entry(
        &self,
        entry: &NewEntry,
        web_server: &str,
        app_server: &str,
    ) -> Result<u64, sqlx::Error> {
        sqlx::query("INSERT INTO entries (name, message, web_server, app_server) VALUES (?, ?, ?, ?)")
            .bind(entry.name())
            .bind(entry.message())
            .bind(web_server)
            .bind(app_server)
            .execute(&self.pool)
            .await
            .map(|done| done.last_insert_id())
    }

    /// The newest `limit` entries with an id below `before`, newest first.
    pub(crate) async fn entries(&self, before: u64, limit: u32) -> Result<Vec<Entry>, sqlx::Error> {
        sqlx::query_as(
            "SELECT id, name, message, DATE_FORMAT(created_at, '%Y-%m-%d %H:%i') AS created_at, web_server, app_server
             FROM entries WHERE id < ? ORDER BY id DESC LIMIT ?",
        )
        .bind(before)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_named_without_the_packaging() {
        for (version, product) in [
            ("10.11.6-MariaDB-0+deb12u1", "MariaDB 10.11.6"),
            ("8.0.40-0ubuntu0.24.04.1", "MySQL 8.0.40"),
            ("8.4.3", "MySQL 8.4.3"),
        ] {
            let server = Server { name: "db1".to_owned(), version: version.to_owned() };
            assert_eq!(server.product(), product);
        }
    }
}
