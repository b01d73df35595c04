//! The smallest XDP program, which passes everything: what makes a veth wake up for frames that its peer
//! sends back by XDP_TX. Made by two bpf(2) calls, so that no compiler and no loader is needed.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc::{SYS_bpf, syscall};
use nix::net::if_::if_nametoindex;

// From linux/bpf.h and linux/if_link.h.
const BPF_PROG_LOAD: i32 = 5;
const BPF_LINK_CREATE: i32 = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// r0 = XDP_PASS; exit.
static PROGRAM: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
static LICENSE: [u8; 4] = *b"GPL\0";

/// The part of `union bpf_attr` that loads a program.
#[repr(C)]
struct Load {
    program_type: u32,
    instructions: u32,
    program: *const [u8; 8],
    license: *const u8,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// The part of `union bpf_attr` that attaches one.
#[repr(C)]
struct Link {
    program: i32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches the program to an interface of the current network namespace, until the result is dropped.
pub fn attach(interface: &str) -> nix::Result<OwnedFd> {
    let program = bpf(
        BPF_PROG_LOAD,
        &Load {
            program_type: BPF_PROG_TYPE_XDP,
            instructions: PROGRAM.len() as u32,
            program: PROGRAM.as_ptr(),
            license: LICENSE.as_ptr(),
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name: *b"pass\0\0\0\0\0\0\0\0\0\0\0\0",
            interface: 0,
            attach_type: BPF_XDP,
        },
    )?;
    bpf(
        BPF_LINK_CREATE,
        &Link {
            program: program.as_raw_fd(),
            interface: if_nametoindex(interface)?,
            attach_type: BPF_XDP,
            flags: XDP_FLAGS_DRV_MODE,
        },
    )
}

fn bpf<T>(command: i32, attributes: &T) -> nix::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as the attributes have, and the pointers in them are to statics.
    let result = unsafe { syscall(SYS_bpf, command, attributes, size_of::<T>()) };
    let descriptor = Errno::result(result)? as i32;
    // SAFETY: both commands return a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
