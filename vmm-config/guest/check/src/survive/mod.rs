//! Holds all that the `chaos` firmware announces, by three of Linux's own drivers at once, has it
//! die under load, and sees what the drivers make of it: each read must end, with an error or the
//! end of the file and not with a hang, and the channels must come back by themselves.
//!
//! | channel | driver | held by |
//! |---|---|---|
//! | `rpmsg-raw` | `rpmsg_char` | [`raw`]: an open character device, with answers on their way |
//! | `rpmsg-tty` | `rpmsg_tty` | [`terminal`]: an open terminal, with a reader that blocks |
//! | `rpmsg-client-sample` | `rpmsg_client_sample` | [`sample`]: the kernel's own, greeting on and on |
//!
//! No other core may have channels in the guest meanwhile.

mod raw;
mod sample;
mod terminal;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use self::raw::Raw;
use self::sample::Sample;
use self::terminal::Terminal;

/// So long for a channel to go, or to come.
const LIMIT: Duration = Duration::from_secs(150);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);
/// The ways to die that `chaos` knows.
const DEATHS: [&str; 4] = ["illegal", "wild-store", "stack-overflow", "hang"];

/// What became of messages.
#[derive(Clone, Copy, Default)]
struct Counts {
    sent: u64,
    answered: u64,
}

/// Has the firmware die `deaths` times, one way after the other, and come back. None at all is a
/// look at whether everything works. Ends with `survived N deaths, sent S, answered A`.
pub fn survive(deaths: usize) -> Result<bool> {
    let start = Instant::now();
    let mut held = Held::take()?;
    let first = held.incarnation()?;
    for (number, death) in DEATHS.iter().cycle().take(deaths).enumerate() {
        let at = || format!("death {number} ({death})");
        held.die(death).with_context(at)?;
        held.take_again().with_context(at)?;
    }
    let died = held.incarnation()? - first;
    ensure!(
        died == deaths as u64,
        "the core has died {died} times, not {deaths}"
    );
    let mut all = Counts::default();
    for (name, counts) in held.let_go()? {
        println!("{name}: {} sent, {} answered", counts.sent, counts.answered);
        all.sent += counts.sent;
        all.answered += counts.answered;
    }
    println!("{:.1} s", start.elapsed().as_secs_f64());
    println!(
        "survived {deaths} deaths, sent {}, answered {}",
        all.sent, all.answered
    );
    Ok(true)
}

/// Has the firmware die in the way that `death` says, and nothing after it.
pub fn die(death: &str) -> Result<bool> {
    let mut held = Held::take()?;
    held.die(death)?;
    held.let_go()?;
    println!("died of {death}");
    Ok(true)
}

/// The three channels of one incarnation, and what was counted so far.
struct Held {
    raw: Raw,
    terminal: Terminal,
    sample: Sample,
    of_raw: Counts,
    of_terminal: Counts,
}

impl Held {
    /// Takes all three, and has an answer on each.
    ///
    /// The firmware's own channel first: its answer comes behind the announcements of the others,
    /// so their drivers are ready by then. Linux shows a terminal's node a little before that, and
    /// a write at that moment finds a null pointer.
    fn take() -> Result<Self> {
        let (mut of_raw, mut of_terminal) = (Counts::default(), Counts::default());
        Ok(Self {
            raw: Raw::take(&mut of_raw)?,
            terminal: Terminal::take(None, &mut of_terminal)?,
            sample: Sample::take()?,
            of_raw,
            of_terminal,
        })
    }

    /// The same for the next incarnation, in the same order. The sample's driver is still there and
    /// needs nothing.
    fn take_again(&mut self) -> Result<()> {
        self.raw = Raw::take(&mut self.of_raw)?;
        self.terminal = Terminal::take(Some(self.terminal.inode()), &mut self.of_terminal)?;
        self.sample.wait_for_an_answer()
    }

    fn incarnation(&mut self) -> Result<u64> {
        let answer = self.raw.ask("incarnation", &mut self.of_raw)?;
        let number = answer.parse();
        number.with_context(|| format!("the incarnation is {answer:?}"))
    }

    /// Loads all three, has the firmware die, and waits until each is at its end.
    fn die(&mut self, death: &str) -> Result<()> {
        self.terminal.load(&mut self.of_terminal)?;
        self.raw.load(&mut self.of_raw)?;
        self.raw.say(death, &mut self.of_raw)?;
        self.raw.hear_the_end(&mut self.of_raw)?;
        self.terminal.hear_the_end(&mut self.of_terminal)?;
        self.sample.wait_for_the_end()
    }

    /// Ends what is still under way, and says what was counted.
    fn let_go(self) -> Result<[(&'static str, Counts); 3]> {
        Ok([
            ("raw", self.of_raw),
            ("terminal", self.of_terminal),
            ("sample", self.sample.let_go()?),
        ])
    }
}

/// The node in /dev called `prefix` and a number, and its inode, if there is one. Two are an error:
/// whose would they be?
fn node(prefix: &str) -> Result<Option<(String, u64)>> {
    use std::os::unix::fs::MetadataExt;

    let mut found: Option<(String, u64)> = None;
    for entry in fs::read_dir("/dev").context("cannot read /dev")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let number = name.strip_prefix(prefix).unwrap_or_default();
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let path = format!("/dev/{name}");
        // It may have gone since.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if let Some((other, _)) = found {
            bail!("there are both {other} and {path}; only one core's channels are expected");
        }
        found = Some((path, metadata.ino()));
    }
    Ok(found)
}

/// Looks again and again until `look` finds something, [`LIMIT`] at most. `what` is missing if it
/// does not.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(
            Instant::now() < deadline,
            "no {what} for {} s",
            LIMIT.as_secs()
        );
        std::thread::sleep(PAUSE);
    }
}
