//! The kernel's helpers that the program calls: their numbers, arguments and answers are those of linux/bpf.h.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail};
use aya_obj::generated::bpf_func_id;
use foobar_lb::twin::Route;
use foobar_lb_ebpf::{layout::NextHop, reason::Reason};
use nix::errno::Errno;

use super::{
    Cost,
    maps::{Map, Refusal},
    memory::Memory,
};

const LOOK_UP: u32 = bpf_func_id::BPF_FUNC_map_lookup_elem as u32;
const UPDATE: u32 = bpf_func_id::BPF_FUNC_map_update_elem as u32;
const DELETE: u32 = bpf_func_id::BPF_FUNC_map_delete_elem as u32;
const TAIL_CALL: u32 = bpf_func_id::BPF_FUNC_tail_call as u32;
const CLOCK: u32 = bpf_func_id::BPF_FUNC_ktime_get_ns as u32;
const REDIRECT: u32 = bpf_func_id::BPF_FUNC_redirect as u32;
const MOVE_START: u32 = bpf_func_id::BPF_FUNC_xdp_adjust_head as u32;
const MOVE_END: u32 = bpf_func_id::BPF_FUNC_xdp_adjust_tail as u32;
const LENGTH: u32 = bpf_func_id::BPF_FUNC_xdp_get_buff_len as u32;
const FIND_WAY: u32 = bpf_func_id::BPF_FUNC_fib_lookup as u32;
const FIND_TCP: u32 = bpf_func_id::BPF_FUNC_sk_lookup_tcp as u32;
const FIND_UDP: u32 = bpf_func_id::BPF_FUNC_sk_lookup_udp as u32;

const XDP_REDIRECT: u64 = 4;
const NULL: u64 = 0;

/// What there is besides memory. No socket of the host takes anything, and no other program does.
pub struct World<'w> {
    pub now: u64,
    pub routes: &'w [Route],
    /// The interface that the frame is to leave by.
    pub redirected: u32,
}

impl World<'_> {
    /// Calls the helper with this number.
    pub fn call(
        &mut self,
        number: u32,
        [first, second, third, fourth]: [u64; 4],
        memory: &mut Memory<'_>,
        cost: &mut Cost,
    ) -> Result<u64> {
        cost.calls += 1;
        Ok(match number {
            LOOK_UP => look_up(memory, first, second, cost)?,
            UPDATE => answer(update(memory, first, second, third, fourth)?),
            DELETE => answer(delete(memory, first, second)?),
            CLOCK => self.now,
            REDIRECT => {
                self.redirected = first as u32;
                XDP_REDIRECT
            }
            MOVE_START => answer(check(memory.move_start(second as i32), Errno::EINVAL)),
            MOVE_END => answer(check(memory.move_end(second as i32), Errno::EINVAL)),
            LENGTH => memory.length() as u64,
            FIND_WAY => self.find_way(memory.bytes(second, third as usize)?)?,
            FIND_TCP | FIND_UDP | TAIL_CALL => NULL,
            other => bail!("the helper {other} is to be written"),
        })
    }

    /// Answers a `struct bpf_fib_lookup`.
    fn find_way(&self, question: &mut [u8]) -> Result<u64> {
        const SUCCESS: u64 = 0;
        const NOT_FORWARDED: u64 = 4;
        const FORWARDING_DISABLED: u64 = 5;
        const NO_NEIGHBOUR: u64 = 7;
        const FRAGMENTATION_NEEDED: u64 = 8;
        let question: &mut [u8; 64] = question.try_into().context("not a struct bpf_fib_lookup")?;
        let destination = destination(question);
        let length = u16::from_ne_bytes([question[6], question[7]]);
        let ways = self.routes.iter().filter(|(prefix, _)| prefix.contains(&destination));
        let way = ways.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, way)| *way);
        Ok(match way {
            None | Some(Err(Reason::NoRoute)) => NOT_FORWARDED,
            Some(Err(Reason::ForwardingOff)) => FORWARDING_DISABLED,
            Some(Err(other)) => bail!("the kernel has no answer that means {other:?}"),
            Some(Ok(NextHop { mtu, .. })) if u32::from(length) > mtu => {
                question[6..8].copy_from_slice(&(mtu as u16).to_ne_bytes());
                FRAGMENTATION_NEEDED
            }
            Some(Ok(NextHop { interface: 0, .. })) => NO_NEIGHBOUR,
            Some(Ok(NextHop { interface, source, destination, .. })) => {
                question[8..12].copy_from_slice(&interface.to_ne_bytes());
                question[52..58].copy_from_slice(&source);
                question[58..64].copy_from_slice(&destination);
                SUCCESS
            }
        })
    }
}

fn destination(question: &[u8; 64]) -> IpAddr {
    const AF_INET: u8 = 2;
    let address: [u8; 16] = question[32..48].try_into().expect("as many bytes");
    match question[0] {
        AF_INET => Ipv4Addr::from([address[0], address[1], address[2], address[3]]).into(),
        _ => Ipv6Addr::from(address).into(),
    }
}

/// The address of the value, or none.
fn look_up(memory: &mut Memory<'_>, map: u64, key: u64, cost: &mut Cost) -> Result<u64> {
    let number = map as usize;
    let (map, key) = map_and_key(memory, map, key)?;
    cost.look_ups.push(map.name.clone());
    Ok(map.look_up(&key).map_or(NULL, |place| Memory::address(number, place)))
}

fn update(memory: &mut Memory<'_>, map: u64, key: u64, value: u64, flags: u64) -> Result<Result<(), Errno>> {
    let length = map_and_key(memory, map, key)?.0.value;
    let value = memory.bytes(value, length)?.to_vec();
    let (map, key) = map_and_key(memory, map, key)?;
    Ok(map.update(&key, &value, flags).map_err(|refusal| match refusal {
        Refusal::Exists => Errno::EEXIST,
        Refusal::Full | Refusal::Missing => Errno::E2BIG,
    }))
}

fn delete(memory: &mut Memory<'_>, map: u64, key: u64) -> Result<Result<(), Errno>> {
    let (map, key) = map_and_key(memory, map, key)?;
    Ok(check(map.delete(&key), Errno::ENOENT))
}

/// A map by its number, and the key at an address.
fn map_and_key<'m>(memory: &'m mut Memory<'_>, map: u64, key: u64) -> Result<(&'m mut Map, Vec<u8>)> {
    let number = map as usize;
    let length = memory.maps.get(number).context("no such map")?.key;
    let key = memory.bytes(key, length)?.to_vec();
    Ok((&mut memory.maps[number], key))
}

fn check(done: bool, otherwise: Errno) -> Result<(), Errno> {
    if done { Ok(()) } else { Err(otherwise) }
}

/// As a helper returns it.
fn answer(done: Result<(), Errno>) -> u64 {
    done.map_or_else(|errno| -i64::from(errno as i32) as u64, |()| 0)
}
