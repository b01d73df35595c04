//! Running a loaded program on interfaces, and taking it off again.

use aya::programs::{
    Xdp, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::{XdpLink, XdpLinkId},
};

use super::{Error, Pins};

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
    held: Held,
}

/// What keeps the program on an interface.
#[derive(Debug)]
enum Held {
    /// This process.
    Program(XdpLinkId),
    /// A pin.
    Pin(PinnedLink),
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
            Ok(id) => Ok(Link { interface, mode, held: Held::Program(id) }),
            Err(source) => Err(Error::Attach { interface, mode, source: Box::new(source) }),
        }
    }

    /// Has the program stay on the interface when this process ends.
    ///
    /// # Errors
    /// When it cannot be pinned, as on kernels without links for XDP (before 5.9).
    fn pin(&mut self, link: Link, index: u32, pins: &Pins) -> Result<Link, Error> {
        let Held::Program(id) = link.held else { return Ok(link) };
        let path = pins.link(index);
        let failed = |source| Error::Pin { path: path.clone(), source };
        let held = self.xdp().take_link(id).map_err(|error| failed(error.into()))?;
        let held = FdLink::try_from(held).map_err(|error| failed(error.into()))?;
        let pinned = pins.pin(&path, |path| held.pin(path))?;
        drop(pinned);
        let held = PinnedLink::from_pin(&path).map_err(|error| failed(error.into()))?;
        Ok(Link { held: Held::Pin(held), ..link })
    }

    /// Goes on with a link that is pinned; the program takes the place of the one before, if that is another, and no
    /// packet passes without one.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn take_over(&mut self, interface: &str, index: u32, mode: Mode, pins: &Pins) -> Result<Link, Error> {
        let path = pins.link(index);
        let failed = |source| Error::Pin { path: path.clone(), source };
        let open = || PinnedLink::from_pin(&path).map_err(|error| failed(error.into()));
        let ours = self.xdp().info().map_err(|source| Error::Size(Box::new(source)))?.id();
        let link = FdLink::from(open()?);
        if link.info().map_err(|error| failed(error.into()))?.program_id() != ours {
            let link = XdpLink::try_from(link).map_err(|error| failed(error.into()))?;
            let replace =
                |source| Error::Attach { interface: interface.to_owned(), mode, source: Box::new(source) };
            let id = self.xdp().attach_to_link(link).map_err(replace)?;
            // The pin keeps it, not this process.
            drop(self.xdp().take_link(id).map_err(replace)?);
        }
        Ok(Link { interface: interface.to_owned(), mode, held: Held::Pin(open()?) })
    }

    /// Takes the program off an interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn detach(&mut self, Link { interface, held, .. }: Link) -> Result<(), Error> {
        let failed = |source| Error::Detach { interface, source };
        match held {
            Held::Program(id) => self.xdp().detach(id).map_err(|source| failed(source.into())),
            // Without the pin nothing keeps it.
            Held::Pin(link) => link.unpin().map(drop).map_err(|source| failed(source.into())),
        }
    }
}
