//! `foobar-lb completions`: a script for a shell, made from the same definition as `--help`.

use std::{io::Write, process::ExitCode};

use anyhow::{Context, Result};
use clap::{CommandFactory, ValueEnum};
use clap_complete::generate;

use crate::Cli;

/// The words of `foobar-lb completions`.
#[derive(clap::Args)]
pub struct Completions {
    /// The shell that is to complete them.
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Fish,
    Zsh,
}

impl Completions {
    /// Prints the script.
    ///
    /// # Errors
    /// When nobody reads it.
    pub fn run(&self) -> Result<ExitCode> {
        let shell = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Fish => clap_complete::Shell::Fish,
            Shell::Zsh => clap_complete::Shell::Zsh,
        };
        // What writes to a stream that may be closed is not left to the crate, which would panic.
        let mut script = Vec::new();
        generate(shell, &mut Cli::command(), "foobar-lb", &mut script);
        std::io::stdout().write_all(&script).context("cannot print the script")?;
        Ok(ExitCode::SUCCESS)
    }
}
