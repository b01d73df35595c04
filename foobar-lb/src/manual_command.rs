//! `foobar-lb manual`: manual pages made from the same definition as `--help`, for packages.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::Cli;

/// The words of `foobar-lb manual`.
#[derive(clap::Args)]
pub struct Manual {
    /// Where the pages go; made if it is not there.
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

impl Manual {
    /// Writes `foobar-lb.1`, and one page for each command.
    ///
    /// # Errors
    /// When a page cannot be written.
    pub fn run(&self) -> Result<ExitCode> {
        let directory = &self.directory;
        let cannot = || format!("cannot write manual pages into {}", directory.display());
        fs::create_dir_all(directory).with_context(cannot)?;
        clap_mangen::generate_to(Cli::command(), directory).with_context(cannot)?;
        Ok(ExitCode::SUCCESS)
    }
}
