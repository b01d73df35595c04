//! `foobar-lb reload`: has the running daemon read its configuration again.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use foobar_lb::{api, client, model::Share, reload::describe};

use crate::{Socket, WRONG, socket_path};

/// How much a reload may move.
#[derive(Args)]
pub struct Reload {
    /// Refuse it if more of the slots of a service would move, such as 10% [default: `max_moved` in force].
    #[arg(long, value_name = "SHARE", conflicts_with = "force")]
    max_moved: Option<Share>,
    /// Whatever it moves, also if that is more than `max_moved`.
    #[arg(long)]
    force: bool,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

impl Reload {
    /// Prints what came of it.
    pub async fn run(self) -> Result<ExitCode> {
        let request =
            api::Reload { max_moved: self.max_moved.map(|most| most.to_string()), force: self.force };
        match client::reload(&socket_path(self.socket), &request).await {
            Ok(reloaded) if self.json => println!("{}", serde_json::to_string_pretty(&reloaded)?),
            Ok(reloaded) => {
                reloaded.warnings.iter().for_each(|warning| eprintln!("{warning}"));
                println!("the configuration is in force: {}", describe(&reloaded));
            }
            Err(client::Error::Invalid(errors)) => {
                eprintln!("{errors}");
                return Ok(ExitCode::from(WRONG));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(ExitCode::SUCCESS)
    }
}
