//! What a boot would do with an image: the plan, and each of its refusals.

use std::sync::Arc;

use rprocd::engine::rv32::{Rv32, board};
use rprocd::engine::{Engine, EngineError, ImageRules, NotifyId, Run, RunEnd, VendorEntry};
use rprocd::firmware::{Image, Snapshot};
use rprocd::memory::{CarveoutLimits, DeviceAddress, Ram};
use rprocd::report::sentence;
use rprocd::rproc::{
    BootError, BootPlan, CheckOptions, Clean, DevmemGrant, Grants, VendorRule, check,
};
use vm_memory::Bytes;

use super::elf_builder::{Elf, put32};
use super::table_builder::{ANY, Table};

pub const BASE: u32 = board::ram::BASE;
pub const MIB: u64 = 1 << 20;

/// An rv32 core that nothing was loaded to.
pub struct TestCore {
    pub engine: Rv32,
    pub ram: Arc<Ram>,
}

pub fn core(memory: u64) -> TestCore {
    let ram = Ram::new("test", DeviceAddress(u64::from(BASE)), memory).unwrap();
    TestCore {
        engine: Rv32::new(ram.clone()).unwrap(),
        ram,
    }
}

impl TestCore {
    pub fn image(&self, bytes: &[u8]) -> Image {
        Image::parse(bytes, &self.engine.image_rules()).unwrap()
    }

    pub fn plan(
        &mut self,
        image: &Image,
        vdevs: usize,
        grants: &Grants,
    ) -> Result<BootPlan, BootError> {
        BootPlan::new(image, &[], &mut self.engine, vdevs, grants)
    }
}

/// The plan on a core with 4 MiB and nothing granted.
pub fn planned(elf: &Elf, vdevs: usize) -> Result<BootPlan, BootError> {
    granted(elf, vdevs, &Grants::default())
}

fn granted(elf: &Elf, vdevs: usize, grants: &Grants) -> Result<BootPlan, BootError> {
    let mut core = core(4 * MIB);
    let image = core.image(&elf.build());
    core.plan(&image, vdevs, grants)
}

#[track_caller]
fn refused(elf: &Elf, vdevs: usize) -> String {
    sentence(&planned(elf, vdevs).unwrap_err())
}

pub fn live_word(ram: &Ram, da: u64) -> u32 {
    ram.slice(DeviceAddress(da), 4)
        .unwrap()
        .read_obj(0)
        .unwrap()
}

/// Code in a carveout of 64 KiB, and the table in it, too.
fn with(table: Table) -> Elf {
    let table = table.carveout(BASE, 0x1_0000, "code");
    Elf::new(BASE)
        .load(BASE, &[0x13; 8], 0x100)
        .table(BASE + 0x1000, &table.build())
}

#[test]
fn a_segment_outside_of_the_tables_carveouts_is_refused_by_its_number() {
    let code = |da: u32, len: u32| {
        let table = Table::new().carveout(BASE + 0x1000, 0x2000, "code").build();
        Elf::new(BASE + 0x1100)
            .load(BASE + 0x1100, &[0x13; 8], 8)
            .table(BASE + 0x1800, &table)
            .load(da, &[1], len)
    };
    for (da, len) in [
        // Outside, across its beginning, across its end, at its last byte + 1.
        (BASE + 0x8000, 1),
        (BASE + 0xfff, 2),
        (BASE + 0x2fff, 2),
        (BASE + 0x3000, 1),
    ] {
        assert_eq!(
            refused(&code(da, len), 0),
            format!(
                "segment 2 must lie in a carveout of the resource table: {len:#x} bytes at \
                 {da:#010x} lie outside every carveout (\"code\" (0x80001000 to 0x80003000))"
            )
        );
    }
    assert!(planned(&code(BASE + 0x2fff, 1), 0).is_ok());
}

#[test]
fn without_carveouts_for_them_segments_must_lie_in_the_memory() {
    for (da, len) in [(BASE - 1, 2), (BASE + 0x40_0000, 1), (BASE + 0x3f_ffff, 2)] {
        let elf = Elf::new(BASE + 0x100)
            .load(BASE + 0x100, &[0x13; 8], 8)
            .load(da, &[1], len);
        assert_eq!(
            refused(&elf, 0),
            format!(
                "segment 1 must lie in the core's memory: {len:#x} bytes at {da:#010x} are \
                 outside the core's memory (0x80000000 to 0x80400000)"
            )
        );
    }
}

