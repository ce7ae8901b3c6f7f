//! Images with the shapes that firmware of the field has, made by our builders: each is accepted
//! with the right plan, or refused with a sentence that says what is in the way.

use rprocd::engine::Engine;
use rprocd::engine::{ImageRules, NotifyId};
use rprocd::firmware::Snapshot;
use rprocd::memory::DeviceAddress;
use rprocd::rproc::{BootError, Check, CheckOptions, Clean, Grants, check};

use super::elf_builder::Elf;
use super::plan::{BASE, MIB, core, live_word, planned};
use super::table_builder::{ANY, Table};

/// `PT_TLS`.
const TLS: u32 = 7;
/// `PT_ARM_EXIDX`; the RISC-V ABI has its attributes at the same number plus 2.
const EXIDX: u32 = 0x7000_0001;

/// Where the system companion processors of MediaTek's chips have their memory.
const SCP_BASE: u32 = 0x1050_0000;

/// A firmware of a system companion processor with a RISC-V core: no table, linked to 0 and
/// loaded elsewhere, a segment of one byte at the end of the code's space, a segment of zeroes,
/// and one gigabyte higher what runs from DRAM.
pub fn companion_riscv() -> Elf {
    Elf::new(0)
        .load_from(0, SCP_BASE, &[0x13; 0x700], 0x700)
        .load_from(0x700, SCP_BASE + 0x6_7fff, &[0xff], 1)
        .load_from(0xb_fdb0, SCP_BASE + 0xb_fdb0, &[], 0x250)
        .load_from(0x1000_0000, 0x5000_0000, &[0x13; 0x88], 0x88)
}

/// The same with an Arm core: loaded to where it was linked to, the DRAM excepted.
pub fn companion_arm() -> Elf {
    Elf::new(0)
        .machine(40)
        .load(0, &[0x13; 0x700], 0x700)
        .load_from(0x700, 0x5_7fff, &[0xff], 1)
        .load(0x7_bdb0, &[], 0x250)
        .load_from(0x1000_0000, 0x5000_0000, &[0x13; 0x88], 0x88)
}

/// A firmware on an RTOS with an rpmsg device: the table names no memory at all, the rings may be
/// anywhere, and every notify id is the same placeholder.
pub fn rtos_rpmsg() -> Elf {
    let table = Table::new().trace(BASE + 0x2001, 0x3ff, "rtos_log").vdev(
        7,
        1,
        &[(ANY, 4096, 256); 2],
        &[],
    );
    Elf::new(BASE)
        .load(BASE, &[0x13; 64], 0x1000)
        .load(BASE + 0x2000, &[], 0x1000)
        .table(BASE + 0x3000, &table.build())
}

/// A firmware that only logs, and asks for 2,000 bytes.
pub fn logger(carveout: u32) -> Elf {
    let table = Table::new()
        .trace(carveout | 1, 101, "log")
        .carveout(carveout, 2000, "shared");
    Elf::new(carveout)
        .load(carveout & !3, &[0x13; 8], 8)
        .table(carveout + 1000, &table.build())
}

fn checked(elf: &Elf, options: &CheckOptions) -> Check {
    check(&Snapshot::from_bytes("a.elf", elf.build()), options).unwrap()
}

fn at(base: u32, memory_bytes: u64) -> CheckOptions {
    CheckOptions {
        rules: ImageRules::ANY,
        base: DeviceAddress(u64::from(base)),
        memory_bytes,
        ..CheckOptions::default()
    }
}

#[test]
fn companion_processors_get_a_plan_where_their_memory_is() {
    for (elf, base) in [(companion_riscv(), SCP_BASE), (companion_arm(), 0)] {
        let check = checked(&elf, &at(base, 0x5010_0000));
        assert_eq!(check.refusal(), None);
        // The DRAM's page, the code's, the single byte's and the zeroes' are each apart.
        assert_eq!(
            check.summary(),
            "ok       a.elf: 4 segments, 4 carveouts, 0 vdevs, 0 trace buffers"
        );
    }
}

#[test]
fn companion_processors_are_refused_precisely_where_their_memory_is_not() {
    let check = checked(&companion_riscv(), &CheckOptions::default());
    assert_eq!(
        check.refusal().unwrap(),
        "segment 0 must lie in the core's memory: 0x700 bytes at 0x10500000 are outside the \
         core's memory (0x80000000 to 0x80400000)"
    );
    assert!(
        check
            .to_string()
            .contains("\n>> 0x10500000        1792 B  segment 0\n")
    );
    let check = checked(&companion_arm(), &CheckOptions::default());
    assert_eq!(
        check.refusal().unwrap(),
        "image: e_machine is 40 (ARM), must be 243 (RISC-V)"
    );
}

