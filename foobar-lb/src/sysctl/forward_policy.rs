//! Looks for firewalls whose policy is to drop what the kernel forwards, as Docker sets it. They are
//! named to the operator and left as they are.

use std::{fs, io, process::Command};

use serde_json::Value;

use super::{Error, Families};

/// Names the chains that drop forwarded packets of `families` unless a rule of theirs says otherwise; each
/// as the end of "forwarded packets may be dropped by ...".
///
/// # Errors
/// When a firewall's command is installed but fails.
pub fn dropping_forward_chains(families: Families) -> Result<Vec<String>, Error> {
    let mut chains = match run("nft", &["--json", "list", "chains"])? {
        Some(listing) => nftables_chains(&listing, families)?,
        None => Vec::new(),
    };
    let legacy = [
        (families.v4, "iptables-legacy", "/proc/net/ip_tables_names"),
        (families.v6, "ip6tables-legacy", "/proc/net/ip6_tables_names"),
    ];
    for (wanted, command, tables) in legacy {
        // Asking about a table that is not there would create it.
        let in_use = fs::read_to_string(tables).is_ok_and(|names| names.lines().any(|name| name == "filter"));
        if !wanted || !in_use {
            continue;
        }
        if run(command, &["-S", "FORWARD"])?.is_some_and(|rules| drops_by_policy(&rules)) {
            chains.push(format!("chain FORWARD of {command}'s table filter"));
        }
    }
    Ok(chains)
}

/// What the command writes; none where it is not installed.
fn run(command: &'static str, arguments: &[&str]) -> Result<Option<String>, Error> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match Command::new(command).args(arguments).output() {
        Ok(output) if output.status.success() => Ok(Some(text(&output.stdout))),
        Ok(output) => Err(Error::Firewall { command, message: text(&output.stderr) }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::Firewall { command, message: error.to_string() }),
    }
}

/// The JSON is described in libnftables-json(5).
fn nftables_chains(listing: &str, families: Families) -> Result<Vec<String>, Error> {
    let listing: Value = serde_json::from_str(listing)
        .map_err(|error| Error::Firewall { command: "nft", message: error.to_string() })?;
    let objects = listing["nftables"].as_array().into_iter().flatten();
    let chains = objects.map(|object| &object["chain"]).filter(|chain| {
        let sees = match chain["family"].as_str() {
            Some("ip") => families.v4,
            Some("ip6") => families.v6,
            Some("inet") => families.v4 || families.v6,
            _ => false,
        };
        sees && chain["hook"] == "forward" && chain["policy"] == "drop"
    });
    let word = |chain: &Value, key: &str| chain[key].as_str().unwrap_or_default().to_owned();
    Ok(chains
        .map(|chain| {
            let (name, family, table) = (word(chain, "name"), word(chain, "family"), word(chain, "table"));
            format!("chain {name} of nftables' table {family} {table}")
        })
        .collect())
}

/// Reads what `iptables -S FORWARD` writes.
fn drops_by_policy(rules: &str) -> bool {
    rules.lines().any(|line| line.trim() == "-P FORWARD DROP")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As nft 1.0.6 lists what Docker's iptables-nft made, a table of the operator and a bridge's.
    const LISTING: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 2, "type": "filter",
                   "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "ip", "table": "filter", "name": "DOCKER", "handle": 3}},
        {"chain": {"family": "inet", "table": "mine", "name": "in", "handle": 1, "type": "filter",
                   "hook": "input", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "inet", "table": "mine", "name": "through", "handle": 2, "type": "filter",
                   "hook": "forward", "prio": 0, "policy": "accept"}},
        {"chain": {"family": "ip6", "table": "filter", "name": "FORWARD", "handle": 1, "type": "filter",
                   "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "bridge", "table": "b", "name": "f", "handle": 1, "type": "filter",
                   "hook": "forward", "prio": 0, "policy": "drop"}}]}"#;

    #[test]
    fn only_forward_chains_that_drop_and_see_the_families_are_named() {
        let v4 = "chain FORWARD of nftables' table ip filter";
        let v6 = "chain FORWARD of nftables' table ip6 filter";
        for (families, expected) in [
            (Families { v4: true, v6: false }, vec![v4]),
            (Families { v4: false, v6: true }, vec![v6]),
            (Families { v4: true, v6: true }, vec![v4, v6]),
        ] {
            assert_eq!(nftables_chains(LISTING, families).unwrap(), expected);
        }
    }

    #[test]
    fn the_policy_of_iptables_is_found() {
        assert!(drops_by_policy("-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n"));
        assert!(!drops_by_policy("-P FORWARD ACCEPT\n-A FORWARD -s 192.0.2.1/32 -j DROP\n"));
    }
}
