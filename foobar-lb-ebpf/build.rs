//! Tells bpf-linker which instructions the kernels we support have.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("bpf") {
        // 32-bit arithmetic: Linux 5.1. Headers are byte arrays, so LLVM would load each address byte by byte;
        // where BPF has a JIT worth having (x86-64, arm64), the verifier takes unaligned access to packets.
        println!("cargo:rustc-link-arg-bins=--cpu-features=+alu32,+allows-misaligned-mem-access");
    }
}
