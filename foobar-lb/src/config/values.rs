//! Reads one value: text -> address, prefix, duration, choice and so on, or what is wrong with it. How values
//! go together is left to the sections.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use humantime::format_duration;
use ipnet::IpNet;

use super::shape::Integer;
use crate::model::{Destination, NotAShare, Ports, Share};

/// Names are metric labels and words of a command line.
const MAX_NAME: usize = 64;
/// Blocks with a meaning of their own, loopback and multicast among them, are not inside longer prefixes.
const SHORTEST_PREFIX: u8 = 8;

/// What is wrong with a value.
pub(super) struct Fault {
    pub(super) message: String,
    /// What would be right.
    pub(super) help: String,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into() }
    }
}

pub(super) fn name(text: &str) -> Result<String, Fault> {
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    let odd = text.chars().find(|&c| !(c.is_ascii_alphanumeric() || "._-".contains(c)));
    if starts_well && odd.is_none() && text.len() <= MAX_NAME {
        return Ok(text.into());
    }
    let message = match odd {
        _ if text.is_empty() => "a name is empty".to_owned(),
        Some(odd) => format!("a name has no {odd:?} in it"),
        None if text.len() > MAX_NAME => format!("a name of {} characters is too long", text.len()),
        None => "a name begins with a letter or digit".to_owned(),
    };
    let help =
        format!("1 to {MAX_NAME} of A-Z a-z 0-9 . _ - and first a letter or digit, for metrics and commands");
    Err(Fault::new(message, help))
}

/// Where a backend is: an address that one host on the network may have, and a port.
pub(super) fn address(text: &str) -> Result<SocketAddr, Fault> {
    let address = listen_address(text)?;
    check_unicast(address.ip())?;
    Ok(address)
}

/// The same without the port, or with it.
pub(super) fn host(text: &str) -> Result<SocketAddr, Fault> {
    match text.parse::<IpAddr>() {
        Ok(host) => check_unicast(host).map(|()| SocketAddr::new(host, 0)),
        Err(_) => address(text),
    }
}

/// Where clients reach a service: an address or a prefix, and a port, a range of ports, or all of them.
pub(super) fn destination(text: &str) -> Result<Destination, Fault> {
    if let Ok(vip) = text.parse::<IpNet>() {
        let example = Destination { vip, ports: Ports::one(80) };
        return Err(Fault::new(format!("{text} has no port"), format!("for port 80 \"{example}\"")));
    }
    // What has neither a prefix nor several ports is told of in the words for that.
    let wide = text.rsplit_once(':').filter(|(vip, ports)| {
        vip.contains('/') || *ports == "*" || ports.contains('-') && !ports.contains(']')
    });
    let Some((vip, ports)) = wide else { return address(text).map(Destination::from) };
    let ports = service_ports(ports)?;
    let vip = vip_prefix(vip)?;
    Ok(Destination { vip, ports })
}

fn service_ports(text: &str) -> Result<Ports, Fault> {
    const RIGHT: &str =
        "a port from 1 to 65535, a range such as 5000-5100 with the lower one first, or * for all";
    if text == "*" {
        return Ok(Ports::ANY);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first @ 1..), Ok(last)) if first <= last => Ok(Ports { first, last }),
        _ => Err(Fault::new(format!("{text:?} are no ports"), RIGHT)),
    }
}

/// One address, in brackets if it is an IPv6 one, or a prefix.
fn vip_prefix(text: &str) -> Result<IpNet, Fault> {
    let is_ipv6 = text.contains(':');
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let bare = inner.filter(|_| is_ipv6).or_else(|| Some(text).filter(|_| !is_ipv6));
    let prefix = bare.and_then(|bare| bare.parse::<IpNet>().or_else(|_| bare.parse().map(IpAddr::into)).ok());
    let prefix = prefix.ok_or_else(|| {
        let help = "an IP address or a prefix, such as \"203.0.113.0/28:80\" or \"[2001:db8::/64]:80\"";
        Fault::new(format!("{text:?} is neither an address nor a prefix"), help)
    })?;
    check_canonical(prefix)?;
    check_unicast(prefix.addr())?;
    check_size(prefix, "the addresses that the network routes to this balancer")?;
    Ok(prefix)
}

/// A VIP, or a prefix of VIPs, without ports.
pub(super) fn vip(text: &str) -> Result<IpNet, Fault> {
    if text.contains('/') { vip_prefix(&bracketed(text)) } else { ip(text).map(IpNet::from) }
}

fn bracketed(text: &str) -> String {
    if text.contains(':') { format!("[{text}]") } else { text.to_owned() }
}

/// Blocks with a meaning of their own, and the IPv6 notation of IPv4 addresses, are not inside longer prefixes.
fn check_size(prefix: IpNet, right: &str) -> Result<(), Fault> {
    let has_mapped = prefix.contains(&IpAddr::from(Ipv4Addr::BROADCAST.to_ipv6_mapped()));
    if prefix.prefix_len() < SHORTEST_PREFIX || has_mapped {
        return Err(Fault::new(format!("{prefix} is more than one network"), right));
    }
    Ok(())
}

