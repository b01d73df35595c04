//! `cargo xtask run`: www.foobar.com behind the balancer. Builds it, brings it up in a sandbox and shows what
//! happens, or proves that it works.

mod balancer;
mod http;
mod load;
mod network;
mod proof;
mod server;
mod site;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::build;
use crate::run::balancer::Backend;
use crate::run::network::{DRAWING, WWW};
use crate::run::site::Site;
use crate::sandbox::{self, Network};

/// How often a person is told what changed.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// What a shell reports of a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// What the inside of the sandbox needs to know.
#[derive(Args)]
pub struct Inside {
    /// The foobar-lb to run.
    balancer: PathBuf,
    /// The foobar-site to run.
    application: PathBuf,
    #[arg(long)]
    once: bool,
}

/// Brings the site up until Ctrl-C, or with `once` proves that it works.
pub fn run(once: bool) -> Result<ExitCode> {
    network::refuse_conflicts()?;
    let built = build::release()?;
    // The network is the machine's, so that its browser reaches the site.
    let mut command = sandbox::command(env::current_exe()?, Network::Host)?;
    command.arg("run-inside").arg(built.executable("foobar-lb")?).arg(built.executable("foobar-site")?);
    command.args(once.then_some("--once"));
    // Ctrl-C is how a run ends well: it is for the inside to answer, and no reason to die of it afterwards.
    flag::register(SIGINT, Arc::default())?;
    let status = sandbox::wait(&mut command)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The same inside the sandbox: processes, mounts and files end with it, whatever happens.
pub fn run_inside(inside: &Inside) -> Result<ExitCode> {
    let interrupted = Interrupt::listen()?;
    let started = Instant::now();
    let mut site = Site::start(&inside.balancer, &inside.application)?;
    println!("www.foobar.com is up after {:.1} s.\n", started.elapsed().as_secs_f64());
    if inside.once {
        let held = proof::prove(&mut site)?;
        site.stop()?;
        return Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    introduce(&inside.balancer);
    let stopped = interrupted.wait_for(|stopped| watch(&mut site, stopped));
    println!("\nStopping.");
    site.stop()?;
    stopped.map(|()| ExitCode::SUCCESS)
}

/// Ctrl-C and SIGTERM. Until someone waits for them they end the process, and with it the sandbox, at once.
struct Interrupt {
    ends_at_once: Arc<AtomicBool>,
    came: Arc<AtomicBool>,
}

impl Interrupt {
    fn listen() -> Result<Self> {
        let interrupt = Self { ends_at_once: Arc::new(AtomicBool::new(true)), came: Arc::default() };
        for signal in [SIGINT, SIGTERM] {
            flag::register_conditional_shutdown(signal, INTERRUPTED, Arc::clone(&interrupt.ends_at_once))?;
            flag::register(signal, Arc::clone(&interrupt.came))?;
        }
        Ok(interrupt)
    }

    fn wait_for<T>(&self, work: impl FnOnce(&AtomicBool) -> T) -> T {
        self.ends_at_once.store(false, Ordering::Relaxed);
        work(&self.came)
    }
}

fn introduce(balancer: &Path) {
    println!("{DRAWING}\n");
    println!("   the site      http://{}/", WWW.ip());
    println!("   look inside   sudo nsenter --all --target $(pgrep -nf run-inside) bash");
    println!("   and there     {} status", balancer.display());
    println!("                 ip netns exec foobar-client curl -i http://{}/", WWW.ip());
    println!("                 tail -F /run/lab/foobar/*.log");
    println!("   the end       Ctrl-C\n");
}

/// Says what ends and starts, and which backends the balancer turns down and up, until `stopped`.
fn watch(site: &mut Site, stopped: &AtomicBool) -> Result<()> {
    let started = Instant::now();
    let mut known = site.balancer.backends()?;
    while !stopped.load(Ordering::Relaxed) {
        let mut lines = site.revive()?;
        ensure!(!site.balancer.has_ended()?, "foobar-lb ended; it printed:\n{}", site.balancer.output()?);
        // It may be stopping right now; then there is nothing to tell.
        if let Ok(current) = site.balancer.backends() {
            lines.extend(name_changes(&known, &current));
            known = current;
        }
        for line in lines {
            println!("   {:8.1} s   {line}", started.elapsed().as_secs_f64());
        }
        thread::sleep(WATCH_INTERVAL);
    }
    Ok(())
}

fn name_changes(old: &[Backend], new: &[Backend]) -> Vec<String> {
    let changed = old.iter().zip(new).filter(|(old, new)| old.health != new.health);
    changed
        .map(|(old, new)| format!("{} of {} is {}, was {}", new.name, new.service, new.health, old.health))
        .collect()
}
