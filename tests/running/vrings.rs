//! Attacks on vrings from the core's side. The firmware is the device there: it can write used
//! entries, the used index and flags, and buffers, which are its business, and descriptors and the
//! available ring, which are ours. Each attack that a driver can make on a device is made here as a
//! device can make it on its driver.
//!
//! The numbers are those of the attacks; what is done to a guest's ring by its guest has the same.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rprocd::engine::RunEnd;
use rprocd::memory::{DeviceAddress, Ram};
use vm_memory::Bytes;

use super::{
    AVAILABLE, Answer, BUFFER, Bench, Deed, Device, FAILED, NUM, RAM, RAM_LEN, TABLE, USED, Vring,
    Watch, difference, honest, write,
};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What must follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Follows {
    /// Nothing: what was attacked is not looked at. The answer arrives.
    Nothing,
    /// The answer is dropped and counted as malformed, and everything goes on.
    Dropped,
    /// The answer arrives twice, which a firmware may say in so many words as well.
    Twice,
    /// The vdev is failed, on the core's side alone. A guest that sets it up anew is served.
    Stopped,
}

/// Rewrites every descriptor of both vrings, then does what an honest firmware does.
fn describe(
    ram: &Ram,
    vrings: &mut [Vring; 2],
    answer: Answer,
    each: impl Fn(&mut (u64, u32, u16, u16), u16, &[Vring; 2]),
) {
    let known = vrings.clone();
    for vring in &known {
        for id in 0..NUM {
            let place = vring.at + 16 * u64::from(id);
            let flags = if vring.at == known[0].at { WRITE } else { 0 };
            let buffer = vring.buffers[usize::from(id)];
            let mut descriptor = (buffer, 512, flags, 0);
            each(&mut descriptor, id, &known);
            let (address, len, flags, next) = descriptor;
            write(ram, place, &address.to_le_bytes());
            write(ram, place + 8, &len.to_le_bytes());
            write(ram, place + 12, &flags.to_le_bytes());
            write(ram, place + 14, &next.to_le_bytes());
        }
    }
    honest(ram, vrings, answer);
}

/// Gives the answer back with a length in its header that is none, and a used length of `used`.
fn claim(ram: &Ram, vrings: &mut [Vring; 2], answer: Answer, header: u16, used: u32) {
    write(ram, answer.at + 12, &header.to_le_bytes());
    vrings[1].give_back(ram, answer.message.into(), 0);
    vrings[0].give_back(ram, answer.answer.into(), used);
}

