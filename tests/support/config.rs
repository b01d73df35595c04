//! Configurations of the balancer, in the form people write them.

use std::fmt::{self, Display};

use super::conversation::{KINDS, Protocol};
use super::network::{BACKEND_PORT, Dual, Family, VIP, VIP_PORT, WEB1, WEB2, web};

/// The `[[service]]` table of one service, with its backends.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    address: String,
    protocol: Protocol,
    keys: Vec<String>,
    health: Vec<String>,
    backends: Vec<String>,
}

impl Service {
    /// A service checked often enough for a test, by TCP.
    pub fn new(name: &str, protocol: Protocol, address: impl Display) -> Self {
        let health =
            ["kind = \"tcp\"", "interval = \"200ms\"", "timeout = \"200ms\"", "rise = 2", "fall = 3"];
        Self {
            name: name.to_owned(),
            address: address.to_string(),
            protocol,
            keys: Vec::new(),
            health: health.map(str::to_owned).to_vec(),
            backends: Vec::new(),
        }
    }

    /// One more key of the service, as in `table_size = 65537`.
    pub fn key(mut self, line: &str) -> Self {
        self.keys.push(line.to_owned());
        self
    }

    /// Another health check, line by line.
    pub fn health(mut self, lines: &[&str]) -> Self {
        self.health = lines.iter().map(|&line| line.to_owned()).collect();
        self
    }

    /// One more backend of weight 1.
    pub fn backend(self, name: &str, address: impl Display) -> Self {
        self.weighted_backend(name, address, 1)
    }

    /// One more key of the last backend.
    pub fn backend_key(mut self, line: &str) -> Self {
        let backend = self.backends.last_mut().expect("it follows a backend");
        *backend += &format!("\n{line}");
        self
    }

    /// One more backend.
    pub fn weighted_backend(mut self, name: &str, address: impl Display, weight: u16) -> Self {
        self.backends.push(format!("name = \"{name}\"\naddress = \"{address}\"\nweight = {weight}"));
        self
    }
}

impl Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[[service]]\nname = \"{}\"\naddress = \"{}\"", self.name, self.address)?;
        writeln!(f, "protocol = \"{}\"\n{}", self.protocol.name(), self.keys.join("\n"))?;
        writeln!(f, "[service.health]\n{}", self.health.join("\n"))?;
        for backend in &self.backends {
            writeln!(f, "[[service.backend]]\n{backend}")?;
        }
        Ok(())
    }
}

/// The configuration of a set of services, without `[daemon]`.
pub fn services(services: &[Service]) -> String {
    services.iter().map(Service::to_string).collect::<Vec<_>>().join("\n")
}

/// The usual services: at the VIP, of every family and protocol, before the pair of echo servers, each with
/// these further keys.
pub fn all_kinds(vip: Dual, keys: &[&str]) -> String {
    all_kinds_with(vip, |_, service| keys.iter().fold(service, |service, key| service.key(key)))
}

/// The usual services, each changed as its family asks.
pub fn all_kinds_with(vip: Dual, change: impl Fn(Family, Service) -> Service) -> String {
    let all = KINDS.map(|(family, protocol)| {
        let service = Service::new(&service_name(family, protocol), protocol, vip.port(family, VIP_PORT))
            .backend("web1", WEB1.port(family, BACKEND_PORT))
            .backend("web2", WEB2.port(family, BACKEND_PORT));
        change(family, service)
    });
    services(&all)
}

/// A TCP service of each family, at the VIP and before these backends, each by number and weight, with these keys.
pub fn tcp_before(backends: &[(u8, u16)], keys: &[&str]) -> String {
    tcp_before_with(backends, |service| keys.iter().fold(service, |service, key| service.key(key)))
}

/// The same, each service changed as asked.
pub fn tcp_before_with(backends: &[(u8, u16)], change: impl Fn(Service) -> Service) -> String {
    let of_family = |family| {
        let name = service_name(family, Protocol::Tcp);
        let service = Service::new(&name, Protocol::Tcp, VIP.port(family, VIP_PORT));
        backends.iter().fold(change(service), |service, &(number, weight)| {
            let address = web(number).port(family, BACKEND_PORT);
            service.weighted_backend(&format!("web{number}"), address, weight)
        })
    };
    services(&Family::BOTH.map(of_family))
}

/// The `[[vip]]` tables of a VIP in both families, with these keys.
pub fn vip_sections(vip: Dual, keys: &[&str]) -> String {
    let section = |family| format!("[[vip]]\naddress = \"{}\"\n{}\n", vip.of(family), keys.join("\n"));
    Family::BOTH.map(section).concat()
}

/// The name of a usual service, as in `tcp-v4`.
pub fn service_name(family: Family, protocol: Protocol) -> String {
    format!("{}-{family:?}", protocol.name()).to_lowercase()
}
