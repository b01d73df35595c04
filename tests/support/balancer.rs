//! The balancer under test: the real binary, attached in a namespace, asked over its socket.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use lab::{Namespace, Process, wait_for, wait_until};
use nix::sys::signal::Signal;
use serde::Deserialize;

use super::network::Network;
use super::{EVENTUALLY, SOON, bpffs};

/// The seed of every test, so that flows go the same way at each run.
const SEED: &str = "0x0123456789abcdef";

/// A running `foobar-lb attach`. Dropping it kills it, as a crash would.
pub struct Balancer {
    pub process: Process,
    namespace: Namespace,
    config: PathBuf,
    socket: PathBuf,
    is_quiet: bool,
}

impl Balancer {
    /// Attaches to all interfaces of the network's balancer, with `--sysctl`, and waits until every backend
    /// of `services` is up and published.
    pub fn serve(network: &Network, services: &str) -> Result<Self> {
        let balancer = Self::attach(&network.balancer, network.interfaces, services, &["--sysctl"])?;
        balancer.wait_until_serving()?;
        Ok(balancer)
    }

    /// Attaches to `interfaces` in `namespace`, and waits until the balancer answers.
    pub fn attach(
        namespace: &Namespace,
        interfaces: &[&str],
        services: &str,
        options: &[&str],
    ) -> Result<Self> {
        Self::launch(&[], namespace, interfaces, services, options)?.answering()
    }

    /// Waits until it answers.
    pub fn answering(mut self) -> Result<Self> {
        let ready = wait_for(EVENTUALLY, "the balancer's answer", || {
            let ended = self.process.has_ended().unwrap_or(true);
            let answered = self.status().is_ok();
            (ended || answered).then_some(answered)
        });
        ensure!(ready.unwrap_or(false), "foobar-lb did not come up");
        Ok(self)
    }

    /// The same, started by another command (`env NAME=VALUE`), and not waited for.
    pub fn launch(
        launcher: &[&str],
        namespace: &Namespace,
        interfaces: &[&str],
        services: &str,
        options: &[&str],
    ) -> Result<Self> {
        let files = Files::write(namespace, services)?;
        let launcher = launcher.iter().map(|&word| word.to_owned());
        let words = launcher.chain(files.attach_words(interfaces, options)?);
        let process = namespace.start(&format!("{}-foobar-lb", namespace.name()), words)?;
        Ok(Self::started(process, namespace, files))
    }

    /// One that was started with these files.
    pub fn started(process: Process, namespace: &Namespace, files: Files) -> Self {
        let Files { config, socket } = files;
        Self { process, namespace: namespace.clone(), config, socket, is_quiet: false }
    }

    /// Dropping it will not show what it has printed.
    pub fn quiet(mut self) -> Self {
        self.is_quiet = true;
        self
    }

    /// What `foobar-lb status --json` says.
    pub fn status(&self) -> Result<Status> {
        status(&self.namespace, &self.socket)
    }

    /// Waits until every backend is measured up and gets new flows.
    pub fn wait_until_serving(&self) -> Result<()> {
        self.wait_until("every backend to be up", |status| {
            status.services.iter().flat_map(|service| &service.backends).all(Backend::serves)
        })
    }

    /// Waits until the backend of that name, in every service that has it, is up and gets new flows.
    pub fn wait_until_up(&self, backend: &str) -> Result<()> {
        self.wait_until(&format!("{backend} to be up"), |status| {
            status.backends(backend).all(Backend::serves)
        })
    }

    /// Waits until the backend of that name gets no new flows in any service.
    pub fn wait_until_down(&self, backend: &str) -> Result<()> {
        self.wait_until(&format!("{backend} to be down"), |status| {
            status.backends(backend).all(|backend| !backend.eligible)
        })
    }

