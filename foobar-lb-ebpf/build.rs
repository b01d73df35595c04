//! Tells bpf-linker what the kernels we support can do.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("bpf") {
        // Headers are byte arrays, so LLVM would load each address byte by byte; where BPF has a JIT worth
        // having (x86-64, arm64), the verifier takes unaligned access to packets.
        println!("cargo:rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
    }
}
