//! What a guest is told, and what becomes of its messages, when an incarnation of the core is gone.
//!
//! What belongs here: withdrawing announced endpoints, and giving back what the guest sent to the
//! dead. What does not: when an incarnation is gone.
//!
//! A guest's driver has no way to hear of a crash but the name service: each announced endpoint is
//! withdrawn as if the firmware had done it, before anything of the next incarnation is relayed.

use std::collections::VecDeque;

use super::MAX_QUEUE_SIZE;
use super::guest_ring::{GuestRing, Next, RingFault};
use super::relay::{Counters, MESSAGES_PER_BURST, Moved, write_message};
use super::rpmsg::Announced;

/// Withdrawals that wait for a buffer of the guest.
#[derive(Default, Debug)]
pub struct Farewells {
    queue: VecDeque<Announced>,
}

impl Farewells {
    /// Is everything said?
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// There is nobody any more who would understand: a driver that was set up anew.
    pub fn clear(&mut self) {
        self.queue.clear();
    }

    /// Withdraws these, in order, after those that still wait.
    pub fn add(&mut self, announced: impl IntoIterator<Item = Announced>) {
        self.queue.extend(announced);
    }

    /// Says as many as there are buffers for. What `moved` then says has happened, whatever ended
    /// it.
    ///
    /// # Errors
    /// A [`RingFault`]: the guest's ring cannot be worked any more.
    pub fn relay(
        &mut self,
        guest: &mut GuestRing,
        counters: &mut Counters,
        moved: &mut Moved,
    ) -> Result<(), RingFault> {
        let mut burst = guest.open()?;
        let mut given_back = 0;
        let ended = loop {
            // A guest that offers nothing usable, without end, does not keep us.
            if given_back > MAX_QUEUE_SIZE {
                break Ok(());
            }
            let Some(announced) = self.queue.front() else {
                break Ok(());
            };
            match burst.peek() {
                Err(fault) => break Err(fault),
                Ok(Next::Nothing) => {
                    moved.wants_guest = true;
                    break Ok(());
                }
                Ok(Next::Bad { head, .. }) => {
                    counters.bad_chains += 1;
                    burst.complete(head, 0);
                    given_back += 1;
                }
                Ok(Next::Chain { head, len }) => {
                    let message = announced.withdrawal();
                    if len < message.len() {
                        counters.too_long += 1;
                        burst.complete(head, 0);
                        given_back += 1;
                    } else {
                        write_message(&message, burst.buffers());
                        #[expect(clippy::cast_possible_truncation, reason = "56 bytes")]
                        burst.complete(head, message.len() as u32);
                        counters.messages += 1;
                        counters.bytes += message.len() as u64;
                        self.queue.pop_front();
                    }
                }
            }
            moved.progress = true;
        };
        burst.publish();
        moved.call_guest = burst.wants_call();
        counters.notifications += u64::from(moved.call_guest);
        ended
    }
}

/// Gives back up to a burst of what the guest has sent and nobody will take, counted as lost.
/// No progress means that there was nothing more.
///
/// # Errors
/// A [`RingFault`]: the guest's ring cannot be worked any more.
pub fn discard(
    guest: &mut GuestRing,
    counters: &mut Counters,
    moved: &mut Moved,
) -> Result<(), RingFault> {
    let mut burst = guest.open()?;
    let mut looked_at = 0;
    let ended = loop {
        if looked_at == MESSAGES_PER_BURST {
            break Ok(());
        }
        match burst.peek() {
            Err(fault) => break Err(fault),
            Ok(Next::Nothing) => break Ok(()),
            Ok(Next::Bad { head, .. }) => {
                counters.bad_chains += 1;
                burst.complete(head, 0);
            }
            Ok(Next::Chain { head, .. }) => {
                counters.lost += 1;
                burst.complete(head, 0);
            }
        }
        looked_at += 1;
    };
    moved.progress = looked_at != 0;
    burst.publish();
    moved.call_guest = burst.wants_call();
    ended
}
