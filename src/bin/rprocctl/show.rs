//! What cores are and do, as text.
//!
//! What belongs here: from answers to tables, blocks and maps. What does not: asking.

use std::fmt::Write;

use rprocd::memory::{Carveout, DeviceAddress, MemoryMap};
use rprocd::rproc::{CoreStatus, Field, Region, Resource};

use serde_json::{Value, json};

use crate::terminal::{Screen, Table, duration, size};

/// All cores, a line for each vdev.
pub fn list(cores: &[CoreStatus], screen: &Screen) -> String {
    let mut table = Table::new(&[
        "CORE",
        "STATE",
        "BOOT",
        "FIRMWARE",
        "VDEV",
        "GUEST",
        "TO GUEST",
        "TO CORE",
        "ANNOUNCED",
    ]);
    let mut notes = Vec::new();
    for core in cores {
        let mut lead = [
            core.name.clone(),
            screen.state(&core.state),
            core.incarnation.to_string(),
            core.firmware.clone(),
        ];
        if core.vdevs.is_empty() {
            let none = std::iter::repeat_n("-".to_owned(), 5);
            table.row(lead.clone().into_iter().chain(none));
        }
        for (index, vdev) in core.vdevs.iter().enumerate() {
            let announced: Vec<_> = vdev
                .announced
                .iter()
                .map(|endpoint| format!("{}:{}", endpoint.name, endpoint.address))
                .collect();
            let rest = [
                index.to_string(),
                guest(vdev).to_owned(),
                vdev.to_guest.messages.to_string(),
                vdev.to_core.messages.to_string(),
                if announced.is_empty() {
                    "-".to_owned()
                } else {
                    announced.join(" ")
                },
            ];
            table.row(std::mem::take(&mut lead).into_iter().chain(rest));
        }
        notes.extend(self::notes(core));
    }
    let mut text = table.text(screen);
    for note in notes {
        text.push_str(&note);
        text.push('\n');
    }
    text
}

/// What there is to say about a core beside its figures.
fn notes(core: &CoreStatus) -> Vec<String> {
    let name = &core.name;
    let mut notes = Vec::new();
    if !core.holders.is_empty() {
        notes.push(format!("{name}: held by {}", core.holders.join(", ")));
    }
    if let Some(crash) = &core.last_crash {
        notes.push(format!("{name}: crash {}: {crash}", core.crashes));
    }
    if let Some(dump) = &core.last_dump {
        notes.push(format!("{name}: {dump}"));
    }
    if let Some(next) = &core.next {
        notes.push(format!("{name}: {next}"));
    }
    notes
}

/// Is there a guest?
pub fn guest(vdev: &rprocd::rproc::VdevStatus) -> &'static str {
    match (vdev.guest_attached, vdev.driver_ok) {
        (false, _) => "none",
        (true, false) => "waiting",
        (true, true) => "attached",
    }
}

