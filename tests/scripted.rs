//! Cores whose firmware is a script in this process: what a real firmware does seldom, done always.
//!
//! What belongs here: what holds between a core and whatever drives it, on the library's own
//! threads. What does not: what real firmware shows as well (`guest`, `crash`).

use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use rprocd::engine::scripted::Scripted;
use rprocd::engine::{Engine, RunEnd};
use rprocd::firmware::Snapshot;
use rprocd::memory::{DeviceAddress, Ram};
use rprocd::rproc::{Core, Coredumps, Firmware, FirmwareError, Grants, Holder, Policies};
use vm_memory::Bytes;

use crate::firmware::elf_builder::Elf;
use crate::firmware::table_builder::{ANY, Table, Vring};
use crate::frontend::rpmsg::RpmsgDriver;
use crate::frontend::vmm::{Options, Vmm};
use crate::lifecycle::served;

const PATIENCE: Duration = Duration::from_secs(120);
const RAM: u64 = 0x8000_0000;
const TABLE: u64 = RAM + 0x1000;
const DRIVER_OK: u8 = 4;

fn scripted(mut script: impl FnMut(&Ram, bool) -> RunEnd + Send + 'static) -> Box<dyn Engine> {
    let mut engine = Scripted::new(DeviceAddress(RAM), 0x10_0000).unwrap();
    engine.set_script(move |ram, kicks| script(ram, !kicks.is_empty()));
    Box::new(engine)
}

const VRING_NUM: u32 = 8;
const VRINGS: [Vring; 2] = [(ANY, 4096, VRING_NUM); 2];
/// Where the vdev is in the table.
const VDEV: usize = 16 + 4 * 2 + 56;
const STATUS: usize = VDEV + 24;

/// A table whose last entry is an rpmsg vdev with small vrings.
fn table() -> Table {
    let table = Table::new()
        .carveout(0x8000_0000, 0x2000, "image")
        .vdev(7, 1, &VRINGS, &[]);
    assert_eq!(table.offset(1), VDEV);
    table
}

fn status(ram: &Ram) -> u8 {
    let at = DeviceAddress(TABLE + STATUS as u64);
    ram.slice(at, 1).unwrap().read_obj(0).unwrap()
}

fn firmware(table: &[u8], engine: &mut dyn Engine) -> Result<Firmware, FirmwareError> {
    let image = Elf::new(0x8000_0000)
        .load(0x8000_0000, &[0x13; 16], 16)
        .table(0x8000_1000, table)
        .build();
    Firmware::new(
        Snapshot::from_bytes("script.elf", image),
        engine,
        1,
        Grants::default(),
    )
}

fn core(script: impl FnMut(&Ram, bool) -> RunEnd + Send + 'static) -> Core {
    let mut engine = scripted(script);
    let mut bytes = table().build();
    // An image says nothing about a driver that is not there; if it does, it is not believed.
    bytes[STATUS] = 0x0f;
    let firmware = firmware(&bytes, &mut *engine).unwrap();
    Core::new(
        "scripted",
        engine,
        firmware,
        Policies::default(),
        Coredumps::disabled(),
    )
    .unwrap()
}

fn read_u32(ram: &Ram, da: u64) -> u32 {
    let slice = ram.slice(DeviceAddress(da), 4).unwrap();
    u32::from_le(slice.read_obj(0).unwrap())
}

fn read_u16(ram: &Ram, da: u64) -> u16 {
    let slice = ram.slice(DeviceAddress(da), 2).unwrap();
    u16::from_le(slice.read_obj(0).unwrap())
}

fn write_u16(ram: &Ram, da: u64, value: u16) {
    let slice = ram.slice(DeviceAddress(da), 2).unwrap();
    slice.write_obj(value.to_le(), 0).unwrap();
}

/// Gives back all that is available in vring 1, unread. Nothing while there is no driver.
fn give_everything_back(ram: &Ram) {
    if status(ram) & DRIVER_OK == 0 {
        return;
    }
    let ring = u64::from(read_u32(ram, TABLE + VDEV as u64 + 28 + 20));
    let num = u64::from(VRING_NUM);
    let (available, used) = (ring + 16 * num, ring + 4096);
    let mut index = read_u16(ram, used + 2);
    while index != read_u16(ram, available + 2) {
        let slot = u64::from(index) % num;
        let head = read_u16(ram, available + 4 + 2 * slot);
        write_u16(ram, used + 4 + 8 * slot, head);
        index = index.wrapping_add(1);
    }
    write_u16(ram, used + 2, index);
}

