//! Executes instructions of the BPF instruction set, version 3 (RFC 9669, but for atomic operations, which the program does
//! without), and counts them.

use anyhow::{Context, Result, bail, ensure};
use aya_obj::generated::{
    BPF_ADD, BPF_ALU, BPF_ALU64, BPF_AND, BPF_ARSH, BPF_B, BPF_CALL, BPF_DIV, BPF_DW, BPF_END, BPF_EXIT,
    BPF_H, BPF_IMM, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JLE, BPF_JLT, BPF_JMP32, BPF_JNE, BPF_JSET,
    BPF_JSGE, BPF_JSGT, BPF_JSLE, BPF_JSLT, BPF_LD, BPF_LDX, BPF_LSH, BPF_MEM, BPF_MOD, BPF_MOV, BPF_MUL,
    BPF_NEG, BPF_OR, BPF_PSEUDO_CALL, BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE, BPF_RSH, BPF_ST, BPF_STX,
    BPF_SUB, BPF_TO_BE, BPF_W, BPF_X, BPF_XOR, bpf_insn,
};

use super::{
    Cost,
    helpers::World,
    memory::{CONTEXT_ADDRESS, Memory},
};

/// More than any packet takes.
const MOST_INSTRUCTIONS: u64 = 1 << 20;
/// The register that points to the end of the stack.
const FRAME: usize = 10;

/// A run of a program.
pub struct Machine<'r, 'm> {
    program: &'r [bpf_insn],
    memory: &'r mut Memory<'m>,
    world: &'r mut World<'m>,
    /// The place of the next instruction.
    next: usize,
    registers: [u64; 11],
    callers: Vec<Caller>,
    cost: Cost,
}

/// A function that waits for another.
struct Caller {
    next: usize,
    /// Those that a function gives back as it found them, and the end of its stack.
    kept: [u64; 5],
}

impl<'r, 'm> Machine<'r, 'm> {
    /// One that is about to begin.
    pub fn new(program: &'r [bpf_insn], memory: &'r mut Memory<'m>, world: &'r mut World<'m>) -> Self {
        let registers = [0; 11];
        Self { program, memory, world, next: 0, registers, callers: vec![], cost: Cost::default() }
    }

    /// What the program returns, and what that has taken.
    pub fn run(mut self) -> Result<(u64, Cost)> {
        self.registers[1] = CONTEXT_ADDRESS;
        self.registers[FRAME] = Memory::stack_end(0)?;
        while self.cost.instructions < MOST_INSTRUCTIONS {
            let place = self.next;
            if self.step().with_context(|| format!("at instruction {place}"))? {
                return Ok((self.registers[0], self.cost));
            }
        }
        bail!("it does not end")
    }

    /// Executes one instruction; true where that was the last.
    fn step(&mut self) -> Result<bool> {
        let instruction = self.fetch()?;
        self.cost.instructions += 1;
        let code = u32::from(instruction.code);
        match code & 7 {
            BPF_LD => self.load_number(instruction)?,
            BPF_LDX => self.load(instruction)?,
            BPF_ST | BPF_STX => self.store(instruction)?,
            BPF_ALU | BPF_ALU64 => self.compute(instruction)?,
            _ => match code & 0xf0 {
                BPF_CALL => self.call(instruction)?,
                BPF_EXIT => return Ok(self.leave()),
                _ => self.jump(instruction)?,
            },
        }
        Ok(false)
    }

    fn fetch(&mut self) -> Result<bpf_insn> {
        let instruction = self.program.get(self.next).context("there is none")?;
        self.next += 1;
        Ok(*instruction)
    }

    /// A number of 64 bits, half of which is in the next place; or a map or a value of one.
    fn load_number(&mut self, instruction: bpf_insn) -> Result<()> {
        ensure!(
            u32::from(instruction.code) == BPF_LD | BPF_IMM | BPF_DW,
            "unknown load {}",
            instruction.code
        );
        let upper = self.fetch()?.imm as u32;
        let lower = instruction.imm as u32;
        self.registers[usize::from(instruction.dst_reg())] = match u32::from(instruction.src_reg()) {
            0 => u64::from(upper) << 32 | u64::from(lower),
            BPF_PSEUDO_MAP_FD => lower.into(),
            BPF_PSEUDO_MAP_VALUE => Memory::address(lower as usize, upper as usize),
            other => bail!("unknown kind of number {other}"),
        };
        Ok(())
    }

    fn load(&mut self, instruction: bpf_insn) -> Result<()> {
        let address =
            self.registers[usize::from(instruction.src_reg())].wrapping_add_signed(instruction.off.into());
        let number = self.memory.load(address, width(instruction)?)?;
        self.registers[usize::from(instruction.dst_reg())] = number;
        Ok(())
    }

    fn store(&mut self, instruction: bpf_insn) -> Result<()> {
        let address =
            self.registers[usize::from(instruction.dst_reg())].wrapping_add_signed(instruction.off.into());
        let number = match u32::from(instruction.code) & 7 {
            BPF_STX => self.registers[usize::from(instruction.src_reg())],
            _ => i64::from(instruction.imm) as u64,
        };
        self.memory.store(address, width(instruction)?, number)
    }

