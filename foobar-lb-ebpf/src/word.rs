//! A word that CPUs, and user space, share without a lock.

#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::{AtomicU64, Ordering};

/// Eight bytes that are only ever loaded and stored in one piece.
///
/// For BPF a volatile access of an aligned word is that: one instruction. LLVM's BPF back end has no relaxed
/// atomic loads for the instruction set of older kernels.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Word(
    #[cfg(target_arch = "bpf")] core::cell::UnsafeCell<u64>,
    #[cfg(not(target_arch = "bpf"))] AtomicU64,
);

#[cfg(not(target_arch = "bpf"))]
impl Word {
    /// A word of this value.
    pub const fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    /// The value now.
    pub fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Replaces the value.
    pub fn store(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

#[cfg(target_arch = "bpf")]
impl Word {
    /// A word of this value.
    #[inline(always)]
    pub const fn new(value: u64) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }

    /// The value now.
    #[inline(always)]
    pub fn load(&self) -> u64 {
        // SAFETY: the cell's own memory, aligned.
        unsafe { self.0.get().read_volatile() }
    }

    /// Replaces the value.
    #[inline(always)]
    pub fn store(&self, value: u64) {
        // SAFETY: the cell's own memory, aligned; whoever shares it loads and stores whole words too.
        unsafe { self.0.get().write_volatile(value) }
    }
}

// SAFETY: every access is one load or one store of the whole word.
#[cfg(target_arch = "bpf")]
unsafe impl Sync for Word {}