/// Where the daemon itself listens.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, Fault> {
    let address: SocketAddr = text.parse().map_err(|_| explain_address(text))?;
    if address.port() == 0 {
        return Err(Fault::new("port 0 is no port to connect to", "a port from 1 to 65535"));
    }
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => Err(Fault::new(
            "an address with a zone belongs to one host only",
            format!("leave out `%{}`", v6.scope_id()),
        )),
        _ => Ok(address),
    }
}

/// An address of one host, without a port.
pub(super) fn ip(text: &str) -> Result<IpAddr, Fault> {
    let ip = text.parse::<IpAddr>().map_err(|_| match text.parse::<SocketAddr>() {
        Ok(address) => {
            Fault::new(format!("{text} has a port"), format!("the address alone: \"{}\"", address.ip()))
        }
        Err(_) => Fault::new(
            format!("{text:?} is not an address"),
            "an IP address without a port, such as \"203.0.113.80\" or \"2001:db8::80\"",
        ),
    })?;
    check_unicast(ip)?;
    Ok(ip)
}

/// Addresses that outer headers come from: one, or all of a prefix.
pub(super) fn source(text: &str) -> Result<IpNet, Fault> {
    let source =
        text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
            let help = "a prefix or an address, such as \"172.16.0.0/16\", \"fd00:5::/64\" or \"10.0.1.1\"";
            Fault::new(format!("{text:?} is neither a prefix nor an address"), help)
        })?;
    check_canonical(source)?;
    let help =
        || format!("a unicast prefix of {SHORTEST_PREFIX} bits or more, which routers on the way let pass");
    check_unicast(source.addr()).map_err(|fault| Fault { help: help(), ..fault })?;
    check_size(source, &help())?;
    Ok(source)
}

/// Clients that talk to backends directly.
pub(super) fn prefix(text: &str) -> Result<IpNet, Fault> {
    let example = "an address and the length of the prefix, such as \"192.0.2.0/24\" or \"2001:db8::/64\"";
    let prefix: IpNet = text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(address) => Fault::new(
            format!("{text} is an address, not a prefix"),
            format!("for this address alone \"{}\"", IpNet::from(address)),
        ),
        Err(_) => Fault::new(format!("{text:?} is not a prefix"), example),
    })?;
    check_canonical(prefix)?;
    if prefix.prefix_len() == 0 {
        return Err(Fault::new(
            format!("{prefix} is everybody: no client would get a reply from the VIP"),
            "the networks of those who connect to the backends' own addresses",
        ));
    }
    Ok(prefix)
}

/// Bytes in hexadecimal digits.
pub(super) fn bytes(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: char| digit.to_digit(16);
    let digits: Vec<u32> = text.chars().map(digit).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| (high << 4 | low) as u8).collect())
}

pub(super) fn duration(text: &str, what: &str, range: RangeInclusive<Duration>) -> Result<Duration, Fault> {
    let limits = format!("{} to {}", format_duration(*range.start()), format_duration(*range.end()));
    let duration = humantime::parse_duration(text).map_err(|error| {
        Fault::new(
            format!("{text:?} is not a duration: {error}"),
            format!("{limits}, with a unit: \"500ms\", \"2s\", \"15m\""),
        )
    })?;
    in_range(duration, range).ok_or_else(|| Fault::new(format!("{what} {text} is out of range"), limits))
}

pub(super) fn integer(value: Integer, what: &str, range: RangeInclusive<u32>) -> Result<u32, Fault> {
    let limits = format!("{} to {}", range.start(), range.end());
    let in_range = u32::try_from(value.0).ok().and_then(|value| in_range(value, range));
    in_range.ok_or_else(|| Fault::new(format!("{what} {} is out of range", value.0), limits))
}

pub(super) fn port(value: Integer, what: &str) -> Result<u16, Fault> {
    let port = integer(value, what, 1..=u32::from(u16::MAX))?;
    Ok(port.try_into().expect("the range fits"))
}

/// A percentage.
pub(super) fn share(text: &str) -> Result<Share, Fault> {
    text.parse().map_err(|error: NotAShare| Fault::new(format!("{text:?} is {error}"), "for example \"30%\""))
}

/// The first port and the last.
pub(super) fn ports(text: &str) -> Result<RangeInclusive<u16>, Fault> {
    let example = "the first port and the last, such as \"1024-32767\"";
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    let (first, last) = text
        .split_once('-')
        .and_then(|(first, last)| Some((port(first)?, port(last)?)))
        .ok_or_else(|| Fault::new(format!("{text:?} is not a range of ports"), example))?;
    if first > last {
        return Err(Fault::new(format!("the range {text} is empty"), format!("\"{last}-{first}\"")));
    }
    Ok(first..=last)
}

