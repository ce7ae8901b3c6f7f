//! The bus against a driver that is well-behaved, and against one that is not.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::memory::testing::leak;
use crate::table::testing as table;
use crate::virtqueue::testing::DriverQueue;

const BASE: u32 = 0x8004_0000;
const RINGS: [u32; 2] = [BASE, BASE + 0x3000];
const OTHER_RINGS: [u32; 2] = [BASE + 0x6000, BASE + 0x9000];
const BUFFERS: u32 = BASE + 0x1_0000;
const WRITE: u16 = 2;

#[derive(Default)]
struct Log {
    kicks: Vec<u32>,
    lines: Vec<String>,
}

#[derive(Clone, Default)]
struct Recorder(Rc<RefCell<Log>>);

impl Host for Recorder {
    fn kick(&self, notify_id: u32) {
        self.0.borrow_mut().kicks.push(notify_id);
    }

    fn trace(&self, text: fmt::Arguments<'_>) {
        self.0.borrow_mut().lines.push(text.to_string());
    }
}

struct Echo;

impl Service for Echo {
    fn receive(&mut self, message: &Message, out: &mut Outbox<'_>) -> Turn {
        match out.reply(message, Payload::Shared(message.payload)) {
            Ok(()) => Turn::Done,
            Err(Full) => Turn::Later,
        }
    }
}

/// Answers each message three times, in as many turns as it takes.
#[derive(Default)]
struct Thrice(u8);

impl Service for Thrice {
    fn receive(&mut self, message: &Message, out: &mut Outbox<'_>) -> Turn {
        while self.0 < 3 {
            if out
                .reply(message, Payload::Bytes(&[b'0' + self.0]))
                .is_err()
            {
                return Turn::Later;
            }
            self.0 += 1;
        }
        self.0 = 0;
        Turn::Done
    }

    fn driver_up(&mut self) {
        self.0 = 0;
    }
}

/// Memory, table and the driver's half of both rings.
struct Driver {
    entry: Span,
    window: Window,
    receive: DriverQueue,
    send: DriverQueue,
    log: Recorder,
    sent: u16,
}

impl Driver {
    fn new() -> Self {
        let window = Window::new(leak(0x8_0000), BASE);
        let entry = leak(VdevEntry::SIZE as usize);
        let receive = DriverQueue::new(&window, RINGS[0], 256);
        let send = DriverQueue::new(&window, RINGS[1], 256);
        let driver = Self {
            entry,
            window,
            receive,
            send,
            log: Recorder::default(),
            sent: 0,
        };
        table::write(driver.entry, 3, 0, [0xFFFF_FFFF; 2]);
        driver
    }

    fn bus<'a>(&self, endpoints: &'a mut [Endpoint<'a>]) -> Bus<'a, 'static> {
        Bus::new(
            VdevEntry::new(self.entry),
            self.window,
            endpoints,
            Box::leak(Box::new(self.log.clone())),
        )
    }

    fn driver_ok(&self, gfeatures: u32) {
        table::write(self.entry, 7, gfeatures, [self.receive.da, self.send.da]);
    }

    fn reset(&mut self) {
        table::write(self.entry, 0, 0, [self.receive.da, self.send.da]);
    }

    fn new_rings(&mut self, das: [u32; 2]) {
        self.receive = DriverQueue::new(&self.window, das[0], 256);
        self.send = DriverQueue::new(&self.window, das[1], 256);
        self.sent = 0;
    }

    fn buffer(&self, index: u16) -> u32 {
        BUFFERS + 512 * u32::from(index)
    }

    fn post(&mut self, count: u16) {
        for _ in 0..count {
            let head = self.receive.avail_index % 256;
            self.receive
                .describe(head, u64::from(self.buffer(head)), 512, WRITE);
            self.receive.offer(head);
        }
    }

    fn send(&mut self, src: u32, dst: u32, payload: &[u8]) {
        let head = self.sent % 256;
        self.sent = self.sent.wrapping_add(1);
        let address = self.buffer(256 + head);
        let bytes = self.window.span(address, 512).unwrap();
        Header {
            src,
            dst,
            len: payload.len() as u16,
        }
        .write(bytes.slot(0).unwrap());
        bytes.part(16, 496).unwrap().write_bytes(payload);
        self.send
            .describe(head, u64::from(address), 16 + payload.len() as u32, 0);
        self.send.offer(head);
    }

