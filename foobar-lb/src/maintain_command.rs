//! `foobar-lb maintain`: a backend is drained, something is done to it, and it comes back when it is well.

use std::{
    path::PathBuf,
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use foobar_lb::{
    api::{Say, Word},
    client,
};
use tokio::process::Command;

use crate::{
    FAILED, Socket, socket_path,
    waiting::{Awaited, Interrupts, Outcome, deadline},
};

/// What is done to which backend.
#[derive(Clone, Args)]
pub struct Maintain {
    /// The service's name.
    #[arg(value_name = "SERVICE")]
    service: String,
    /// The backend's name.
    #[arg(value_name = "BACKEND")]
    backend: String,
    /// Refuse it unless so many of the service's other backends are enabled and up.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    min_up: u32,
    /// Wait for so long at most for its flows to end, and then again for it to be well.
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    socket: Socket,
    /// What is done when it has no flows left.
    #[arg(value_name = "COMMAND", required = true, last = true)]
    command: Vec<String>,
}

impl Maintain {
    /// Goes through it step by step; whatever ends it says how the backend is left.
    pub async fn run(self) -> Result<ExitCode> {
        let mut maintenance = Maintenance {
            socket: socket_path(self.socket.clone()),
            interrupts: Interrupts::expect()?,
            was_drained: false,
            asked: self,
        };
        maintenance.drain().await?;
        match maintenance.run_to_its_end().await {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => {
                eprintln!("foobar-lb: {error:#}");
                Ok(ExitCode::from(FAILED))
            }
        }
    }
}

struct Maintenance {
    asked: Maintain,
    socket: PathBuf,
    interrupts: Interrupts,
    /// It was already, because somebody said so.
    was_drained: bool,
}

impl Maintenance {
    async fn drain(&mut self) -> Result<()> {
        let Maintain { service, backend, min_up, .. } = &self.asked;
        let before = client::backend(&self.socket, service, backend).await?;
        self.was_drained = before.admin_said.is_some();
        // Who asks for no others wants it also where there are none.
        let said = Say { min_up: Some(*min_up), force: *min_up == 0, ..self.say(Word::Drain) };
        let heard =
            client::say(&self.socket, &said).await.with_context(|| format!("{backend} stays as it is"))?;
        heard.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
        eprintln!("{backend} of {service} drains");
        Ok(())
    }

    async fn run_to_its_end(&mut self) -> Result<()> {
        self.wait_for_flows().await?;
        self.run_command().await?;
        self.wait_for_health().await?;
        self.enable().await.with_context(|| self.left_drained())?;
        println!("{} of {} is back", self.asked.backend, self.asked.service);
        Ok(())
    }

    async fn wait_for_flows(&mut self) -> Result<()> {
        let deadline = deadline(self.asked.timeout);
        let Maintain { service, backend, .. } = &self.asked;
        let awaited = Awaited { socket: &self.socket, service, backend };
        let why = match awaited.until_drained(deadline, &mut self.interrupts).await {
            Ok(Outcome::Reached) => return Ok(()),
            Ok(Outcome::TimedOut) => {
                let timeout = humantime::format_duration(self.asked.timeout);
                format!("{timeout} are over and flows are left")
            }
            Ok(Outcome::Interrupted) => "interrupted".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        self.give_up(&why).await
    }

    async fn run_command(&mut self) -> Result<()> {
        let [program, arguments @ ..] = &self.asked.command[..] else { bail!("there is no command") };
        eprintln!("running {}", self.asked.command.join(" "));
        let mut child = match Command::new(program).args(arguments).spawn() {
            Ok(child) => child,
            Err(error) => return self.give_up(&format!("cannot run {program}: {error}")).await,
        };
        let mut was_interrupted = false;
        // A Ctrl-C reaches the command, too: it ends as it thinks right.
        let status: ExitStatus = loop {
            tokio::select! {
                status = child.wait() => break status?,
                () = self.interrupts.next() => was_interrupted = true,
            }
        };
        if !status.success() {
            bail!("the command failed ({status}); {}", self.left_drained());
        }
        if was_interrupted {
            bail!("interrupted while the command ran, which has ended well; {}", self.left_drained());
        }
        Ok(())
    }

    async fn wait_for_health(&mut self) -> Result<()> {
        let deadline = deadline(self.asked.timeout);
        let Maintain { service, backend, .. } = &self.asked;
        let awaited = Awaited { socket: &self.socket, service, backend };
        match awaited.until_well(deadline, &mut self.interrupts).await.with_context(|| self.left_drained())? {
            Outcome::Reached => Ok(()),
            Outcome::TimedOut => {
                let timeout = humantime::format_duration(self.asked.timeout);
                bail!("{timeout} are over and {backend} is not up; {}", self.left_drained())
            }
            Outcome::Interrupted => {
                bail!("interrupted before {backend} was found to be up; {}", self.left_drained())
            }
        }
    }

    /// Nothing has been done to the backend yet, so that it can be as before.
    async fn give_up(&self, why: &str) -> Result<()> {
        let Maintain { backend, .. } = &self.asked;
        if self.was_drained {
            bail!("{why}; nothing was done, and {backend} stays out of service as it was before");
        }
        self.enable()
            .await
            .with_context(|| format!("{why}; nothing was done, but {}", self.left_drained()))?;
        bail!("{why}; nothing was done, and {backend} is enabled again")
    }

    async fn enable(&self) -> Result<()> {
        client::say(&self.socket, &self.say(Word::Enable)).await?;
        Ok(())
    }

    fn say(&self, word: Word) -> Say {
        let Maintain { service, backend, .. } = &self.asked;
        Say {
            service: service.clone(),
            backends: vec![backend.clone()],
            word,
            for_seconds: None,
            min_up: None,
            force: false,
        }
    }

    fn left_drained(&self) -> String {
        let Maintain { service, backend, .. } = &self.asked;
        format!(
            "{backend} is left drained: when it may serve again, `foobar-lb backend enable {service} {backend}`"
        )
    }
}
