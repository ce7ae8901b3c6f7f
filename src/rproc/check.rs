//! What a boot would do with an image, for a person: judged as a boot judges it, and nothing
//! started.
//!
//! What belongs here: putting image, plan and refusal into words. What does not: any judgement of
//! its own; that an image passes here and not at boot, or the reverse, is a defect.

use std::fmt;
use std::sync::Arc;

use super::boot::{BootError, BootPlan, Draft, IMAGE_CARVEOUT};
use super::grants::{DevmemGrant, Grants};
use crate::engine::rv32::{Rv32, board};
use crate::engine::{Engine, EngineError, ImageRules, NotifyId, Run, RunEnd};
use crate::firmware::{Image, Snapshot};
use crate::memory::{CarveoutError, CarveoutMap, DeviceAddress, MemoryError, MemoryMap, Ram, wrap};
use crate::report::sentence;

/// Columns of the report.
const COLUMNS: usize = 80;

/// Which core an image is judged for.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// Which images it takes.
    pub rules: ImageRules,
    /// Where its memory begins.
    pub base: DeviceAddress,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// What its firmware is granted; `None`: every device that it asks for, with a notice.
    pub grants: Option<Grants>,
}

impl Default for CheckOptions {
    /// A core of engine rv32 with 4 MiB.
    fn default() -> Self {
        Self {
            rules: ImageRules::RV32,
            base: DeviceAddress(u64::from(board::ram::BASE)),
            memory_bytes: 4 << 20,
            grants: None,
        }
    }
}

/// What became of an image. [`fmt::Display`] is the whole report, in lines of at most 80 columns.
#[derive(Debug)]
pub struct Check {
    file: String,
    name: String,
    outcome: Result<String, String>,
    facts: Vec<String>,
    notices: Vec<String>,
    memory: Option<(String, MemoryMap)>,
}

impl Check {
    /// Why it is refused, if it is: one sentence.
    pub fn refusal(&self) -> Option<&str> {
        self.outcome.as_ref().err().map(String::as_str)
    }

    /// What is odd and no reason to refuse, a sentence each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// One line: `ok` or `refused`, the name, and how much or why.
    pub fn summary(&self) -> String {
        let (word, text) = match &self.outcome {
            Ok(text) => ("ok", text),
            Err(text) => ("refused", text),
        };
        let line = format!("{word:7}  {}: {text}", self.name);
        if line.chars().count() <= COLUMNS {
            return line;
        }
        let kept: String = line.chars().take(COLUMNS - 3).collect();
        kept + "..."
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match &self.outcome {
            Ok(text) => format!("{} is accepted: {text}", self.name),
            Err(text) => format!("{} is refused: {text}", self.name),
        };
        f.write_str(&wrap(&verdict, COLUMNS))?;
        f.write_str("\n\n")?;
        f.write_str(&wrap(&self.file, COLUMNS))?;
        for fact in &self.facts {
            hanging(f, fact)?;
        }
        for notice in &self.notices {
            hanging(f, &format!("notice: {notice}"))?;
        }
        if let Some((title, map)) = &self.memory {
            write!(f, "\n\n{title}\n{map}")?;
        }
        Ok(())
    }
}

/// A line of its own, that goes on two columns in.
fn hanging(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let mut lead = "";
    for line in wrap(text, COLUMNS - 2).lines() {
        write!(f, "\n{lead}{line}")?;
        lead = "  ";
    }
    Ok(())
}