#[test]
fn segments_that_share_pages_share_the_carveout_that_is_made_for_them() {
    let elf = Elf::new(BASE + 0x1800)
        .load(BASE + 0x1800, &[0x13; 8], 8)
        .load(BASE + 0x1900, &[1], 0x800)
        .load(BASE + 0x3000, &[1], 1)
        .load(BASE + 0x9fff, &[1], 1);
    let plan = planned(&elf, 0).unwrap();
    let spans: Vec<_> = plan
        .carveouts
        .iter()
        .map(|made| (made.name.as_str(), made.da.0, made.len))
        .collect();
    let base = u64::from(BASE);
    assert_eq!(
        spans,
        [
            ("image", base + 0x1000, 0x3000),
            ("image", base + 0x9000, 0x1000)
        ]
    );
}

#[test]
fn the_image_gives_way_to_rings_at_fixed_places_in_its_pages() {
    let table = Table::new()
        .carveout(BASE + 0x1800, 0x800, "vdev0vring1")
        .vdev(7, 1, &[(BASE + 0x1400, 16, 16), (ANY, 16, 16)], &[]);
    let elf = Elf::new(BASE + 0x1000)
        .load(BASE + 0x1000, &[0x13; 8], 0x100)
        .table(BASE + 0x2000, &table.build());
    let plan = planned(&elf, 1).unwrap();
    let first = plan.carveouts.named("image").unwrap();
    assert_eq!((first.da.0, first.len), (u64::from(BASE) + 0x1000, 0x400));
    assert_eq!(
        plan.carveouts.named("vdev0vring0").unwrap().da.0,
        u64::from(BASE) + 0x1400
    );
}

#[test]
fn an_image_without_a_table_runs() {
    let mut core = core(MIB);
    // An endless loop; RISC-V `j .`.
    let bytes = Elf::new(BASE)
        .load(BASE, &0x6f_u32.to_le_bytes(), 64)
        .build();
    let image = core.image(&bytes);
    let mut plan = core.plan(&image, 0, &Grants::default()).unwrap();
    plan.load(&image, &bytes, &mut core.engine, Clean::All)
        .unwrap();
    core.engine.start(plan.boot, 1).unwrap();
    assert_eq!(core.engine.run(1000).end, RunEnd::BudgetSpent);
}

#[test]
fn a_boot_address_that_the_engine_cannot_begin_at_is_refused_before_the_load() {
    for (entry, virtual_address) in [(0x100, 0), (BASE + 1, BASE)] {
        let elf = Elf::new(entry).load_from(virtual_address, BASE, &[0x13; 8], 0x200);
        assert_eq!(
            refused(&elf, 0),
            format!(
                "the core cannot begin at the boot address: engine rv32 cannot start at \
                 {entry:#010x}: an entry point is even and in the RAM (0x80000000 to 0x80400000)"
            )
        );
    }
}

#[test]
fn a_carveout_of_4_gib_is_refused() {
    for da in [ANY, 0] {
        let shown = refused(&with(Table::new().carveout(da, u32::MAX, "a")), 0);
        assert!(
            shown.starts_with("resource table entry 0 (carveout): "),
            "{shown}"
        );
    }
}

#[test]
fn carveouts_that_overlap_are_refused() {
    assert_eq!(
        refused(&with(Table::new().carveout(BASE + 0xffff, 2, "a")), 0),
        "resource table entry 1 (carveout): carveout \"code\" (0x80000000 to 0x80010000) overlaps \
         carveout \"a\" (0x8000ffff to 0x80010001); give one of them another address"
    );
}

#[test]
fn more_carveouts_than_the_core_may_have_are_refused() {
    let table = |count| {
        (0..count).fold(Table::new(), |table, index| {
            table.carveout(ANY, 1, &format!("a{index}"))
        })
    };
    assert!(planned(&with(table(127)), 0).is_ok());
    assert_eq!(
        refused(&with(table(128)), 0),
        "resource table entry 127 (carveout): carveout \"a127\" would be number 129, at most 128 \
         are allowed; raise carveout-count or ask for fewer"
    );
}

