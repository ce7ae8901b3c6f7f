//! What cores are and do, as text.
//!
//! What belongs here: from answers to tables, blocks and maps. What does not: asking.

use std::fmt::Write;

use rprocd::memory::{Carveout, DeviceAddress, MemoryMap};
use rprocd::rproc::{CoreStatus, Field, Region, Resource, VdevStatus};
use rprocd::vdev::{VIRTIO_ID_RPMSG, VIRTIO_RPMSG_F_NS, feature_names};

use serde_json::{Value, json};

use crate::terminal::{Screen, Table, duration, size};

/// All cores, a line for each vdev.
pub fn list(cores: &[CoreStatus], screen: &Screen) -> String {
    let mut table = Table::new(&[
        "CORE",
        "STATE",
        "BOOT",
        "RUN",
        "PC",
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
            known(incarnation_share(core)),
            known(core.pc.map(address)),
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
    if let Some(ended) = &core.ended {
        notes.push(format!("{name}: {ended}"));
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
pub fn guest(vdev: &VdevStatus) -> &'static str {
    match (vdev.guest_attached, vdev.driver_ok) {
        (false, _) => "none",
        (true, false) => "waiting",
        (true, true) => "attached",
    }
}

fn known(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// A device address, as the core knows it.
pub fn address(da: u64) -> String {
    DeviceAddress(da).to_string()
}

/// How much of a time a core ran, in percent.
pub fn share(ran: u64, time: u64) -> String {
    // Both are read one after the other: what ran may seem longer than the time.
    let percent = (ran as f64 * 100.0 / time.max(1) as f64).min(100.0);
    if percent < 9.95 {
        format!("{percent:.1}%")
    } else {
        format!("{percent:.0}%")
    }
}

/// How much of its time the incarnation ran, unless it is dead.
fn incarnation_share(core: &CoreStatus) -> Option<String> {
    let (ran, time) = (
        core.incarnation_ran_microseconds?,
        core.uptime_microseconds?,
    );
    (core.state != "crashed").then(|| share(ran, time))
}

/// Where a core is and how much it runs; nothing without an incarnation, or of an engine that
/// cannot tell.
fn activity(core: &CoreStatus) -> Option<String> {
    let (ran, pc) = (core.incarnation_ran_microseconds?, core.pc?);
    let pc = address(pc);
    Some(match incarnation_share(core) {
        Some(share) => format!("{} of that time ({share}), pc {pc}", duration(ran)),
        None => format!("{}, until it died at pc {pc}", duration(ran)),
    })
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
    if let Some(ended) = &core.ended {
        line("ended", ended);
    }
    if let Some(activity) = activity(core) {
        line("ran", &activity);
    }
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
        let text = format!(
            "{}: {} written, {} overruns",
            trace.name,
            size(trace.bytes),
            trace.overruns
        );
        line(&format!("trace {index}"), &text);
    }
    for (index, vdev) in core.vdevs.iter().enumerate() {
        let text = format!("virtio device {}, guest {}", vdev.device_id, guest(vdev));
        line(&format!("vdev {index}"), &text);
        if let Some(socket) = &vdev.socket {
            line("  socket", socket);
        }
        line("  configuration", &format!("{} bytes", vdev.config_bytes));
        let named = |bits: u64| match &feature_names(vdev.device_id, bits)[..] {
            [] => format!("{bits:#x}"),
            names => format!("{bits:#x} ({})", names.join(", ")),
        };
        line("  firmware has", &named(vdev.features.into()));
        if let Some(offered) = vdev.offered_features {
            line("  offered", &named(offered));
        }
        let accepted = vdev.accepted_features.map(named);
        line("  accepted", accepted.as_deref().unwrap_or("no guest"));
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

/// Why no announcement of a vdev's firmware reaches a guest, if none does.
fn silence(core: &CoreStatus, vdev: &VdevStatus) -> Option<String> {
    let has = |features: u64| features & VIRTIO_RPMSG_F_NS != 0;
    if vdev.device_id != VIRTIO_ID_RPMSG {
        return Some(format!(
            "is a virtio device {}, and only rpmsg (7) has endpoints",
            vdev.device_id
        ));
    }
    if !vdev.announced.is_empty() {
        return None;
    }
    let name = &core.name;
    let firmware = &core.firmware;
    Some(
        if core.uptime_microseconds.is_none() || core.state == "crashed" {
            format!("has nothing to announce: the core is {}", core.state)
        } else if !has(vdev.features.into()) {
            format!(
                "announces nothing: {firmware} does not offer the name service (bit 0 of dfeatures in \
             its resource table)"
            )
        } else if vdev.offered_features.is_some_and(|offered| !has(offered)) {
            "announces nothing to guests: the configuration says announce = false".to_owned()
        } else {
            match vdev.accepted_features {
                None => "announces when a guest's driver is there, and there is none".to_owned(),
                Some(accepted) if !has(accepted) => format!(
                    "announces nothing to its guest: rprocd offers the name service, and the VMM or \
                 the guest's driver has not accepted it (`rprocctl info {name}` shows both); some \
                 VMMs pass only bits on that they know, so create the channels in the guest by \
                 hand, by name and address"
                ),
                Some(_) => format!(
                    "has a guest with name service, and {firmware} has announced nothing that it has \
                 not withdrawn"
                ),
            }
        },
    )
}

/// What a core's firmware has announced, and why nothing where it is so.
pub fn endpoints(core: &CoreStatus, screen: &Screen) -> String {
    if core.vdevs.is_empty() {
        return format!(
            "core {} has no endpoints: {} declares no vdev\n",
            core.name, core.firmware
        );
    }
    let mut table = Table::new(&["VDEV", "ADDRESS", "NAME"]).right(&[1]);
    let mut silences = String::new();
    for (index, vdev) in core.vdevs.iter().enumerate() {
        for endpoint in &vdev.announced {
            table.row([
                index.to_string(),
                endpoint.address.to_string(),
                endpoint.name.clone(),
            ]);
        }
        if let Some(silence) = silence(core, vdev) {
            let _ = writeln!(silences, "{}/vdev{index} {silence}", core.name);
        }
    }
    if table.len() == 0 {
        return silences;
    }
    table.text(screen) + &silences
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