#[test]
fn a_table_that_names_no_memory_has_its_segments_and_rings_placed() {
    let plan = planned(&rtos_rpmsg(), 1).unwrap();
    let carveouts: Vec<_> = plan
        .carveouts
        .iter()
        .map(|carveout| {
            (
                carveout.name.as_str(),
                carveout.da.0 - u64::from(BASE),
                carveout.len,
            )
        })
        .collect();
    assert_eq!(
        carveouts,
        [
            ("image", 0, 0x1000),
            ("image", 0x2000, 0x2000),
            ("vdev0vring0", 0x4000, 10246),
            ("vdev0vring1", 0x7000, 10246),
            ("vdev0buffer", 0xa000, 0x4_0000),
        ]
    );
    assert_eq!(plan.vdevs[0].ids(), [NotifyId(0), NotifyId(1)]);
    assert_eq!(plan.traces[0].da, DeviceAddress(u64::from(BASE) + 0x2001));
    assert!(plan.table.is_seen());
}

#[test]
fn a_logger_has_its_trace_at_an_odd_address_and_its_2000_bytes() {
    let plan = planned(&logger(BASE + 0x678), 0).unwrap();
    assert_eq!(plan.carveouts.iter().count(), 1);
    assert_eq!(plan.carveouts.named("shared").unwrap().len, 2000);
    assert_eq!(plan.traces[0].da.0 % 2, 1);
    assert!(plan.table.is_seen());

    let unaligned = logger(0x1234_5678);
    let check = checked(&unaligned, &at(0x1230_0000, MIB));
    assert_eq!(check.refusal(), None);
    assert!(
        check
            .to_string()
            .contains("0x12345678        2000 B  carveout \"shared\"")
    );
    let check = checked(&unaligned, &CheckOptions::default());
    assert_eq!(
        check.refusal().unwrap(),
        "resource table entry 1 (carveout): carveout \"shared\": 0x7d0 bytes at 0x12345678 are \
         outside the core's memory (0x80000000 to 0x80400000)"
    );
}

#[test]
fn a_logger_whose_2000_bytes_may_be_anywhere_gets_them_behind_its_image() {
    let table = Table::new()
        .trace(BASE + 0x101, 99, "log")
        .carveout(ANY, 2000, "shared");
    let elf = Elf::new(BASE)
        .load(BASE, &[0x13; 8], 0x200)
        .table(BASE + 0x200, &table.build());
    let plan = planned(&elf, 0).unwrap();
    let shared = plan.carveouts.named("shared").unwrap();
    assert_eq!((shared.da.0, shared.len), (u64::from(BASE) + 0x1000, 2000));
    assert!(plan.table.is_seen());
}

#[test]
fn notify_ids_of_the_file_are_replaced_by_the_lowest_free_ones() {
    let mut core = core(4 * MIB);
    let elf = rtos_rpmsg();
    let bytes = elf.build();
    let image = core.image(&bytes);
    let mut plan = core.plan(&image, 1, &Grants::default()).unwrap();
    plan.load(&image, &bytes, &mut core.engine, Clean::All)
        .unwrap();
    core.engine.start(plan.boot, 1).unwrap();
    let section = image.table.as_ref().unwrap();
    for (index, vring) in section
        .table
        .vdevs()
        .next()
        .unwrap()
        .vrings
        .iter()
        .enumerate()
    {
        let at = section.da.0 + vring.notifyid_offset() as u64;
        assert_eq!(live_word(&core.ram, at), u32::try_from(index).unwrap());
    }
}

#[test]
fn exidx_and_tls_headers_are_not_loaded() {
    let elf = Elf::new(BASE)
        .segment(EXIDX, 0x6000_0000, &[1; 8], 8)
        .segment(TLS, 0x7000_0000, &[1; 8], 16)
        .load(BASE, &[0x13; 8], 8);
    let plan = planned(&elf, 0).unwrap();
    assert_eq!(plan.carveouts.iter().count(), 1);
}

#[test]
fn an_empty_table_is_as_none() {
    let elf =
        Elf::new(BASE)
            .load(BASE, &[0x13; 8], 8)
            .section(".resource_table", 1, BASE + 0x1000, &[]);
    let plan = planned(&elf, 0).unwrap();
    assert_eq!(plan.vdevs.len(), 0);
    assert!(matches!(
        planned(&elf, 1),
        Err(BootError::VdevCount {
            image: 0,
            configured: 1
        })
    ));
}

#[test]
fn a_table_linked_elsewhere_than_loaded_is_written_where_it_was_linked_to() {
    // Code that was linked to the second megabyte and is loaded to the first.
    let table = Table::new().carveout(BASE, 0x20_0000, "all").build();
    let elf = Elf::new(BASE).load(BASE, &[0x13; 8], 8).table_from(
        BASE + 0x10_0000,
        BASE + 0x1000,
        &table,
    );
    let mut core = core(4 * MIB);
    let bytes = elf.build();
    let image = core.image(&bytes);
    let mut plan = core.plan(&image, 0, &Grants::default()).unwrap();
    assert!(
        plan.notices[0].contains("as Linux does"),
        "{:?}",
        plan.notices
    );
    plan.load(&image, &bytes, &mut core.engine, Clean::All)
        .unwrap();
    core.engine.start(plan.boot, 1).unwrap();
    // `pa` of the carveout: written into the live copy, a placeholder in the loaded one.
    let pa = 20 + 8;
    assert_eq!(live_word(&core.ram, u64::from(BASE) + 0x10_0000 + pa), BASE);
    assert_eq!(live_word(&core.ram, u64::from(BASE) + 0x1000 + pa), 0);
}