#[test]
fn carveouts_over_the_quota_are_refused_rings_and_buffers_included() {
    let grants = |bytes| Grants {
        carveouts: CarveoutLimits {
            bytes,
            ..CarveoutLimits::default()
        },
        ..Grants::default()
    };
    let elf = with(Table::new().vdev(7, 1, &[(ANY, 16, 16); 2], &[]));
    let needs = 0x1_0000 + 2 * 438 + 0x4000;
    assert!(granted(&elf, 1, &grants(needs)).is_ok());
    assert_eq!(
        sentence(&granted(&elf, 1, &grants(needs - 1)).unwrap_err()),
        "resource table entry 0 (vdev 0): carveout \"vdev0buffer\" has 0x4000 bytes and those \
         before it have 0x1036c, together at most 0x1436b are allowed; raise carveout-quota-mib \
         or ask for less"
    );
}

#[test]
fn the_pa_of_a_carveout_is_a_placeholder_and_is_replaced() {
    let elf = |pa: u32| {
        let table = Table::new().carveout(BASE, 0x1_0000, "code");
        let mut bytes = table.build();
        put32(&mut bytes, table.offset(0) + 8, pa);
        Elf::new(BASE)
            .load(BASE, &[0x13; 8], 0x100)
            .table(BASE + 0x1000, &bytes)
            .build()
    };
    for pa in [0, 0xdead_0000, ANY] {
        let mut core = core(MIB);
        let bytes = elf(pa);
        let image = core.image(&bytes);
        let mut plan = core.plan(&image, 0, &Grants::default()).unwrap();
        plan.load(&image, &bytes, &mut core.engine, Clean::All)
            .unwrap();
        core.engine.start(plan.boot, 1).unwrap();
        assert_eq!(
            live_word(&core.ram, u64::from(BASE) + 0x1000 + 20 + 8),
            BASE
        );
    }
}

#[test]
fn a_trace_buffer_outside_of_every_carveout_is_refused() {
    for (da, len) in [(BASE + 0x1_0000, 1), (BASE + 0xffff, 2), (0, 16)] {
        let shown = refused(&with(Table::new().trace(da, len, "log")), 0);
        let expected = format!(
            "the trace buffer of resource table entry 0 (trace) must lie in a carveout of the \
             resource table: {len:#x} bytes at {da:#010x} lie outside every carveout"
        );
        assert!(shown.starts_with(&expected), "{shown}");
    }
    assert!(planned(&with(Table::new().trace(BASE + 0xffff, 1, "log")), 0).is_ok());
}

#[test]
fn an_entry_of_unknown_type_is_skipped_with_a_notice() {
    let plan = planned(&with(Table::new().raw(77, &[1; 8])), 0).unwrap();
    assert_eq!(
        plan.notices,
        ["resource table entry 0 (unknown type 77) is skipped: there is no such type"]
    );
}

#[test]
fn a_vendor_entry_that_the_engine_does_not_know_is_ignored_or_refused_by_policy() {
    let elf = with(Table::new().raw(128, &[1; 8]));
    let plan = planned(&elf, 0).unwrap();
    assert_eq!(
        plan.notices,
        ["resource table entry 0 (vendor type 128) is ignored: engine rv32 does not know it"]
    );
    let grants = Grants {
        vendor: VendorRule::Refuse,
        ..Grants::default()
    };
    assert_eq!(
        sentence(&granted(&elf, 0, &grants).unwrap_err()),
        "resource table entry 0 (vendor type 128) is not known to engine rv32; vendor-resources = \
         \"ignore\" would pass over it"
    );
}

/// An engine that knows vendor type 200, and notes what it is asked.
struct Knowing {
    ram: Arc<Ram>,
    asked: Vec<(u32, Vec<u8>)>,
}

impl Engine for Knowing {
    fn kind(&self) -> &'static str {
        "knowing"
    }

    fn image_rules(&self) -> ImageRules {
        ImageRules::ANY
    }

    fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    fn handle_rsc(&mut self, kind: u32, payload: &[u8]) -> Result<VendorEntry, EngineError> {
        self.asked.push((kind, payload.to_vec()));
        match (kind, payload.first()) {
            (200, Some(0)) => Err(EngineError("a type 200 of 0 makes no sense".to_owned())),
            (200, _) => Ok(VendorEntry::Handled),
            _ => Ok(VendorEntry::Unknown),
        }
    }

    fn start(&mut self, _: DeviceAddress, _: u32) -> Result<(), EngineError> {
        Ok(())
    }

    fn stop(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn kick(&mut self, _: NotifyId) {}

    fn run(&mut self, _: u64) -> Run {
        Run::quiet(RunEnd::Waiting { until: None })
    }
}

