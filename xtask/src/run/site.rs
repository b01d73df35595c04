//! The tiers of www.foobar.com: what is deployed on each server, in which order they start, and how they end.
//! The files come from `site/`, whose README does the same by hand.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::wait_until;
use nix::sys::signal::Signal;

use crate::run::balancer::Balancer;
use crate::run::network::Network;
use crate::run::server::Server;
use crate::workspace;

/// How long the slowest step may take on a busy machine: the first start of a database.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a program that ended stays away: long enough to watch the site live without it.
const REVIVAL_DELAY: Duration = Duration::from_secs(10);

// `run` stands last, because what the servers see of the machine's `/run` holds the other directories.
const WEB_DIRECTORIES: &[&str] = &["etc/nginx", "srv", "var/log/nginx", "var/lib/nginx", "run"];
const APP_DIRECTORIES: &[&str] = &[];
const DATABASE_DIRECTORIES: &[&str] = &["etc/mysql", "var/lib/mysql", "run"];

const DATABASE_SOCKET: &str = "--socket=/run/mysqld/mysqld.sock";

/// The site, up. Dropping it kills it.
pub(super) struct Site {
    // Fields drop in this order: the network goes last.
    pub(super) web: [Server; 2],
    app: [Server; 2],
    pub(super) database: Server,
    pub(super) balancer: Balancer,
    pub(super) network: Network,
}

impl Site {
    /// Brings everything up and waits until every backend serves.
    ///
    /// # Errors
    /// If something does not start; the error shows what it printed.
    pub(super) fn start(balancer: &Path, application: &Path) -> Result<Self> {
        let passwords = [password()?, password()?];
        let network = Network::new()?;
        let database = start_database(&network, &passwords)?;
        // The applications reach their database through it.
        let balancer = Balancer::attach(balancer, &network.balancer)?;
        let app = start_applications(&network, application, &passwords)?;
        let web = [start_web_server(&network, "web1")?, start_web_server(&network, "web2")?];
        balancer.wait_for_all(PATIENCE)?;
        Ok(Self { web, app, database, balancer, network })
    }

    /// Sends one statement to the database, past the balancer, and returns its answer.
    ///
    /// # Errors
    /// If the database refuses it or is down.
    pub(super) fn ask_database(&self, statement: &str) -> Result<String> {
        ask_database(&self.database, statement)
    }

    /// Stops the database as a service manager does and starts it again on the same files.
    ///
    /// # Errors
    /// If it does not end, or does not come back.
    pub(super) fn restart_database(&mut self) -> Result<()> {
        let process = self.database.process()?;
        process.signal(Signal::SIGTERM)?;
        process.wait(PATIENCE)?;
        self.database.restart()?;
        wait_for_database(&mut self.database)?;
        self.balancer.wait_for_all(PATIENCE)
    }

    /// Starts programs again that ended some time ago, as a service manager would, and returns a line for each
    /// that ended or started.
    ///
    /// # Errors
    /// If one cannot start.
    pub(super) fn revive(&mut self) -> Result<Vec<String>> {
        let servers = self.web.iter_mut().chain(&mut self.app).chain([&mut self.database]);
        servers.filter_map(|server| server.revive(REVIVAL_DELAY).transpose()).collect()
    }

    /// Detaches the balancer and ends everything else.
    ///
    /// # Errors
    /// If the balancer does not detach well.
    pub(super) fn stop(mut self) -> Result<()> {
        self.balancer.stop()
    }
}

fn start_web_server(network: &Network, name: &str) -> Result<Server> {
    let mut server = Server::new(name, network.add_server(name)?, WEB_DIRECTORIES)?;
    let site = workspace().join("site");
    server.copy(Path::new("/etc/nginx/mime.types"), "/etc/nginx/mime.types")?;
    server.copy(&site.join("nginx/nginx.conf"), "/etc/nginx/nginx.conf")?;
    server.copy(&site.join("nginx/sites-enabled"), "/etc/nginx/sites-enabled")?;
    server.copy(&site.join("static"), "/srv/foobar/static")?;
    server.serve(&["nginx", "-g", "daemon off;"], &[])?;
    Ok(server)
}