/// Number, what the firmware does, how, and what follows.
type Attack = (u32, &'static str, Deed, Follows);

const ATTACKS: &[Attack] = &[
    (
        20,
        "every descriptor leads to itself",
        |ram, vrings, answer| {
            describe(ram, vrings, answer, |to, id, _| {
                (to.2, to.3) = (to.2 | NEXT, id);
            });
        },
        Follows::Nothing,
    ),
    (
        20,
        "all descriptors are one loop",
        |ram, vrings, answer| {
            describe(ram, vrings, answer, |to, id, _| {
                (to.2, to.3) = (to.2 | NEXT, (id + 1) % NUM);
            });
        },
        Follows::Nothing,
    ),
    (
        21,
        "every next is outside of the table",
        |ram, vrings, answer| {
            describe(ram, vrings, answer, |to, id, _| {
                (to.2, to.3) = (to.2 | NEXT, NUM.wrapping_add(id.wrapping_mul(0x2001)));
            });
        },
        Follows::Nothing,
    ),
    (
        21,
        "a descriptor one past the table is given back",
        |ram, vrings, _| vrings[0].give_back(ram, NUM.into(), 20),
        Follows::Stopped,
    ),
    (
        21,
        "the number given back is right in its low half alone",
        |ram, vrings, answer| vrings[0].give_back(ram, 0x1_0000 | u32::from(answer.answer), 20),
        Follows::Stopped,
    ),
    (
        21,
        "a descriptor that does not exist is given back in the direction to the core",
        |ram, vrings, _| vrings[1].give_back(ram, u32::MAX, 0),
        Follows::Stopped,
    ),
    (
        21,
        "our available ring is full of heads that do not exist",
        |ram, vrings, answer| {
            for vring in vrings.iter() {
                write(ram, vring.at + AVAILABLE + 4, &[0xff; 2 * NUM as usize]);
            }
            honest(ram, vrings, answer);
        },
        Follows::Nothing,
    ),
    (
        22,
        "every descriptor is an indirect table of 65535 entries",
        |ram, vrings, answer| {
            describe(ram, vrings, answer, |to, _, vrings| {
                *to = (vrings[0].at, 16 * 65535, INDIRECT, 0);
            });
        },
        Follows::Nothing,
    ),
    (
        23,
        "every descriptor is an indirect table in itself, and goes on",
        |ram, vrings, answer| {
            describe(ram, vrings, answer, |to, id, vrings| {
                *to = (vrings[0].at + 16 * u64::from(id), 16, INDIRECT | NEXT, id);
            });
        },
        Follows::Nothing,
    ),
    (
        23,
        "every descriptor is an indirect table of 0 or 17 bytes",
        |ram, vrings, answer| {
            describe(ram, vrings, answer, |to, id, vrings| {
                *to = (vrings[1].at, 17 * u32::from(id % 2), INDIRECT, 0);
            });
        },
        Follows::Nothing,
    ),
    (
        24,
        "every buffer is where nothing is, wraps, or crosses the end of memory",
        |ram, vrings, answer| {
            describe(ram, vrings, answer, |to, id, _| {
                to.0 = [0, u64::MAX - 8, RAM + RAM_LEN - 8, RAM - 8][usize::from(id % 4)];
            });
        },
        Follows::Nothing,
    ),
    (
        25,
        "the used index jumps past what is out",
        |ram, vrings, _| {
            let used = vrings[0].used.wrapping_add(NUM + 1);
            vrings[0].show(ram, used);
        },
        Follows::Stopped,
    ),
    (
        25,
        "the used index jumps halfway round",
        |ram, vrings, _| {
            let used = vrings[0].used.wrapping_add(0x8000);
            vrings[0].show(ram, used);
        },
        Follows::Stopped,
    ),
    (
        25,
        "the used index steps back",
        |ram, vrings, _| {
            let used = vrings[0].used.wrapping_sub(1);
            vrings[0].show(ram, used);
        },
        Follows::Stopped,
    ),
    (
        25,
        "the used index steps back in the direction to the core",
        |ram, vrings, _| {
            let used = vrings[1].used.wrapping_sub(1);
            vrings[1].show(ram, used);
        },
        Follows::Stopped,
    ),
    (
        25,
        "our available index jumps",
        |ram, vrings, answer| {
            for vring in vrings.iter_mut() {
                let own = vring.seen.wrapping_add(0x4321);
                write(ram, vring.at + AVAILABLE + 2, &own.to_le_bytes());
                vring.own = Some(own);
            }
            honest(ram, vrings, answer);
        },
        Follows::Nothing,
    ),
    (
        26,
        "a message is given back twice",
        |ram, vrings, answer| {
            for _ in 0..2 {
                vrings[1].give_back(ram, answer.message.into(), 0);
            }
        },
        Follows::Stopped,
    ),
    (
        26,
        "an answer is given back twice at once",
        |ram, vrings, answer| {
            vrings[1].give_back(ram, answer.message.into(), 0);
            vrings[0].fill(ram, 0, answer.answer.into(), answer.len);
            vrings[0].fill(ram, 1, answer.answer.into(), answer.len);
            let used = vrings[0].used.wrapping_add(2);
            vrings[0].show(ram, used);
        },
        Follows::Twice,
    ),
    (
        27,
        "every buffer goes the other way",
        |ram, vrings, answer| describe(ram, vrings, answer, |to, _, _| to.2 ^= WRITE),
        Follows::Nothing,
    ),
    (
        27,
        "a message's buffer, which is not for writing, is written and said to be",
        |ram, vrings, answer| {
            let buffer = vrings[1].buffers[usize::from(answer.message)];
            write(ram, buffer, &[0xff; BUFFER as usize]);
            vrings[1].give_back(ram, answer.message.into(), 512);
            vrings[0].give_back(ram, answer.answer.into(), answer.len);
        },
        Follows::Nothing,
    ),
    (
        27,
        "every descriptor has no bytes",
        |ram, vrings, answer| describe(ram, vrings, answer, |to, _, _| to.1 = 0),
        Follows::Nothing,
    ),
    (
        27,
        "an answer of no bytes",
        |ram, vrings, answer| claim(ram, vrings, answer, 6, 0),
        Follows::Dropped,
    ),
    (
        28,
        "4 GiB in every descriptor and in every used entry",
        |ram, vrings, answer| {
            describe(ram, vrings, answer, |to, _, _| to.1 = u32::MAX);
            for vring in vrings {
                let used = vring.used.wrapping_sub(1);
                let at = vring.at + USED + 8 + 8 * u64::from(used % NUM);
                write(ram, at, &u32::MAX.to_le_bytes());
            }
        },
        Follows::Nothing,
    ),
    (
        28,
        "an answer longer than its buffer, said to be 4 GiB",
        |ram, vrings, answer| claim(ram, vrings, answer, u16::MAX, u32::MAX),
        Follows::Dropped,
    ),
    (
        28,
        "an answer one byte longer than its buffer",
        |ram, vrings, answer| claim(ram, vrings, answer, 497, u32::MAX),
        Follows::Dropped,
    ),
    (
        29,
        "flags and events are garbage",
        |ram, vrings, answer| {
            let n = u64::from(NUM);
            for vring in vrings.iter() {
                for at in [AVAILABLE, AVAILABLE + 4 + 2 * n, USED, USED + 4 + 8 * n] {
                    write(ram, vring.at + at, &[0xff, 0xff]);
                }
            }
            honest(ram, vrings, answer);
        },
        Follows::Nothing,
    ),
    (
        31,
        "every buffer is its own ring, the table or another buffer",
        |ram, vrings, answer| {
            describe(ram, vrings, answer, |to, id, vrings| {
                to.0 = [
                    vrings[0].at,
                    vrings[1].at + USED,
                    TABLE,
                    vrings[0].buffers[0],
                ][usize::from(id % 4)];
            });
        },
        Follows::Nothing,
    ),
    (
        31,
        "what is written to a buffer runs on into the next one",
        |ram, vrings, answer| {
            // Its own memory; the answer behind it is written when its time comes.
            let last = vrings[0].buffers[usize::from(NUM) - 1];
            let end = (answer.at + 2 * BUFFER).min(last + BUFFER);
            let from = answer.at + u64::from(answer.len);
            let many = vec![0xee; usize::try_from(end - from).unwrap()];
            write(ram, from, &many);
            honest(ram, vrings, answer);
        },
        Follows::Nothing,
    ),
];

/// Plays one attack against a guest that sends a few messages before, during and after it, while
/// another core serves its own.
fn play((number, what, deed, follows): Attack, other: &mut Bench) {
    let mut device = Device::new();
    let mut watch = Watch::default();
    let found = watch.found.clone();
    let mut bench = Bench::new(move |ram, _| {
        watch.turn_begins(ram);
        device.turn(ram, deed);
        watch.turn_ends(ram, &device);
        RunEnd::Waiting { until: None }
    });
    let name = format!("{number}: {what}");
    let guest = bench.vmm.ram().clone();
    let before = guest_memory(&guest);
    for _ in 0..3 {
        bench.exchange("before");
    }
    let status = |bench: &Bench| bench.core.status().vdevs.swap_remove(0);
    match follows {
        Follows::Nothing => {
            for round in 0..20 {
                bench.exchange(&format!("attack {round}"));
                bench.exchange(&name);
            }
            assert_eq!(status(&bench).to_guest.malformed, 0, "{name}");
        }
        Follows::Dropped => {
            for _ in 0..20 {
                bench.driver.send(1030, 1024, b"attack").unwrap();
                bench.exchange(&name);
            }
            assert_eq!(status(&bench).to_guest.malformed, 20, "{name}");
        }
        Follows::Twice => {
            bench.driver.send(1030, 1024, b"attack").unwrap();
            for _ in 0..2 {
                let answer = bench.driver.recv_within(super::PATIENCE).expect(&name);
                assert_eq!(answer.payload, b"attack", "{name}");
            }
        }
        Follows::Stopped => {
            bench.driver.send(1030, 1024, b"attack").unwrap();
            bench.until(&name, |bench| !status(bench).driver_ok);
            assert!(status(&bench).guest_attached, "{name}");
            let entry = Device::new();
            assert!(entry.status(&bench.ram) & FAILED != 0, "{name}");
            // What the guest sends now stays with it, and nothing comes.
            bench.driver.send(1030, 1024, b"attack").unwrap();
            bench.vmm.settle().unwrap();
            assert!(bench.driver.recv().is_none(), "{name}");
        }
    }
    let touched = difference(0, &before, &guest_memory(&guest), &guest_spans(&mut bench));
    assert_eq!(touched, None, "{name}: the guest's memory");
    if follows == Follows::Stopped {
        bench.probe_again();
    }
    for _ in 0..3 {
        bench.exchange("after");
        other.exchange(&name);
    }
    let core = bench.core.status();
    assert_eq!(
        (core.state.as_str(), core.crashes),
        ("running", 0),
        "{name}"
    );
    assert!(core.vdevs[0].driver_ok, "{name}");
    assert_eq!(*found.lock().unwrap(), None, "{name}: the core's memory");
}

/// The guest's memory, region after region.
pub(super) fn guest_memory(ram: &crate::frontend::ram::GuestRam) -> Vec<u8> {
    let mut all = Vec::new();
    for region in ram.regions() {
        let begun = all.len();
        all.resize(begun + usize::try_from(region.size).unwrap(), 0);
        ram.read(region.guest, &mut all[begun..]);
    }
    all
}

/// Where a guest's memory is in [`guest_memory`].
fn place(ram: &crate::frontend::ram::GuestRam, guest: u64) -> u64 {
    let mut begun = 0;
    for region in ram.regions() {
        if (region.guest..region.guest + region.size).contains(&guest) {
            return begun + guest - region.guest;
        }
        begun += region.size;
    }
    panic!("{guest:#x} is not in guest memory");
}

/// What a device may write: the used rings and the buffers that are there to be filled.
pub(super) fn delivered(bench: &mut Bench) -> Vec<(u64, u64)> {
    let ram = bench.vmm.ram().clone();
    let (rx, tx) = (bench.driver.rx().layout(), bench.driver.tx().layout());
    let mut spans = Vec::new();
    for ring in [rx, tx] {
        spans.push((place(&ram, ring.used), 6 + 8 * u64::from(ring.size)));
    }
    for id in 0..u64::from(rx.size) {
        let mut descriptor = [0; 12];
        ram.read(rx.descriptors + 16 * id, &mut descriptor);
        let (address, len) = descriptor.split_at(8);
        let address = u64::from_le_bytes(address.try_into().unwrap());
        let len = u32::from_le_bytes(len.try_into().unwrap());
        if len != 0 {
            spans.push((place(&ram, address), len.into()));
        }
    }
    spans
}

/// The same, and what the driver writes itself.
fn guest_spans(bench: &mut Bench) -> Vec<(u64, u64)> {
    let mut spans = delivered(bench);
    let ram = bench.vmm.ram().clone();
    let (rx, tx) = (bench.driver.rx().layout(), bench.driver.tx().layout());
    for ring in [rx, tx] {
        let n = u64::from(ring.size);
        spans.push((place(&ram, ring.descriptors), 16 * n));
        spans.push((place(&ram, ring.avail), 6 + 2 * n));
    }
    for id in 0..u64::from(tx.size) {
        let mut address = [0; 8];
        ram.read(tx.descriptors + 16 * id, &mut address);
        let address = u64::from_le_bytes(address);
        if address != 0 {
            spans.push((place(&ram, address), BUFFER));
        }
    }
    spans
}

#[test]
fn each_attack_on_a_vring_by_its_device_costs_the_attacker_alone() {
    let mut other = Bench::honest();
    for attack in ATTACKS {
        play(*attack, &mut other);
    }
    // 30 needs a second hand, and has a test of its own.
    let numbers: BTreeSet<u32> = ATTACKS.iter().map(|(number, ..)| *number).collect();
    assert!((20..=31).filter(|number| *number != 30).eq(numbers));
}

#[test]
fn what_a_core_changes_between_check_and_use_is_judged_once_and_delivered_as_judged() {
    let mut other = Bench::honest();
    let mut device = Device::new();
    let mut bench = Bench::new(move |ram, _| {
        device.turn(ram, honest);
        RunEnd::Waiting { until: None }
    });
    bench.exchange("before");
    // A second hart of the core: it writes the length in the header of every answer, the address
    // of every descriptor and the lengths in the used ring, and never stops.
    let done = Arc::new(AtomicBool::new(false));
    let flips = {
        let (ram, done) = (bench.ram.clone(), done.clone());
        let mut device = Device::new();
        device.look(&ram);
        let [to_guest, to_core] = device.vrings.unwrap();
        std::thread::spawn(move || {
            let memory = ram.slice(DeviceAddress(RAM), RAM_LEN).unwrap();
            let at = |da: u64| usize::try_from(da - RAM).unwrap();
            let mut flips = 0_u64;
            while !done.load(Ordering::Relaxed) {
                for len in [4_u16, 3, 497, u16::MAX] {
                    for buffer in to_guest.buffers {
                        memory.write_obj(len, at(buffer + 12)).unwrap();
                    }
                    for slot in 0..u64::from(NUM) {
                        let entry = to_guest.at + USED + 8 + 8 * slot;
                        memory.write_obj(u32::from(len) + 16, at(entry)).unwrap();
                        let descriptor = at(to_guest.at + 16 * slot);
                        memory.write_obj(u64::from(len) << 40, descriptor).unwrap();
                        let flags = at(to_core.at + 16 * slot + 12);
                        memory.write_obj(u32::from(len), flags).unwrap();
                    }
                    flips += 1;
                }
            }
            flips
        })
    };
    let (mut sent, mut delivered) = (0, 0);
    while sent < 3000 {
        if bench.driver.send(1030, 1024, b"text").is_ok() {
            sent += 1;
        } else {
            bench.driver.wait(std::time::Duration::from_millis(10));
        }
        // The driver itself fails on a header that does not agree with the used length.
        while let Some(message) = bench.driver.recv() {
            assert!(matches!(message.payload.len(), 3 | 4), "{message:?}");
            delivered += 1;
        }
    }
    // Everything is delivered or dropped, and counted.
    let end = std::time::Instant::now() + super::PATIENCE;
    loop {
        let vdev = bench.core.status().vdevs.swap_remove(0);
        while bench.driver.recv().is_some() {
            delivered += 1;
        }
        if delivered + vdev.to_guest.malformed == sent {
            assert!(vdev.driver_ok);
            break;
        }
        assert!(
            std::time::Instant::now() < end,
            "{delivered} of {sent}: {vdev:?}"
        );
    }
    done.store(true, Ordering::Relaxed);
    assert!(flips.join().unwrap() > 0);
    other.exchange("beside it");
    bench.exchange("after");
}
