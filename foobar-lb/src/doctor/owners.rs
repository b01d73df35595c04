//! Who answers for an address on the link: each is asked for by ARP (RFC 5227) or neighbour solicitation (RFC 4862) in the
//! way of a host that would like to have it. Such a question says nothing of who asks, so nobody's tables change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice,
    icmpv6::NeighborSolicitationPayload,
};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket},
};
use tokio::time::{Instant, sleep};

use super::{Finding, Kind, network::place, unseen};
use crate::{
    ethernet::{self, BROADCAST, Link},
    image::Mac,
    model::{Backend, Mode, Service, is_host},
    neighbour::View,
};

/// How long hosts have to answer, each time they are asked.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often everything is asked: a frame may get lost.
const ROUNDS: usize = 2;
/// How often answers are taken in.
const INTERVAL: Duration = Duration::from_millis(10);
/// Questions that are sent at once, and in all: each reaches every host on the link.
const AT_ONCE: usize = 64;
const MOST: usize = 2048;
/// No answer is longer.
const LONGEST: usize = 2048;

/// An address, and the index of the interface on whose link it is asked for.
type Question = (u32, IpAddr);
/// MAC addresses of those who answered.
type Answers = BTreeMap<Question, BTreeSet<[u8; 6]>>;

/// Addresses of VIPs, of this machine and of backends that more than one host answers for, and backends that answer for a
/// VIP.
pub async fn examine(services: &[Service], interfaces: &[String], view: &View) -> Vec<Finding> {
    let mut questions = questions(services, interfaces, view);
    let mut findings = Vec::new();
    if questions.len() > MOST {
        let seen = format!("only {MOST} of {} are asked for, which each host hears", questions.len());
        findings.push(Finding::new(Kind::CannotTell, "addresses owned twice", seen));
        questions.truncate(MOST);
    }
    match ask(&questions, view).await {
        Ok(answers) => findings.extend(judge(&answers, services, view)),
        Err(error) => findings.push(unseen("addresses owned twice", &error)),
    }
    findings
}

/// The most important ones first.
fn questions(services: &[Service], interfaces: &[String], view: &View) -> Vec<Question> {
    let attached = || view.links.iter().filter(|(_, link)| interfaces.contains(&link.name) && link.up);
    let vips = services.iter().filter_map(vip);
    let vips = vips.flat_map(|vip| attached().map(move |(index, _)| (*index, vip)));
    let own = attached().flat_map(|(index, link)| link.addresses.iter().map(|own| (*index, *own)));
    let backends = services.iter().flat_map(|service| &service.backends);
    let backends = backends.filter_map(|backend| {
        let hop = view.next_hops.get(&backend.address.ip())?;
        hop.on_link.then_some((hop.interface, backend.address.ip()))
    });
    let mut asked = BTreeSet::new();
    vips.chain(own).chain(backends).filter(|question| asked.insert(*question)).collect()
}

/// Its VIP, if it is one address.
fn vip(service: &Service) -> Option<IpAddr> {
    let vip = &service.key.address.vip;
    is_host(vip).then(|| vip.addr())
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot open a packet socket")]
    Open(#[source] Errno),
    #[error(transparent)]
    Interface(#[from] ethernet::Error),
}

async fn ask(questions: &[Question], view: &View) -> Result<Answers, Error> {
    let mut answers = Answers::new();
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).map_err(Error::Open)?;
    let indices: BTreeSet<u32> = questions.iter().map(|(index, _)| *index).collect();
    // One that has gone since asks nobody.
    let named = indices.into_iter().filter_map(|index| Some((index, view.links.get(&index)?.name.as_str())));
    let (indices, names): (Vec<u32>, Vec<&str>) = named.unzip();
    let links: BTreeMap<u32, Link> = indices.into_iter().zip(ethernet::find_links(names)?).collect();
    for _ in 0..ROUNDS {
        for questions in questions.chunks(AT_ONCE) {
            for (index, address) in questions {
                if let Some(link) = links.get(index) {
                    // What does not fit now is asked in the next round.
                    link.send(&socket, &question(*address, link.mac)).ok();
                }
            }
            sleep(INTERVAL).await;
            take_in(&socket, &mut answers);
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            sleep(INTERVAL).await;
            take_in(&socket, &mut answers);
        }
    }
    Ok(answers)
}

fn take_in(socket: &OwnedFd, answers: &mut Answers) {
    let mut frame = [0; LONGEST];
    while let Ok((length, from)) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) {
        let index = from.map_or(0, |from| from.ifindex() as u32);
        if let Some((address, mac)) = answer(&frame[..length.min(LONGEST)]) {
            answers.entry((index, address)).or_default().insert(mac);
        }
    }
}