    /// Waits until the status has a property.
    pub fn wait_until(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Result<()> {
        wait_until(EVENTUALLY, what, || self.status().is_ok_and(|status| holds(&status)))
            .with_context(|| format!("status: {:#?}", self.status()))
    }

    /// Replaces the services of the configuration file. Nothing comes of it before a reload.
    pub fn write_services(&self, services: &str) -> Result<()> {
        Files::write(&self.namespace, services).map(drop)
    }

    /// The path of the configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// `foobar-lb reload`, and how that ended.
    pub fn reload(&self) -> Result<Ending> {
        self.reload_with(&[])
    }

    /// `foobar-lb reload` with these words, and how that ended.
    pub fn reload_with(&self, words: &[&str]) -> Result<Ending> {
        self.command(&[&["reload"], words].concat())
    }

    /// Replaces the services of the configuration file, and asks with `foobar-lb plan` and these words what a reload would
    /// do.
    pub fn plan(&self, services: &str, words: &[&str]) -> Result<Ending> {
        self.write_services(services)?;
        let file = self.config.display().to_string();
        self.command(&[&["plan", &file], words].concat())
    }

    /// Replaces the services and reloads, which must work.
    pub fn reconfigure(&self, services: &str) -> Result<()> {
        self.write_services(services)?;
        self.reload()?.expect(0, &["the configuration is in force"])
    }

    /// `foobar-lb backend` with these words, and how that ended.
    pub fn backend(&self, words: &[&str]) -> Result<Ending> {
        self.command(&[&["backend"], words].concat())
    }

    /// `foobar-lb status` as people read it.
    pub fn status_text(&self) -> Result<String> {
        let ending = self.command(&["status"])?;
        ending.expect(0, &[])?;
        Ok(ending.output)
    }

    /// A command to the running daemon, in the background.
    pub fn start(&self, name: &str, words: &[&str]) -> Result<Process> {
        let (binary, socket) = (binary()?, self.socket.display().to_string());
        // Options come before what stands behind `--`.
        let (words, rest) =
            words.split_at(words.iter().position(|&word| word == "--").unwrap_or(words.len()));
        let all = [&[binary.as_str()], words, &["--socket", &socket], rest].concat();
        self.namespace.start(&format!("{}-{name}", self.namespace.name()), all)
    }

    /// The socket of commands.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where it keeps what outlives it.
    pub fn state_path(&self) -> PathBuf {
        self.config.with_file_name("state")
    }

    /// `foobar-lb status` where no daemon is, and how that ended.
    pub fn status_in_vain(&self) -> Result<Ending> {
        let mut status = foobar_lb(&self.namespace)?;
        status.arg("status").arg("--config").arg(&self.config);
        Ok(status.output()?.into())
    }

    /// A command to the running daemon, and how that ended.
    pub fn command(&self, words: &[&str]) -> Result<Ending> {
        let mut command = foobar_lb(&self.namespace)?;
        command.args(words).arg("--socket").arg(&self.socket);
        Ok(command.output()?.into())
    }

    /// Packets counted under a reason.
    pub fn counted(&self, reason: &str) -> Result<u64> {
        let status = self.status()?;
        let counted =
            status.reasons.get(reason).with_context(|| format!("no reason {reason} in {status:?}"))?;
        Ok(counted.packets)
    }

    /// `foobar-lb detach`, and how that ended.
    pub fn detach(&self, interfaces: &[&str]) -> Result<Ending> {
        let mut detach = foobar_lb(&self.namespace)?;
        detach.arg("detach").args(interfaces).arg("--config").arg(&self.config);
        Ok(detach.output()?.into())
    }

    /// Ends it as Ctrl-C (SIGINT) or a service manager (SIGTERM) does; it must exit with 0.
    pub fn stop(mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)?;
        let exit = self.process.wait(SOON)?;
        ensure!(exit.success(), "foobar-lb ended with {exit}; it printed:\n{}", self.process.output()?);
        Ok(())
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if !self.is_quiet {
            // The test harness shows this if the test fails.
            println!("foobar-lb printed:\n{}", self.process.output().unwrap_or_default());
        }
    }
}

/// Where a balancer of a namespace keeps its things.
pub struct Files {
    pub config: PathBuf,
    pub socket: PathBuf,
}

impl Files {
    /// Writes the configuration: `[daemon]` of this lab, then `services`.
    pub fn write(namespace: &Namespace, services: &str) -> Result<Self> {
        Self::write_as(namespace, "foobar-lb", services)
    }

    /// The same for another balancer in the same namespace.
    pub fn write_as(namespace: &Namespace, name: &str, services: &str) -> Result<Self> {
        let directory = namespace.directory().join(format!("{}-{name}", namespace.name()));
        fs::create_dir_all(&directory)?;
        let files =
            Self { config: directory.join("foobar-lb.toml"), socket: directory.join("foobar-lb.sock") };
        let daemon = format!(
            "[daemon]\nsocket = \"{}\"\nstate_path = \"{}\"\npin_path = \"{}\"\nseed = \"{SEED}\"\n\n",
            files.socket.display(),
            directory.join("state").display(),
            bpffs::path(namespace).join(name).display(),
        );
        fs::write(&files.config, daemon + services)?;
        Ok(files)
    }

    /// The command that attaches with this configuration.
    pub fn attach_words(&self, interfaces: &[&str], options: &[&str]) -> Result<Vec<String>> {
        let mut words = vec![binary()?, "attach".to_owned()];
        words.extend(interfaces.iter().map(|&interface| interface.to_owned()));
        words.extend(["--config".to_owned(), self.config.display().to_string()]);
        words.extend(options.iter().map(|&option| option.to_owned()));
        Ok(words)
    }

    /// Attaches, expecting it to end by itself, and returns how it ended.
    pub fn attach_in_vain(&self, namespace: &Namespace, interfaces: &[&str]) -> Result<Ending> {
        self.attach_in_vain_with(namespace, interfaces, &["--sysctl"])
    }