#[test]
fn buffers_given_back_late_and_without_an_answer_go_to_the_messages_that_wait() {
    let mut due = None;
    let core = core(move |ram, kicked| {
        if due.is_some_and(|due| due <= Instant::now()) {
            due = None;
            give_everything_back(ram);
        } else if kicked && due.is_none() {
            due = Some(Instant::now() + Duration::from_millis(20));
        }
        RunEnd::Waiting { until: due }
    });
    core.start(Holder::Operator).unwrap();
    let socket = served(&core);
    let mut vmm = Vmm::connect(&socket.path, Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    // Several times what the core's vring takes.
    for _ in 0..5 * VRING_NUM {
        driver.send(1030, 1024, b"text").unwrap();
    }
    let end = Instant::now() + PATIENCE;
    while !driver.is_sent() {
        assert!(Instant::now() < end, "messages wait for ever");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn who_asks_a_busy_core_for_something_does_not_go_on_driving_it() {
    let drivers = Arc::new(Mutex::new(Vec::<ThreadId>::new()));
    let seen = drivers.clone();
    let core = core(move |_, _| {
        seen.lock().unwrap().push(thread::current().id());
        thread::sleep(Duration::from_millis(5));
        RunEnd::BudgetSpent
    });
    core.start(Holder::Operator).unwrap();
    core.status();
    let by_us = drivers
        .lock()
        .unwrap()
        .iter()
        .filter(|id| **id == thread::current().id())
        .count();
    // 10 ms each, and the turn in which they end.
    assert!(by_us <= 6, "{by_us} turns of 5 ms were ours");
}

#[test]
fn a_carveout_for_a_vring_that_is_not_aligned_for_it_is_refused() {
    for (da, fits) in [
        (0x8000_4000, true),
        (0x8000_4001, false),
        (0x8000_4010, false),
    ] {
        let table = Table::new()
            .carveout(0x8000_0000, 0x2000, "image")
            .carveout(da, 0x4000, "vdev0vring0")
            .vdev(7, 1, &VRINGS, &[]);
        let mut engine = scripted(|_, _| RunEnd::Waiting { until: None });
        let result = firmware(&table.build(), &mut *engine);
        assert_eq!(result.is_ok(), fits, "{da:#x}");
        if let Err(error) = result {
            let text = rprocd::report::sentence(&error);
            assert!(
                text.contains("vdev0vring0") && text.contains("0x1000"),
                "{text}"
            );
        }
    }
}

#[test]
fn without_a_driver_the_status_is_0_whatever_the_image_says() {
    let (tell, told) = std::sync::mpsc::channel();
    let core = core(move |ram, _| {
        let _ = tell.send(status(ram));
        RunEnd::Waiting { until: None }
    });
    core.start(Holder::Operator).unwrap();
    assert_eq!(told.recv_timeout(PATIENCE), Ok(0));
}

#[test]
fn the_rings_of_a_vdev_that_was_reset_are_not_made_anew_under_a_busy_firmware() {
    // What it sees of the status byte, once for each change; it waits before the first driver, and
    // is then busy with something else for so many turns whenever it is kicked.
    const TURNS: u32 = 500;
    let seen = Arc::new(Mutex::new(Vec::<(u8, bool)>::new()));
    let noted = seen.clone();
    let mut busy = 0;
    let core = core(move |ram, kicked| {
        if kicked {
            busy = TURNS;
        }
        busy = busy.max(1) - 1;
        let now = (status(ram), busy > 0);
        let mut seen = noted.lock().unwrap();
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        if busy > 0 {
            drop(seen);
            thread::sleep(Duration::from_micros(100));
            RunEnd::BudgetSpent
        } else {
            RunEnd::Waiting { until: None }
        }
    });
    core.start(Holder::Operator).unwrap();
    let socket = served(&core);
    for _ in 0..3 {
        let mut vmm = Vmm::connect(&socket.path, Options::default()).unwrap();
        let driver = RpmsgDriver::probe(&mut vmm).unwrap();
        let end = Instant::now() + PATIENCE;
        while !core.status().vdevs[0].driver_ok {
            assert!(Instant::now() < end, "{:?}", seen.lock().unwrap());
        }
        drop(driver);
        drop(vmm);
        while core.status().vdevs[0].guest_attached {
            assert!(Instant::now() < end);
        }
    }
    let seen = seen.lock().unwrap().clone();
    let with_driver = |status: u8| status & DRIVER_OK != 0;
    for pair in seen.windows(2) {
        let [(before, busy), (after, _)] = pair else {
            continue;
        };
        // From "no driver" to "driver" only if it was waiting, and not busy, with "no driver".
        if !with_driver(*before) && with_driver(*after) {
            assert!(!busy, "{seen:?}");
        }
    }
    let starts = seen
        .windows(2)
        .filter(|pair| !with_driver(pair[0].0) && with_driver(pair[1].0));
    assert_eq!(starts.count(), 3, "{seen:?}");
}

#[test]
fn what_a_firmware_sent_before_it_broke_its_vring_still_arrives() {
    let core = core(move |ram, _| {
        let ring = u64::from(read_u32(ram, TABLE + VDEV as u64 + 28));
        let used = ring + 4096;
        if status(ram) & DRIVER_OK != 0 && read_u16(ram, used + 2) == 0 {
            let descriptor = ram.slice(DeviceAddress(ring), 8).unwrap();
            let buffer: u64 = descriptor.read_obj(0).unwrap();
            let message: [u32; 5] = [1024, 1030, 0, 4, u32::from_le_bytes(*b"text")];
            let slice = ram.slice(DeviceAddress(buffer), 20).unwrap();
            slice.write_obj(message, 0).unwrap();
            // Then a descriptor that does not exist.
            let slice = ram.slice(DeviceAddress(used + 4), 16).unwrap();
            slice.write_obj([0_u32, 20, VRING_NUM, 20], 0).unwrap();
            write_u16(ram, used + 2, 2);
        }
        RunEnd::Waiting { until: None }
    });
    core.start(Holder::Operator).unwrap();
    let socket = served(&core);
    let mut vmm = Vmm::connect(&socket.path, Options::default()).unwrap();
    let mut driver = RpmsgDriver::probe(&mut vmm).unwrap();
    let message = driver.recv_within(PATIENCE).expect("the first message");
    assert_eq!(message.payload, b"text");
    assert!(!core.status().vdevs[0].driver_ok);
}
