//! `cargo xtask setup`: looks for what is needed to build, run and test, and has what is missing installed.
//! Looking asks no network and takes well under a second, so that every task can begin with it. A Rust
//! toolchain with a C linker, which xtask itself needs, is taken for granted.

mod bpf;
mod clean_root;
mod debian;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::{env, fs};

use anyhow::{Context, Result, bail};

pub use clean_root::clean_root;

/// A program that must be there, and Debian's package that brings it.
pub struct Tool {
    /// Its name, or the whole path of a file that another program loads.
    pub program: &'static str,
    pub package: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool { program: "/usr/lib/nginx/modules/ngx_stream_module.so", package: "libnginx-mod-stream" },
    Tool { program: "bpftool", package: "bpftool" },
    Tool { program: "curl", package: "curl" },
    Tool { program: "ethtool", package: "ethtool" },
    Tool { program: "groff", package: "groff-base" },
    Tool { program: "haproxy", package: "haproxy" },
    Tool { program: "ip", package: "iproute2" },
    Tool { program: "keepalived", package: "keepalived" },
    Tool { program: "mysqld", package: "default-mysql-server" },
    Tool { program: "nft", package: "nftables" },
    Tool { program: "nginx", package: "nginx-light" },
    Tool { program: "ping", package: "iputils-ping" },
    Tool { program: "strace", package: "strace" },
    Tool { program: "tcpdump", package: "tcpdump" },
    Tool { program: "tracepath", package: "iputils-tracepath" },
    Tool { program: "traceroute", package: "traceroute" },
    Tool { program: "tshark", package: "tshark" },
    Tool { program: "wrk", package: "wrk" },
    Tool { program: "xdp-filter", package: "xdp-tools" },
];

/// Where programs for root are, which the path of a user often leaves out.
const SYSTEM_DIRECTORIES: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Whether to say that nothing is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Talkative,
    Quiet,
}

/// Makes this machine ready. The exit code is 2 on a system whose packages are not known.
pub fn set_up(manner: Manner) -> Result<ExitCode> {
    let missing = Missing::find();
    if missing.is_nothing() {
        if manner == Manner::Talkative {
            println!("setup: nothing is missing");
        }
        return Ok(ExitCode::SUCCESS);
    }
    println!("setup: missing: {}", missing.names().join(", "));
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !is_debian(&os_release) {
        println!("{}", missing.remedy_elsewhere());
        return Ok(ExitCode::from(2));
    }
    println!("{}", missing.plan());
    missing.install()?;
    let still_missing = Missing::find();
    if !still_missing.is_nothing() {
        bail!("still missing after the installation: {}", still_missing.names().join(", "));
    }
    println!("setup: done");
    Ok(ExitCode::SUCCESS)
}

/// Installs those tools that are missing, which only one task needs.
pub fn provide(tools: &[Tool]) -> Result<()> {
    let packages: Vec<_> = tools.iter().filter(|tool| tool.is_missing()).map(|tool| tool.package).collect();
    if packages.is_empty() { Ok(()) } else { debian::install(&packages) }
}

impl Tool {
    fn is_missing(&self) -> bool {
        let path = format!("{}:{SYSTEM_DIRECTORIES}", env::var("PATH").unwrap_or_default());
        !env::split_paths(&path).any(|directory| directory.join(self.program).is_file())
    }
}

/// What this machine lacks.
struct Missing {
    tools: Vec<&'static Tool>,
    toolchain: bool,
    /// An earlier installation of packages did not come to its end.
    unfinished: bool,
}

impl Missing {
    fn find() -> Self {
        Self {
            tools: TOOLS.iter().filter(|tool| tool.is_missing()).collect(),
            toolchain: !bpf::is_installed(),
            unfinished: debian::is_unfinished(),
        }
    }

    fn is_nothing(&self) -> bool {
        self.tools.is_empty() && !self.toolchain && !self.unfinished
    }

    fn names(&self) -> Vec<&'static str> {
        let tools = self.tools.iter().map(|tool| tool.program);
        let toolchain = self.toolchain.then_some("a Rust toolchain with bpf-linker for BPF");
        let end = self.unfinished.then_some("the end of an interrupted installation");
        tools.chain(toolchain).chain(end).collect()
    }

    fn packages(&self) -> Vec<&'static str> {
        // What an interruption left half installed may have its program in place already.
        let tools = if self.unfinished { TOOLS.iter().collect() } else { self.tools.clone() };
        let packages: BTreeSet<_> = tools.iter().map(|tool| tool.package).collect();
        packages.into_iter().collect()
    }

    fn plan(&self) -> String {
        let mut plan = "setup: this will be run, what needs root by sudo:".to_owned();
        if !self.packages().is_empty() {
            plan += &format!("\n  apt-get install {}", self.packages().join(" "));
        }
        if self.toolchain {
            plan += "\n  ";
            plan += bpf::PLAN;
        }
        plan
    }

    fn remedy_elsewhere(&self) -> String {
        let mut remedy = "setup: the packages of this system are not known here; please install".to_owned();
        for tool in &self.tools {
            remedy += &format!("\n  {} (Debian's package: {})", tool.program, tool.package);
        }
        if self.toolchain {
            remedy += "\n  ";
            remedy += bpf::REMEDY;
        }
        remedy
    }

    fn install(&self) -> Result<()> {
        let packages = self.packages();
        if !packages.is_empty() {
            debian::install(&packages)?;
        }
        if self.toolchain {
            bpf::install()?;
        }
        Ok(())
    }
}

/// Whether /etc/os-release describes Debian or a system made from it.
fn is_debian(os_release: &str) -> bool {
    let values = os_release.lines().filter_map(|line| line.split_once('='));
    let mut kin = values.filter(|(key, _)| ["ID", "ID_LIKE"].contains(key));
    kin.any(|(_, value)| value.trim_matches(['"', '\'']).split(' ').any(|name| name == "debian"))
}

/// Shows a command, and runs it to its end.
fn show_and_run(command: &mut Command) -> Result<()> {
    println!("setup: $ {}", describe(command));
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("`{}` failed: {status}", describe(command));
    }
    Ok(())
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    let words: Vec<_> =
        [program].into_iter().chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_debian_and_its_kin() {
        assert!(is_debian("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n"));
        assert!(is_debian("NAME=\"Ubuntu\"\nID=ubuntu\nID_LIKE=debian\n"));
        assert!(is_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
    }

    #[test]
    fn knows_no_other_system() {
        assert!(!is_debian("ID=fedora\nHOME_URL=\"https://www.debian.org/\"\n"));
        assert!(!is_debian("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"));
        assert!(!is_debian(""));
    }

    #[test]
    fn names_what_another_system_lacks() {
        let missing = Missing { tools: TOOLS.iter().collect(), toolchain: true, unfinished: false };
        let remedy = missing.remedy_elsewhere();
        for tool in TOOLS {
            assert!(remedy.contains(tool.package), "{} is not named in {remedy}", tool.package);
        }
        assert!(remedy.contains("bpf-linker"));
    }

    #[test]
    fn finishes_an_interrupted_installation_whole() {
        let missing = Missing { tools: Vec::new(), toolchain: false, unfinished: true };
        assert!(!missing.is_nothing());
        assert_eq!(missing.packages().len(), TOOLS.len());
    }
}
