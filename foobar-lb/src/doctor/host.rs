//! Whether this process may, this kernel can and the interfaces will run the program. The kernel is not asked for its
//! version but for what counts: to load it.

use super::{Finding, Kind, unseen};
use crate::{
    bpf::{self, Bpf, Capacities, Frames},
    neighbour::{self, XdpMode},
    start::{chain, missing_privileges},
};

/// Maps of the least size: the verifier makes nothing else of a program for large ones.
const SMALL: Capacities = Capacities { slots: 1, backends: 1, flows: 2, half_open: 1, mappings: 1 };

/// What is wrong with privileges, kernel and interfaces.
pub async fn examine(interfaces: &[String]) -> Vec<Finding> {
    let mut findings = Vec::from_iter(lacking_privileges());
    findings.extend(refused_program());
    for interface in interfaces {
        findings.extend(examine_interface(interface).await);
    }
    findings
}

fn lacking_privileges() -> Option<Finding> {
    let missing: Vec<String> = missing_privileges().iter().map(ToString::to_string).collect();
    let finding = Finding::new(Kind::Privileges, "this process", format!("lacks {}", missing.join(", ")));
    (!missing.is_empty()).then(|| finding.remedy("sudo foobar-lb doctor"))
}

/// To load the program tries all at once: map types, helpers, BTF, the verifier's patience.
fn refused_program() -> Option<Finding> {
    let error = Bpf::load(Frames::All, SMALL, 0).err()?;
    let last = chain(&error).lines().map(str::trim).rfind(|line| !line.is_empty())?.to_owned();
    Some(Finding::new(Kind::ProgramRefused, "this kernel", last).remedy("foobar-lb verify"))
}

async fn examine_interface(name: &str) -> Option<Finding> {
    let interface = match neighbour::interface(name).await {
        Ok(interface) => interface,
        Err(error @ (neighbour::Error::NoInterface { .. } | neighbour::Error::NotEthernet { .. })) => {
            return Some(Finding::new(Kind::NoInterface, name, error.to_string()));
        }
        Err(error) => return Some(unseen(name, &error)),
    };
    let attachment = interface.xdp?;
    if !bpf::is_ours(attachment.program_id) {
        let program = bpf::describe_program(attachment.program_id);
        let finding = Finding::new(Kind::OtherProgram, name, format!("runs the XDP program {program}"));
        return Some(finding.remedy(format!("ip link set dev {name} xdp off")));
    }
    let seen =
        "the program runs in the network stack (generic), which is several times slower than in the driver";
    let finding = Finding::new(Kind::GenericMode, name, seen);
    (attachment.mode == XdpMode::Generic)
        .then(|| finding.remedy("foobar-lb attach --xdp-mode native tells why the driver refuses"))
}