/// One core, in full.
pub fn info(core: &CoreStatus, screen: &Screen) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{}", screen.cut(&format!("{name:14} {value}")));
    };
    line("name", &core.name);
    line("state", &screen.state(&core.state));
    if let Some(next) = &core.next {
        line("next", next);
    }
    let holders = core.holders.join(", ");
    line(
        "held by",
        if holders.is_empty() {
            "nobody"
        } else {
            &holders
        },
    );
    line("engine", &core.engine);
    let firmware = format!("{} (sha256 {})", core.firmware, core.firmware_sha256);
    line("firmware", &firmware);
    let memory = format!(
        "{} from {}",
        size(core.memory_bytes),
        DeviceAddress(core.memory_da)
    );
    line("memory", &memory);
    let uptime = core.uptime_microseconds.map(duration);
    let incarnation = match (core.incarnation, uptime) {
        (0, _) => "never booted".to_owned(),
        (number, Some(uptime)) => format!("{number}, for {uptime}"),
        (number, None) => format!("{number}, which is over"),
    };
    line("incarnation", &incarnation);
    line(
        "recovery",
        if core.recovery { "enabled" } else { "disabled" },
    );
    let reasons = core.crashes_by_reason.iter().filter(|it| it.count > 0);
    let reasons: Vec<_> = reasons
        .map(|it| format!("{} {}", it.count, it.reason))
        .collect();
    if core.crashes == 0 {
        line("crashes", "none");
    } else {
        line(
            "crashes",
            &format!("{} ({})", core.crashes, reasons.join(", ")),
        );
    }
    if let Some(crash) = &core.last_crash {
        line("last crash", crash);
    }
    let dumps = core.coredumps;
    let dumps = format!(
        "{}; {} written, {} partial, {} skipped, {} failed",
        core.coredump_mode, dumps.written, dumps.partial, dumps.skipped, dumps.failed
    );
    line("coredumps", &dumps);
    if let Some(dump) = &core.last_dump {
        line("last dump", dump);
    }
    for (index, trace) in core.traces.iter().enumerate() {
        let text = format!("{} written, {} overruns", size(trace.bytes), trace.overruns);
        line(&format!("trace {index}"), &text);
    }
    for (index, vdev) in core.vdevs.iter().enumerate() {
        let text = format!("virtio device {}, guest {}", vdev.device_id, guest(vdev));
        line(&format!("vdev {index}"), &text);
        if let Some(socket) = &vdev.socket {
            line("  socket", socket);
        }
        let features = format!(
            "{:#x}, configuration {} bytes",
            vdev.features, vdev.config_bytes
        );
        line("  features", &features);
        for (way, it) in [("  to guest", vdev.to_guest), ("  to core", vdev.to_core)] {
            let lost = it.bad_chains + it.malformed + it.too_long + it.withheld + it.lost;
            let text = format!(
                "{} messages, {}, {lost} dropped",
                it.messages,
                size(it.bytes)
            );
            line(way, &text);
        }
        for endpoint in &vdev.announced {
            line(
                "  announced",
                &format!("{} at {}", endpoint.name, endpoint.address),
            );
        }
    }
    text
}

/// The queues of a core.
pub fn queues(core: &CoreStatus, screen: &Screen) -> String {
    let mut table = Table::new(&[
        "VDEV", "VRING", "WAY", "SIZE", "ALIGN", "NOTIFY", "ADDRESS", "MESSAGES", "BYTES", "KICKS",
        "DROPPED", "HELD",
    ])
    .right(&[3, 4, 5, 7, 8, 9, 10, 11]);
    for (index, vdev) in core.vdevs.iter().enumerate() {
        for (number, vring) in vdev.vrings.iter().enumerate() {
            let (way, counted, held) = match number {
                0 => ("to guest", vdev.to_guest, u16::from(vdev.starved)),
                _ => ("to core", vdev.to_core, vdev.core_holds),
            };
            let dropped = counted.bad_chains
                + counted.malformed
                + counted.too_long
                + counted.withheld
                + counted.lost;
            let known = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            table.row([
                index.to_string(),
                number.to_string(),
                way.to_owned(),
                vring.size.to_string(),
                vring.align.to_string(),
                known(vring.notify_id.map(|id| id.to_string())),
                known(vring.da.map(|da| DeviceAddress(da).to_string())),
                counted.messages.to_string(),
                counted.bytes.to_string(),
                counted.notifications.to_string(),
                dropped.to_string(),
                held.to_string(),
            ]);
        }
    }
    if table.len() == 0 {
        return format!("core {} has no vdevs\n", core.name);
    }
    table.text(screen)
}

/// The same for programs.
pub fn queue_values(core: &CoreStatus) -> Vec<Value> {
    let mut values = Vec::new();
    for (index, vdev) in core.vdevs.iter().enumerate() {
        for (number, vring) in vdev.vrings.iter().enumerate() {
            let (way, counted) = match number {
                0 => ("to-guest", vdev.to_guest),
                _ => ("to-core", vdev.to_core),
            };
            values.push(json!({
                "vdev": index,
                "vring": number,
                "way": way,
                "ring": vring,
                "counted": counted,
                // The firmware's own of what it was given, and does a message wait for the guest?
                "coreHolds": (number != 0).then_some(vdev.core_holds),
                "starved": (number == 0).then_some(vdev.starved),
            }));
        }
    }
    values
}

