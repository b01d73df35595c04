//! Frames as `tshark` judges them, which is another implementation than any that makes them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const CHECKS: [&str; 3] = ["ip.check_checksum:TRUE", "tcp.check_checksum:TRUE", "udp.check_checksum:TRUE"];

/// A capture file.
pub struct Capture {
    path: PathBuf,
}

impl Capture {
    /// Writes the frames to a file of that name in the directory.
    pub fn write(directory: &Path, name: &str, frames: &[Vec<u8>]) -> Result<Self> {
        // The format of libpcap: version 2.4, whole frames, Ethernet.
        const HEADER: [u32; 6] = [0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 1 << 16, 1];
        let path = directory.join(format!("{name}.pcap"));
        let mut file = BufWriter::new(File::create(&path)?);
        write_words(&mut file, &HEADER)?;
        for frame in frames {
            let length = u32::try_from(frame.len())?;
            write_words(&mut file, &[0, 0, length, length])?;
            file.write_all(frame)?;
        }
        file.flush()?;
        Ok(Self { path })
    }

    /// No checksum may be wrong, of IPv4, ICMP, TCP and UDP, and of each there must be some that are right.
    pub fn check_checksums(&self) -> Result<()> {
        // Of what an ICMP error quotes, only the headers are whole. Linux, where it sums in software, writes a zero of TCP
        // as 0xffff too, as UDP has to (skb_checksum_help): the same number, which RFC 1624 has nobody compute.
        let wrong = self.find(
            "ip.checksum.status == Bad or icmp.checksum.status == Bad or icmpv6.checksum.status == Bad \
             or (not icmp and not icmpv6 and (tcp.checksum.status == Bad and not tcp.checksum.ffff \
             or udp.checksum.status == Bad))",
        )?;
        ensure!(wrong.is_empty(), "wrong checksums:\n{wrong}");
        for protocol in ["ip", "icmp", "icmpv6", "tcp", "udp"] {
            let right = self.find(&format!("{protocol}.checksum.status == Good"))?;
            ensure!(!right.is_empty(), "no packet of {protocol}");
        }
        Ok(())
    }

    /// A line about each of the frames that a display filter finds.
    fn find(&self, filter: &str) -> Result<String> {
        let mut command = Command::new("tshark");
        command.arg("-n").arg("-r").arg(&self.path).args(["-Y", filter]);
        for check in CHECKS {
            command.args(["-o", check]);
        }
        let output = command.output().context("cannot start tshark")?;
        ensure!(output.status.success(), "tshark failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn write_words(file: &mut impl Write, words: &[u32]) -> Result<()> {
    words.iter().try_for_each(|word| file.write_all(&word.to_ne_bytes())).context("cannot write frames")
}
