//! What a balancer is set up for.

use std::fmt::Write;

use foobar_lb::prime::next_prime;

use crate::address::{Family, GUE_PORT, SERVICE_PORT};

/// How packets reach backends, and what is put around them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Nat,
    Dsr,
    Ipip,
    Gue,
    Snat,
}

/// What is known of the past of all slots, and so what is remembered of their flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slots {
    /// Nothing has changed.
    Settled,
    /// All have another owner.
    Moving,
    /// A move is over, and its flows are remembered.
    Traces,
    /// They are those of the program with full tracking.
    Tracked,
}

/// What a balancer is set up for: services of one kind, all with as many backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    pub mode: Mode,
    pub family: Family,
    pub slots: Slots,
    pub services: u16,
    /// Of each service.
    pub backends: u16,
    /// How many flows find room where flows are remembered.
    pub flows: u32,
}

impl Mode {
    pub const ALL: [Self; 5] = [Self::Nat, Self::Dsr, Self::Ipip, Self::Gue, Self::Snat];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Dsr => "dsr",
            Self::Ipip => "tunnel ipip",
            Self::Gue => "tunnel gue",
            Self::Snat => "snat",
        }
    }

    /// Where it sends packets; a packet that stays as it is keeps its port too.
    pub fn backend_port(self) -> u16 {
        match self {
            Self::Nat | Self::Snat => 8080,
            Self::Dsr | Self::Ipip | Self::Gue => SERVICE_PORT,
        }
    }

    /// The keys of a service.
    fn keys(self, family: Family) -> String {
        let outer_source = format!("outer_source = [\"{}\"]", family.own());
        match self {
            Self::Nat => "mode = \"nat\"".to_owned(),
            Self::Dsr => "mode = \"dsr\"".to_owned(),
            Self::Ipip => format!("mode = \"tunnel\"\n{outer_source}"),
            Self::Gue => {
                format!("mode = \"tunnel\"\n{outer_source}\nencapsulation = \"gue\"\ngue_port = {GUE_PORT}")
            }
            Self::Snat => {
                let sources: Vec<String> = family.snat_sources().map(|source| source.to_string()).collect();
                format!("mode = \"snat\"\nsnat_source = {sources:?}")
            }
        }
    }
}

impl Slots {
    pub fn name(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Moving => "moving",
            Self::Traces => "leaving traces",
            Self::Tracked => "full tracking",
        }
    }
}

impl Setup {
    /// One service of four backends on slots that are settled.
    pub const fn settled(mode: Mode, family: Family) -> Self {
        Self { mode, family, slots: Slots::Settled, services: 1, backends: 4, flows: 1024 }
    }

    /// Backends of all services together.
    pub fn all_backends(&self) -> u32 {
        u32::from(self.services) * u32::from(self.backends)
    }

    /// Slots of all services together.
    pub fn all_slots(&self) -> u32 {
        u32::from(self.services) * self.table_size()
    }

    /// At least 100 slots for each backend, as the documentation asks for.
    pub fn table_size(&self) -> u32 {
        match (self.services, self.backends) {
            (1000.., _) => 1_021,
            (_, ..=655) => 65_537,
            (_, backends) => next_prime(u32::from(backends) * 100),
        }
    }

    /// The configuration.
    pub fn to_toml(self) -> String {
        let Self { mode, family, services, backends, .. } = self;
        let mut text = format!("[daemon]\nsnat_ports = \"1024-65535\"\nslots = {}\n", self.all_slots());
        for service in 0..services {
            write!(
                text,
                "[[service]]\nname = \"s{service}\"\naddress = \"{}\"\ntable_size = {}\n{}\n\
                 health = {{ kind = \"none\" }}\n",
                family.vip(service),
                self.table_size(),
                mode.keys(family)
            )
            .expect("a string can be written to");
            for backend in service * backends..(service + 1) * backends {
                let address = std::net::SocketAddr::new(family.backend(backend), mode.backend_port());
                writeln!(text, "[[service.backend]]\nname = \"b{backend}\"\naddress = \"{address}\"")
                    .expect("a string can be written to");
            }
        }
        text
    }
}
