//! What a RISC-V image says of the core that it was built for, held against the core that is there.
//!
//! What belongs here: `e_flags`, the section `.riscv.attributes` and the `-march` string in it. What
//! does not: which core there is ([`RiscvRules`]), and where the section is.
//!
//! Format: "RISC-V ELF psABI Specification", chapters on `e_flags` and on attributes; the string is
//! that of the "ISA Extension Naming Conventions" of "The RISC-V Instruction Set Manual, Volume I".
//!
//! An image is refused for what it says that it needs and the core is known not to have: the first
//! instruction that the core lacks would be the end of it. Nothing that cannot be read, and no
//! extension that is not known here, is a reason: firmware may look what there is before it uses it.

use crate::engine::RiscvRules;

/// `EM_RISCV`.
pub(super) const EM_RISCV: u16 = 243;
/// `SHT_RISCV_ATTRIBUTES`, which is also `PT_RISCV_ATTRIBUTES`.
pub(super) const RISCV_ATTRIBUTES: u32 = 0x7000_0003;

/// `EF_RISCV_RVC`.
const RVC: u32 = 0x1;
/// `EF_RISCV_FLOAT_ABI`.
const FLOAT_ABI: u32 = 0x6;
/// `EF_RISCV_RVE`.
const RVE: u32 = 0x8;
/// `EF_RISCV_TSO`.
const TSO: u32 = 0x10;

/// Bytes of an `-march` string that are looked at; the longest that make sense have some hundreds.
const MAX_ARCH_BYTES: usize = 4096;

/// What the attributes of a section are about: the file.
const TAG_FILE: u64 = 1;
/// `Tag_RISCV_arch`.
const TAG_ARCH: u64 = 5;

/// Extensions of more than one letter that add instructions or registers, or promise what code
/// built for them relies on.
const LONG: [&str; 60] = [
    "zaamo", "zabha", "zacas", "zalasr", "zalrsc", "zawrs", "zba", "zbb", "zbc", "zbkb", "zbkc",
    "zbkx", "zbs", "zca", "zcb", "zcd", "zce", "zcf", "zclsd", "zcmop", "zcmp", "zcmt", "zdinx",
    "zfa", "zfbfmin", "zfh", "zfhmin", "zfinx", "zhinx", "zhinxmin", "zicbom", "zicboz", "zicfilp",
    "zicfiss", "zicntr", "zicond", "zicsr", "zifencei", "zilsd", "zimop", "zk", "zkn", "zknd",
    "zkne", "zknh", "zkr", "zks", "zksed", "zksh", "zmmul", "ztso", "zvbb", "zvbc", "zve32f",
    "zve32x", "zve64d", "zve64f", "zve64x", "zvfh", "zvfhmin",
];
/// The same of one letter.
const SHORT: [&str; 10] = ["a", "b", "c", "d", "f", "h", "m", "p", "q", "v"];

/// What an image needs and the core has not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Lack {
    /// A flag of `e_flags`: what it says, in words.
    Flag(&'static str),
    /// Extensions of the `-march` string.
    Extensions { arch: String, missing: Vec<String> },
}

/// What a set of `e_flags` needs.
pub(super) fn of_flags(flags: u32, rules: &RiscvRules) -> Option<Lack> {
    let float = match flags & FLOAT_ABI {
        0x2 => Some((
            "f",
            "floating-point numbers in registers of 32 bits (-mabi=..f)",
        )),
        0x4 => Some((
            "d",
            "floating-point numbers in registers of 64 bits (-mabi=..d)",
        )),
        0x6 => Some((
            "q",
            "floating-point numbers in registers of 128 bits (-mabi=..q)",
        )),
        _ => None,
    };
    let needs = [
        float,
        (flags & RVC != 0).then_some(("c", "compressed instructions")),
        (flags & RVE != 0).then_some(("e", "the base of 16 registers")),
        (flags & TSO != 0).then_some(("ztso", "total store ordering (Ztso)")),
    ];
    let mut needs = needs.into_iter().flatten();
    needs
        .find(|(extension, _)| !rules.has(extension))
        .map(|(_, words)| Lack::Flag(words))
}