fn question(address: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp_probe(address, mac),
        IpAddr::V6(address) => neighbour_solicitation(address, mac),
    }
}

fn arp_probe(address: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: mac,
        sender_ipv4: [0; 4],
        target_mac: [0; 6],
        target_ipv4: address.octets(),
    };
    let builder = PacketBuilder::ethernet2(mac, BROADCAST).arp(packet.into());
    let mut frame = Vec::with_capacity(builder.size());
    builder.write(&mut frame).expect("a vector takes every byte");
    frame
}

fn neighbour_solicitation(address: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    // The solicited-node multicast address, and how Ethernet carries packets to it (RFC 4291, 2.7.1; RFC 2464, 7).
    let [.., a, b, c] = address.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let builder = PacketBuilder::ethernet2(mac, [0x33, 0x33, 0xff, a, b, c])
        .ipv6([0; 16], group.octets(), 255)
        .icmpv6(Icmpv6Type::NeighborSolicitation);
    let payload = NeighborSolicitationPayload { target_address: address }.to_bytes();
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, &payload).expect("a vector takes every byte");
    frame
}

/// The address that a frame answers for, and whose it is said to be.
fn answer(frame: &[u8]) -> Option<(IpAddr, [u8; 6])> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    if let Some(NetSlice::Arp(arp)) = &packet.net {
        let address: [u8; 4] = arp.sender_protocol_addr().try_into().ok()?;
        let mac = arp.sender_hw_addr().try_into().ok()?;
        return (arp.operation() == ArpOperation::REPLY).then_some((address.into(), mac));
    }
    let TransportSlice::Icmpv6(icmp) = packet.transport? else { return None };
    let Icmpv6Type::NeighborAdvertisement(_) = icmp.icmp_type() else { return None };
    let (target, options) = icmp.payload().split_first_chunk::<16>()?;
    // The target link-layer address option (RFC 4861 section 4.6.1), which answers to a group must have.
    let mac = options.strip_prefix(&[2, 1])?.first_chunk::<6>()?;
    Some(((*target).into(), *mac))
}

fn judge(answers: &Answers, services: &[Service], view: &View) -> Vec<Finding> {
    let own: BTreeSet<[u8; 6]> = view.links.values().filter_map(|link| link.mac).collect();
    let mut findings = Vec::new();
    for ((index, address), macs) in answers {
        let mut others: BTreeSet<[u8; 6]> = macs.difference(&own).copied().collect();
        for (service, backend, mac) in backends_behind(services, *address, *index, view) {
            if others.remove(&mac) {
                findings.push(not_quiet(service, backend, *address));
            }
        }
        let announced = services.iter().any(|service| service.announced().any(|vip| vip == *address));
        let is_own = announced || view.locals.contains(address);
        if others.len() + usize::from(is_own) > 1 {
            let interface = view.links.get(index).map_or("?", |link| &link.name);
            findings.push(owned_twice(*address, interface, &others, is_own));
        }
    }
    findings
}

