//! Another XDP program behind the balancer's: it gets the packets that this one passes, and the kernel what that passes.

use std::{path::PathBuf, str::FromStr};

use aya::{
    maps::{Map, MapData, MapError, ProgramArray},
    programs::{ProgramError, ProgramFd, ProgramInfo, Xdp, loaded_programs},
};
use aya_obj::{Object, generated::bpf_prog_type::BPF_PROG_TYPE_XDP, programs::XdpAttachType};
use caps::{CapSet, Capability};
use foobar_lb_ebpf::layout::name;

use super::{Bpf, failed, unless_missing};

/// How an operator names a program that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Where it is pinned.
    Pin(PathBuf),
    /// Its id in this kernel.
    Id(u32),
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pin(path) => write!(f, "what is pinned at {}", path.display()),
            Self::Id(id) => write!(f, "the program with the id {id}"),
        }
    }
}

impl FromStr for Which {
    type Err = NotAProgram;

    fn from_str(text: &str) -> Result<Self, NotAProgram> {
        match text.parse() {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) if text.starts_with('/') => Ok(Self::Pin(text.into())),
            Err(_) => Err(NotAProgram),
        }
    }
}

/// Neither names a program.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("name a program by the path where it is pinned, such as /sys/fs/bpf/filter, or by its id")]
pub struct NotAProgram;

/// Why no program can be put behind the balancer's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing, or nothing of use, is pinned there.
    #[error(
        "there is no program to run behind the balancer at {}: pin it there with `bpftool prog pin id ID PATH`, and let the \
         user of the balancer read and write that pin",
        path.display()
    )]
    NoPin {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// The kernel has no such program.
    #[error(
        "there is no program with the id {id} to run behind the balancer: `bpftool prog` shows those that are loaded"
    )]
    NoId {
        /// The id.
        id: u32,
    },
    /// The kernel does not tell which programs there are.
    #[error(
        "only with CAP_SYS_ADMIN can a program be found by its id, here {id}: name the path where it is pinned"
    )]
    Hidden {
        /// The id.
        id: u32,
    },
    /// A program of another type.
    #[error("{which} is no XDP program, so it cannot run behind the balancer")]
    OtherType {
        /// What the operator named.
        which: Which,
    },
    /// One balancer behind another would see no packet of use.
    #[error("{program} is a foobar-lb itself, so it cannot run behind the balancer")]
    Ours {
        /// Its name and id.
        program: String,
    },
    /// The kernel lets the one not follow the other.
    #[error(
        "{program} cannot run behind the balancer: the kernel says that the two do not suit each other; both must be \
         compiled to machine code (JIT), and neither one for a map of devices or CPUs, nor one that programs of libxdp are \
         attached to (load it with LIBXDP_SKIP_DISPATCHER=1)"
    )]
    Unsuitable {
        /// Its name and id.
        program: String,
        /// What the kernel said.
        source: Box<MapError>,
    },
    /// It is there, and cannot be used.
    #[error("cannot use {program}")]
    Unusable {
        /// Its name and id.
        program: String,
        /// What the kernel said.
        source: Box<ProgramError>,
    },
}

/// A loaded XDP program of someone else.
#[derive(Debug)]
pub struct Next {
    /// Its name and id, for people.
    pub program: String,
    descriptor: ProgramFd,
}

impl Next {
    /// Finds it.
    ///
    /// # Errors
    /// When there is none, or it is not one that can run behind the balancer's.
    pub fn find(which: &Which) -> Result<Self, Error> {
        let (info, descriptor) = match which {
            Which::Pin(path) => open_pin(path.clone())?,
            Which::Id(id) => open_id(*id)?,
        };
        let called = info.name_as_str().filter(|name| !name.is_empty()).unwrap_or("?");
        let program = format!("`{called}` (id {})", info.id());
        if info.program_type() != BPF_PROG_TYPE_XDP {
            return Err(Error::OtherType { which: which.clone() });
        }
        if called == name::PROGRAM {
            return Err(Error::Ours { program });
        }
        match descriptor {
            Ok(descriptor) => Ok(Self { program, descriptor }),
            Err(source) => Err(Error::Unusable { program, source: Box::new(source) }),
        }
    }
}

type Opened = (ProgramInfo, Result<ProgramFd, ProgramError>);

/// Whoever may open the pin may use the program; by its id only CAP_SYS_ADMIN may.
fn open_pin(path: PathBuf) -> Result<Opened, Error> {
    let open = || {
        let program = Xdp::from_pin(&path, XdpAttachType::Interface)?;
        let descriptor = program.fd()?.try_clone().map_err(ProgramError::IOError);
        Ok((program.info()?, descriptor))
    };
    open().map_err(|source| Error::NoPin { path: path.clone(), source: Box::new(source) })
}

fn open_id(id: u32) -> Result<Opened, Error> {
    let may_look = caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(true);
    let missing = if may_look { Error::NoId { id } } else { Error::Hidden { id } };
    // Others may end while this looks through them.
    let info = loaded_programs().flatten().find(|info| info.id() == id).ok_or(missing)?;
    let descriptor = info.fd();
    Ok((info, descriptor))
}

impl Bpf {
    /// Asks the kernel whether a program can run behind this one, which needs the same [`Frames`](super::Frames). Nothing
    /// is changed.
    ///
    /// # Errors
    /// When it cannot.
    pub fn try_next(&mut self, next: &Next) -> Result<(), super::Error> {
        let object = self.frames.object();
        let mut parsed =
            Object::parse(&object).map_err(|error| super::Error::Load(Box::new(error.into())))?;
        let map = parsed.maps.remove(name::NEXT).expect("the object has this map");
        let ours = self.program().fd().and_then(|program| Ok(program.try_clone()?));
        let ours = ours.map_err(|source| super::Error::Size(Box::new(source)))?;
        // The first program in a map decides which others can be in it.
        let follow = || {
            let mut scratch =
                ProgramArray::try_from(Map::ProgramArray(MapData::create(map, name::NEXT, None)?))?;
            scratch.set(0, &ours, 0)?;
            scratch.set(0, &next.descriptor, 0)
        };
        follow().map_err(|source| {
            Error::Unsuitable { program: next.program.clone(), source: Box::new(source) }.into()
        })
    }

    /// From now on packets that are passed go to this program, or to none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_next(&mut self, next: Option<Next>) -> Result<(), super::Error> {
        let map = self.ebpf.map_mut(name::NEXT).expect("the object has this map");
        let mut programs = ProgramArray::try_from(map).map_err(failed(name::NEXT, "use"))?;
        match &next {
            Some(next) => programs.set(0, &next.descriptor, 0),
            None => unless_missing(programs.clear_index(&0)),
        }
        .map_err(failed(name::NEXT, "write"))?;
        self.next_program = next.map(|next| next.program);
        Ok(())
    }
}