/// Judges a firmware as a core with these options would when it is told to boot it.
///
/// # Errors
/// [`MemoryError`] if there can be no such memory; that says nothing about the firmware.
pub fn check(snapshot: &Snapshot, options: &CheckOptions) -> Result<Check, MemoryError> {
    let ram = Ram::new("rprocd-check", options.base, options.memory_bytes)?;
    let mut engine = engine_for(options, ram.clone());
    let mut report = Check {
        file: snapshot.to_string(),
        name: snapshot.name().to_owned(),
        outcome: Ok(String::new()),
        facts: Vec::new(),
        notices: Vec::new(),
        memory: None,
    };
    let image = match Image::parse(snapshot.bytes(), &engine.image_rules()) {
        Ok(image) => image,
        Err(cause) => {
            report.outcome = Err(sentence(&cause));
            return Ok(report);
        }
    };
    report.facts = image.to_string().lines().map(str::to_owned).collect();
    let grants = match &options.grants {
        Some(grants) => grants.clone(),
        None => all_devices(&image, &mut report.notices),
    };
    let mut draft = Draft::new(&image, ram.clone(), &grants);
    let planned = engine
        .sanity_check(&image, snapshot.bytes())
        .map_err(BootError::Sanity)
        .and_then(|()| draft.finish(snapshot.bytes(), &mut *engine));
    report.notices.extend(match &planned {
        Ok(plan) => plan.notices.clone(),
        Err(_) => image.notices.clone(),
    });
    let mut map = MemoryMap::new(ram.base(), ram.end());
    draw_image(&mut map, &image, &draft.map, planned.as_ref().err());
    match planned {
        Ok(plan) => {
            draw_plan(&mut map, &plan);
            report.facts.extend(describe(&image, &plan));
            report.outcome = Ok(format!(
                "{}, {}, {}, {}",
                count(image.segments.len(), "segment"),
                count(plan.carveouts.iter().count(), "carveout"),
                count(plan.vdevs.len(), "vdev"),
                count(plan.traces.len(), "trace buffer")
            ));
        }
        Err(cause) => report.outcome = Err(sentence(&cause)),
    }
    let title = format!(
        "memory: {} KiB from {} to {}",
        ram.len() >> 10,
        ram.base(),
        ram.end()
    );
    report.memory = Some((title, map));
    Ok(report)
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn all_devices(image: &Image, notices: &mut Vec<String>) -> Grants {
    let mut grants = Grants::default();
    let devmems = image
        .table
        .iter()
        .flat_map(|section| section.table.devmems());
    for devmem in devmems {
        notices.push(format!(
            "{} needs a [[core.devmem]] section with pa = {:#x} and length = {:#x}",
            devmem.id(),
            devmem.pa,
            devmem.len
        ));
        grants.devmem.push(DevmemGrant {
            pa: devmem.pa,
            length: devmem.len,
            name: String::new(),
        });
    }
    grants
}

/// What the plan adds to what the image says.
fn describe(image: &Image, plan: &BootPlan) -> Vec<String> {
    let mut facts = Vec::new();
    let of_table = |name: &str| {
        let mut sections = image.table.iter();
        sections.any(|section| section.table.carveouts().any(|entry| entry.name.is(name)))
    };
    for carveout in plan.carveouts.iter() {
        let made = if carveout.name == IMAGE_CARVEOUT && !of_table(IMAGE_CARVEOUT) {
            ", made for the segments"
        } else {
            ""
        };
        facts.push(format!("carveout {carveout}, {} bytes{made}", carveout.len));
    }
    for vdev in &plan.vdevs {
        for (index, (da, len, NotifyId(id))) in vdev.vrings().enumerate() {
            let number = vdev.entry().number;
            facts.push(format!(
                "vdev {number}, vring {index}: da {da}, {len} bytes, notify id {id}"
            ));
        }
    }
    if image.table.is_some() {
        let seen = if plan.table.is_seen() {
            "sees"
        } else {
            "does not see"
        };
        facts.push(format!("the core {seen} the live resource table"));
    }
    facts
}

fn draw_image(
    map: &mut MemoryMap,
    image: &Image,
    carveouts: &CarveoutMap,
    refusal: Option<&BootError>,
) {
    for carveout in carveouts.iter() {
        map.carveout(carveout);
    }
    let offender = refusal.and_then(|refusal| offender(refusal, image));
    for segment in &image.segments {
        let what = format!("segment {}", segment.index);
        if offender
            .as_ref()
            .is_none_or(|offender| offender.what != what)
        {
            map.inside(segment.da, segment.memsz, what);
        }
    }
    if let Some(offender) = offender {
        map.offender(offender.da, offender.len, offender.what, offender.why);
    }
}

fn draw_plan(map: &mut MemoryMap, plan: &BootPlan) {
    for vdev in &plan.vdevs {
        let number = vdev.entry().number;
        for (index, (da, len, NotifyId(id))) in vdev.vrings().enumerate() {
            let what = format!("vdev {number}, vring {index} (notify id {id})");
            map.inside(da, len, what);
        }
    }
    for trace in &plan.traces {
        map.inside(
            trace.da,
            trace.len,
            format!("trace buffer \"{}\"", trace.name),
        );
    }
    if let Some((da, len)) = plan.table.place() {
        map.inside(da, len, "resource table");
    }
}

/// What cannot stay where it is.
struct Offender {
    da: DeviceAddress,
    len: u64,
    what: String,
    why: String,
}

fn offender(refusal: &BootError, image: &Image) -> Option<Offender> {
    match refusal {
        BootError::Place { entry, source } => of_carveout(source, &entry.to_string()),
        BootError::PlaceImage(source) => of_carveout(source, "the image"),
        BootError::NotInCarveout {
            what,
            source: CarveoutError::NotCarvedOut { da, len, .. },
        } => Some(Offender {
            da: *da,
            len: *len,
            what: what.clone(),
            why: format!("{what} lies outside every carveout"),
        }),
        BootError::OutsideMemory {
            what,
            source: MemoryError::Outside { da, len, .. },
        } => Some(Offender {
            da: *da,
            len: *len,
            what: what.clone(),
            why: format!("{what} lies outside the core's memory"),
        }),
        BootError::Boot(_) => Some(Offender {
            da: image.boot,
            len: 1,
            what: "boot address".to_owned(),
            why: "the core cannot begin here".to_owned(),
        }),
        _ => None,
    }
}

fn of_carveout(refusal: &CarveoutError, what: &str) -> Option<Offender> {
    let (da, len, why) = match refusal {
        CarveoutError::Outside {
            source: MemoryError::Outside { da, len, .. },
            ..
        } => (*da, *len, "it lies outside the core's memory".to_owned()),
        CarveoutError::Overlap { wanted, other } => (
            wanted.da,
            wanted.len,
            format!("it overlaps carveout {other}"),
        ),
        CarveoutError::TooSmall {
            carveout,
            have,
            need,
            ..
        } => (
            carveout.da,
            carveout.len,
            format!("it has {have} bytes, {need} are needed"),
        ),
        _ => return None,
    };
    Some(Offender {
        da,
        len,
        what: what.to_owned(),
        why,
    })
}

/// The engine itself where there is one for such a core, since it has a say; else one on paper.
fn engine_for(options: &CheckOptions, ram: Arc<Ram>) -> Box<dyn Engine> {
    if options.rules == ImageRules::RV32
        && let Ok(engine) = Rv32::new(ram.clone())
    {
        return Box::new(engine);
    }
    Box::new(Paper {
        ram,
        rules: options.rules,
    })
}

/// An engine that has memory and rules, takes everything and runs nothing.
struct Paper {
    ram: Arc<Ram>,
    rules: ImageRules,
}

impl Engine for Paper {
    fn kind(&self) -> &'static str {
        "none"
    }

    fn image_rules(&self) -> ImageRules {
        self.rules
    }

    fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    fn map_devmem(&mut self, _: DeviceAddress, _: u64, _: u64) -> Result<(), EngineError> {
        Ok(())
    }

    fn start(&mut self, _: DeviceAddress, _: u32) -> Result<(), EngineError> {
        Err(EngineError("engine none starts nothing".to_owned()))
    }

    fn stop(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn kick(&mut self, _: NotifyId) {}

    fn run(&mut self, _: u64) -> Run {
        Run::quiet(RunEnd::Waiting { until: None })
    }
}
