//! How many instructions the relay takes for a message, by callgrind: they do not depend on what
//! else the machine does, so a test may have a limit for them.
//!
//! What is counted: the two relay calls of `benches/relay.rs`, with all that is compiled into the
//! benchmark and called from there. What is not: libc, whose copies are other ones under valgrind
//! than on the processor itself.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cargo;
use crate::tools::{self, Gap, Need, Tool, tool};

/// Instructions that a message of 512 bytes may take there and back, 32 at a time: a tenth more than
/// the 586 that were measured, for compilers differ. Who makes the relay cheaper makes this lower.
const BUDGET: f64 = 644.0;

/// What is counted; each function toggles counting when it is entered and left.
const RELAY: &str = "rprocd::vdev::device::Vdev::relay_to_*";
/// Two runs of so many rounds: the difference has nothing of a start in it.
const ROUNDS: [u32; 2] = [1000, 3000];
/// Messages of a round.
const BURST: u32 = 32;

/// What counts. Where it cannot be had there is a gap.
const VALGRIND: Tool = tool("valgrind", "valgrind");

/// What counting needs.
pub fn needs() -> Vec<Need> {
    vec![Need::Wish(VALGRIND)]
}

/// Counts them and compares.
pub fn test() -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!(Gap("the limit is one for x86-64".to_owned()));
    }
    if let Err(error) = tools::need(&[VALGRIND]) {
        bail!(Gap(format!("{error:#}")));
    }
    let program = build()?;
    let [short, long] = ROUNDS;
    let instructions = count(&program, long)?
        .checked_sub(count(&program, short)?)
        .context("the longer run has fewer instructions")?;
    let each = instructions as f64 / f64::from((long - short) * BURST);
    println!("test: the relay takes {each:.1} instructions a message there and back");
    ensure!(
        each <= BUDGET,
        "the relay takes {each:.1} instructions a message, {BUDGET} are allowed \
         (xtask/src/instructions.rs)"
    );
    Ok(())
}

/// The benchmark, as it is measured.
fn build() -> Result<PathBuf> {
    let mut command = cargo::cargo();
    command
        .args(["bench", "--bench", "relay", "--no-run"])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit());
    let output = command.output().context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "`{}` failed",
        cargo::words(&command)
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "relay")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo names no program for `--bench relay`")
}

/// Instructions of the relay in a run of so many rounds.
fn count(program: &Path, rounds: u32) -> Result<u64> {
    let profile = cargo::target_directory()?.join(format!("relay-{rounds}.callgrind"));
    let mut command = Command::new("valgrind");
    command
        .args([
            "--tool=callgrind",
            "--compress-strings=no",
            "--compress-pos=no",
        ])
        .arg(format!("--toggle-collect={RELAY}"))
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(program)
        .args(["--rounds", &rounds.to_string()]);
    let output = command.output().context("cannot run valgrind")?;
    ensure!(
        output.status.success(),
        "`{}` failed:\n{}",
        cargo::words(&command),
        String::from_utf8_lossy(&output.stderr)
    );
    let text = std::fs::read_to_string(&profile)
        .with_context(|| format!("valgrind has written no {}", profile.display()))?;
    let counted = of_program(&text, program);
    ensure!(
        counted != 0,
        "no instruction is counted in {RELAY}: is it called otherwise by now, or inlined?"
    );
    Ok(counted)
}

/// Of a profile in callgrind's format: the instructions of functions that are in `program` itself.
fn of_program(profile: &str, program: &Path) -> u64 {
    let (mut ours, mut of_callee, mut sum) = (false, false, 0);
    for line in profile.lines() {
        if let Some(object) = line.strip_prefix("ob=") {
            ours = Path::new(object) == program;
        } else if line.starts_with("calls=") {
            // The next line is what the callee took, which has lines of its own.
            of_callee = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit())
            && !std::mem::take(&mut of_callee)
            && ours
        {
            let cost = line.split(' ').nth(1).and_then(|cost| cost.parse().ok());
            sum += cost.unwrap_or(0);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_other_objects_and_what_callees_take_is_not_counted_twice() {
        let profile = "positions: line\nevents: Ir\nsummary: 1000\n\n\
            ob=/lib/libc.so.6\nfl=memcpy.S\nfn=memcpy\n7 500\n\n\
            ob=/target/relay\nfl=a.rs\nfn=relay_to_core\n10 30\n12 4\n\
            cob=/lib/libc.so.6\ncfi=memcpy.S\ncfn=memcpy\ncalls=5 7\n13 500\n\
            fi=b.rs\n2 1\n\nfn=relay_to_guest\n3 60\n\ntotals: 1000\n";
        assert_eq!(of_program(profile, Path::new("/target/relay")), 95);
    }
}
