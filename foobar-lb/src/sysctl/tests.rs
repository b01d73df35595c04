//! The logic on files of our own; what the kernel makes of it is seen by the traffic tests.

use std::net::IpAddr;

use tempfile::TempDir;

use super::*;
use crate::config;

const NOTHING: Demands = Demands { replies: Families { v4: false, v6: false }, local_vip: false };
const V4: Demands = Demands { replies: Families { v4: true, v6: false }, ..NOTHING };
const LOCAL_V4: Demands = Demands { local_vip: true, ..V4 };
const V6: Demands = Demands { replies: Families { v4: false, v6: true }, ..NOTHING };

/// A directory like `/proc/sys` with the interfaces `all`, `default`, `lo`, `eth0` and `eth1.7`, every
/// setting 0.
struct Kernel {
    directory: TempDir,
    sysctls: Sysctls,
}

impl Kernel {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let kernel = Self { sysctls: Sysctls::below(directory.path().join("sys")), directory };
        for interface in ["all", "default", "lo", "eth0", "eth1.7"] {
            for name in
                ["forwarding", "rp_filter", "accept_local", "send_redirects", "arp_ignore", "arp_announce"]
            {
                kernel.add(&ipv4(interface, name), "0");
            }
            kernel.add(&ipv6(interface, "forwarding"), "0");
            kernel.add(&ipv6(interface, "accept_ra"), "0");
        }
        kernel.add("kernel/random/boot_id", "first");
        kernel
    }

    fn add(&self, path: &str, text: &str) {
        let path = self.sysctls.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn write(&self, values: &[(&str, u32)]) {
        values.iter().for_each(|(path, value)| self.sysctls.write(path, *value).unwrap());
    }

    fn values(&self, paths: &[&str]) -> Vec<u32> {
        paths.iter().map(|path| self.sysctls.read(path).unwrap()).collect()
    }

    fn saved(&self) -> PathBuf {
        self.directory.path().join("state/sysctls")
    }

    fn needed(&self, demands: Demands) -> Vec<(String, u32)> {
        let needed = self.sysctls.needed(&["eth0".into()], demands).unwrap();
        needed.into_iter().map(|requirement| (requirement.path, requirement.wanted)).collect()
    }

    /// As `attach` does: nothing for ICMP redirects but off.
    fn stop_redirects(&self) {
        let redirects = self.sysctls.redirects(&["eth0".into()]).unwrap();
        self.sysctls.set(&redirects, &self.saved()).unwrap();
    }
}

fn owned<const N: usize>(list: [(&str, u32); N]) -> Vec<(String, u32)> {
    list.map(|(path, wanted)| (path.to_owned(), wanted)).into()
}

#[test]
fn ipv4_needs_forwarding_and_no_strict_filter_on_attached_interfaces_only() {
    let kernel = Kernel::new();
    assert_eq!(kernel.needed(V4), owned([("net/ipv4/conf/eth0/forwarding", 1)]));
    kernel.write(&[("net/ipv4/conf/eth0/forwarding", 1), ("net/ipv4/conf/eth1.7/rp_filter", 1)]);
    assert_eq!(kernel.needed(V4), []);
}

#[test]
fn the_filter_is_the_stricter_of_all_and_interface_but_loose_wins() {
    let kernel = Kernel::new();
    kernel.write(&[("net/ipv4/conf/eth0/forwarding", 1)]);
    let loosen = [("net/ipv4/conf/eth0/rp_filter", 2)];
    for (all, interface, expected) in
        [(0, 1, &loosen[..]), (1, 0, &loosen), (1, 1, &loosen), (1, 2, &[]), (2, 1, &[]), (0, 0, &[])]
    {
        kernel.write(&[("net/ipv4/conf/all/rp_filter", all), ("net/ipv4/conf/eth0/rp_filter", interface)]);
        let expected: Vec<_> = expected.iter().map(|(path, wanted)| (path.to_string(), *wanted)).collect();
        assert_eq!(kernel.needed(V4), expected, "all {all}, interface {interface}");
    }
}

#[test]
fn a_local_vip_needs_accept_local_on_all_or_the_interface() {
    let kernel = Kernel::new();
    kernel.write(&[("net/ipv4/conf/eth0/forwarding", 1)]);
    assert_eq!(kernel.needed(LOCAL_V4), owned([("net/ipv4/conf/eth0/accept_local", 1)]));
    kernel.write(&[("net/ipv4/conf/all/accept_local", 1)]);
    assert_eq!(kernel.needed(LOCAL_V4), []);
}

