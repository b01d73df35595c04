//! Web servers that reach the application through its VIP, web and app on one subnet: in `nat` the reply
//! goes past the balancer, the client refuses it, and the operator is told. With `snat = "hairpin"` it comes back.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::support::balancer::{Balancer, Ending, Files, foobar_lb};
use crate::support::config::{Service, all_kinds, services};
use crate::support::conversation::{KINDS, Protocol, ask, ask_at_length, ask_once, connect};
use crate::support::echo::{Echo, start_pair};
use crate::support::network::{
    Arms, BACKEND_GATEWAY, BACKEND_PORT, Family, Network, VIP, VIP_PORT, WEB1, WEB2,
};

const APP_PORT: u16 = 8000;
/// Enough that, with two backends, none is left out by chance.
const FLOWS: usize = 40;

#[test]
fn the_reply_goes_past_the_balancer_and_is_counted() -> Result<()> {
    let network = Network::new("same-subnet", Arms::Two)?;
    let _web = Echo::start(&network.web1, "web1", BACKEND_PORT)?;
    let _app = Echo::start(&network.web2, "app1", APP_PORT)?;
    let balancer = Balancer::serve(&network, &web_and_app(&[]))?;
    for family in Family::BOTH {
        let app = VIP.port(family, APP_PORT);
        ask(&network.client, Protocol::Tcp, app)?;
        let before = balancer.counted("client_on_backend_subnet")?;
        let answer = connect(&network.web1, app, Duration::from_millis(500))?;
        let kind = answer.err().map(|error| error.kind());
        ensure!(kind == Some(ErrorKind::TimedOut), "{family:?}: connecting should time out, but: {kind:?}");
        let counted = balancer.counted("client_on_backend_subnet")?;
        ensure!(counted > before, "{family:?}: a client on the backend's subnet is not counted");
    }
    Ok(())
}

#[test]
fn check_warns_of_it() -> Result<()> {
    let network = Network::new("same-subnet-check", Arms::Two)?;
    let files = Files::write(&network.balancer, &web_and_app(&[]))?;
    let output = foobar_lb(&network.balancer)?.arg("check").arg(&files.config).output()?;
    Ending::from(output).expect(0, &["app-v4", "10.0.1.0/24"])
}

#[test]
fn hairpin_brings_the_reply_back_one_arm() -> Result<()> {
    check_hairpin("hairpin-one", Arms::One)
}

#[test]
fn hairpin_brings_the_reply_back_two_arm() -> Result<()> {
    check_hairpin("hairpin-two", Arms::Two)
}

/// The backends are clients of their own services, so that each talks to its neighbour and to itself.
fn check_hairpin(name: &str, arms: Arms) -> Result<()> {
    let network = Network::new(name, arms)?;
    let _echoes = start_pair(&network)?;
    let balancer = Balancer::serve(&network, &all_kinds(VIP, &["snat = \"hairpin\""]))?;
    for (family, protocol) in KINDS {
        let vip = VIP.port(family, VIP_PORT);
        for client in [&network.web1, &network.web2] {
            let mut served = BTreeSet::new();
            for _ in 0..FLOWS {
                let (answer, _) = ask_once(client, protocol, vip)?;
                let seen = answer.client.ip();
                ensure!(seen == BACKEND_GATEWAY.of(family), "{} is seen as {seen}", client.name());
                served.insert(answer.backend);
            }
            ensure!(served.len() == 2, "{FLOWS} flows of {}, and all went to {served:?}", client.name());
            if protocol == Protocol::Udp {
                ask_at_length(client, vip, 8192)?;
            }
        }
        // Others are seen by their own addresses.
        ask(&network.client, protocol, vip)?;
    }
    let past = balancer.counted("client_on_backend_subnet")?;
    ensure!(past == 0, "{past} packets are counted as if their replies went past the balancer");
    Ok(())
}

#[test]
fn check_has_nothing_to_warn_of_then() -> Result<()> {
    let network = Network::new("hairpin-check", Arms::Two)?;
    let files = Files::write(&network.balancer, &web_and_app(&["snat = \"hairpin\""]))?;
    let output = foobar_lb(&network.balancer)?.arg("check").arg(&files.config).output()?;
    let ending = Ending::from(output);
    ending.expect(0, &[])?;
    ensure!(!ending.output.contains("10.0.1.0/24"), "it warns: {}", ending.output);
    Ok(())
}

fn web_and_app(keys: &[&str]) -> String {
    let both = Family::BOTH.iter().flat_map(|&family| {
        let suffix = format!("{family:?}").to_lowercase();
        let www = Service::new(&format!("www-{suffix}"), Protocol::Tcp, VIP.port(family, VIP_PORT))
            .backend("web1", WEB1.port(family, BACKEND_PORT));
        let app = Service::new(&format!("app-{suffix}"), Protocol::Tcp, VIP.port(family, APP_PORT))
            .backend("app1", WEB2.port(family, APP_PORT));
        [www, app].map(|service| keys.iter().fold(service, |service, key| service.key(key)))
    });
    services(&both.collect::<Vec<_>>())
}