    fn receive(&mut self) -> Option<(u32, u32, Vec<u8>)> {
        let (head, len) = self.receive.collect()?;
        let bytes = self.window.span(self.buffer(head as u16), len).unwrap();
        let (header, payload) = Header::read(bytes).unwrap();
        assert_eq!(
            len,
            16 + payload.len(),
            "the used length is header and payload"
        );
        let mut copy = vec![0; payload.len() as usize];
        payload.read_bytes(0, &mut copy);
        Some((header.src, header.dst, copy))
    }

    fn all_received(&mut self) -> Vec<(u32, u32, Vec<u8>)> {
        std::iter::from_fn(|| self.receive()).collect()
    }

    fn sent_back(&mut self) -> usize {
        std::iter::from_fn(|| self.send.collect()).count()
    }

    fn kicks(&self) -> Vec<u32> {
        std::mem::take(&mut self.log.0.borrow_mut().kicks)
    }

    fn traced(&self, part: &str) -> usize {
        self.log
            .0
            .borrow()
            .lines
            .iter()
            .filter(|line| line.contains(part))
            .count()
    }
}

fn is_announcement(message: &(u32, u32, Vec<u8>)) -> bool {
    message.1 == 53 && message.2.len() == 40
}

#[test]
fn nothing_is_touched_before_driver_ok() {
    let mut driver = Driver::new();
    driver.post(4);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    let mut bus = driver.bus(&mut endpoints);
    for status in [0, 1, 3, 0x83] {
        table::write(driver.entry, status, 1, RINGS);
        bus.poll();
    }
    assert_eq!(driver.receive(), None);
    assert!(driver.kicks().is_empty());
    driver.driver_ok(1);
    bus.poll();
    let message = driver.receive().unwrap();
    assert!(is_announcement(&message));
    assert_eq!((message.0, &message.2[..10]), (1024, &b"rpmsg-raw\0"[..]));
    assert_eq!(driver.kicks(), [4], "the notify id is the one in the table");
}

#[test]
fn messages_are_answered_to_their_sender_with_one_kick_a_ring_and_batch() {
    let mut driver = Driver::new();
    driver.post(128);
    driver.driver_ok(0);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    let mut bus = driver.bus(&mut endpoints);
    for len in [0, 1, 3, 4, 31, 32, 33, 495, 496] {
        driver.send(2000 + len, 1024, &vec![len as u8; len as usize]);
    }
    bus.poll();
    assert_eq!(driver.kicks(), [4, 5]);
    for len in [0, 1, 3, 4, 31, 32, 33, 495, 496] {
        assert_eq!(
            driver.receive(),
            Some((1024, 2000 + len, vec![len as u8; len as usize]))
        );
    }
    assert_eq!(driver.sent_back(), 9);
    assert_eq!(
        driver.receive(),
        None,
        "without the feature there are no announcements"
    );
}

#[test]
fn a_batch_of_more_copies_than_can_be_put_off_is_answered_whole() {
    let mut driver = Driver::new();
    driver.post(200);
    driver.driver_ok(0);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    let mut bus = driver.bus(&mut endpoints);
    const { assert!(200 > 2 * Copies::LIMIT) };
    for number in 0..200_u8 {
        driver.send(number.into(), 1024, &[number; 100]);
    }
    bus.poll();
    for number in 0..200_u8 {
        let answer = (1024, u32::from(number), vec![number; 100]);
        assert_eq!(driver.receive(), Some(answer));
    }
    assert_eq!(driver.sent_back(), 200);
}