#[test]
fn ipv6_keeps_router_advertisements_before_it_forwards() {
    let kernel = Kernel::new();
    kernel.write(&[("net/ipv6/conf/eth1.7/accept_ra", 1), ("net/ipv6/conf/lo/accept_ra", 1)]);
    let keep = ("net/ipv6/conf/eth1.7/accept_ra", 2);
    assert_eq!(kernel.needed(V6), owned([keep, ("net/ipv6/conf/all/forwarding", 1)]));
    kernel.write(&[("net/ipv6/conf/all/forwarding", 1)]);
    assert_eq!(kernel.needed(V6), owned([keep, ("net/ipv6/conf/eth0/forwarding", 1)]));
    kernel.write(&[("net/ipv6/conf/eth0/forwarding", 1)]);
    assert_eq!(kernel.needed(V6), [], "nothing starts to forward");
}

#[test]
fn what_is_asked_follows_from_modes_and_addresses() {
    let demands = |keys: &str, locals: &[&str]| {
        let text = format!(
            "[[service]]\nname = \"www\"\naddress = \"203.0.113.80:80\"\n{keys}\n\
             backend = [{{ name = \"web1\", address = \"10.0.1.11:80\" }}]\n"
        );
        let services = config::parse(&text, "test.toml").unwrap_or_else(|error| panic!("{error}")).services;
        let locals: Vec<IpAddr> = locals.iter().map(|address| address.parse().unwrap()).collect();
        Demands::new(&services, &locals, false)
    };
    assert_eq!(demands("", &["10.0.1.1"]), V4);
    assert_eq!(demands("", &["203.0.113.80"]), LOCAL_V4);
    assert_eq!(demands("mode = \"dsr\"", &["203.0.113.80"]), NOTHING);
    assert_eq!(demands("mode = \"tunnel\"", &["203.0.113.80"]), NOTHING);
}

#[test]
fn a_requirement_is_displayed_as_the_command_that_sets_it() {
    let kernel = Kernel::new();
    let needed = kernel.sysctls.needed(&["eth1.7".into()], V4).unwrap();
    assert_eq!(
        needed[0].to_string(),
        format!("sysctl -w net.ipv4.conf.eth1/7.forwarding=1  # is 0: {WHY_FORWARDING}")
    );
}

#[test]
fn a_missing_interface_is_an_error_that_names_the_file() {
    let kernel = Kernel::new();
    let error = kernel.sysctls.redirects(&["eth9".into()]).unwrap_err();
    assert!(matches!(error, Error::Read { path, .. } if path.ends_with("net/ipv4/conf/eth9/send_redirects")));
}

const REDIRECTS: [&str; 3] = [
    "net/ipv4/conf/all/send_redirects",
    "net/ipv4/conf/eth0/send_redirects",
    "net/ipv4/conf/eth1.7/send_redirects",
];

#[test]
fn what_was_set_is_restored_and_the_file_removed() {
    let kernel = Kernel::new();
    kernel.write(&REDIRECTS.map(|path| (path, 1)));
    kernel.stop_redirects();
    assert_eq!(kernel.values(&REDIRECTS), [0, 0, 1]);
    kernel.sysctls.restore(&kernel.saved()).unwrap();
    assert_eq!(kernel.values(&REDIRECTS), [1, 1, 1]);
    assert!(!kernel.saved().exists());
    kernel.sysctls.restore(&kernel.saved()).unwrap();
}

#[test]
fn after_a_crash_the_first_originals_are_restored() {
    let kernel = Kernel::new();
    kernel.write(&[(REDIRECTS[0], 1), (REDIRECTS[1], 1)]);
    kernel.stop_redirects();
    // The run after the crash finds one setting as it left it, and one that the operator switched on again.
    kernel.write(&[(REDIRECTS[1], 1)]);
    kernel.stop_redirects();
    assert_eq!(kernel.values(&REDIRECTS), [0, 0, 0]);
    kernel.sysctls.restore(&kernel.saved()).unwrap();
    assert_eq!(kernel.values(&REDIRECTS), [1, 1, 0]);
}

#[test]
fn a_crash_between_noting_and_setting_restores_nothing_wrong() {
    let kernel = Kernel::new();
    kernel.write(&[(REDIRECTS[0], 1)]);
    kernel.stop_redirects();
    kernel.write(&[(REDIRECTS[0], 1)]);
    kernel.sysctls.restore(&kernel.saved()).unwrap();
    assert_eq!(kernel.values(&REDIRECTS[..1]), [1]);
}

#[test]
fn an_operators_later_value_and_a_gone_interface_are_left_alone() {
    let kernel = Kernel::new();
    let filter = "net/ipv4/conf/eth0/rp_filter";
    kernel.write(&[(filter, 1), (REDIRECTS[1], 1)]);
    let mut requirements = kernel.sysctls.needed(&["eth0".into()], V4).unwrap();
    requirements.extend(kernel.sysctls.redirects(&["eth0".into()]).unwrap());
    kernel.sysctls.set(&requirements, &kernel.saved()).unwrap();
    assert_eq!(kernel.values(&[filter, REDIRECTS[1]]), [2, 0]);
    kernel.write(&[(filter, 0)]);
    fs::remove_file(kernel.sysctls.root.join(REDIRECTS[1])).unwrap();
    kernel.sysctls.restore(&kernel.saved()).unwrap();
    assert_eq!(kernel.values(&[filter]), [0]);
    assert!(!kernel.sysctls.root.join(REDIRECTS[1]).exists());
}

