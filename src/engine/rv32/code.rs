//! The cache of decoded blocks.
//!
//! What belongs here: where decoded instructions live, how a block is found by its address, and
//! when all of it is forgotten. What does not: executing.
//!
//! A block is a head and the ops of consecutive instructions, up to one that never falls through.
//! Conditional branches leave it at the side and do not end it. All blocks lie in one arena, so
//! that the next op is the next in memory, which the host's CPU predicts; an address looked up
//! per instruction measured half as fast.
//!
//! Stores are not watched: the daemon writes the same RAM. Firmware that changes code says
//! `fence.i`, as "Zifencei" demands, and then the whole arena is forgotten. The memory is bounded
//! whatever the firmware does, and whatever the size of the RAM: [`ARENA_OPS`] ops, which grow
//! with use, and [`BUCKETS`] heads of chains, 2.2 MiB in all.

use super::board;
use super::decode::{decode, length};
use super::fast_ram::FastRam;
use super::op::{Kind, Op};

/// Ops in the arena: 2 MiB.
const ARENA_OPS: usize = 128 * 1024;
/// Chains of blocks by address; a power of two.
const BUCKETS: usize = 1 << 15;
/// Instructions in one block at the most. Positions in a block must fit in an op's `u8`.
pub(super) const BLOCK_LIMIT: u8 = 64;
/// Heads to look at for one address. Firmware chooses its addresses, so a chain must not grow
/// with them; what falls off the end is decoded again when needed.
const CHAIN_LIMIT: usize = 8;

/// Decoded blocks. An op's index is never 0, so that 0 can say "none".
pub(super) struct CodeCache {
    ops: Vec<Op>,
    /// The first head of each chain. A box of the array, so that a masked index needs no check.
    buckets: Box<[u32; BUCKETS]>,
    /// One more at every flush: indices from before are void.
    generation: u64,
}

/// A block just decoded.
pub(super) struct Decoded {
    /// Its first op.
    pub(super) entry: u32,
    /// What decoding it cost, in ops.
    pub(super) cost: u64,
}

impl CodeCache {
    pub(super) fn new() -> Self {
        let mut cache = Self {
            ops: Vec::new(),
            buckets: Box::new([0; BUCKETS]),
            generation: 0,
        };
        cache.flush();
        cache
    }

    /// Forgets every block.
    pub(super) fn flush(&mut self) {
        // Emptying only the buckets in use makes a loop of `fence.i` cost what it decodes.
        if self.ops.len() < BUCKETS {
            for head in self.ops.iter().filter(|op| op.kind == Kind::Head) {
                self.buckets[bucket(head.pc)] = 0;
            }
        } else {
            self.buckets.fill(0);
        }
        self.ops.clear();
        // Index 0 is taken, by an op that is the head of nothing.
        self.ops.push(Op::new(Kind::Fall, 0, 0));
        self.generation += 1;
    }