/// What a core's firmware has announced, for programs.
pub fn endpoint_values(core: &CoreStatus) -> Vec<Value> {
    let vdevs = core.vdevs.iter().enumerate();
    let endpoints = vdevs.flat_map(|(index, vdev)| {
        let announced = vdev.announced.iter();
        announced.map(move |it| json!({ "vdev": index, "name": it.name, "address": it.address }))
    });
    endpoints.collect()
}

/// What a core's firmware has announced.
pub fn endpoints(core: &CoreStatus, screen: &Screen) -> String {
    let mut table = Table::new(&["VDEV", "ADDRESS", "NAME"]).right(&[1]);
    for (index, vdev) in core.vdevs.iter().enumerate() {
        for endpoint in &vdev.announced {
            table.row([
                index.to_string(),
                endpoint.address.to_string(),
                endpoint.name.clone(),
            ]);
        }
    }
    if table.len() == 0 {
        return format!(
            "core {} has announced nothing that it has not withdrawn; a vdev announces when a \
             guest's driver is there\n",
            core.name
        );
    }
    table.text(screen)
}

/// How long changes took.
pub fn timings(core: &CoreStatus, screen: &Screen) -> String {
    let mut table = Table::new(&["CHANGE", "STEP", "MICROSECONDS"]);
    for timeline in &core.timelines {
        let all = timeline.microseconds.to_string();
        table.row([timeline.what.clone(), "all".to_owned(), all]);
        for step in &timeline.steps {
            table.row([
                String::new(),
                step.step.clone(),
                step.microseconds.to_string(),
            ]);
        }
    }
    table.text(screen)
}

/// A map of a core's memory.
pub fn memory(regions: &[Region]) -> String {
    let Some(ram) = regions.iter().find(|region| region.kind == "ram") else {
        return String::new();
    };
    let mut map = MemoryMap::new(DeviceAddress(ram.da), DeviceAddress(ram.da + ram.bytes));
    for region in regions {
        let da = DeviceAddress(region.da);
        let what = match region.kind.as_str() {
            "ram" => continue,
            "carveout" => {
                map.carveout(&Carveout {
                    name: region.name.clone(),
                    da,
                    len: region.bytes,
                });
                continue;
            }
            "segment" => region.name.clone(),
            "trace" => format!("trace buffer \"{}\"", region.name),
            "table" => "resource table".to_owned(),
            other => format!("{other} {}", region.name),
        };
        map.inside(da, region.bytes, what);
    }
    format!(
        "memory: {} from {} to {}\n{map}\n",
        size(ram.bytes),
        DeviceAddress(ram.da),
        DeviceAddress(ram.da + ram.bytes)
    )
}

/// A resource table, entry by entry.
pub fn resources(entries: &[Resource], screen: &Screen) -> String {
    if entries.is_empty() {
        return "there is no resource table\n".to_owned();
    }
    let mut text = String::new();
    for (index, entry) in entries.iter().enumerate() {
        let name = if entry.name.is_empty() {
            String::new()
        } else {
            format!(" \"{}\"", entry.name)
        };
        let line = format!("{index}: {}{name}: {}", entry.kind, fields(&entry.fields));
        let _ = writeln!(text, "{}", screen.cut(&line));
        for (number, vring) in entry.vrings.iter().enumerate() {
            let line = format!("   vring {number}: {}", fields(&vring.fields));
            let _ = writeln!(text, "{}", screen.cut(&line));
        }
    }
    text
}

fn fields(fields: &[Field]) -> String {
    let show = |field: &Field| match field.name.as_str() {
        // Linux's FW_RSC_ADDR_ANY.
        "da" | "pa" if field.value == 0xffff_ffff => format!("{} any", field.name),
        "da" | "pa" | "flags" | "dfeatures" | "gfeatures" | "status" | "len" => {
            format!("{} {:#x}", field.name, field.value)
        }
        _ => format!("{} {}", field.name, field.value),
    };
    let fields: Vec<_> = fields.iter().map(show).collect();
    fields.join(", ")
}
