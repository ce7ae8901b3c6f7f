//! What holds for whatever the parsers accept. The fuzz targets use this file too.

use std::collections::HashSet;

use rprocd::firmware::{Entry, Image, ResourceTable, Snapshot};
use rprocd::memory::DeviceAddress;
use rprocd::rproc::{CheckOptions, check};

const END: u64 = 1 << 32;

/// Asserts that the report about an image, good or bad, is one that a person can read.
#[allow(dead_code, reason = "two fuzz targets need only other functions")]
pub fn report(bytes: &[u8]) {
    let snapshot = Snapshot::from_bytes("image.elf", bytes.to_vec());
    let anywhere = CheckOptions {
        rules: rprocd::engine::ImageRules::ANY,
        base: DeviceAddress(0),
        memory_bytes: 1 << 32,
        ..CheckOptions::default()
    };
    for options in [CheckOptions::default(), anywhere] {
        let check = check(&snapshot, &options).unwrap();
        let shown = check.to_string();
        let word = match check.refusal() {
            None => "image.elf is accepted: ",
            Some(sentence) => {
                assert!(!sentence.is_empty());
                "image.elf is refused: "
            }
        };
        assert!(shown.starts_with(word), "{shown}");
        for line in shown.lines().chain([check.summary().as_str()]) {
            assert!(line.chars().count() <= 80, "{line}");
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    }
}

/// Asserts all that callers may rely on in an accepted image of these bytes.
#[allow(dead_code, reason = "one fuzz target needs only the other function")]
pub fn image(image: &Image, bytes: &[u8]) {
    assert!(!image.segments.is_empty());
    for segment in &image.segments {
        assert!(segment.memsz > 0);
        assert!(segment.file.len() as u64 <= segment.memsz);
        assert!(bytes.get(segment.file.clone()).is_some());
        assert!(segment.da.0 + segment.memsz <= END);
        for other in &image.segments {
            assert!(
                other.index == segment.index
                    || other.da.0 + other.memsz <= segment.da.0
                    || segment.da.0 + segment.memsz <= other.da.0
            );
        }
    }
    assert!(
        image.segments.iter().any(|segment| {
            segment.holds(image.boot, 1) || segment.holds_virtual(image.boot.0, 1)
        })
    );
    if let Some(section) = &image.table {
        let bytes = bytes.get(section.file.clone()).unwrap();
        assert_eq!(section.len, bytes.len() as u64);
        assert!(section.da.0 + section.len <= END);
        table(&section.table, bytes);
    }
    assert!(!image.to_string().is_empty());
}

/// Asserts all that callers may rely on in an accepted table of these bytes.
pub fn table(table: &ResourceTable, bytes: &[u8]) {
    assert_eq!(table.bytes(), bytes);
    let has = |at: usize, len: usize| assert!(bytes.get(at..at + len).is_some());
    let word = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    assert_eq!(word(4) as usize, table.entries().len());
    let array_end = 16 + 4 * table.entries().len();
    let mut names = HashSet::new();
    let mut vdevs = 0;
    let mut vrings = 0;
    let mut starts = HashSet::new();
    for (index, entry) in table.entries().iter().enumerate() {
        let id = entry.id();
        assert_eq!(id.index, index);
        let start = match entry {
            Entry::Carveout(carveout) => {
                let da = carveout.da.map_or(0xffff_ffff, |da| da.0);
                assert_eq!(u64::from(word(carveout.da_offset())), da);
                assert_eq!(word(carveout.pa_offset()), carveout.pa);
                assert_eq!(u64::from(word(carveout.len_offset())), carveout.len);
                assert!(carveout.len > 0);
                assert!(carveout.da.is_none_or(|da| da.0 + carveout.len <= END));
                assert!(carveout.name.as_bytes().len() <= 31);
                assert!(names.insert(carveout.name.clone()));
                carveout.offset
            }
            Entry::Devmem(devmem) => {
                assert!(devmem.len > 0);
                assert!(devmem.da.0 + devmem.len <= END);
                assert!(devmem.pa + devmem.len <= END);
                devmem.offset
            }
            Entry::Trace(trace) => {
                assert!(trace.len > 0);
                assert!(trace.da.0 + trace.len <= END);
                trace.offset
            }
            Entry::Vdev(vdev) => {
                assert_eq!(vdev.number, vdevs);
                vdevs += 1;
                vrings += vdev.vrings.len();
                assert!((1..=2).contains(&vdev.vrings.len()));
                assert_eq!(word(vdev.offset + 4), vdev.device_id);
                assert_eq!(word(vdev.offset + 12), vdev.dfeatures);
                has(vdev.gfeatures_offset(), 4);
                has(vdev.status_offset(), 1);
                let at = vdev.config_offset();
                assert_eq!(bytes[at..at + vdev.config.len()], vdev.config);
                for vring in &vdev.vrings {
                    let da = vring.da.map_or(0xffff_ffff, |da| da.0);
                    assert_eq!(u64::from(word(vring.da_offset())), da);
                    has(vring.notifyid_offset(), 4);
                    assert!(vring.notifyid_offset() + 8 <= at);
                    assert!(vring.num.is_power_of_two() && vring.align.is_power_of_two());
                    assert!((4..=1 << 20).contains(&vring.align));
                    assert!(vring.avail_offset() < vring.used_offset());
                    assert!(vring.used_offset() < vring.ring_bytes());
                    if let Some(da) = vring.da {
                        assert_eq!(da.0 % u64::from(vring.start_align()), 0);
                        assert!(da.0 + vring.ring_bytes() <= END);
                    }
                }
                vdev.offset
            }
            Entry::Vendor(raw) | Entry::Unknown(raw) => {
                assert_eq!(raw.kind, word(raw.offset));
                has(raw.offset + 4, raw.payload.len());
                raw.offset
            }
            other => panic!("an entry of a kind without invariants: {other:?}"),
        };
        assert_eq!(word(16 + 4 * index) as usize, start);
        assert!(start >= array_end);
        assert!(starts.insert(start));
        assert!(entry.to_string().starts_with(&format!("{index}: ")));
    }
    assert!(vrings <= 64);
    assert_eq!(table.vdevs().count(), vdevs);
    let lines = table.to_string().lines().count();
    assert_eq!(lines, table.entries().len(), "one line an entry");
}