#[test]
fn a_vendor_entry_is_offered_to_the_engine_whatever_the_policy() {
    let mut engine = Knowing {
        ram: core(MIB).ram,
        asked: Vec::new(),
    };
    let grants = Grants {
        vendor: VendorRule::Refuse,
        ..Grants::default()
    };
    let mut plan = |table: Table| {
        let bytes = with(table).build();
        let image = Image::parse(&bytes, &ImageRules::ANY).unwrap();
        BootPlan::new(&image, &[], &mut engine, 0, &grants).map(|plan| plan.notices)
    };
    assert!(plan(Table::new().raw(200, &[9; 4])).unwrap().is_empty());
    assert_eq!(
        sentence(&plan(Table::new().raw(200, &[0; 4])).unwrap_err()),
        "resource table entry 0 (vendor type 200) is refused: a type 200 of 0 makes no sense"
    );
    assert!(plan(Table::new().raw(201, &[])).is_err());
    assert_eq!(
        engine.asked,
        [(200, vec![9; 4]), (200, vec![0; 4]), (201, vec![])]
    );
}

const UART: u32 = board::uart::BASE;

fn grant(pa: u32, length: u64, name: &str) -> Grants {
    Grants {
        devmem: vec![DevmemGrant {
            pa: u64::from(pa),
            length,
            name: name.to_owned(),
        }],
        ..Grants::default()
    }
}

#[test]
fn a_devmem_entry_must_be_on_the_list() {
    let elf = with(Table::new().devmem(UART, UART, 0x100, "uart"));
    for grants in [
        Grants::default(),
        grant(UART, 0xff, ""),
        grant(UART + 1, 0x100, ""),
        grant(UART, 0x100, "other"),
    ] {
        assert_eq!(
            sentence(&granted(&elf, 0, &grants).unwrap_err()),
            "resource table entry 0 (devmem) (\"uart\") wants the host's 0x100 bytes at pa \
             0x10000000, which the configuration does not grant; a [[core.devmem]] section with \
             pa, length and perhaps name would"
        );
    }
    for grants in [
        grant(UART, 0x100, ""),
        grant(UART, 0x100, "uart"),
        grant(0, 1 << 32, "uart"),
    ] {
        assert!(granted(&elf, 0, &grants).is_ok());
    }
}

#[test]
fn rv32_grants_only_devices_of_its_board_and_only_where_they_are() {
    let everything = grant(0, 1 << 32, "");
    let refused = |da, pa, len| {
        let elf = with(Table::new().devmem(da, pa, len, "uart"));
        sentence(&granted(&elf, 0, &everything).unwrap_err())
    };
    assert_eq!(
        refused(UART, 0x2000_0000, 0x100),
        "resource table entry 0 (devmem) is refused: engine rv32 has its uart at 0x10000000 for \
         good: pa is 0x20000000, must be da, 0x10000000"
    );
    for (da, len) in [(UART, 0x101), (UART - 1, 2), (0x4000_0000, 4), (BASE, 4)] {
        let shown = refused(da, da, len);
        assert!(shown.contains("engine rv32 has no device at"), "{shown}");
        assert!(shown.contains("mailbox at 0x11000000"), "{shown}");
    }
    for (base, size) in [
        (board::finisher::BASE, board::finisher::SIZE),
        (board::clint::BASE, board::clint::SIZE),
        (board::plic::BASE, board::plic::SIZE),
        (board::uart::BASE, board::uart::SIZE),
        (board::mailbox::BASE, board::mailbox::SIZE),
        (board::watchdog::BASE, board::watchdog::SIZE),
        (board::copier::BASE, board::copier::SIZE),
    ] {
        let elf = with(Table::new().devmem(base, base, size, ""));
        assert!(granted(&elf, 0, &everything).is_ok());
    }
}

