//! The same by kernel devices: shell commands for an operator who would rather have no program of ours on a backend.
//! Nothing is done here; what the commands need of a kernel is said in docs/decap.md.

use std::{
    collections::BTreeSet,
    fmt::{self, Display, Formatter},
    net::IpAddr,
};

/// How packets reach the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Without outer headers, as a `dsr` service sends them.
    Plain,
    /// One IP in the other.
    Ipip,
    /// In UDP.
    Gue {
        /// The UDP port that they come to.
        port: u16,
    },
}

/// Displayed as a shell script in two parts: one that makes a backend of a machine, and one that undoes that.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Names of the interfaces that packets for the VIPs come in by.
    pub interfaces: Vec<String>,
    /// The VIPs, at least one.
    pub vips: BTreeSet<IpAddr>,
    /// How packets reach the backend.
    pub arrival: Arrival,
}

/// A kernel device that takes outer headers off.
struct Device {
    name: &'static str,
    takes: &'static str,
    /// The family of the outer headers, by name.
    outer: &'static str,
    make: &'static str,
    end: &'static str,
    takes_v4: bool,
    takes_v6: bool,
    /// The command that has the kernel take GUE off first.
    fou: &'static str,
}

/// Those called `external` take packets from anybody to any address of the backend; a network namespace can have one of
/// each type. Of `sit` there is no such kind, but sit0 does the same.
const DEVICES: [Device; 3] = [
    Device {
        name: "lb_ipip",
        takes: "IPv4 in IPv4",
        outer: "IPv4",
        make: "ip link add name lb_ipip type ipip external",
        end: "ip link delete lb_ipip",
        takes_v4: true,
        takes_v6: false,
        fou: "ip fou",
    },
    Device {
        name: "sit0",
        takes: "IPv6 in IPv4",
        outer: "IPv4",
        make: "modprobe sit",
        end: "ip link set sit0 down",
        takes_v4: false,
        takes_v6: true,
        fou: "ip fou",
    },
    Device {
        name: "lb_ip6tnl",
        takes: "IPv4 or IPv6 in IPv6",
        outer: "IPv6",
        make: "ip link add name lb_ip6tnl type ip6tnl mode any external",
        end: "ip link delete lb_ip6tnl",
        takes_v4: true,
        takes_v6: true,
        fou: "ip -6 fou",
    },
];

/// Where the settings are kept as they were, as `sysctl -p` reads them.
const SAVED: &str = "/var/lib/foobar-lb-recipe.sysctl";

impl Display for Recipe {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "# To be run as root.")?;
        self.quiet_arp(f)?;
        self.put_vips(f)?;
        self.make_devices(f)?;
        writeln!(f, "\n# To undo it:")?;
        self.undo(f)
    }
}

impl Recipe {
    fn quiet_arp(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.first_v4().is_none() {
            return Ok(());
        }
        let settings = self.settings();
        let names: Vec<&str> = settings.iter().map(|(name, _)| name.as_str()).collect();
        writeln!(f, "\n# Nobody else may learn of the VIPs, and clients may be answered by any interface.")?;
        writeln!(f, "sysctl {} > {SAVED}", names.join(" "))?;
        settings.iter().try_for_each(|(name, value)| writeln!(f, "sysctl -w {name}={value}"))
    }

    fn put_vips(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n# The VIPs, never chosen as the source of connections to elsewhere.")?;
        self.vips.iter().try_for_each(|vip| match vip {
            IpAddr::V4(vip) => writeln!(f, "ip address add {vip}/32 dev lo scope host"),
            IpAddr::V6(vip) => writeln!(f, "ip address add {vip}/128 dev lo preferred_lft 0 nodad"),
        })
    }

    fn make_devices(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for Device { name, takes, outer, make, takes_v4, .. } in self.devices() {
            writeln!(f, "\n# {takes}: where the balancer knows this backend by its {outer} address")?;
            writeln!(f, "{make}\nip link set {name} up")?;
            if let Some(vip) = self.first_v4().filter(|_| *takes_v4) {
                writeln!(f, "# Even loose filtering drops what comes by a device without an address.")?;
                writeln!(f, "ip address add {vip}/32 dev {name} scope host")?;
                writeln!(f, "sysctl -w net.ipv4.conf.{name}.rp_filter=2")?;
            }
        }
        if let Arrival::Gue { port } = self.arrival {
            writeln!(f, "\n# GUE to port {port}")?;
            writeln!(f, "modprobe -a fou fou6")?;
            self.fous().iter().try_for_each(|fou| writeln!(f, "{fou} add port {port} gue"))?;
        }
        Ok(())
    }

