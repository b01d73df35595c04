//! What attaching refuses: it says why, exits as documented, and leaves nothing behind.

use std::fs;

use anyhow::{Result, ensure};

use crate::support::SOON;
use crate::support::balancer::{Balancer, Ending, Files, binary};
use crate::support::config::all_kinds;
use crate::support::conversation::{Protocol, ask};
use crate::support::echo::start_pair;
use crate::support::network::{Arms, Family, Network, VIP, VIP_PORT};
use crate::support::traces::Traces;

#[test]
fn a_missing_interface() -> Result<()> {
    let network = Network::new("attach-missing", Arms::Two)?;
    let files = Files::write(&network.balancer, &all_kinds(VIP, &[]))?;
    let before = Traces::of(&network.balancer)?;
    // The one that exists comes first: what was done to it must be undone.
    files.attach_in_vain(&network.balancer, &["eth1", "eth7"])?.expect(1, &["eth7"])?;
    expect_nothing_left(&network, &files, &before)
}

#[test]
fn missing_privileges() -> Result<()> {
    let network = Network::new("attach-privileges", Arms::Two)?;
    let files = Files::write(&network.balancer, &all_kinds(VIP, &[]))?;
    let before = Traces::of(&network.balancer)?;
    let mut words = vec!["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
        .into_iter()
        .map(str::to_owned)
        .collect::<Vec<_>>();
    words.extend(files.attach_words(network.interfaces, &[])?);
    let mut process = network.balancer.start("unprivileged", &words)?;
    let exit = process.wait(SOON)?;
    let refusal = Ending { code: exit.code(), output: process.output()? };
    refusal.expect(1, &["CAP_BPF", "CAP_NET_ADMIN"])?;
    expect_nothing_left(&network, &files, &before)
}

#[test]
fn another_xdp_program() -> Result<()> {
    let network = Network::new("attach-occupied", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let services = all_kinds(VIP, &[]);
    let balancer = Balancer::serve(&network, &services)?;
    let before = Traces::of(&network.balancer)?;
    ensure!(before.has_xdp(), "no XDP program is seen on the balancer's interfaces: {before:?}");

    // Another configuration file, so another socket: only the interfaces are taken.
    let second = Files::write_as(&network.balancer, "second", &services)?;
    let refusal = second.attach_in_vain(&network.balancer, network.interfaces)?;
    let program = program_at(&network, "eth0")?;
    refusal.expect(1, &["eth0", &program])?;
    before.expect_no_change(&network.balancer)?;
    ensure!(!second.socket.exists(), "the refused balancer left its socket");
    balancer.wait_until_serving()?;
    ask(&network.client, Protocol::Tcp, VIP.port(Family::V4, VIP_PORT)).map(drop)
}

#[test]
fn a_second_balancer_on_the_same_socket() -> Result<()> {
    let network = Network::new("attach-twice", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let services = all_kinds(VIP, &[]);
    let balancer = Balancer::attach(&network.balancer, &["eth1"], &services, &["--sysctl"])?;
    let before = Traces::of(&network.balancer)?;
    let files = Files::write(&network.balancer, &services)?;
    let refusal = files.attach_in_vain(&network.balancer, &["eth0"])?;
    refusal.expect(1, &[&files.socket.display().to_string()])?;
    before.expect_no_change(&network.balancer)?;
    // The first one still owns its socket.
    balancer.wait_until_serving()
}

#[test]
fn a_wrong_configuration() -> Result<()> {
    let network = Network::new("attach-config", Arms::Two)?;
    let before = Traces::of(&network.balancer)?;
    let right = all_kinds(VIP, &[]);
    let cases = [
        (right.replace("protocol = \"udp\"", "protocol = \"sctp\""), "sctp"),
        (right.replace("weight = 1", "wieght = 1"), "wieght"),
        (right.replace(":8080", ":0"), ":0"),
    ];
    for (services, word) in cases {
        let files = Files::write(&network.balancer, &services)?;
        let refusal = files.attach_in_vain(&network.balancer, network.interfaces)?;
        refusal.expect(2, &[word])?;
        let place = place_of(&fs::read_to_string(&files.config)?, word);
        let place = format!("{}:{place}:", files.config.display());
        ensure!(refusal.output.contains(&place), "it does not name {place} and a column: {}", refusal.output);
        expect_nothing_left(&network, &files, &before)?;
    }
    Ok(())
}

#[test]
fn a_configuration_that_cannot_be_read() -> Result<()> {
    let network = Network::new("attach-no-config", Arms::Two)?;
    let before = Traces::of(&network.balancer)?;
    let files = Files::write(&network.balancer, "")?;
    fs::remove_file(&files.config)?;
    let refusal = files.attach_in_vain(&network.balancer, network.interfaces)?;
    refusal.expect(2, &[&files.config.display().to_string()])?;
    expect_nothing_left(&network, &files, &before)
}

#[test]
fn sysctls_in_the_way_are_named() -> Result<()> {
    let network = Network::new("attach-sysctls", Arms::Two)?;
    network.balancer.set_sysctl("net.ipv4.conf.all.rp_filter", "1")?;
    network.balancer.set_sysctl("net.ipv4.ip_forward", "0")?;
    network.balancer.add_address("eth0", &format!("{}/32", VIP.v4()))?;
    let files = Files::write(&network.balancer, &all_kinds(VIP, &[]))?;
    let before = Traces::of(&network.balancer)?;
    let refusal = files.attach_in_vain_with(&network.balancer, network.interfaces, &[])?;
    refusal.expect(1, &["rp_filter", "forwarding", "accept_local", "--sysctl"])?;
    expect_nothing_left(&network, &files, &before)
}

fn expect_nothing_left(network: &Network, files: &Files, before: &Traces) -> Result<()> {
    before.expect_no_change(&network.balancer)?;
    ensure!(!files.socket.exists(), "the socket {} is left", files.socket.display());
    Ok(())
}

/// The name of the XDP program at an interface, by another tool's word.
fn program_at(network: &Network, interface: &str) -> Result<String> {
    let links: serde_json::Value =
        serde_json::from_str(&network.balancer.ip(&format!("-json -details link show {interface}"))?)?;
    let name = links[0]["xdp"]["prog"]["name"].as_str().map(str::to_owned);
    Ok(name.unwrap_or_else(|| panic!("no XDP program at {interface} in {links:#}: {:?}", binary())))
}

/// The first line that contains `word`, counted from 1.
fn place_of(text: &str, word: &str) -> usize {
    1 + text.lines().take_while(|line| !line.contains(word)).count()
}
