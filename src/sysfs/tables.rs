//! A resource table and carveouts as text, laid out as Linux's debugfs does.
//!
//! What belongs here: values become lines. What does not: where the values come from.

use std::fmt::{self, Write as _};

use crate::rproc::{Field, Region, Resource};

/// A 32-bit word as C's `%d` prints it.
fn signed(value: u64) -> i32 {
    // What a word of the table has is all that there is.
    (value as u32).cast_signed()
}

fn field(fields: &[Field], name: &str) -> u64 {
    let found = fields.iter().find(|it| it.name == name);
    found.map_or(0, |it| it.value)
}

/// `resource_table`.
pub fn resource_table(entries: &[Resource]) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = entries
        .iter()
        .enumerate()
        .try_for_each(|(index, entry)| one(&mut text, index, entry));
    text
}

fn one(text: &mut String, index: usize, entry: &Resource) -> fmt::Result {
    let Resource {
        kind,
        name,
        fields,
        vrings,
    } = entry;
    let get = |name| field(fields, name);
    let reserved = signed(get("reserved"));
    match kind.as_str() {
        "carveout" | "devmem" | "trace" | "vdev" => {
            writeln!(text, "Entry {index} is of type {kind}")?;
        }
        _ => {
            let kind = signed(get("type"));
            // There is no address to tell.
            return writeln!(
                text,
                "Unknown resource type found: {kind} [hdr: {:016x}]",
                0
            );
        }
    }
    if kind == "vdev" {
        writeln!(text, "  ID {}", signed(get("id")))?;
        writeln!(text, "  Notify ID {}", signed(get("notifyid")))?;
        writeln!(text, "  Device features 0x{:x}", get("dfeatures"))?;
        writeln!(text, "  Guest features 0x{:x}", get("gfeatures"))?;
        writeln!(text, "  Config length 0x{:x}", get("config_len"))?;
        writeln!(text, "  Status 0x{:x}", get("status"))?;
        writeln!(text, "  Number of vrings {}", get("num_of_vrings"))?;
        // Checked to be zero before a firmware is taken.
        writeln!(text, "  Reserved (should be zero) [0][0]\n")?;
        for (index, vring) in vrings.iter().enumerate() {
            let get = |name| field(&vring.fields, name);
            writeln!(text, "  Vring {index}")?;
            writeln!(text, "    Device Address 0x{:x}", get("da"))?;
            writeln!(text, "    Alignment {}", signed(get("align")))?;
            writeln!(text, "    Number of buffers {}", signed(get("num")))?;
            writeln!(text, "    Notify ID {}", signed(get("notifyid")))?;
            writeln!(text, "    Physical Address 0x{:x}\n", get("pa"))?;
        }
        return Ok(());
    }
    let is_trace = kind == "trace";
    writeln!(text, "  Device Address 0x{:x}", get("da"))?;
    if !is_trace {
        writeln!(text, "  Physical Address 0x{:x}", get("pa"))?;
    }
    writeln!(text, "  Length 0x{:x} Bytes", get("len"))?;
    if !is_trace {
        writeln!(text, "  Flags 0x{:x}", get("flags"))?;
    }
    writeln!(text, "  Reserved (should be zero) [{reserved}]")?;
    writeln!(text, "  Name {name}\n")
}

/// `carveout_memories`. The address in the daemon is nobody's business, and shown as nothing; to the
/// host's devices the memory has no address, so that is the core's.
pub fn carveouts(regions: &[Region]) -> String {
    let mut text = String::new();
    for region in regions.iter().filter(|it| it.kind == "carveout") {
        let Region {
            name, da, bytes, ..
        } = region;
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "Carveout memory entry:\n\tName: {name}\n\tVirtual address: {:016x}\n\
             \tDMA address: 0x{da:016x}\n\tDevice address: 0x{da:x}\n\tLength: 0x{bytes:x} \
             Bytes\n\n",
            0,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rproc::ResourceVring;

    fn fields(values: &[(&str, u64)]) -> Vec<Field> {
        let values = values.iter();
        values
            .map(|(name, value)| Field {
                name: (*name).to_owned(),
                value: *value,
            })
            .collect()
    }

    fn entry(kind: &str, name: &str, values: &[(&str, u64)]) -> Resource {
        Resource {
            kind: kind.to_owned(),
            name: name.to_owned(),
            fields: fields(values),
            vrings: Vec::new(),
        }
    }

    #[test]
    fn every_kind_of_entry_has_linux_s_lines() {
        let mut vdev = entry(
            "vdev",
            "",
            &[
                ("id", 7),
                ("notifyid", 0xffff_ffff),
                ("dfeatures", 1),
                ("gfeatures", 0x3000_0000),
                ("status", 7),
                ("num_of_vrings", 1),
            ],
        );
        vdev.vrings = vec![ResourceVring {
            fields: fields(&[
                ("da", 0x8000_1000),
                ("align", 16),
                ("num", 256),
                ("notifyid", 1),
            ]),
        }];
        let values = &[("da", 0xffff_ffff), ("pa", 0x10), ("len", 0x2000)];
        let text = resource_table(&[
            entry("carveout", "heap", values),
            entry("trace", "log", values),
            vdev,
            entry("vendor", "", &[("type", 128)]),
        ]);
        let expected = "Entry 0 is of type carveout
  Device Address 0xffffffff
  Physical Address 0x10
  Length 0x2000 Bytes
  Flags 0x0
  Reserved (should be zero) [0]
  Name heap

Entry 1 is of type trace
  Device Address 0xffffffff
  Length 0x2000 Bytes
  Reserved (should be zero) [0]
  Name log

Entry 2 is of type vdev
  ID 7
  Notify ID -1
  Device features 0x1
  Guest features 0x30000000
  Config length 0x0
  Status 0x7
  Number of vrings 1
  Reserved (should be zero) [0][0]

  Vring 0
    Device Address 0x80001000
    Alignment 16
    Number of buffers 256
    Notify ID 1
    Physical Address 0x0

Unknown resource type found: 128 [hdr: 0000000000000000]
";
        assert_eq!(text, expected);
    }

    #[test]
    fn only_carveouts_are_carveouts() {
        let region = |kind: &str| Region {
            kind: kind.to_owned(),
            name: "vdev0vring0".to_owned(),
            da: 0x8010_0000,
            bytes: 0x3000,
        };
        let text = carveouts(&[region("ram"), region("carveout"), region("trace")]);
        let expected = "Carveout memory entry:\n\tName: vdev0vring0\n\
            \tVirtual address: 0000000000000000\n\tDMA address: 0x0000000080100000\n\
            \tDevice address: 0x80100000\n\tLength: 0x3000 Bytes\n\n";
        assert_eq!(text, expected);
        assert_eq!(carveouts(&[]), "");
    }
}
