//! Large configurations, as files.

use std::{fmt::Write, net::Ipv4Addr};

/// Where the first backend is; those of a service follow each other.
const FIRST_BACKEND: u32 = 0x0a40_0000;
/// All backends are in it.
pub const BACKENDS: &str = "10.64.0.0/10";
/// Backends of a service are never more.
const MOST: u32 = 256;
const FIRST_VIP: u32 = 0xc633_6400;

/// A configuration with as many services as it says, all alike.
#[derive(Clone, Copy)]
pub struct Configuration {
    pub services: u32,
    /// Of each service.
    pub backends: u32,
    /// Slots of each table.
    pub slots: u32,
    /// The TOML of `[service.health]`.
    pub health: &'static str,
    /// Services, from the first on, whose last backend has made way for another.
    pub changed: u32,
}

impl Configuration {
    /// Backends count as up as long as they have a next hop.
    pub const fn unchecked(services: u32, backends: u32, slots: u32) -> Self {
        Self { services, backends, slots, health: r#"kind = "none""#, changed: 0 }
    }

    /// The file, with the daemon's files in a directory.
    pub fn to_toml(self, directory: &str) -> String {
        let mut text = format!(
            "[daemon]\nsocket = \"{directory}/foobar-lb.sock\"\nstate_path = \"{directory}\"\nseed = \"0x1\"\n\
             slots = {}\nbackends = {}\n",
            self.services * self.slots,
            // Those that were replaced linger.
            2 * self.services * self.backends,
        );
        for service in 0..self.services {
            write!(text, "{}", self.service(service)).expect("a text takes what is written");
        }
        text
    }

    /// The name of a service.
    pub fn name(service: u32) -> String {
        format!("s{service}")
    }

    fn service(&self, service: u32) -> String {
        let (name, vip) = (Self::name(service), Ipv4Addr::from(FIRST_VIP + service));
        let mut text = format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{vip}:80\"\ntable_size = {}\n[service.health]\n{}\n",
            self.slots, self.health
        );
        let is_changed = service < self.changed;
        let last = self.backends - 1;
        for number in 0..self.backends {
            let place = if is_changed && number == last { self.backends } else { number };
            let address = Ipv4Addr::from(FIRST_BACKEND + service * MOST + place);
            text += &format!("[[service.backend]]\nname = \"b{place}\"\naddress = \"{address}:80\"\n");
        }
        text
    }
}
