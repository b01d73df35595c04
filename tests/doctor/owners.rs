//! Addresses that more than one host answers for, and backends that answer for the VIP.

use anyhow::Result;

use super::{Visit, healthy, use_all_queues};
use crate::support::config::tcp_before;
use crate::support::network::{Arms, BACKEND_GATEWAY, CLIENT_VIP, Family, Network, VIP, WEB1};
use crate::support::site::Mode;

#[test]
fn an_address_that_two_hosts_have() -> Result<()> {
    let network = Network::new("doctor-twice", Arms::Two)?;
    use_all_queues(&network)?;
    // Its VIP is in the subnet of the clients, who ask for it.
    let services = tcp_before(&[(1, 1)], &["announce = true"])
        .replace(&VIP.v4().to_string(), &CLIENT_VIP.v4().to_string())
        .replace(&VIP.v6().to_string(), &CLIENT_VIP.v6().to_string());
    let visit = Visit::new(&network, &services, network.interfaces)?;
    visit.expect_health()?;
    for (host, address, interface) in [
        (&network.web2, WEB1, "eth1"),
        (&network.web2, BACKEND_GATEWAY, "eth1"),
        (&network.client, CLIENT_VIP, "eth0"),
    ] {
        for family in Family::BOTH {
            let (address, way) = (address.of(family), if family == Family::V6 { " nodad" } else { "" });
            host.ip(&format!("address add {address} dev eth0{way}"))?;
            visit.expect(&[("address-twice", &format!("address {address} on {interface}"))])?;
            host.ip(&format!("address delete {address} dev eth0"))?;
        }
    }
    visit.expect_health()
}

#[test]
fn a_backend_that_answers_for_the_vip() -> Result<()> {
    let site = healthy("doctor-quiet", Mode::Dsr)?;
    let _echoes = site.start_echoes()?;
    let services = site.kinds(&[]);
    let visit = Visit::new(&site.network, &services, &[])?;
    let _balancer = site.serve(&services)?;
    visit.expect_health()?;
    let web1 = &site.network.web1;
    web1.run(["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=0"])?;
    visit.expect(&[("vip-not-quiet", "tcp-v4/web1")])?;
    web1.run(["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1"])?;
    web1.ip(&format!("address add {} dev eth0 nodad", VIP.v6()))?;
    visit.expect(&[("vip-not-quiet", "tcp-v6/web1")])?;
    web1.ip(&format!("address delete {} dev eth0", VIP.v6()))?;
    visit.expect_health()
}
