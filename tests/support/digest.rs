//! The sha256 of what is written, by coreutils: another implementation than anything under test, and in a process of
//! its own.

use std::io::{self, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// A sum in the making.
pub struct Sha256 {
    child: Child,
    stdin: ChildStdin,
}

impl Sha256 {
    /// Of nothing yet.
    pub fn new() -> Result<Self> {
        let mut command = Command::new("sha256sum");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("stdin is piped")?;
        Ok(Self { child, stdin })
    }

    /// Of all that was written, in hexadecimal.
    pub fn finish(self) -> Result<String> {
        drop(self.stdin);
        let output = self.child.wait_with_output()?;
        ensure!(output.status.success(), "sha256sum ended with {}", output.status);
        let text = String::from_utf8(output.stdout)?;
        Ok(text.split(' ').next().unwrap_or_default().to_owned())
    }
}

impl Write for Sha256 {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stdin.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdin.flush()
    }
}
