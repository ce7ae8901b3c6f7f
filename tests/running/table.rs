//! A firmware that rewrites its resource table while it runs. All that was checked is cached; the
//! live table is a place to write to, and only the configuration space is read from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rprocd::engine::RunEnd;
use rprocd::memory::{DeviceAddress, Ram};

use super::{
    Answer, Bench, CONFIG, Device, RAM, TABLE, TRACE, Vring, Watch, honest, read, table,
    vdev_offset, write,
};
use crate::lifecycle::{crash, eager};

/// Where the rewritten table says that everything is.
const DECOY: u64 = RAM + 0xc000;

/// Rewrites what the message says: "attack OFFSET VALUE".
fn rewrite(ram: &Ram, vrings: &mut [Vring; 2], answer: Answer) {
    let text = read::<64>(ram, answer.at + 16);
    let text = std::str::from_utf8(&text[..answer.len as usize - 16]).unwrap();
    let mut words = text.split(' ').skip(1).map(|word| word.parse().unwrap());
    let (offset, value): (u32, u32) = (words.next().unwrap(), words.next().unwrap());
    write(ram, TABLE + u64::from(offset), &value.to_le_bytes());
    honest(ram, vrings, answer);
}

fn live(ram: &Ram) -> Vec<u8> {
    let len = table(1).build().len();
    let mut bytes = vec![0; len];
    let slice = ram.slice(DeviceAddress(TABLE), len as u64).unwrap();
    slice.copy_to(&mut bytes);
    bytes
}

#[test]
fn a_table_that_is_rewritten_while_the_core_runs_changes_nothing_but_configuration_space() {
    let (deaf, turns) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let mut watch = Watch::default();
    let found = watch.found.clone();
    let mut bench = Bench::with(1, eager(), |engine| {
        let (deaf, turns) = (deaf.clone(), turns.clone());
        let mut device = Device::new();
        engine.set_script(move |ram, _| {
            watch.turn_begins(ram);
            // It remembers its vrings, and knows itself that its table is no good.
            device.deaf = deaf.load(Ordering::SeqCst) && device.vrings.is_some();
            device.turn(ram, rewrite);
            watch.turn_ends(ram, &device);
            turns.fetch_add(1, Ordering::SeqCst);
            RunEnd::Waiting { until: None }
        });
    });
    bench.exchange("before");
    let first = live(&bench.ram);
    let config = vdev_offset(1, 0) + 24 + 2 * 20;
    assert_eq!(config + CONFIG.len() as u64, first.len() as u64);
    // What lies behind the table is not configuration space, whatever its length says now.
    let behind = TABLE + first.len() as u64;
    write(&bench.ram, behind, &[0xee; 64]);
    write(&bench.ram, DECOY, b"not a trace buffer");
    write(&bench.ram, TRACE, b"a trace buffer\n");
    bench.exchange("settled");
    // That was this test.
    found.lock().unwrap().take();
    bench.journal.take();

    // Every word on its own, and in the end all of them.
    let decoy = u32::try_from(DECOY).unwrap();
    for value in [0, 1, 0x7fff_ffff, decoy, u32::MAX] {
        for offset in (0..config).step_by(4) {
            bench.exchange(&format!("attack {offset} {value}"));
        }
    }
    assert!(
        live(&bench.ram)[..usize::try_from(config).unwrap()]
            .iter()
            .all(|byte| *byte == 0xff)
    );
    let kicks = bench.journal.take();
    assert!(!kicks.is_empty());
    assert!(
        kicks
            .iter()
            .all(|kick| kick == "kick 0" || kick == "kick 1"),
        "{kicks:?}"
    );

    write(&bench.ram, TABLE + config, &[9, 8, 7, 6]);
    let mut expected = vec![9, 8, 7, 6];
    expected.resize(32, 0);
    assert_eq!(bench.vmm.get_config(0, 32).unwrap(), expected);
    bench.vmm.set_config(2, &[5; 32]).unwrap();
    assert_eq!(bench.vmm.get_config(0, 32).unwrap()[..4], [9, 8, 5, 5]);
    assert_eq!(read(&bench.ram, behind), [0xee; 64]);
    let trace = bench.core.traces(vec![0], 1 << 16).remove(0).text;
    let trace = String::from_utf8_lossy(&trace.bytes).into_owned();
    assert_eq!(trace.trim_end(), "a trace buffer");

    // A driver that comes again finds a firmware that listens at the same vrings: the host writes
    // what it has to say where it always did.
    deaf.store(false, Ordering::SeqCst);
    bench.probe_again();
    bench.exchange("again");

    // The next incarnation begins with the table that was cached.
    write(&bench.ram, TABLE, &vec![0xff; first.len()]);
    let before = turns.load(Ordering::SeqCst);
    bench.journal.wake();
    bench.until("a turn", |_| turns.load(Ordering::SeqCst) > before);
    bench.journal.crash(crash("its table is a ruin"));
    bench.until("recovery", |bench| {
        let status = bench.core.status();
        status.incarnation == 2 && status.vdevs[0].driver_ok
    });
    assert_eq!(live(&bench.ram), first);
    bench.exchange("after");
    assert_eq!(*found.lock().unwrap(), None);
}