    fn undo(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Arrival::Gue { port } = self.arrival {
            self.fous().iter().try_for_each(|fou| writeln!(f, "{fou} del port {port}"))?;
        }
        for Device { end, .. } in self.devices() {
            writeln!(f, "{end}")?;
        }
        self.vips.iter().try_for_each(|vip| match vip {
            IpAddr::V4(vip) => writeln!(f, "ip address delete {vip}/32 dev lo"),
            IpAddr::V6(vip) => writeln!(f, "ip address delete {vip}/128 dev lo"),
        })?;
        if self.first_v4().is_some() {
            writeln!(f, "sysctl -p {SAVED} && rm {SAVED}")?;
        }
        Ok(())
    }

    fn first_v4(&self) -> Option<&IpAddr> {
        self.vips.iter().find(|vip| vip.is_ipv4())
    }

    /// Those that are changed; a device's own go with it.
    fn settings(&self) -> Vec<(String, u32)> {
        let mut settings = vec![
            ("net.ipv4.conf.all.arp_ignore".to_owned(), 1),
            ("net.ipv4.conf.all.arp_announce".to_owned(), 2),
        ];
        // A dot in an interface's name stays apart from those of the setting.
        let names = self.interfaces.iter().map(|interface| interface.replace('.', "/"));
        settings.extend(names.map(|name| (format!("net.ipv4.conf.{name}.rp_filter"), 2)));
        settings
    }

    /// Those that take packets for these VIPs.
    fn devices(&self) -> Vec<&'static Device> {
        let takes = |device: &&Device| {
            self.arrival != Arrival::Plain
                && self.vips.iter().any(|vip| if vip.is_ipv4() { device.takes_v4 } else { device.takes_v6 })
        };
        DEVICES.iter().filter(takes).collect()
    }

    fn fous(&self) -> BTreeSet<&'static str> {
        self.devices().iter().map(|device| device.fou).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(vips: &[&str], arrival: Arrival) -> String {
        let vips = vips.iter().map(|vip| vip.parse().unwrap()).collect();
        Recipe { interfaces: vec!["eth0".into(), "eth1.7".into()], vips, arrival }.to_string()
    }

    /// The commands of both parts, without comments.
    fn commands(recipe: &str) -> [Vec<&str>; 2] {
        let (to_do, to_undo) = recipe.split_once("# To undo it:").unwrap();
        [to_do, to_undo]
            .map(|part| part.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect())
    }

    #[test]
    fn dsr_needs_quiet_arp_and_the_vips() {
        let recipe = recipe(&["203.0.113.80", "2001:db8::80"], Arrival::Plain);
        let [to_do, to_undo] = commands(&recipe);
        let settings = [
            "sysctl -w net.ipv4.conf.all.arp_ignore=1",
            "sysctl -w net.ipv4.conf.all.arp_announce=2",
            "sysctl -w net.ipv4.conf.eth0.rp_filter=2",
            "sysctl -w net.ipv4.conf.eth1/7.rp_filter=2",
        ];
        let vips = [
            "ip address add 203.0.113.80/32 dev lo scope host",
            "ip address add 2001:db8::80/128 dev lo preferred_lft 0 nodad",
        ];
        assert!(to_do[0].starts_with("sysctl net.ipv4") && to_do[0].ends_with(SAVED));
        assert_eq!(to_do[1..], [&settings[..], &vips].concat());
        assert_eq!(to_undo.len(), 3);
    }

    #[test]
    fn the_documentation_shows_what_is_printed() {
        let vips = BTreeSet::from(["203.0.113.80".parse().unwrap()]);
        let recipe = Recipe { interfaces: vec!["eth0".into()], vips, arrival: Arrival::Ipip }.to_string();
        let documentation = include_str!("../../../docs/decap.md");
        assert!(documentation.contains(&recipe), "docs/decap.md should have:\n{recipe}");
    }

    #[test]
    fn ipv6_alone_needs_no_settings() {
        let recipe = recipe(&["2001:db8::80"], Arrival::Ipip);
        assert!(!recipe.contains("sysctl") && !recipe.contains("lb_ipip"), "{recipe}");
        assert!(recipe.contains("ip link set sit0 up") && recipe.contains("type ip6tnl"), "{recipe}");
    }

    #[test]
    fn every_device_that_is_made_is_ended() {
        for vips in [&["203.0.113.80"][..], &["2001:db8::80"], &["203.0.113.80", "2001:db8::80"]] {
            let recipe = recipe(vips, Arrival::Gue { port: 6080 });
            let [to_do, to_undo] = commands(&recipe);
            let ups = to_do.iter().filter_map(|line| line.strip_prefix("ip link set ")?.strip_suffix(" up"));
            for name in ups {
                assert!(
                    to_undo.iter().any(|line| line.starts_with("ip link ") && line.contains(name)),
                    "{name}"
                );
            }
            let count = |part: &[&str], word: &str| part.iter().filter(|line| line.contains(word)).count();
            assert_eq!(count(&to_do, "fou add port 6080 gue"), count(&to_undo, "fou del port 6080"));
        }
    }
}