    /// The same with other options.
    pub fn attach_in_vain_with(
        &self,
        namespace: &Namespace,
        interfaces: &[&str],
        options: &[&str],
    ) -> Result<Ending> {
        let words = self.attach_words(interfaces, options)?;
        let mut process = namespace.start("refused", &words)?;
        let exit = process.wait(EVENTUALLY)?;
        Ok(Ending { code: exit.code(), output: process.output()? })
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Ending {
    pub code: Option<i32>,
    pub output: String,
}

impl Ending {
    /// The exit code must be this, and the output contain all of `words`.
    pub fn expect(&self, code: i32, words: &[&str]) -> Result<()> {
        ensure!(self.code == Some(code), "the exit code is not {code}: {self:?}");
        for word in words {
            ensure!(self.output.contains(word), "it does not say {word:?}: {}", self.output);
        }
        Ok(())
    }
}

impl From<Output> for Ending {
    fn from(output: Output) -> Self {
        let text = [output.stdout, output.stderr].concat();
        Self { code: output.status.code(), output: String::from_utf8_lossy(&text).into_owned() }
    }
}

/// The path of the binary under test.
pub fn binary() -> Result<String> {
    env::var("FOOBAR_LB_BIN")
        .context("FOOBAR_LB_BIN does not name the foobar-lb to test: run `cargo xtask test traffic`")
}

/// The path of a later version of it.
pub fn successor() -> Result<String> {
    env::var("FOOBAR_LB_SUCCESSOR_BIN")
        .context("FOOBAR_LB_SUCCESSOR_BIN does not name a later foobar-lb: run `cargo xtask test traffic`")
}

/// A command of the binary under test.
pub fn foobar_lb(namespace: &Namespace) -> Result<Command> {
    Ok(namespace.command(binary()?))
}

/// The part of `foobar-lb status --json` that the stories look at.
#[derive(Debug, Deserialize)]
pub struct Status {
    pub version: String,
    pub words_lost: Option<String>,
    pub words_unkept: Option<String>,
    pub reload_failure: Option<String>,
    pub reload_failed_seconds: Option<u64>,
    pub program_id: u32,
    pub interfaces: Vec<Interface>,
    pub next_program: Option<String>,
    pub services: Vec<Service>,
    pub reasons: BTreeMap<String, Counted>,
}

impl Status {
    /// The entry of a service.
    pub fn service(&self, name: &str) -> Result<&Service> {
        let found = self.services.iter().find(|service| service.name == name);
        found.with_context(|| format!("no service {name} in {self:?}"))
    }

    /// How a backend drains, if it is there and does.
    pub fn drain(&self, service: &str, backend: &str) -> Option<&Drain> {
        let service = self.services.iter().find(|entry| entry.name == service)?;
        service.backends.iter().find(|entry| entry.name == backend)?.drain.as_ref()
    }

    /// The backends of that name, of all services.
    pub fn backends(&self, name: &str) -> impl Iterator<Item = &Backend> {
        let all = self.services.iter().flat_map(|service| &service.backends);
        all.filter(move |backend| backend.name == name)
    }
}

#[derive(Debug, Deserialize)]
pub struct Interface {
    pub name: String,
    pub mode: String,
}

#[derive(Debug, Deserialize)]
pub struct Service {
    pub name: String,
    pub slots: u32,
    pub first_slot: u32,
    pub fingerprint: Option<String>,
    pub slots_unsettled: u32,
    pub packets: u64,
    pub backends: Vec<Backend>,
}

impl Service {
    /// The entry of a backend.
    pub fn backend(&self, name: &str) -> Result<&Backend> {
        let found = self.backends.iter().find(|backend| backend.name == name);
        found.with_context(|| format!("no backend {name} in {self:?}"))
    }

    /// The share of the slots that a backend owns.
    pub fn share(&self, backend: &str) -> Result<f64> {
        Ok(f64::from(self.backend(backend)?.slots) / f64::from(self.slots))
    }
}

#[derive(Debug, Deserialize)]
pub struct Backend {
    pub name: String,
    pub admin: String,
    pub admin_said: Option<Saying>,
    pub weight_said: Option<Saying>,
    pub admin_configured: String,
    pub health: String,
    pub eligible: bool,
    pub drain: Option<Drain>,
    pub repicked: u64,
    pub weight: u32,
    pub slots: u32,
    pub next_hop: Option<String>,
    pub packets: u64,
    pub bytes: u64,
    pub reply_packets: u64,
    pub reply_bytes: u64,
}

impl Backend {
    fn serves(&self) -> bool {
        self.eligible && self.health == "up" && self.next_hop.is_some()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Saying {
    pub word: String,
    pub by: String,
    pub at: String,
    pub until: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Drain {
    pub seen: Option<u64>,
    pub silent_for_seconds: Option<u64>,
    pub remaining_seconds: Option<u64>,
    pub over: bool,
}

#[derive(Debug, Deserialize)]
pub struct Counted {
    pub packets: u64,
}

fn status(namespace: &Namespace, socket: &Path) -> Result<Status> {
    let output = foobar_lb(namespace)?.args(["status", "--json", "--socket"]).arg(socket).output()?;
    ensure!(output.status.success(), "no status: {:?}", Ending::from(output));
    serde_json::from_slice(&output.stdout).context("the status is not what it should be")
}