/// What the section `.riscv.attributes` needs.
///
/// # Errors
/// Why it says nothing, in words. That is no reason to refuse an image.
pub(super) fn of_attributes(section: &[u8], rules: &RiscvRules) -> Result<Option<Lack>, String> {
    let Some(arch) = arch(section).ok_or("it is cut short or of another format")? else {
        return Ok(None);
    };
    let shown = shown(arch);
    if arch.len() > MAX_ARCH_BYTES {
        return Err(format!(
            "its Tag_RISCV_arch has {} bytes, and at most {MAX_ARCH_BYTES} are looked at",
            arch.len()
        ));
    }
    let Some(extensions) = extensions(arch) else {
        return Err(format!(
            "its Tag_RISCV_arch, \"{shown}\", is no -march string"
        ));
    };
    let mut missing: Vec<String> = Vec::new();
    for extension in extensions {
        let known = SHORT.contains(&&*extension) || LONG.contains(&&*extension);
        if known && !rules.has(&extension) && !missing.contains(&extension) {
            missing.push(extension);
        }
    }
    Ok((!missing.is_empty()).then_some(Lack::Extensions {
        arch: shown,
        missing,
    }))
}

/// A text of the image's, for a message.
fn shown(text: &[u8]) -> String {
    const MOST: usize = 160;
    match text.get(..MOST) {
        Some(start) if text.len() > MOST => format!("{}...", start.escape_ascii()),
        _ => text.escape_ascii().to_string(),
    }
}

/// Takes the first byte.
fn byte(from: &mut &[u8]) -> Option<u8> {
    let (first, rest) = from.split_first()?;
    *from = rest;
    Some(*first)
}

/// Takes a number in ULEB128, of at most 64 bits.
fn uleb128(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = byte(from)?;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Takes a text that ends with a NUL, without it.
fn text<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = from.iter().position(|byte| *byte == 0)?;
    let (text, rest) = (&from[..end], &from[end + 1..]);
    *from = rest;
    Some(text)
}

/// Takes what is left of a span whose length is told in its own first bytes, of which `taken` have
/// been taken.
fn span<'a>(from: &mut &'a [u8], length: u32, taken: usize) -> Option<&'a [u8]> {
    let left = usize::try_from(length).ok()?.checked_sub(taken)?;
    let (span, rest) = from.split_at_checked(left)?;
    *from = rest;
    Some(span)
}