/// The backends on that link of services whose VIP this is.
fn backends_behind<'s>(
    services: &'s [Service],
    address: IpAddr,
    index: u32,
    view: &'s View,
) -> impl Iterator<Item = (&'s Service, &'s Backend, [u8; 6])> {
    let behind = services.iter().filter(move |service| vip(service) == Some(address));
    let backends = behind.flat_map(|service| service.backends.iter().map(move |backend| (service, backend)));
    backends.filter_map(move |(service, backend)| {
        let hop = view.next_hops.get(&backend.address.ip())?;
        (hop.on_link && hop.interface == index).then_some((service, backend, hop.destination))
    })
}

fn not_quiet(service: &Service, backend: &Backend, vip: IpAddr) -> Finding {
    let asked = if vip.is_ipv4() { "ARP requests" } else { "neighbour solicitations" };
    let seen =
        format!("it answers {asked} for the VIP {vip}: clients on its link come to it, past the balancer");
    let finding = Finding::new(Kind::VipNotQuiet, place(&service.name, &backend.name), seen);
    match (&service.mode, vip) {
        (Mode::Dsr, IpAddr::V4(_)) => {
            finding.remedy(format!("on the backend, foobar-lb decap --dsr IFACE --vip {vip}"))
        }
        (Mode::Tunnel(_), IpAddr::V4(_)) => {
            finding.remedy(format!("on the backend, foobar-lb decap IFACE --vip {vip}"))
        }
        (Mode::Dsr | Mode::Tunnel(_), IpAddr::V6(_)) => {
            finding.remedy(format!("on the backend, ip address del {vip} dev IFACE, and add it to lo"))
        }
        _ => finding.remedy(format!("on the backend, ip address del {vip} dev IFACE")),
    }
}

fn owned_twice(address: IpAddr, interface: &str, others: &BTreeSet<[u8; 6]>, is_own: bool) -> Finding {
    let others: Vec<String> = others.iter().map(|mac| Mac(*mac).to_string()).collect();
    let also = if is_own { "this machine has it, and so has" } else { "it is answered for by" };
    let seen = format!("{also} {}: packets go now to one, now to the other", others.join(" and "));
    Finding::new(Kind::AddressTwice, format!("address {address} on {interface}"), seen)
        .remedy("take it off one of them; the switch's table of MAC addresses tells where they are")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn ipv4_is_asked_for_without_an_address_of_its_own() {
        let bytes = question("10.0.1.11".parse().unwrap(), MAC);
        let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
        let ethernet = packet.link.unwrap().to_header().unwrap().ethernet2().unwrap();
        assert_eq!((ethernet.source, ethernet.destination), (MAC, BROADCAST));
        let Some(NetSlice::Arp(arp)) = packet.net else { panic!("{:?}", packet.net) };
        assert_eq!(arp.operation(), ArpOperation::REQUEST);
        assert_eq!(
            (arp.sender_protocol_addr(), arp.target_protocol_addr()),
            (&[0; 4][..], &[10, 0, 1, 11][..])
        );
        assert_eq!(answer(&bytes), None, "a question is no answer");
    }

    #[test]
    fn ipv6_is_asked_for_at_its_group_without_an_address_of_its_own() {
        let target: Ipv6Addr = "2001:db8::12:3456".parse().unwrap();
        let bytes = question(target.into(), MAC);
        let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
        let ethernet = packet.link.unwrap().to_header().unwrap().ethernet2().unwrap();
        assert_eq!(ethernet.destination, [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        let Some(NetSlice::Ipv6(ip)) = packet.net else { panic!("{:?}", packet.net) };
        let ip = ip.header();
        assert_eq!((ip.source_addr(), ip.hop_limit()), (Ipv6Addr::UNSPECIFIED, 255));
        assert_eq!(ip.destination_addr(), "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
        let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("{:?}", packet.transport) };
        assert!(icmp.is_checksum_valid(ip.source(), ip.destination()));
        assert_eq!(
            (icmp.icmp_type(), icmp.payload()),
            (Icmpv6Type::NeighborSolicitation, &target.octets()[..])
        );
        assert_eq!(answer(&bytes), None, "a question is no answer");
    }
}
