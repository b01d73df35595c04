//! `foobar-lb status`: what the daemon says of itself, or what is known where none answers.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use foobar_lb::{
    bpf::pins::{self, Left},
    client,
    config::{self, DEFAULT_PIN_PATH, DEFAULT_SOCKET},
};
use serde_json::json;

use crate::{FAILED, configured_socket, table};

/// Prints the status. `file` is the configuration that names the socket, unless it is given, and the pins.
pub async fn status(json: bool, file: &Path, socket: Option<PathBuf>) -> Result<ExitCode> {
    let socket = socket.or_else(|| configured_socket(file)).unwrap_or_else(|| DEFAULT_SOCKET.into());
    let pin_path =
        config::load(file).map_or_else(|_| DEFAULT_PIN_PATH.into(), |config| config.daemon.pin_path);
    match client::status(&socket).await {
        Ok(status) if json => println!("{}", serde_json::to_string_pretty(&status)?),
        Ok(status) => print!("{}", table::render(&status)),
        Err(error) => {
            let Some(left) = pins::look(&pin_path).filter(|_| error.is_silence()) else {
                return Err(error.into());
            };
            if json {
                println!("{:#}", tell(&error, &pin_path, &left));
            } else {
                println!("{error}");
                println!("{}", describe(&pin_path, &left));
            }
            return Ok(ExitCode::from(FAILED));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(error: &client::Error, pin_path: &Path, left: &Left) -> serde_json::Value {
    json!({
        "failure": error.to_string(),
        "pinned": pin_path,
        "interfaces": left.interfaces,
        "heartbeat_seconds": left.heartbeat.map(|age| age.as_secs()),
    })
}

fn describe(pin_path: &Path, Left { interfaces, heartbeat }: &Left) -> String {
    let since = heartbeat.map_or_else(
        || "no daemon has looked after it".to_owned(),
        |age| {
            format!(
                "the last heartbeat of a daemon was {} ago",
                humantime::format_duration(Duration::from_secs(age.as_secs()))
            )
        },
    );
    format!(
        "the data path that is pinned at {} goes on, on {}: {since}, and health has been as it was since then; go on with \
         `foobar-lb attach --pin`, or take it off with `foobar-lb detach`",
        pin_path.display(),
        interfaces.join(", ")
    )
}
