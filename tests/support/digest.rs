//! The sha256 of what is written, by coreutils: another implementation than anything under test, and in a process of
//! its own. And files large enough that one is worth its while.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// What is repeated in a large file.
const BLOCK: usize = 16 << 20;

/// Writes so many mebibytes, a multiple of 16: random blocks, each unlike the others. Returns the sha256.
pub fn write_random_file(path: &Path, mebibytes: u64) -> Result<String> {
    let mut block = vec![0; BLOCK];
    File::open("/dev/urandom")?.read_exact(&mut block)?;
    let mut file = File::create(path)?;
    let mut sum = Sha256::new()?;
    for number in 0..mebibytes * (1 << 20) / BLOCK as u64 {
        block[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&block)?;
        sum.write_all(&block)?;
    }
    sum.finish()
}

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
