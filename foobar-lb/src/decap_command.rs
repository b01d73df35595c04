//! The words of `foobar-lb decap`, and what they ask of the library.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::ValueEnum;
use foobar_lb::{
    config::DEFAULT_STATE_PATH,
    decap::{
        self, DEFAULT_GUE_PORT, Options, Program,
        recipe::{Arrival, Recipe},
    },
};

use crate::{LogFormat, XdpMode, asked_to_end, start_log};

/// What `decap` is told.
#[derive(clap::Args)]
pub struct Decap {
    /// Interfaces that packets for the VIPs come in by.
    #[arg(required = true, value_name = "IFACE")]
    interfaces: Vec<String>,
    /// The VIPs of the services that this machine is a backend of.
    #[arg(long = "vip", required = true, num_args = 1.., value_name = "ADDRESS", value_parser = parse_vip)]
    vips: Vec<IpAddr>,
    /// The services are of mode `dsr`: there are no outer headers to take off, so no program is attached.
    #[arg(long, conflicts_with_all = ["gue_port", "xdp_mode"])]
    dsr: bool,
    /// The UDP port that GUE comes to.
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_GUE_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    gue_port: u16,
    /// Where the program runs: in the driver (native) or in the network stack (generic, slower).
    #[arg(long, value_enum, default_value_t = XdpMode::Auto, value_name = "MODE")]
    xdp_mode: XdpMode,
    /// Print the commands that have kernel devices do the same, and those that undo it; do nothing.
    ///
    /// The value is the `encapsulation` of the service; with `--dsr` it makes no difference.
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "ipip", value_name = "ENCAPSULATION")]
    print_recipe: Option<Encapsulation>,
    /// Where the old values of kernel settings are kept, to be restored after a crash too. Each network namespace
    /// needs its own.
    #[arg(long, value_name = "DIRECTORY", default_value = DEFAULT_STATE_PATH)]
    state_path: PathBuf,
    /// How log lines are written to standard error. RUST_LOG chooses which: `debug` shows what is counted.
    #[arg(long, value_enum, default_value_t = LogFormat::Human, value_name = "FORMAT")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum Encapsulation {
    /// One IP in the other.
    Ipip,
    /// In UDP.
    Gue,
}

impl Decap {
    /// Does it, until it is asked to end.
    pub async fn run(self) -> Result<ExitCode> {
        if let Some(encapsulation) = self.print_recipe {
            print!("{}", self.recipe(encapsulation));
            return Ok(ExitCode::SUCCESS);
        }
        start_log(self.log_format);
        let shutdown = asked_to_end()?;
        let program = Program { gue_port: self.gue_port, mode: self.xdp_mode.chosen() };
        let options = Options {
            interfaces: self.interfaces,
            vips: self.vips.into_iter().collect(),
            program: (!self.dsr).then_some(program),
            state_path: self.state_path,
        };
        for (outcome, packets) in decap::run(options, shutdown).await? {
            println!("{:<16} {packets:>12}", outcome.name());
        }
        Ok(ExitCode::SUCCESS)
    }

    fn recipe(self, encapsulation: Encapsulation) -> Recipe {
        let arrival = match encapsulation {
            _ if self.dsr => Arrival::Plain,
            Encapsulation::Ipip => Arrival::Ipip,
            Encapsulation::Gue => Arrival::Gue { port: self.gue_port },
        };
        Recipe { interfaces: self.interfaces, vips: BTreeSet::from_iter(self.vips), arrival }
    }
}

/// An address that a client can ask for.
fn parse_vip(text: &str) -> Result<IpAddr, String> {
    const EXPECTED: &str =
        "a VIP is an IP address, without port or prefix, such as 203.0.113.80 or 2001:db8::80";
    let vip: IpAddr = text.parse().map_err(|_| EXPECTED)?;
    let stays_on_link = match vip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    if stays_on_link || vip.is_unspecified() || vip.is_loopback() || vip.is_multicast() {
        return Err("no client can ask for this address: name the address of a service".to_owned());
    }
    Ok(vip)
}
