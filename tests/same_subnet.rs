//! Web servers that reach the application through its VIP, web and app on one subnet: in `nat` the reply
//! goes past the balancer, the client refuses it, and the operator is told.

use std::io::ErrorKind;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::support::balancer::{Balancer, Ending, Files, foobar_lb};
use crate::support::config::{Service, services};
use crate::support::conversation::{Protocol, ask, connect};
use crate::support::echo::Echo;
use crate::support::network::{Arms, BACKEND_PORT, Family, Network, VIP, VIP_PORT, WEB1, WEB2};

const APP_PORT: u16 = 8000;

#[test]
fn the_reply_goes_past_the_balancer_and_is_counted() -> Result<()> {
    let network = Network::new("same-subnet", Arms::Two)?;
    let _web = Echo::start(&network.web1, "web1", BACKEND_PORT)?;
    let _app = Echo::start(&network.web2, "app1", APP_PORT)?;
    let balancer = Balancer::serve(&network, &web_and_app())?;
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
    let files = Files::write(&network.balancer, &web_and_app())?;
    let output = foobar_lb(&network.balancer)?.arg("check").arg(&files.config).output()?;
    Ending::from(output).expect(0, &["app-v4", "10.0.1.0/24"])
}

fn web_and_app() -> String {
    let both = Family::BOTH.iter().flat_map(|&family| {
        let suffix = format!("{family:?}").to_lowercase();
        let www = Service::new(&format!("www-{suffix}"), Protocol::Tcp, VIP.port(family, VIP_PORT))
            .backend("web1", WEB1.port(family, BACKEND_PORT));
        let app = Service::new(&format!("app-{suffix}"), Protocol::Tcp, VIP.port(family, APP_PORT))
            .backend("app1", WEB2.port(family, APP_PORT));
        [www, app]
    });
    services(&both.collect::<Vec<_>>())
}
