//! Whatever a firmware writes into its trace buffer, and whenever it is looked at: no panic, bounded
//! work and memory, numbers that only grow, and text that acts on no terminal.
//!
//! Input: the buffer's size, then actions: a byte that says what is done, where and how much of it,
//! then the bytes that are written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rprocd::report::printable;
use rprocd::rproc::{LOG_BYTES, OldText, TraceFollower};
use vm_memory::VolatileSlice;

fuzz_target!(|input: &[u8]| {
    let Some(([low, high], mut rest)) = input.split_first_chunk::<2>() else {
        return;
    };
    let size = usize::from(u16::from_le_bytes([*low, *high])) % 0x3000;
    let mut buffer = vec![0; size];
    let mut follower = TraceFollower::new();
    follower.begin(&VolatileSlice::from(&mut buffer[..]), OldText::None);
    let mut read = 0;
    while let Some(([action, low, high, len], more)) = rest.split_first_chunk::<4>() {
        let end = follower.end();
        let at = usize::from(u16::from_le_bytes([*low, *high])) % size.max(1);
        let len = usize::from(*len).min(more.len()).min(size - at.min(size));
        buffer[at..at + len].copy_from_slice(&more[..len]);
        rest = &more[len..];
        let slice = VolatileSlice::from(&mut buffer[..]);
        match action % 8 {
            0 => follower.begin(&slice, OldText::None),
            1 => follower.begin(&slice, OldText::Kept),
            2 => drop(follower.look_last(&slice)),
            3 => drop(follower.look_closely(&slice)),
            _ => drop(follower.look(&slice)),
        }
        assert!(follower.end() >= end);
        let piece = follower.since(read, 100);
        assert!(piece.bytes.len() <= 100 && piece.first >= read && piece.next() <= follower.end());
        assert!(!piece.bytes.contains(&0));
        read = piece.next();
        let (text, used) = printable(&piece.bytes, true);
        assert!(used <= piece.bytes.len());
        assert!(!text.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
    }
    assert!(follower.since(0, usize::MAX).bytes.len() <= LOG_BYTES);
});
