//! Kernel settings, firewalls and ports that the modes of the services depend on.

use std::net::IpAddr;

use super::{Finding, Kind, unseen};
use crate::{
    config::Config,
    start::{self, chain},
    sysctl::{self, Demands, Requirement, Sysctls},
};

/// What is wrong with them for these services, on these interfaces of a machine with the addresses `locals`.
pub fn examine(config: &Config, interfaces: &[String], locals: &[IpAddr]) -> Vec<Finding> {
    let sysctls = Sysctls::default();
    let demands = Demands::new(&config.services, locals, false);
    let mut findings: Vec<Finding> = judge_jit(sysctls.needed_by_programs()).into_iter().collect();
    match sysctls.needed(interfaces, demands) {
        Ok(needed) => findings.extend(needed.iter().map(judge)),
        // An interface that is not there is told of elsewhere.
        Err(sysctl::Error::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => findings.push(unseen("kernel settings", &error)),
    }
    match sysctl::dropping_forward_chains(demands.replies) {
        Ok(chains) => findings.extend(chains.iter().map(|chain| judge_chain(chain))),
        Err(error) => findings.push(unseen("firewalls", &error)),
    }
    if let Err(error) = start::check_ports(&sysctls, config, locals) {
        findings.push(Finding::new(Kind::PortsShared, "snat_ports", chain(&error)));
    }
    findings
}

fn judge(requirement: &Requirement) -> Finding {
    let kind = if requirement.fatal { Kind::SettingFatal } else { Kind::Setting };
    tell(kind, requirement)
}

fn judge_jit(needed: Result<Option<Requirement>, sysctl::Error>) -> Option<Finding> {
    match needed {
        Ok(needed) => needed.map(|requirement| tell(Kind::JitOff, &requirement)),
        Err(error) => Some(unseen("the kernel's compiler of programs", &error)),
    }
}

fn tell(kind: Kind, requirement: &Requirement) -> Finding {
    let Requirement { path, current, why, .. } = requirement;
    Finding::new(kind, path, format!("is {current}: {why}")).remedy(requirement.command())
}

fn judge_chain(chain: &str) -> Finding {
    let seen =
        "its policy is to drop: what the program leaves to the kernel gets through only where a rule lets it";
    Finding::new(Kind::FirewallDrops, chain, seen)
        .remedy("let packets from and to the VIPs and the backends through")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_kernel_that_interprets_programs_is_told() {
        let root = tempfile::tempdir().unwrap();
        let sysctls = Sysctls::below(root.path());
        assert_eq!(judge_jit(sysctls.needed_by_programs()), None, "a network namespace does not show it");
        let path = root.path().join("net/core/bpf_jit_enable");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        for (value, found) in [("0", Some(Kind::JitOff)), ("1", None), ("2", None)] {
            fs::write(&path, value).unwrap();
            let finding = judge_jit(sysctls.needed_by_programs());
            assert_eq!(finding.map(|finding| finding.kind), found, "{value}");
        }
    }
}
