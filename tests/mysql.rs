//! A database behind a VIP: a real server, a real client.

use std::fs;

use anyhow::{Result, ensure};
use lab::{Namespace, Process, wait_for};

use crate::support::EVENTUALLY;
use crate::support::balancer::Balancer;
use crate::support::config::{Service, services};
use crate::support::conversation::Protocol;
use crate::support::network::{Arms, Family, Network, VIP, WEB1};

const PORT: u16 = 3306;

#[test]
fn queries_through_the_vip() -> Result<()> {
    let network = Network::new("mysql", Arms::Two)?;
    let _database = start_database(&network.web1)?;
    let mysql = Family::BOTH.map(|family| {
        Service::new(&format!("mysql-{family:?}"), Protocol::Tcp, VIP.port(family, PORT))
            .backend("db1", WEB1.port(family, PORT))
    });
    let _balancer = Balancer::serve(&network, &services(&mysql))?;
    for family in Family::BOTH {
        let vip = VIP.of(family).to_string();
        let account = ["--host", &vip, "--user", "shop", "--password=secret"];
        let query = |statement: &str| query(&network.client, &account, statement);
        query("CREATE OR REPLACE TABLE shop.visits (who VARCHAR(40), length INT)")?;
        // More than a packet in either direction.
        query(&format!("INSERT INTO shop.visits VALUES ('{family:?}', LENGTH('{}'))", "x".repeat(5000)))?;
        let stored = query("SELECT who, length, REPEAT('y', 5000) FROM shop.visits")?;
        let expected = format!("{family:?}\t5000\t{}", "y".repeat(5000));
        ensure!(stored.trim_end() == expected, "{family:?}: the database says {stored}");
    }
    Ok(())
}

/// Starts a database with a schema `shop` and an account `shop` that may do anything in it.
fn start_database(namespace: &Namespace) -> Result<Process> {
    let directory = namespace.directory().join("mysql");
    let data = directory.join("data").display().to_string();
    let socket = directory.join("socket").display().to_string();
    fs::create_dir_all(&directory)?;
    namespace.run([
        "mysql_install_db",
        "--no-defaults",
        "--user=root",
        "--skip-test-db",
        "--auth-root-authentication-method=normal",
        &format!("--datadir={data}"),
    ])?;
    let database = namespace.start(
        "mysqld",
        [
            "mysqld",
            "--no-defaults",
            "--user=root",
            "--bind-address=*",
            "--skip-name-resolve",
            &format!("--datadir={data}"),
            &format!("--socket={socket}"),
            &format!("--port={PORT}"),
        ],
    )?;
    let statements =
        "CREATE SCHEMA shop; CREATE USER shop IDENTIFIED BY 'secret'; GRANT ALL ON shop.* TO shop";
    let socket = ["--socket", &socket, "--user", "root"];
    wait_for(EVENTUALLY, "the database to answer", || query(namespace, &socket, "SELECT 1").ok())?;
    query(namespace, &socket, statements)?;
    Ok(database)
}

fn query(namespace: &Namespace, connection: &[&str], statement: &str) -> Result<String> {
    let words = ["mysql", "--no-defaults", "--connect-timeout=5"];
    let rest = ["--batch", "--skip-column-names", "--execute", statement];
    namespace.run(words.iter().chain(connection).chain(&rest))
}