/// Takes a word, little-endian.
fn word(from: &mut &[u8]) -> Option<u32> {
    let (word, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(u32::from_le_bytes(*word))
}

/// The value of `Tag_RISCV_arch`; `Some(None)` if it is not there, `None` if the section cannot be
/// read so far.
fn arch(section: &[u8]) -> Option<Option<&[u8]>> {
    let mut rest = section;
    if byte(&mut rest)? != b'A' {
        return None;
    }
    while !rest.is_empty() {
        let length = word(&mut rest)?;
        let mut vendor = span(&mut rest, length, 4)?;
        if text(&mut vendor)? != b"riscv" {
            continue;
        }
        while !vendor.is_empty() {
            let before = vendor.len();
            let about = uleb128(&mut vendor)?;
            let length = word(&mut vendor)?;
            let taken = before - vendor.len();
            let mut attributes = span(&mut vendor, length, taken)?;
            if about != TAG_FILE {
                continue;
            }
            while !attributes.is_empty() {
                // Those with odd numbers are texts.
                let tag = uleb128(&mut attributes)?;
                if tag % 2 == 0 {
                    uleb128(&mut attributes)?;
                    continue;
                }
                let value = text(&mut attributes)?;
                if tag == TAG_ARCH {
                    return Some(Some(value));
                }
            }
        }
    }
    Some(None)
}

/// The names in an `-march` string, in lower case and without their versions, the base first.
fn extensions(arch: &[u8]) -> Option<Vec<String>> {
    let arch = std::str::from_utf8(arch).ok()?.to_ascii_lowercase();
    let mut rest = arch.strip_prefix("rv")?;
    rest = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
    if !rest.starts_with(['i', 'e', 'g']) {
        return None;
    }
    let mut names = Vec::new();
    while let Some(first) = rest.chars().next() {
        match first {
            '_' => rest = &rest[1..],
            's' | 'x' | 'z' => {
                let end = rest.find('_').unwrap_or(rest.len());
                names.push(without_version(&rest[..end]).to_owned());
                rest = &rest[end..];
            }
            'g' => {
                names.extend(["i", "m", "a", "f", "d", "zicsr", "zifencei"].map(str::to_owned));
                rest = after_version(&rest[1..]);
            }
            'a'..='y' => {
                names.push(first.to_string());
                rest = after_version(&rest[1..]);
            }
            _ => return None,
        }
    }
    Some(names)
}

/// What follows a version (`2`, `2p1`, or none) at the start of a text.
fn after_version(text: &str) -> &str {
    let digit = |byte: char| byte.is_ascii_digit();
    let minor = text.trim_start_matches(digit);
    if minor.len() == text.len() {
        return text;
    }
    match minor.strip_prefix('p') {
        Some(number) if number.starts_with(digit) => number.trim_start_matches(digit),
        _ => minor,
    }
}

/// A name without the version at its end.
fn without_version(name: &str) -> &str {
    let digit = |byte: char| byte.is_ascii_digit();
    let major = name.trim_end_matches(digit);
    match major.strip_suffix('p') {
        Some(number) if number.ends_with(digit) => number.trim_end_matches(digit),
        _ => major,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ImageRules;
    use proptest::prelude::*;

    fn rules() -> RiscvRules {
        ImageRules::RV32.riscv.unwrap()
    }

    /// The section that says so.
    fn section(arch: &str) -> Vec<u8> {
        let mut attributes = b"\x04\x10\x05".to_vec();
        attributes.extend(arch.bytes().chain([0]));
        let mut file = vec![1];
        file.extend((attributes.len() as u32 + 5).to_le_bytes());
        file.extend(attributes);
        let mut bytes = b"A".to_vec();
        bytes.extend((file.len() as u32 + 10).to_le_bytes());
        bytes.extend(b"riscv\0");
        bytes.extend(file);
        bytes
    }

    fn missing(arch: &str) -> Vec<String> {
        match of_attributes(&section(arch), &rules()).unwrap() {
            None => Vec::new(),
            Some(Lack::Extensions { missing, .. }) => missing,
            Some(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_core_has_is_taken_however_it_is_written() {
        for arch in [
            "rv32i2p1_m2p0_a2p1_c2p0_zicsr2p0_zifencei2p0_zmmul1p0_zaamo1p0_zalrsc1p0_zca1p0",
            "rv32imac",
            "rv32i2p0_m2p0_a2p0_c2p0",
            "RV32IMAC_Zicsr_Zifencei",
            "rv32i2m2a2",
            "rv32e1p9_m2p0",
            "rv32i2p1_zicntr2p0_zihintpause2p0_zic64b1p0_zicbop1p0_za64rs1p0",
            "rv32imac_sstc_smepmp1p0_svinval",
            "rv32imac_xtheadba1p0",
        ] {
            assert_eq!(missing(arch), [""; 0], "{arch}");
        }
    }

    #[test]
    fn what_the_core_has_not_is_named_once() {
        for (arch, lacks) in [
            ("rv32imafdc", &["f", "d"][..]),
            ("rv32gc", &["f", "d"]),
            (
                "rv32i2p1_m2p0_a2p1_f2p2_d2p2_c2p0_zicsr2p0_zmmul1p0_zcd1p0_zcf1p0",
                &["f", "d", "zcd", "zcf"],
            ),
            ("rv32imac_zba1p0_zbb1p0_zbs", &["zba", "zbb", "zbs"]),
            ("rv32imacv_zve32x1p0_zvl128b1p0_zve32x", &["v", "zve32x"]),
            ("rv32imac_ztso", &["ztso"]),
        ] {
            assert_eq!(missing(arch), lacks, "{arch}");
        }
    }

    #[test]
    fn an_engine_that_has_more_takes_more() {
        let rules = RiscvRules {
            extensions: &[
                "i", "m", "a", "f", "d", "c", "zicsr", "zifencei", "zcf", "zcd",
            ],
            ..rules()
        };
        assert_eq!(of_attributes(&section("rv32gc_zcf_zcd"), &rules), Ok(None));
        assert_eq!(of_flags(FLOAT_ABI & 4 | RVC, &rules), None);
        assert!(of_flags(FLOAT_ABI, &rules).is_some());
    }

    #[test]
    fn flags_are_held_against_the_core() {
        assert_eq!(of_flags(0, &rules()), None);
        assert_eq!(of_flags(RVC | RVE, &rules()), None);
        for (flags, word) in [
            (2, "32 bits"),
            (5, "64 bits"),
            (6, "128 bits"),
            (TSO, "Ztso"),
        ] {
            let Some(Lack::Flag(words)) = of_flags(flags, &rules()) else {
                panic!("{flags:#x} is taken");
            };
            assert!(words.contains(word), "{words}");
        }
    }

    #[test]
    fn what_says_nothing_or_cannot_be_read_is_no_lack() {
        // Of another vendor, of another part than the file, without the tag.
        let mut other = section("rv32gc");
        other[5] = b'X';
        assert_eq!(of_attributes(&other, &rules()), Ok(None));
        let mut part = section("rv32gc");
        part[11] = 2;
        assert_eq!(of_attributes(&part, &rules()), Ok(None));
        let mut tag = section("rv32gc");
        tag[18] = 7;
        assert_eq!(of_attributes(&tag, &rules()), Ok(None));
        assert_eq!(of_attributes(b"A", &rules()), Ok(None));
        for bytes in [
            &b""[..],
            b"B",
            b"A\xff\xff\xff\xff",
            b"A\x03\0\0\0",
            b"A\x05\0\0\0x",
        ] {
            assert!(of_attributes(bytes, &rules()).is_err(), "{bytes:?}");
        }
        for arch in ["", "armv7", "rv32", "rv32m", "rv32i?", "rv32i\u{e9}"] {
            assert!(of_attributes(&section(arch), &rules()).is_err(), "{arch}");
        }
        let whole = section("rv32gc");
        for len in 1..whole.len() - 1 {
            assert!(
                of_attributes(&whole[..len], &rules()) != Ok(None) || len == 1,
                "{len}"
            );
        }
    }

    #[test]
    fn a_long_string_is_shown_cut() {
        let arch = "rv32i".to_owned() + &"_f".repeat(2000);
        let lack = of_attributes(&section(&arch), &rules()).unwrap();
        let Some(Lack::Extensions { arch, missing }) = lack else {
            panic!("{lack:?}");
        };
        assert_eq!(missing, ["f"]);
        assert!(arch.len() < 200 && arch.ends_with("..."), "{arch}");
        let longer = "rv32i".to_owned() + &"_f".repeat(20_000);
        let error = of_attributes(&section(&longer), &rules()).unwrap_err();
        assert!(error.contains("has 40005 bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = of_attributes(&bytes, &rules());
            let mut whole = section("rv32imafdc_zba1p0");
            for (at, byte) in bytes.iter().enumerate() {
                let place = (at * 7) % whole.len();
                whole[place] ^= byte;
                let _ = of_attributes(&whole, &rules());
            }
        }

        #[test]
        fn no_string_makes_it_panic(arch in "rv32[iegxz][a-z0-9_p]{0,60}") {
            // Some of them are no -march strings.
            let _ = of_attributes(&section(&arch), &rules());
        }
    }
}