#[test]
fn forwarding_of_all_notes_every_interface_because_it_overwrites_them() {
    let kernel = Kernel::new();
    let paths = ["all", "default", "eth0", "eth1.7"].map(|name| ipv6(name, "forwarding"));
    let paths = paths.each_ref().map(String::as_str);
    kernel.write(&[(paths[3], 1)]);
    let needed = kernel.sysctls.needed(&["eth0".into()], V6).unwrap();
    kernel.sysctls.set(&needed, &kernel.saved()).unwrap();
    // What the kernel does when `all` is written.
    kernel.write(&paths.map(|path| (path, 1)));
    kernel.sysctls.restore(&kernel.saved()).unwrap();
    assert_eq!(kernel.values(&paths), [0, 0, 0, 1]);
}

#[test]
fn a_reboot_makes_the_file_void() {
    let kernel = Kernel::new();
    kernel.write(&[(REDIRECTS[0], 1)]);
    kernel.stop_redirects();
    kernel.add("kernel/random/boot_id", "second");
    kernel.sysctls.restore(&kernel.saved()).unwrap();
    assert_eq!(kernel.values(&REDIRECTS[..1]), [0], "now it is the machine's own value");
    assert!(!kernel.saved().exists());
}

#[test]
fn a_damaged_file_is_named_with_its_line_and_kept() {
    let kernel = Kernel::new();
    fs::create_dir_all(kernel.saved().parent().unwrap()).unwrap();
    fs::write(kernel.saved(), "boot first\nnet/ipv4/conf/eth0/rp_filter 1 2\nnet/ipv4\n").unwrap();
    let error = kernel.sysctls.restore(&kernel.saved()).unwrap_err();
    assert!(matches!(error, Error::Damaged { line: 3, .. }), "{error}");
    assert!(kernel.saved().exists());
}

#[test]
fn when_one_setting_cannot_be_set_those_set_before_are_restored() {
    let kernel = Kernel::new();
    kernel.write(&[(REDIRECTS[0], 1), (REDIRECTS[1], 1)]);
    let redirects = kernel.sysctls.redirects(&["eth0".into()]).unwrap();
    fs::remove_file(kernel.sysctls.root.join(REDIRECTS[1])).unwrap();
    let error = kernel.sysctls.set(&redirects, &kernel.saved()).unwrap_err();
    assert!(matches!(error, Error::Write { path, .. } if path.ends_with(REDIRECTS[1])));
    assert_eq!(kernel.values(&REDIRECTS[..1]), [1]);
    assert!(!kernel.saved().exists());
}

#[test]
fn a_backend_is_quiet_on_all_interfaces_and_no_setting_is_made_weaker() {
    let kernel = Kernel::new();
    let needed = || {
        let needed = kernel.sysctls.needed_by_backend(&["eth0".into()]).unwrap();
        needed.into_iter().map(|requirement| (requirement.path, requirement.wanted)).collect::<Vec<_>>()
    };
    let quiet = [("net/ipv4/conf/all/arp_ignore", 1), ("net/ipv4/conf/all/arp_announce", 2)];
    assert_eq!(needed(), owned(quiet));
    kernel.write(&[("net/ipv4/conf/all/arp_ignore", 2), ("net/ipv4/conf/all/arp_announce", 2)]);
    assert_eq!(needed(), []);
    kernel.write(&[("net/ipv4/conf/all/rp_filter", 1)]);
    assert_eq!(needed(), owned([("net/ipv4/conf/eth0/rp_filter", 2)]));
}

#[test]
fn ports_are_shared_unless_they_are_reserved() {
    let kernel = Kernel::new();
    kernel.add("net/ipv4/ip_local_port_range", "32768\t60999\n");
    kernel.add("net/ipv4/ip_local_reserved_ports", "\n");
    assert_eq!(kernel.sysctls.shared_ports(&(1024..=32_767)).unwrap(), None);
    assert_eq!(kernel.sysctls.shared_ports(&(1024..=32_768)).unwrap(), Some(32_768..=60_999));
    kernel.add("net/ipv4/ip_local_reserved_ports", "8080,32768-32770\n");
    assert_eq!(kernel.sysctls.shared_ports(&(1024..=32_770)).unwrap(), None);
    assert_eq!(kernel.sysctls.shared_ports(&(1024..=32_771)).unwrap(), Some(32_768..=60_999));
    kernel.add("net/ipv4/ip_local_port_range", "a few\n");
    assert!(kernel.sysctls.shared_ports(&(1..=2)).unwrap_err().to_string().contains("a few"));
}
