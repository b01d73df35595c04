//! QUIC connections stay on their backend when the client's address changes, because connection ids name it; and they
//! would not without.

use anyhow::{Context, Result, bail, ensure};

use crate::support::balancer::Balancer;
use crate::support::config::{Service, services};
use crate::support::conversation::Protocol;
use crate::support::network::{Arms, Dual, Family, VIP, VIP_PORT, WEB1, WEB2, dual};
use crate::support::quic::{CONFIG_ROTATION, Client, Identity, SERVER_ID, Server};
use crate::support::site::{Mode, Site};

/// By the hash of the flow so many addresses do not all lead to the same of two backends.
const PLACES: u8 = 16;
/// Every connection has ports of its own, from here on.
const FIRST_PORT: u16 = 20_000;

#[test]
fn connections_follow_their_ids_in_nat() -> Result<()> {
    check_moves("quic-nat", Arms::Two, Mode::Nat)
}

#[test]
fn connections_follow_their_ids_in_nat_one_arm() -> Result<()> {
    check_moves("quic-nat-one", Arms::One, Mode::Nat)
}

#[test]
fn connections_follow_their_ids_in_dsr() -> Result<()> {
    check_moves("quic-dsr", Arms::Two, Mode::Dsr)
}

#[test]
fn connections_follow_their_ids_in_a_tunnel() -> Result<()> {
    check_moves("quic-gue", Arms::One, Mode::Gue(Family::V4))
}

/// Nothing in a packet of UDP shows that its flow is new, but what names nobody begins.
#[test]
fn a_drain_takes_new_connections_at_once_and_leaves_the_others() -> Result<()> {
    let stage = Stage::new("quic-drain", Arms::Two, Mode::Nat)?;
    let balancer = stage.serve(true)?;
    for family in Family::BOTH {
        let client = stage.connect(family, 0, FIRST_PORT)?;
        let backend = client.ask()?;
        balancer.backend(&["drain", &name(family), &backend])?.expect(0, &[])?;
        client.expect_answer_from(&backend).context("while it drains")?;
        stage.travel(&client, family, FIRST_PORT + 1, &backend)?;
        for place in 0..PLACES {
            let newcomer = stage.connect(family, place, FIRST_PORT + 2)?.ask()?;
            ensure!(newcomer != backend, "a new connection went to {backend}, which drains");
        }
    }
    Ok(())
}

fn check_moves(name: &str, arms: Arms, mode: Mode) -> Result<()> {
    let stage = Stage::new(name, arms, mode)?;
    let balancer = stage.serve(true)?;
    for family in Family::BOTH {
        let client = stage.connect(family, 0, FIRST_PORT)?;
        let backend = client.ask()?;
        stage.travel(&client, family, FIRST_PORT + 1, &backend).with_context(|| format!("{family:?}"))?;
    }
    balancer.reconfigure(&stage.services(false))?;
    for family in Family::BOTH {
        stage.expect_loss(family).with_context(|| format!("{family:?} without `quic`"))?;
    }
    Ok(())
}

/// Two QUIC servers in each family, and a client with many addresses.
struct Stage {
    site: Site,
    identity: Identity,
    _servers: Vec<Server>,
}

impl Stage {
    fn new(prefix: &str, arms: Arms, mode: Mode) -> Result<Self> {
        let site = Site::new(prefix, arms, mode)?;
        let client = &site.network.client;
        for place in 0..PLACES {
            client.add_address("eth0", &format!("{}/32", address(place).v4()))?;
            client.ip(&format!("address add {}/128 dev eth0 nodad", address(place).v6()))?;
        }
        let identity = Identity::new()?;
        let mut servers = Vec::new();
        for family in Family::BOTH {
            let backends = [("web1", &site.network.web1, WEB1), ("web2", &site.network.web2, WEB2)];
            for (number, (name, namespace, own)) in (1..).zip(backends) {
                let own = if mode.answers_directly() { VIP } else { own };
                let address = own.port(family, mode.backend_port());
                servers.push(Server::start(namespace, name, address, Some(server_id(number)), &identity)?);
            }
        }
        Ok(Self { site, identity, _servers: servers })
    }

    fn serve(&self, quic: bool) -> Result<Balancer> {
        self.site.serve(&self.services(quic))
    }

    /// The services, in which connection ids name backends or do not.
    fn services(&self, quic: bool) -> String {
        services(&Family::BOTH.map(|family| self.service(family, quic)))
    }

    fn service(&self, family: Family, quic: bool) -> Service {
        let mode = self.site.mode;
        let mut service = Service::new(&name(family), Protocol::Udp, VIP.port(family, VIP_PORT))
            .key("udp_drain = \"switch\"")
            .health(&["kind = \"none\""]);
        service = mode.keys().iter().fold(service, |service, key| service.key(key));
        if quic {
            let shape = format!("server_id_length = {SERVER_ID}, config_rotation = {CONFIG_ROTATION}");
            service = service.key(&format!("quic = {{ {shape} }}"));
        }
        for (number, (name, own)) in (1..).zip([("web1", WEB1), ("web2", WEB2)]) {
            service = service.backend(name, own.port(mode.outer(family), mode.backend_port()));
            if quic {
                let id: String = server_id(number).iter().map(|byte| format!("{byte:02x}")).collect();
                service = service.backend_key(&format!("quic_id = \"{id}\""));
            }
        }
        service
    }

    fn connect(&self, family: Family, place: u8, port: u16) -> Result<Client> {
        let (from, server) = (address(place).port(family, port), VIP.port(family, VIP_PORT));
        Client::connect(&self.site.network.client, from, server, &self.identity)
    }

    /// The client goes from place to place, and everywhere the same backend answers.
    fn travel(&self, client: &Client, family: Family, port: u16, backend: &str) -> Result<()> {
        for place in 0..PLACES {
            client.move_to(&self.site.network.client, address(place).port(family, port))?;
            client.expect_answer_from(backend).with_context(|| format!("at {:?}", address(place)))?;
        }
        Ok(())
    }

    /// The client goes from place to place until nobody answers: there the hash leads to another backend.
    fn expect_loss(&self, family: Family) -> Result<()> {
        let port = FIRST_PORT + 2;
        let client = self.connect(family, 0, port)?;
        let backend = client.ask()?;
        for place in 1..PLACES {
            client.move_to(&self.site.network.client, address(place).port(family, port))?;
            if client.ask().is_ok() {
                continue;
            }
            drop(client);
            let other = self.connect(family, place, port)?.ask()?;
            ensure!(other != backend, "{backend} did not answer, and answers a new connection from there");
            return Ok(());
        }
        bail!("{PLACES} addresses lead to {backend}")
    }
}

fn name(family: Family) -> String {
    format!("h3-{family:?}").to_lowercase()
}

/// The client there.
fn address(place: u8) -> Dual {
    dual([10, 0, 0, 100 + place], [0xfd00, 0xa], 0x100 + u16::from(place))
}

fn server_id(number: u8) -> [u8; SERVER_ID] {
    [0xf0, 0x0b, number]
}