    /// Flushes and gives the memory back to the host.
    pub(super) fn release(&mut self) {
        self.flush();
        self.ops.shrink_to_fit();
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// The first op of the block at `pc`, or 0 if there is none.
    #[inline(always)]
    pub(super) fn find(&self, pc: u32) -> u32 {
        let mut at = self.buckets[bucket(pc)];
        while at != 0 {
            let head = &self.ops[at as usize];
            if head.pc == pc {
                return at + 1;
            }
            at = head.link;
        }
        0
    }

    /// Lets the jump at index `from`, known in `generation`, go straight to the op `entry`.
    pub(super) fn link(&mut self, from: u32, generation: u64, entry: u32) {
        if generation != self.generation {
            return;
        }
        if let Some(op) = self.ops.get_mut(from as usize) {
            op.link = entry;
        }
    }

    /// Decodes the block at `pc`. May flush to make room.
    pub(super) fn translate(&mut self, ram: FastRam<'_>, pc: u32) -> Decoded {
        if self.ops.len() + usize::from(BLOCK_LIMIT) + 2 > ARENA_OPS {
            self.flush();
        }
        let before = self.ops.len();
        let chain = self.chain_for(pc);
        self.ops.push(Op {
            link: chain,
            ..Op::new(Kind::Head, pc, 0)
        });
        // The arena is far below 2^32 ops.
        let head = before as u32;
        self.buckets[bucket(pc)] = head;

        let mut at = pc;
        for position in 1..=BLOCK_LIMIT {
            let (mut op, length) = fetch(ram, at);
            match op.kind {
                Kind::Beq | Kind::Bne | Kind::Blt | Kind::Bge | Kind::Bltu | Kind::Bgeu => {
                    op.rd = position;
                }
                Kind::Jal => op.rs1 = position,
                Kind::Jalr => op.rs2 = position,
                kind if kind.is_access() => op.imm = op.imm.wrapping_sub(board::ram::BASE),
                _ => {}
            }
            self.ops.push(op);
            at = at.wrapping_add(length);
            if op.kind.ends_block() {
                return self.decoded(head, before);
            }
        }
        self.ops.push(Op {
            rd: BLOCK_LIMIT,
            ..Op::new(Kind::Fall, at, 0)
        });
        self.decoded(head, before)
    }

    fn decoded(&mut self, head: u32, before: usize) -> Decoded {
        // Pairs do not overlap, and nothing but a block's first op is jumped to, so the second of a
        // pair is reached through the first only.
        let mut at = before + 1;
        while let Some([first, second, ..]) = self.ops.get_mut(at..) {
            at += match first.kind.with(second.kind) {
                Some(pair) => {
                    first.kind = pair;
                    2
                }
                None => 1,
            };
        }
        Decoded {
            entry: head + 1,
            cost: (self.ops.len() - before) as u64,
        }
    }

    /// What a new head for `pc` must be linked to: the chain so far, or none if it is full.
    fn chain_for(&self, pc: u32) -> u32 {
        let first = self.buckets[bucket(pc)];
        let mut at = first;
        for _ in 1..CHAIN_LIMIT {
            if at == 0 {
                return first;
            }
            at = self.ops[at as usize].link;
        }
        0
    }
}

fn bucket(pc: u32) -> usize {
    (pc >> 1) as usize & (BUCKETS - 1)
}

/// The op at `pc` and the length of its instruction.
fn fetch(ram: FastRam<'_>, pc: u32) -> (Op, u32) {
    let Some(first) = ram.load_half(pc) else {
        return (Op::new(Kind::FetchFault, pc, pc), 0);
    };
    let length = length(first);
    if length == 2 {
        return (decode(u32::from(first), pc), length);
    }
    // The second half may lie behind the end of RAM; then its address is the one at fault
    // (Volume II, "Machine Trap Value Register").
    let next = pc.wrapping_add(2);
    match ram.load_half(next) {
        Some(second) => (
            decode(u32::from(second) << 16 | u32::from(first), pc),
            length,
        ),
        None => (Op::new(Kind::FetchFault, pc, next), 0),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::engine::rv32::board::ram::BASE;
    use crate::memory::{DeviceAddress, Ram};

    fn ram() -> Arc<Ram> {
        Ram::new("test", DeviceAddress(u64::from(BASE)), 4096).unwrap()
    }

    #[test]
    fn a_block_is_found_until_the_flush() {
        let ram = ram();
        let mut code = CodeCache::new();
        assert_eq!(code.find(BASE), 0);
        let entry = code.translate(FastRam::new(&ram), BASE).entry;
        assert_eq!(code.find(BASE), entry);
        assert_eq!(code.find(BASE + 2), 0);
        code.flush();
        assert_eq!(code.find(BASE), 0);
    }

    #[test]
    fn a_block_ends_at_its_limit_and_says_where_to_go_on() {
        let ram = ram();
        let view = FastRam::new(&ram);
        for at in 0..1024 {
            view.store_word(BASE + 4 * at, 0x13).unwrap();
        }
        let mut code = CodeCache::new();
        let decoded = code.translate(view, BASE);
        assert_eq!(decoded.cost, u64::from(BLOCK_LIMIT) + 2);
        let last = code.ops().last().unwrap();
        assert_eq!(last.kind, Kind::Fall);
        assert_eq!(last.pc, BASE + 4 * u32::from(BLOCK_LIMIT));
        assert_eq!(last.rd, BLOCK_LIMIT);
    }

    #[test]
    fn ops_that_follow_each_other_become_pairs_that_do_not_overlap() {
        let ram = ram();
        let view = FastRam::new(&ram);
        // lw a0, 4(a1) three times, add a0, a0, a0 and jal zero, 0.
        for (at, raw) in (0..).zip([0x0045_a503, 0x0045_a503, 0x0045_a503, 0x00a5_0533, 0x6f]) {
            view.store_word(BASE + 4 * at, raw).unwrap();
        }
        let mut code = CodeCache::new();
        let entry = code.translate(view, BASE).entry as usize;
        let kinds = |kind: fn(Kind) -> Kind| -> Vec<Kind> {
            let block = &code.ops()[entry..];
            block.iter().map(|op| kind(op.kind)).collect()
        };
        use Kind::{Add, Jal, Lw, LwAdd, LwLw};
        assert_eq!(kinds(|kind| kind), [LwLw, Lw, LwAdd, Add, Jal]);
        assert_eq!(kinds(Kind::first), [Lw, Lw, Lw, Add, Jal]);
        assert_eq!(code.ops()[entry].imm, 4_u32.wrapping_sub(BASE));
    }

    #[test]
    fn a_link_from_before_a_flush_is_not_made() {
        let ram = ram();
        let view = FastRam::new(&ram);
        let mut code = CodeCache::new();
        let from = code.translate(view, BASE).entry;
        let generation = code.generation();
        code.flush();
        let entry = code.translate(view, BASE).entry;
        code.link(from, generation, entry);
        assert_eq!(code.ops()[from as usize].link, 0);
        code.link(from, code.generation(), entry);
        assert_eq!(code.ops()[from as usize].link, entry);
    }

    #[test]
    fn the_arena_does_not_grow_past_its_size_nor_a_chain_past_its_length() {
        let ram = ram();
        let view = FastRam::new(&ram);
        let mut code = CodeCache::new();
        // Most of these addresses have nothing to fetch, which is a block too.
        for number in 0..ARENA_OPS as u32 {
            let pc = number.wrapping_mul(2 * BUCKETS as u32);
            let entry = code.translate(view, pc).entry;
            assert_eq!(code.find(pc), entry);
            assert!(code.ops().len() <= ARENA_OPS);
        }
        let mut at = code.buckets[0];
        let mut length = 0;
        while at != 0 {
            at = code.ops()[at as usize].link;
            length += 1;
        }
        assert!(length <= CHAIN_LIMIT, "{length}");
    }
}