/// One of `choices`; `unavailable` are words of the balancer's language that this version does not speak.
pub(super) fn choice<T: Copy>(
    text: &str,
    what: &str,
    choices: &[(&str, T)],
    unavailable: &[&str],
) -> Result<T, Fault> {
    if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    if unavailable.contains(&text) {
        return Err(Fault::new(
            format!("{what} `{text}` is not available yet"),
            format!("use {}", list(&words)),
        ));
    }
    Err(Fault::new(format!("there is no {what} `{text}`"), nearest(text, &words)))
}

/// A path that means the same wherever the daemon is started.
pub(super) fn path(text: &str) -> Result<PathBuf, Fault> {
    let path = PathBuf::from(text);
    if !path.is_absolute() || text.contains('\0') {
        return Err(Fault::new(format!("{text:?} is not an absolute path"), "begin it with `/`"));
    }
    Ok(path)
}

/// TOML integers have a sign, so all 64 bits need a text.
pub(super) fn seed(text: &str) -> Result<u64, Fault> {
    let digits = text.strip_prefix("0x").filter(|digits| digits.chars().all(|c| c.is_ascii_hexdigit()));
    digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).ok_or_else(|| {
        let help = "64 bits in hexadecimal, such as \"0x9f3c51d20b7e8a46\"; `openssl rand -hex 8` makes some";
        Fault::new(format!("{text:?} is not a seed"), help)
    })
}

/// The word that was probably meant, or else all there are.
pub(crate) fn nearest(text: &str, words: &[&str]) -> String {
    if text.len() > MAX_NAME {
        return format!("use {}", list(words));
    }
    let distance = |word: &&&str| strsim::damerau_levenshtein(text, word);
    match words.iter().min_by_key(distance) {
        Some(word) if distance(&word) <= word.len().max(3) / 3 => format!("did you mean `{word}`?"),
        _ => format!("use {}", list(words)),
    }
}

fn list(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.join(""),
    }
}

fn in_range<T: PartialOrd>(value: T, range: RangeInclusive<T>) -> Option<T> {
    range.contains(&value).then_some(value)
}

/// Why `text` is not an address and a port.
fn explain_address(text: &str) -> Fault {
    const EXAMPLE: &str = "an IP address and a port, such as \"203.0.113.80:80\" or \"[2001:db8::80]:80\"";
    if text.parse::<Ipv6Addr>().is_ok() {
        return Fault::new(format!("{text} lacks the brackets and port"), "such as \"[2001:db8::80]:80\"");
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        let example = SocketAddr::new(ip, 80);
        return Fault::new(format!("{text} has no port"), format!("for port 80 \"{example}\""));
    }
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return Fault::new(format!("{port:?} is not a port"), "a port from 1 to 65535");
    }
    let like_a_host = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if host.contains(|c: char| c.is_ascii_alphabetic()) && host.chars().all(like_a_host) {
        let help = format!("names are not resolved: write the address that `getent ahosts {host}` shows");
        return Fault::new(format!("{host} is a host name, not an IP address"), help);
    }
    Fault::new(format!("{text:?} is not an address"), EXAMPLE)
}

fn check_canonical(prefix: IpNet) -> Result<(), Fault> {
    check_not_mapped(prefix.addr())?;
    if prefix.addr() == prefix.network() {
        return Ok(());
    }
    let help = format!("\"{}\", or \"{}\" for the address alone", prefix.trunc(), IpNet::from(prefix.addr()));
    Err(Fault::new(format!("{prefix} has bits set behind its prefix"), help))
}

fn check_unicast(ip: IpAddr) -> Result<(), Fault> {
    check_not_mapped(ip)?;
    const RIGHT: &str = "the unicast address that the network routes to the host";
    let refuse = |kind: &str, why: &str| Err(Fault::new(format!("{ip} is {kind}: {why}"), RIGHT));
    match ip {
        _ if ip.is_unspecified() => refuse("the unspecified address", "no packet is sent to it"),
        _ if ip.is_loopback() => refuse("a loopback address", "its packets do not leave the host"),
        _ if ip.is_multicast() => refuse("a multicast address", "it is not one host's"),
        IpAddr::V4(v4) if v4.is_broadcast() => refuse("the broadcast address", "it is not one host's"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            refuse("a link-local address", "it may be another host on every link")
        }
        _ => Ok(()),
    }
}

/// The data path has one address type in which such an address would be the IPv4 address.
fn check_not_mapped(ip: IpAddr) -> Result<(), Fault> {
    let mapped = match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped(),
        IpAddr::V4(_) => None,
    };
    match mapped {
        Some(v4) => {
            Err(Fault::new(format!("{ip} is an IPv4 address in IPv6 notation"), format!("write {v4}")))
        }
        None => Ok(()),
    }
}

/// What people call the family of an address.
pub(super) fn family(is_ipv6: bool) -> &'static str {
    if is_ipv6 { "IPv6" } else { "IPv4" }
}

/// `1 thing`, `2 things`.
pub(super) fn count(number: u32, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
