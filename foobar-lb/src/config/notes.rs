//! What a valid configuration asks of the backends: `check` says it, because the balancer cannot see it.

use super::{Config, values::count};
use crate::model::{Encapsulation, Mode, Quic, Service, is_host};

impl Config {
    /// A line for whatever the backends of a service have to be prepared for, with a command that does it where there
    /// is one.
    pub fn notes(&self) -> Vec<String> {
        self.services.iter().flat_map(|service| [note_mode(service), note_quic(service)]).flatten().collect()
    }
}

fn note_mode(service: &Service) -> Option<String> {
    let Service { name, key, mode, .. } = service;
    let vip = key.address.vip;
    let vips = if is_host(&vip) { vip.addr().to_string() } else { format!("ADDRESSES-OF-{vip}") };
    let decap = format!("foobar-lb decap IFACE --vip {vips}");
    let (duty, command) = match mode {
        Mode::Nat | Mode::Hairpin(_) | Mode::Snat(_) => return None,
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

fn note_quic(service: &Service) -> Option<String> {
    let Quic { server_id_length, config_rotation } = service.quic?;
    let bytes = count(server_id_length.into(), "byte");
    Some(format!(
        "service `{}` (quic): its backends have to issue connection ids that begin with the bits {config_rotation:03b} and \
         five others, then the {bytes} of their `quic_id`, then 4 random bytes or more",
        service.name
    ))
}
