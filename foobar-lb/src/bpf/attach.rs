//! Running a loaded program on interfaces, and taking it off again.

use aya::programs::{Xdp, XdpMode, xdp::XdpLinkId};

use super::Error;

/// Where the program runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the network stack, on socket buffers.
    Generic,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// The program on an interface.
#[derive(Debug)]
pub struct Link {
    /// Name of the interface.
    pub interface: String,
    /// Where it runs.
    pub mode: Mode,
    id: XdpLinkId,
}

/// What the kernel made of a program; what an old kernel does not tell is absent.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Instructions, as the verifier left them.
    pub instructions: Option<u32>,
    /// How many the verifier went through, on all ways; Linux refuses more than a million.
    pub verified: Option<u32>,
    /// Bytes of machine code.
    pub machine_code: u32,
}

/// A loaded program. Dropping it takes it off all interfaces.
pub trait Attach {
    /// The program.
    fn xdp(&mut self) -> &mut Xdp;

    /// How large it is.
    ///
    /// # Errors
    /// When the kernel does not tell.
    fn size(&mut self) -> Result<Size, Error> {
        /// Bytes of an instruction (RFC 9669, 3).
        const INSTRUCTION: u32 = 8;
        let info = self.xdp().info().map_err(|source| Error::Size(Box::new(source)))?;
        Ok(Size {
            instructions: info.size_translated().map(|bytes| bytes / INSTRUCTION),
            verified: info.verified_instruction_count(),
            machine_code: info.size_jitted(),
        })
    }

    /// Runs the program on an interface.
    ///
    /// # Errors
    /// When the kernel refuses, because the interface or its driver cannot run it in this mode.
    fn attach(&mut self, interface: &str, index: u32, mode: Mode) -> Result<Link, Error> {
        let flags = match mode {
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
        };
        let attached = self.xdp().attach_to_if_index(index, flags);
        let interface = interface.to_owned();
        match attached {
            Ok(id) => Ok(Link { interface, mode, id }),
            Err(source) => Err(Error::Attach { interface, mode, source: Box::new(source) }),
        }
    }

    /// Takes the program off an interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn detach(&mut self, Link { interface, id, .. }: Link) -> Result<(), Error> {
        self.xdp().detach(id).map_err(|source| Error::Detach { interface, source: Box::new(source) })
    }
}
