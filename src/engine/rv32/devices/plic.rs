//! The platform-level interrupt controller, one context.
//!
//! Sources are levels ("RISC-V Platform-Level Interrupt Controller Specification", chapter
//! "Interrupt Gateways"). A source is pending while its line is up and it is not claimed; a line
//! that falls before the claim takes its interrupt back, so a handler that served two causes at
//! once is not called again for nothing.

use crate::engine::rv32::board::plic as map;

const SOURCES: usize = map::SOURCES as usize;
/// Sources 1 to 31; source 0 does not exist.
const EXISTING: u32 = !1;

pub(super) struct Plic {
    priority: [u8; SOURCES],
    enabled: u32,
    threshold: u8,
    claimed: u32,
}

impl Plic {
    pub(super) fn new() -> Self {
        Self {
            priority: [0; SOURCES],
            enabled: 0,
            threshold: 0,
            claimed: 0,
        }
    }

    fn pending(&self, lines: u32) -> u32 {
        lines & !self.claimed & EXISTING
    }

    /// The source to serve, and its priority: the highest, among equals the lowest number.
    fn best(&self, lines: u32) -> Option<(u32, u8)> {
        let mut candidates = self.pending(lines) & self.enabled;
        let mut best = None;
        while candidates != 0 {
            let source = candidates.trailing_zeros();
            candidates &= candidates - 1;
            let priority = self.priority[source as usize];
            if priority > best.map_or(0, |(_, highest)| highest) {
                best = Some((source, priority));
            }
        }
        best
    }

    /// Is the external interrupt of the hart up, with these lines up?
    pub(super) fn interrupts(&self, lines: u32) -> bool {
        self.best(lines)
            .is_some_and(|(_, priority)| priority > self.threshold)
    }

    pub(super) fn load(&mut self, offset: u32, lines: u32) -> Option<u32> {
        Some(match offset {
            map::PENDING => self.pending(lines),
            map::ENABLE => self.enabled,
            map::THRESHOLD => u32::from(self.threshold),
            map::CLAIM => {
                // The threshold has no say here, only in whether to interrupt.
                let source = self.best(lines).map_or(0, |(source, _)| source);
                self.claimed |= (1 << source) & EXISTING;
                source
            }
            _ => u32::from(*self.priority.get(priority_of(offset)?)?),
        })
    }

    pub(super) fn store(&mut self, offset: u32, value: u32) -> Option<()> {
        match offset {
            map::PENDING => {}
            map::ENABLE => self.enabled = value & EXISTING,
            map::THRESHOLD => self.threshold = (value & 7) as u8,
            map::CLAIM => {
                // Only for a source that is enabled, else silently ignored.
                if value < map::SOURCES && self.enabled & (1 << value) != 0 {
                    self.claimed &= !(1 << value);
                }
            }
            _ => {
                let source = priority_of(offset)?;
                let priority = self.priority.get_mut(source)?;
                if source != 0 {
                    *priority = (value & 7) as u8;
                }
            }
        }
        Some(())
    }
}

fn priority_of(offset: u32) -> Option<usize> {
    usize::try_from(offset.checked_sub(map::PRIORITY)? / 4).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: u32 = 1 << map::UART_IRQ | 1 << map::MAILBOX_IRQ;

    fn ready() -> Plic {
        let mut plic = Plic::new();
        plic.store(map::ENABLE, u32::MAX).unwrap();
        plic.store(map::PRIORITY + 4 * map::UART_IRQ, 1).unwrap();
        plic.store(map::PRIORITY + 4 * map::MAILBOX_IRQ, 2).unwrap();
        plic
    }

    #[test]
    fn a_claim_takes_the_highest_priority_first_and_then_the_next() {
        let mut plic = ready();
        assert_eq!(plic.load(map::CLAIM, LINES), Some(map::MAILBOX_IRQ));
        assert_eq!(plic.load(map::PENDING, LINES), Some(1 << map::UART_IRQ));
        assert_eq!(plic.load(map::CLAIM, LINES), Some(map::UART_IRQ));
        assert_eq!(plic.load(map::CLAIM, LINES), Some(0));
        assert!(!plic.interrupts(LINES));
    }

    #[test]
    fn of_equal_priorities_the_lowest_source_goes_first() {
        let mut plic = ready();
        plic.store(map::PRIORITY + 4 * map::UART_IRQ, 2).unwrap();
        assert_eq!(plic.load(map::CLAIM, LINES), Some(map::UART_IRQ));
    }

    #[test]
    fn a_line_still_up_is_pending_again_after_completion() {
        let mut plic = ready();
        let line = 1 << map::MAILBOX_IRQ;
        assert_eq!(plic.load(map::CLAIM, line), Some(map::MAILBOX_IRQ));
        assert!(!plic.interrupts(line));
        plic.store(map::CLAIM, map::MAILBOX_IRQ).unwrap();
        assert!(plic.interrupts(line));
        assert!(!plic.interrupts(0));
    }

    #[test]
    fn completing_what_is_not_enabled_or_does_not_exist_changes_nothing() {
        let mut plic = ready();
        assert_eq!(plic.load(map::CLAIM, LINES), Some(map::MAILBOX_IRQ));
        plic.store(map::ENABLE, 0).unwrap();
        plic.store(map::CLAIM, map::MAILBOX_IRQ).unwrap();
        plic.store(map::CLAIM, 32).unwrap();
        plic.store(map::CLAIM, u32::MAX).unwrap();
        plic.store(map::ENABLE, u32::MAX).unwrap();
        assert_eq!(plic.load(map::PENDING, LINES), Some(1 << map::UART_IRQ));
    }

    #[test]
    fn priorities_up_to_the_threshold_do_not_interrupt_but_can_be_claimed() {
        let mut plic = ready();
        plic.store(map::THRESHOLD, 2).unwrap();
        assert!(!plic.interrupts(LINES));
        assert_eq!(plic.load(map::CLAIM, LINES), Some(map::MAILBOX_IRQ));
    }

    #[test]
    fn priority_0_never_interrupts() {
        let mut plic = ready();
        plic.store(map::PRIORITY + 4 * map::UART_IRQ, 8).unwrap();
        assert!(!plic.interrupts(1 << map::UART_IRQ));
    }

    #[test]
    fn source_0_does_not_exist() {
        let mut plic = ready();
        plic.store(map::PRIORITY, 7).unwrap();
        assert_eq!(plic.load(map::PRIORITY, 0), Some(0));
        assert_eq!(plic.load(map::ENABLE, 0), Some(!1));
        assert!(!plic.interrupts(1));
    }

    #[test]
    fn sources_above_31_do_not_answer() {
        let mut plic = ready();
        assert_eq!(plic.load(map::PRIORITY + 4 * map::SOURCES, 0), None);
        assert_eq!(plic.load(map::ENABLE + 4, 0), None);
        assert_eq!(plic.store(map::SIZE - 4, 0), None);
    }
}