#[test]
fn with_event_idx_each_side_hears_of_what_it_waits_for() {
    let mut driver = Driver::new();
    driver.post(2);
    driver.driver_ok(FEATURE_EVENT_IDX);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    let mut bus = driver.bus(&mut endpoints);
    // The driver wants to hear of the second answer, and not of what it gets back.
    driver.receive.name_used_event(1);
    driver.send.name_used_event(200);
    bus.poll();
    assert_eq!(driver.send.avail_event(), 0, "it waits for messages");
    driver.send(9, 1024, b"1");
    bus.poll();
    assert!(driver.kicks().is_empty());
    assert_eq!(driver.send.avail_event(), 1);
    for _ in 0..3 {
        driver.send(9, 1024, b"2");
    }
    bus.poll();
    assert_eq!(driver.kicks(), [4]);
    assert_eq!(
        (driver.send.avail_event(), driver.receive.avail_event()),
        (1, 2),
        "it waits for buffers, and for nothing else"
    );
    driver.post(2);
    bus.poll();
    assert_eq!(driver.send.avail_event(), 4);
    for _ in 0..4 {
        assert!(driver.receive().is_some());
    }
}

#[test]
fn traffic_goes_on_across_65536_messages() {
    let mut driver = Driver::new();
    driver.post(256);
    driver.driver_ok(0);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    let mut bus = driver.bus(&mut endpoints);
    for round in 0..70_000_u32 {
        driver.send(9, 1024, &round.to_le_bytes());
        bus.poll();
        assert_eq!(
            driver.receive(),
            Some((1024, 9, round.to_le_bytes().to_vec())),
            "{round}"
        );
        assert_eq!(driver.sent_back(), 1);
        driver.post(1);
    }
}

#[test]
fn without_receive_buffers_messages_wait_and_none_is_lost() {
    let mut driver = Driver::new();
    driver.driver_ok(1);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    let mut bus = driver.bus(&mut endpoints);
    for number in 0..5_u8 {
        driver.send(7, 1024, &[number]);
    }
    bus.poll();
    assert_eq!((driver.receive(), driver.sent_back()), (None, 0));
    assert!(driver.receive.kicks_wanted(), "it waits for buffers");
    assert!(!driver.send.kicks_wanted());
    // The announcement goes first, and then one message for each buffer.
    driver.post(1);
    bus.poll();
    assert!(is_announcement(&driver.receive().unwrap()));
    assert_eq!(driver.sent_back(), 0);
    for number in 0..5_u8 {
        driver.post(1);
        bus.poll();
        assert_eq!(driver.receive(), Some((1024, 7, vec![number])));
        assert_eq!(driver.sent_back(), 1);
    }
    assert!(driver.send.kicks_wanted(), "it waits for messages");
    assert!(!driver.receive.kicks_wanted());
}

#[test]
fn a_message_to_nobody_needs_no_receive_buffer() {
    let mut driver = Driver::new();
    driver.driver_ok(0);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    let mut bus = driver.bus(&mut endpoints);
    for _ in 0..100 {
        driver.send(7, 99, b"?");
    }
    driver.send(7, 53, &Announcement::create("theirs", 1030).to_bytes());
    bus.poll();
    assert_eq!(driver.sent_back(), 101);
    assert_eq!(
        driver.traced("for nobody dropped"),
        7,
        "1, 2, 4, 8, 16, 32, 64"
    );
    assert_eq!(driver.traced("the driver announces theirs at 1030"), 1);
}

#[test]
fn an_answer_of_several_messages_is_finished_when_buffers_come() {
    let mut driver = Driver::new();
    driver.driver_ok(0);
    let mut thrice = Thrice::default();
    let mut endpoints = [Endpoint::new("thrice", 1, &mut thrice)];
    let mut bus = driver.bus(&mut endpoints);
    driver.send(7, 1, b"x");
    driver.post(2);
    bus.poll();
    assert_eq!((driver.all_received().len(), driver.sent_back()), (2, 0));
    driver.post(1);
    bus.poll();
    assert_eq!(driver.all_received(), [(1, 7, b"2".to_vec())]);
    assert_eq!(driver.sent_back(), 1);
}

#[test]
fn a_reset_seen_as_status_zero_ends_the_rings_and_the_next_driver_ok_announces_again() {
    let mut driver = Driver::new();
    driver.post(8);
    driver.driver_ok(1);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    let mut bus = driver.bus(&mut endpoints);
    for das in [RINGS, OTHER_RINGS, RINGS] {
        bus.poll();
        assert!(is_announcement(&driver.receive().unwrap()));
        driver.send(5, 1024, b"hi");
        bus.poll();
        assert_eq!(driver.receive(), Some((1024, 5, b"hi".to_vec())));
        driver.reset();
        driver.send(5, 1024, b"too late");
        bus.poll();
        assert_eq!((driver.receive(), driver.sent_back()), (None, 1));
        driver.new_rings(das);
        driver.post(8);
        bus.poll();
        assert_eq!(driver.receive(), None);
        driver.driver_ok(1);
    }
    assert_eq!(driver.traced("the driver is gone"), 3);
}

