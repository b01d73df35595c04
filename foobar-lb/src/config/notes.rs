//! What a valid configuration asks of the backends: `check` says it, because the balancer cannot see it.

use super::Config;
use crate::model::{Encapsulation, Mode, Service};

impl Config {
    /// A line for each service whose backends have to be prepared for its mode, with a command that does it.
    pub fn notes(&self) -> Vec<String> {
        self.services.iter().filter_map(note).collect()
    }
}

fn note(service: &Service) -> Option<String> {
    let Service { name, key, mode, .. } = service;
    let decap = format!("foobar-lb decap IFACE --vip {}", key.address.ip());
    let (duty, command) = match mode {
        Mode::Nat => return None,
        Mode::Dsr => ("be on a link of the balancer and have the VIP", format!("{decap} --dsr")),
        Mode::Tunnel(tunnel) => {
            let command = match tunnel.encapsulation {
                Encapsulation::Ipip => decap,
                Encapsulation::Gue(port) => format!("{decap} --gue-port {port}"),
            };
            ("take the outer headers off and have the VIP", command)
        }
    };
    Some(format!("service `{name}` ({}): its backends have to {duty}: `{command}`", mode.name()))
}