#[test]
fn a_check_says_which_devices_would_have_to_be_granted() {
    let elf = with(Table::new().devmem(UART, UART, 0x100, "uart"));
    let snapshot = Snapshot::from_bytes("a.elf", elf.build());
    let report = check(&snapshot, &CheckOptions::default()).unwrap();
    assert_eq!(report.refusal(), None);
    assert_eq!(
        report.notices(),
        [
            "resource table entry 0 (devmem) needs a [[core.devmem]] section with pa = 0x10000000 \
          and length = 0x100"
        ]
    );
    let strict = CheckOptions {
        grants: Some(Grants::default()),
        ..CheckOptions::default()
    };
    assert!(check(&snapshot, &strict).unwrap().refusal().is_some());
}

#[test]
fn the_report_has_the_sentence_first_then_the_facts_then_the_map() {
    let table = Table::new()
        .trace(BASE + 0x800, 0x100, "log")
        .vdev(7, 1, &[(ANY, 16, 16); 2], &[]);
    let snapshot = Snapshot::from_bytes("a.elf", with(table).build());
    let shown = check(&snapshot, &CheckOptions::default())
        .unwrap()
        .to_string();
    let file = snapshot.to_string();
    assert_eq!(
        shown,
        format!(
            "\
a.elf is accepted: 2 segments, 4 carveouts, 1 vdev, 1 trace buffer

{file}
segment 0: da 0x80000000, 8 bytes of 256
segment 1: da 0x80001000, 200 bytes of 200
boot address 0x80000000
resource table: da 0x80001000, 200 bytes
0: trace \"log\", da 0x80000800, len 0x100
1: vdev 0, virtio id 7, features 0x1, config 0 bytes, vring 0: da any, num 16,
  align 16, vring 1: da any, num 16, align 16
2: carveout \"code\", da 0x80000000, len 0x10000, flags 0x0
carveout \"code\" (0x80000000 to 0x80010000), 65536 bytes
carveout \"vdev0vring0\" (0x80010000 to 0x800101b6), 438 bytes
carveout \"vdev0vring1\" (0x80011000 to 0x800111b6), 438 bytes
carveout \"vdev0buffer\" (0x80012000 to 0x80016000), 16384 bytes
vdev 0, vring 0: da 0x80010000, 438 bytes, notify id 0
vdev 0, vring 1: da 0x80011000, 438 bytes, notify id 1
the core sees the live resource table

memory: 4096 KiB from 0x80000000 to 0x80400000
   address             size  what
   0x80000000        64 KiB  carveout \"code\"
   0x80000000         256 B    segment 0
   0x80000800         256 B    trace buffer \"log\"
   0x80001000         200 B    segment 1
   0x80001000         200 B    resource table
   0x80010000         438 B  carveout \"vdev0vring0\"
   0x80010000         438 B    vdev 0, vring 0 (notify id 0)
   0x800101b6        3658 B  (free)
   0x80011000         438 B  carveout \"vdev0vring1\"
   0x80011000         438 B    vdev 0, vring 1 (notify id 1)
   0x800111b6        3658 B  (free)
   0x80012000        16 KiB  carveout \"vdev0buffer\"
   0x80016000      4008 KiB  (free)"
        )
    );
}

#[test]
fn a_refusal_is_shown_in_its_place_in_the_map() {
    let table = Table::new().carveout(BASE + 0x1000, 0x1000, "code").build();
    let elf = Elf::new(BASE + 0x1000)
        .load(BASE + 0x1000, &[0x13; 8], 8)
        .table(BASE + 0x1800, &table)
        .load(BASE + 0x3000, &[1], 1);
    let snapshot = Snapshot::from_bytes("a.elf", elf.build());
    let report = check(&snapshot, &CheckOptions::default()).unwrap();
    let shown = report.to_string();
    assert!(
        shown.starts_with("a.elf is refused: segment 2 must lie in a carveout"),
        "{shown}"
    );
    let map = shown.split_once("what\n").unwrap().1;
    assert_eq!(
        map,
        "   0x80000000         4 KiB  (free)\n   \
         0x80001000         4 KiB  carveout \"code\"\n   \
         0x80001000           8 B    segment 0\n   \
         0x80001800          76 B    segment 1\n   \
         0x80002000      4088 KiB  (free)\n\
         >> 0x80003000           1 B  segment 2\n                             \
         ^ segment 2 lies outside every carveout"
    );
    assert!(
        report
            .summary()
            .starts_with("refused  a.elf: segment 2 must lie")
    );
    assert_eq!(report.summary().len(), 80);
}