#[test]
fn a_reset_that_was_missed_is_noticed_by_the_used_index() {
    let mut driver = Driver::new();
    driver.post(8);
    driver.driver_ok(1);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    let mut bus = driver.bus(&mut endpoints);
    bus.poll();
    for _ in 0..3 {
        driver.new_rings(RINGS);
        driver.post(8);
        driver.send(5, 1024, b"hi");
        bus.poll();
        assert!(is_announcement(&driver.receive().unwrap()));
        assert_eq!(driver.receive(), Some((1024, 5, b"hi".to_vec())));
    }
    assert_eq!(driver.traced("the rings are new"), 3);
}

#[test]
fn rings_that_moved_are_followed_even_when_nothing_was_used_yet() {
    let mut driver = Driver::new();
    driver.driver_ok(1);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    let mut bus = driver.bus(&mut endpoints);
    bus.poll();
    driver.new_rings(OTHER_RINGS);
    driver.post(8);
    driver.driver_ok(1);
    bus.poll();
    assert!(is_announcement(&driver.receive().unwrap()));
}

#[test]
fn a_reset_in_the_middle_of_a_batch_leaves_the_new_rings_alone() {
    /// Makes the rings anew while it is given a message.
    struct Resets(Span, Window);
    impl Service for Resets {
        fn receive(&mut self, message: &Message, out: &mut Outbox<'_>) -> Turn {
            out.reply(message, Payload::Bytes(b"old")).unwrap();
            DriverQueue::new(&self.1, RINGS[0], 256);
            DriverQueue::new(&self.1, RINGS[1], 256);
            table::write(self.0, 3, 0, RINGS);
            Turn::Done
        }
    }
    let mut driver = Driver::new();
    driver.post(8);
    driver.driver_ok(1);
    let mut resets = Resets(driver.entry, driver.window);
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut resets)];
    let mut bus = driver.bus(&mut endpoints);
    bus.poll();
    driver.kicks();
    driver.send(5, 1024, b"x");
    bus.poll();
    let mut index = [0; 2];
    for (queue, index) in [&driver.receive, &driver.send].into_iter().zip(&mut index) {
        let used = driver.window.span(queue.da + 8192, 8).unwrap();
        *index = used.read_u16(2);
    }
    assert_eq!(index, [0, 0]);
    assert!(driver.kicks().is_empty());
}

#[test]
fn rings_that_were_not_made_anew_go_on_where_they_were() {
    let mut driver = Driver::new();
    driver.receive.start_at(300);
    driver.send.start_at(40_000);
    driver.post(2);
    driver.driver_ok(1);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    let mut bus = driver.bus(&mut endpoints);
    driver.send(5, 1024, b"hi");
    bus.poll();
    assert!(is_announcement(&driver.receive().unwrap()));
    assert_eq!(driver.receive(), Some((1024, 5, b"hi".to_vec())));
    assert_eq!(driver.sent_back(), 1);
}

#[test]
fn malformed_messages_are_given_back_counted_and_not_answered() {
    let mut driver = Driver::new();
    driver.post(8);
    driver.driver_ok(0);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    let mut bus = driver.bus(&mut endpoints);
    let good = u64::from(driver.buffer(300));
    for (address, len, flags) in [
        (0, 20, 0),
        (0x8000_0000, 20, 0),
        (u64::MAX, 20, 0),
        (good, u32::MAX, 0),
        (good, 0, 0),
        (good, 20, WRITE),
        (good, 20, 1),
    ] {
        driver.send.describe(200, address, len, flags);
        driver.send.offer(200);
    }
    driver.send.offer(256);
    // A header that claims one byte more than the descriptor has.
    let bytes = driver.window.span(good as u32, 512).unwrap();
    Header {
        src: 5,
        dst: 1024,
        len: 5,
    }
    .write(bytes.slot(0).unwrap());
    driver.send.describe(201, good, 20, 0);
    driver.send.offer(201);
    driver.send(5, 1024, b"fine");
    bus.poll();
    assert_eq!(driver.all_received(), [(1024, 5, b"fine".to_vec())]);
    assert_eq!(
        driver.sent_back(),
        9,
        "all but the one that has no descriptor"
    );
    assert_eq!(
        driver.traced("malformed message(s) dropped"),
        4,
        "1, 2, 4, 8"
    );
}

