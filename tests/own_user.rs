//! The daemon as a user of its own, with the capabilities that the unit gives it and no other right: that is enough, and
//! each of them is needed.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use lab::{Namespace, Process};

use crate::rights::for_everybody;
use crate::support::EVENTUALLY;
use crate::support::balancer::{Balancer, Files};
use crate::support::bpffs::{self, Bpffs};
use crate::support::config::tcp_before;
use crate::support::conversation::{Protocol, ask};
use crate::support::echo::start_pair;
use crate::support::network::{Arms, Family, Network, VIP, VIP_PORT};

const UNIT: &str = include_str!("../config/foobar-lb.service");
/// Neither root nor anybody else.
const USER: u32 = 64001;

#[test]
fn what_the_unit_gives_it_is_enough() -> Result<()> {
    let network = Network::new("own-user", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let bpffs = Bpffs::mount(&network.balancer)?;
    let mut user = User::new(&network)?;
    network.balancer.set_sysctl("net.ipv4.ip_forward", "0")?;

    let mut balancer = user.attach(&capabilities()?)?;
    balancer.wait_until_serving()?;
    for family in Family::BOTH {
        ask(&network.client, Protocol::Tcp, VIP.port(family, VIP_PORT))?;
    }
    ensure!(network.balancer.sysctl("net.ipv4.conf.eth0.forwarding")? == "1", "it has set nothing");
    let rules = network.balancer.run(["nft", "list", "table", "ip6", "foobar_lb"])?;
    ensure!(rules.contains("nd-redirect drop"), "IPv6 redirects are not kept from backends: {rules}");
    let pinned = fs::read_dir(bpffs.pins())?.next().context("nothing is pinned")??;
    ensure!(pinned.metadata()?.uid() == USER, "its pins belong to {}", pinned.metadata()?.uid());
    let log = balancer.process.output()?;
    ensure!(!log.contains("WARN") && !log.contains("ERROR"), "it lacks something:\n{log}");

    balancer.process.kill()?;
    let balancer = user.attach(&capabilities()?)?;
    balancer.wait_until_serving()?;
    let log = balancer.process.output()?;
    ensure!(log.contains("taking over") && log.contains("writes=0"), "it begins anew:\n{log}");
    balancer.detach(&[])?.expect(0, &["the daemon ends"])?;
    ensure!(network.balancer.sysctl("net.ipv4.conf.eth0.forwarding")? == "0", "not restored");
    Ok(())
}

#[test]
fn without_any_one_of_them_it_refuses_and_names_it() -> Result<()> {
    let network = Network::new("own-user-less", Arms::Two)?;
    let _bpffs = Bpffs::mount(&network.balancer)?;
    let mut user = User::new(&network)?;
    let all = capabilities()?;
    ensure!(user.loads_programs(&all)?, "{all:?} are not enough to load the programs");
    for missing in &all {
        let rest: Vec<_> = all.iter().filter(|capability| *capability != missing).cloned().collect();
        let mut balancer = user.attach(&rest)?.quiet();
        let ended = balancer.process.wait(EVENTUALLY)?;
        let said = balancer.process.output()?;
        ensure!(ended.code() == Some(1), "without {missing} it ends with {ended}:\n{said}");
        let named = all.iter().filter(|capability| said.contains(capability.as_str()));
        ensure!(named.eq([missing]) && said.contains("not permitted"), "without {missing} it says {said}");
        if missing != "CAP_NET_RAW" {
            // Not only the daemon refuses.
            ensure!(!user.loads_programs(&rest)?, "the kernel asks for no {missing}");
        }
    }
    let link = network.balancer.ip("link show eth0")?;
    ensure!(!link.contains("xdp"), "it is attached: {link}");
    Ok(())
}

/// What the unit leaves to the daemon, and gives it.
fn capabilities() -> Result<Vec<String>> {
    let line = |key: &str| UNIT.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let given = line("AmbientCapabilities").context("the unit gives no capabilities")?;
    ensure!(line("CapabilityBoundingSet") == Some(given), "what is left is not what is given");
    Ok(given.split_whitespace().map(str::to_owned).collect())
}

/// A user with the directories that the unit makes for one.
struct User {
    namespace: Namespace,
    interfaces: &'static [&'static str],
    program: PathBuf,
    attempts: usize,
}

impl User {
    fn new(network: &Network) -> Result<Self> {
        let namespace = network.balancer.clone();
        let files = Files::write(&namespace, &services())?;
        let directory = files.config.parent().context("it is in a directory")?;
        chown(directory, Some(USER), Some(USER))?;
        // As systemd mounts it, and as the unit's tmpfiles.d change that.
        fs::set_permissions(bpffs::path(&namespace), Permissions::from_mode(0o711))?;
        let pins = bpffs::path(&namespace).join("foobar-lb");
        fs::create_dir(&pins)?;
        chown(&pins, Some(USER), Some(USER))?;
        let program = for_everybody(network)?;
        Ok(Self { namespace, interfaces: network.interfaces, program, attempts: 0 })
    }

    fn attach(&mut self, capabilities: &[String]) -> Result<Balancer> {
        let files = Files::write(&self.namespace, &services())?;
        let mut words = files.attach_words(self.interfaces, &["--sysctl", "--pin"])?;
        words[0] = self.program.display().to_string();
        self.attempts += 1;
        let name = format!("own-user-{}", self.attempts);
        let process = self.start(&name, capabilities, words)?;
        Ok(Balancer::started(process, &self.namespace, files))
    }

    /// Whether the kernel takes the programs from a process with these.
    fn loads_programs(&self, capabilities: &[String]) -> Result<bool> {
        let words = vec![self.program.display().to_string(), "verify".to_owned()];
        Ok(self.start("verify", capabilities, words)?.wait(EVENTUALLY)?.success())
    }

    fn start(&self, name: &str, capabilities: &[String], words: Vec<String>) -> Result<Process> {
        let given = capabilities
            .iter()
            .map(|capability| format!(",+{}", capability.trim_start_matches("CAP_").to_lowercase()));
        let set = format!("-all{}", given.collect::<String>());
        let launcher = [
            "setpriv".to_owned(),
            format!("--reuid={USER}"),
            format!("--regid={USER}"),
            "--clear-groups".to_owned(),
            "--no-new-privs".to_owned(),
            format!("--inh-caps={set}"),
            format!("--ambient-caps={set}"),
            format!("--bounding-set={set}"),
        ];
        self.namespace.start(name, launcher.into_iter().chain(words))
    }
}

fn services() -> String {
    tcp_before(&[(1, 1), (2, 1)], &["announce = true"])
}