    fn compute(&mut self, instruction: bpf_insn) -> Result<()> {
        let code = u32::from(instruction.code);
        let old = self.registers[usize::from(instruction.dst_reg())];
        let operand = self.operand(instruction);
        let new = match (code & 7, code & 0xf0) {
            (BPF_ALU, BPF_END) => swap(old, instruction),
            (BPF_ALU, operation) => compute_half(operation, old as u32, operand as u32).map(u64::from),
            (_, operation) => compute_whole(operation, old, operand),
        };
        let new = new.with_context(|| format!("unknown operation {code:#x}"))?;
        self.registers[usize::from(instruction.dst_reg())] = new;
        Ok(())
    }

    fn jump(&mut self, instruction: bpf_insn) -> Result<()> {
        let code = u32::from(instruction.code);
        let (left, right) = (self.registers[usize::from(instruction.dst_reg())], self.operand(instruction));
        let (unsigned, signed) = match code & 7 {
            BPF_JMP32 => {
                let (left, right) = (left as u32, right as u32);
                ((left.into(), right.into()), (i64::from(left as i32), i64::from(right as i32)))
            }
            _ => ((left, right), (left as i64, right as i64)),
        };
        if is_true(code & 0xf0, unsigned, signed).with_context(|| format!("unknown jump {code:#x}"))? {
            self.move_by(instruction.off.into())?;
        }
        Ok(())
    }

    fn call(&mut self, instruction: bpf_insn) -> Result<()> {
        let [_, first, second, third, fourth, ..] = self.registers;
        if u32::from(instruction.src_reg()) == BPF_PSEUDO_CALL {
            let [.., a, b, c, d, end] = self.registers;
            self.callers.push(Caller { next: self.next, kept: [a, b, c, d, end] });
            self.registers[FRAME] = Memory::stack_end(self.callers.len())?;
            return self.move_by(instruction.imm as isize);
        }
        let arguments = [first, second, third, fourth];
        self.registers[0] =
            self.world.call(instruction.imm as u32, arguments, self.memory, &mut self.cost)?;
        Ok(())
    }

    /// Goes on where the function was called; true where the program was.
    fn leave(&mut self) -> bool {
        let Some(Caller { next, kept }) = self.callers.pop() else { return true };
        self.next = next;
        self.registers[6..].copy_from_slice(&kept);
        false
    }

    fn move_by(&mut self, places: isize) -> Result<()> {
        self.next = self.next.checked_add_signed(places).context("it jumps to before the program")?;
        Ok(())
    }

    /// The second operand.
    fn operand(&self, instruction: bpf_insn) -> u64 {
        match u32::from(instruction.code) & BPF_X {
            0 => i64::from(instruction.imm) as u64,
            _ => self.registers[usize::from(instruction.src_reg())],
        }
    }
}

/// Bytes that are loaded or stored.
fn width(instruction: bpf_insn) -> Result<usize> {
    let code = u32::from(instruction.code);
    ensure!(code & 0xe0 == BPF_MEM, "unknown access {code:#x}");
    Ok(match code & 0x18 {
        BPF_B => 1,
        BPF_H => 2,
        BPF_W => 4,
        _ => 8,
    })
}

fn compute_whole(operation: u32, left: u64, right: u64) -> Option<u64> {
    Some(match operation {
        BPF_ADD => left.wrapping_add(right),
        BPF_SUB => left.wrapping_sub(right),
        BPF_MUL => left.wrapping_mul(right),
        BPF_DIV => left.checked_div(right).unwrap_or(0),
        BPF_MOD => left.checked_rem(right).unwrap_or(left),
        BPF_OR => left | right,
        BPF_AND => left & right,
        BPF_XOR => left ^ right,
        BPF_LSH => left.wrapping_shl(right as u32),
        BPF_RSH => left.wrapping_shr(right as u32),
        BPF_ARSH => (left as i64).wrapping_shr(right as u32) as u64,
        BPF_NEG => left.wrapping_neg(),
        BPF_MOV => right,
        _ => return None,
    })
}

fn compute_half(operation: u32, left: u32, right: u32) -> Option<u32> {
    Some(match operation {
        BPF_LSH => left.wrapping_shl(right),
        BPF_RSH => left.wrapping_shr(right),
        BPF_ARSH => (left as i32).wrapping_shr(right) as u32,
        // The lower half of what comes of whole numbers.
        _ => compute_whole(operation, left.into(), right.into())? as u32,
    })
}

/// The lowest bytes in the order of the network, or of this machine.
fn swap(number: u64, instruction: bpf_insn) -> Option<u64> {
    let swaps = u32::from(instruction.code) & BPF_X == BPF_TO_BE;
    Some(match (instruction.imm, swaps) {
        (16, true) => (number as u16).swap_bytes().into(),
        (32, true) => (number as u32).swap_bytes().into(),
        (64, true) => number.swap_bytes(),
        (16, false) => (number as u16).into(),
        (32, false) => (number as u32).into(),
        (64, false) => number,
        _ => return None,
    })
}

fn is_true(comparison: u32, (left, right): (u64, u64), signed: (i64, i64)) -> Option<bool> {
    Some(match comparison {
        BPF_JA => true,
        BPF_JEQ => left == right,
        BPF_JNE => left != right,
        BPF_JSET => left & right != 0,
        BPF_JGT => left > right,
        BPF_JGE => left >= right,
        BPF_JLT => left < right,
        BPF_JLE => left <= right,
        BPF_JSGT => signed.0 > signed.1,
        BPF_JSGE => signed.0 >= signed.1,
        BPF_JSLT => signed.0 < signed.1,
        BPF_JSLE => signed.0 <= signed.1,
        _ => return None,
    })
}