#[test]
fn receive_buffers_that_cannot_be_right_are_passed_over() {
    let mut driver = Driver::new();
    for (address, len, flags) in [
        (0, 512, WRITE),
        (u64::from(BUFFERS), 511, WRITE),
        (u64::from(BUFFERS), 512, 0),
    ] {
        driver.receive.describe(200, address, len, flags);
        driver.receive.offer(200);
    }
    driver.receive.offer(0xFFFF);
    driver.post(1);
    driver.driver_ok(1);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    driver.bus(&mut endpoints).poll();
    let messages = driver.all_received();
    assert!(messages.len() == 1 && is_announcement(&messages[0]));
    assert_eq!(driver.traced("were left unused"), 3, "1, 2, 4");
}

#[test]
fn a_broken_ring_is_left_alone_until_it_is_new() {
    let mut driver = Driver::new();
    driver.post(8);
    driver.driver_ok(1);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    let mut bus = driver.bus(&mut endpoints);
    bus.poll();
    driver.send.set_avail_index(5000);
    bus.poll();
    bus.poll();
    assert_eq!(driver.traced("is broken"), 1);
    driver.new_rings(RINGS);
    driver.post(8);
    bus.poll();
    assert!(is_announcement(&driver.receive().unwrap()));
}

#[test]
fn rings_in_impossible_places_are_refused_once_and_good_ones_accepted_later() {
    let mut driver = Driver::new();
    driver.post(8);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    let mut bus = driver.bus(&mut endpoints);
    table::write(driver.entry, 7, 1, [0x8000_0000, RINGS[1]]);
    bus.poll();
    bus.poll();
    assert_eq!(driver.traced("vring 0 cannot be used (Place)"), 1);
    table::write(driver.entry, 7, 1, [RINGS[0], 0xFFFF_FFFF]);
    bus.poll();
    assert_eq!(driver.traced("vring 1 cannot be used (Place)"), 1);
    driver.reset();
    bus.poll();
    driver.driver_ok(1);
    table::write_num(driver.entry, 255);
    bus.poll();
    assert_eq!(driver.traced("vring 0 cannot be used (Shape)"), 1);
    driver.reset();
    bus.poll();
    driver.driver_ok(1);
    bus.poll();
    assert!(is_announcement(&driver.receive().unwrap()));
}

#[test]
fn a_driver_that_wants_no_kicks_gets_none() {
    let mut driver = Driver::new();
    driver.receive.set_no_interrupt(true);
    driver.send.set_no_interrupt(true);
    driver.post(8);
    driver.driver_ok(1);
    let mut echo = Echo;
    let mut endpoints = [Endpoint::new("rpmsg-raw", 1024, &mut echo)];
    driver.send(5, 1024, b"hi");
    driver.bus(&mut endpoints).poll();
    assert_eq!(driver.all_received().len(), 2);
    assert!(driver.kicks().is_empty());
}

#[test]
fn a_payload_beyond_the_mtu_is_not_sent() {
    struct TooLong;
    impl Service for TooLong {
        fn receive(&mut self, message: &Message, out: &mut Outbox<'_>) -> Turn {
            out.reply(message, Payload::Bytes(&[0; 497])).unwrap();
            out.reply(message, Payload::Bytes(&[1; 496])).unwrap();
            Turn::Done
        }
    }
    let mut driver = Driver::new();
    driver.post(8);
    driver.driver_ok(0);
    let mut service = TooLong;
    let mut endpoints = [Endpoint::new("long", 1, &mut service)];
    driver.send(5, 1, b"hi");
    driver.bus(&mut endpoints).poll();
    assert_eq!(driver.all_received(), [(1, 5, vec![1; 496])]);
}