fn start_applications(network: &Network, program: &Path, passwords: &[String; 2]) -> Result<[Server; 2]> {
    let [owner, app] = [("foobar_owner", &passwords[0]), ("foobar_app", &passwords[1])].map(database_url);
    let new_server = |name| Server::new(name, network.add_server(name)?, APP_DIRECTORIES);
    let mut servers = [new_server("app1")?, new_server("app2")?];
    let program = program.to_str().context("the path of foobar-site is not UTF-8")?;
    // Both at once, as after a power cut.
    let migrate =
        |server: &Server| server.start("migrate", &[program.to_owned(), "migrate".to_owned()], &owner);
    let migrations = [migrate(&servers[0])?, migrate(&servers[1])?];
    for mut migration in migrations {
        let status = migration.wait(PATIENCE)?;
        ensure!(status.success(), "foobar-site migrate ended with {status}:\n{}", migration.output()?);
    }
    for server in &mut servers {
        server.serve(&[program, "serve"], &app)?;
    }
    Ok(servers)
}

fn database_url((account, password): (&str, &String)) -> [(String, String); 1] {
    let url = format!("mysql://{account}:{password}@203.0.113.82:3306/foobar");
    [("FOOBAR_SITE_DATABASE_URL".to_owned(), url)]
}

fn start_database(network: &Network, passwords: &[String; 2]) -> Result<Server> {
    let mut server = Server::new("db1", network.add_server("db1")?, DATABASE_DIRECTORIES)?;
    let files = workspace().join("site/mysql");
    server.copy(&files.join("foobar.cnf"), "/etc/mysql/conf.d/foobar.cnf")?;
    let accounts = fs::read_to_string(files.join("accounts.sql")).context("cannot read accounts.sql")?;
    let accounts = accounts.replace("OWNER_PASSWORD", &passwords[0]).replace("APP_PASSWORD", &passwords[1]);
    server.write_file("/etc/mysql/accounts.sql", &accounts)?;

    server.run(&["install", "--directory", "--owner=mysql", "/run/mysqld"])?;
    server.run(&["chown", "mysql:", "/var/lib/mysql"])?;
    initialise_database(&server)?;
    server.serve(
        &[
            "mysqld",
            "--defaults-file=/etc/mysql/conf.d/foobar.cnf",
            "--user=mysql",
            "--datadir=/var/lib/mysql",
            "--tmpdir=/run/mysqld",
            "--pid-file=/run/mysqld/mysqld.pid",
            DATABASE_SOCKET,
        ],
        &[],
    )?;
    wait_for_database(&mut server)?;
    ask_database(&server, "source /etc/mysql/accounts.sql")?;
    Ok(server)
}

/// An empty data directory whose root account needs no password at the Unix socket.
fn initialise_database(server: &Server) -> Result<()> {
    let is_mariadb = server.run(&["mysqld", "--version"])?.contains("MariaDB");
    let (program, rest): (_, &[&str]) = if is_mariadb {
        // Without `--force` it looks up its own host's name, for which there is no DNS here.
        let options = &["--force", "--skip-test-db", "--auth-root-authentication-method=socket"];
        ("mariadb-install-db", options)
    } else {
        ("mysqld", &["--initialize-insecure"])
    };
    let words = [&[program, "--no-defaults", "--user=mysql", "--datadir=/var/lib/mysql"], rest].concat();
    server.run(&words).map(drop)
}

fn wait_for_database(server: &mut Server) -> Result<()> {
    wait_until(PATIENCE, "the database", || {
        server.process().and_then(|process| process.has_ended()).unwrap_or(true)
            || ask_database(server, "SELECT 1").is_ok()
    })?;
    let process = server.process()?;
    ensure!(!process.has_ended()?, "mysqld ended; it printed:\n{}", process.output()?);
    Ok(())
}

fn ask_database(server: &Server, statement: &str) -> Result<String> {
    server.run(&[
        "mysql",
        "--no-defaults",
        DATABASE_SOCKET,
        "--user=root",
        "--skip-column-names",
        "-e",
        statement,
    ])
}

/// A password that nobody has to remember, as it ends with the run.
fn password() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("no random bytes")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
