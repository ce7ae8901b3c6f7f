//! Whatever a guest writes into its memory and wherever it says its ring is: no panic, no access
//! outside, and bounded work.
//!
//! Input: 32 bytes that say where the ring is and what was negotiated, then what is in guest
//! memory from address 0 on.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use rprocd::vdev::{
    Direction, GuestRing, MAX_BUFFERS_PER_CHAIN, MESSAGES_PER_BURST, Next, RingFeatures, RingLayout,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const REGION: usize = 0x2000;

fuzz_target!(|bytes: &[u8]| {
    let Some((head, content)) = bytes.split_first_chunk::<32>() else {
        return;
    };
    let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"));
    // Two regions that touch and one behind a hole.
    let regions = [0, REGION, 3 * REGION].map(|start| (GuestAddress(start as u64), REGION));
    let mem = Arc::new(GuestMemoryMmap::<()>::from_ranges(&regions).expect("regions"));
    let len = content.len().min(2 * REGION);
    mem.write_slice(&content[..len], GuestAddress(0))
        .expect("inside");
    let layout = RingLayout {
        size: u16::from_le_bytes([head[24], head[25]]),
        descriptors: GuestAddress(word(0)),
        available: GuestAddress(word(8)),
        used: GuestAddress(word(16)),
    };
    let features = RingFeatures {
        event_idx: head[26] & 1 != 0,
        indirect: head[26] & 2 != 0,
    };
    let (direction, fill) = if head[26] & 4 != 0 {
        (Direction::ToGuest, true)
    } else {
        (Direction::FromGuest, false)
    };
    let Ok(mut ring) = GuestRing::take_up(layout, features, direction, &mem) else {
        return;
    };
    for _ in 0..4 {
        let Ok(mut burst) = ring.open() else {
            return;
        };
        burst.refuse_kicks();
        for _ in 0..MESSAGES_PER_BURST {
            match burst.peek() {
                Ok(Next::Nothing) => break,
                Ok(Next::Bad { head, .. }) => burst.complete(head, 0),
                Ok(Next::Chain { head, len }) => {
                    let buffers = burst.buffers();
                    // Each may cross the one seam there is.
                    assert!(buffers.len() <= 2 * MAX_BUFFERS_PER_CHAIN);
                    assert_eq!(
                        buffers.iter().map(|buffer| buffer.len()).sum::<usize>(),
                        len
                    );
                    for buffer in buffers {
                        assert!(!buffer.is_empty());
                        if fill {
                            buffer.copy_from(&[0x5au8; 16]);
                        } else {
                            buffer.copy_to(&mut [0u8; 16]);
                        }
                    }
                    burst.complete(head, u32::MAX);
                }
                Err(_) => {
                    burst.publish();
                    burst.wants_call();
                    return;
                }
            }
        }
        let _ = burst.ask_for_kick();
        burst.publish();
        burst.wants_call();
    }
});
