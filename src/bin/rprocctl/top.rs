//! The live view: what all cores do, again and again.
//!
//! What belongs here: two looks at the figures and what happened between them, as a screen. What
//! does not: anything that a terminal of the last forty years cannot show.

use std::fmt::Write;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};

use crate::daemons::{Daemon, Daemons, List, named, seen};
use crate::failure::{FAILED, Failure, Result, USAGE};
use crate::show::{address, guest, share};
use crate::terminal::{Screen, Table, duration, size, write};
use crate::watch::json_line;
use rprocd::rproc::{CoreStatus, DirectionStatus};
use serde_json::{Value, json};

/// Onto the other screen, without a cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the first column of the first row; and what is below is cleared.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// Columns that a narrow screen does without, the first ones first.
const LEAST_WANTED: [&str; 6] = ["PC", "BOOT", "RELAY", "TRACE", "UP", "KICKS"];
/// The same of the vdevs' columns.
const LEAST_WANTED_OF_VDEVS: [&str; 4] = ["IN", "OUT", "DROPPED", "GUEST"];

/// Shows it until `q`, or so many times. A daemon that ends is waited for.
pub fn run(daemons: &Daemons, delay: Duration, iterations: Option<u32>) -> Result<String> {
    // Somebody must be there at first, or it may be a mistake.
    let first = daemons.each(Daemon::list)?;
    let mut before = Look::of(daemons, first, Vec::new());
    let Some(iterations) = iterations else {
        if daemons.json {
            loop {
                thread::sleep(delay);
                if !write(&json_line(&look(daemons)?.value)?)? {
                    return Ok(String::new());
                }
            }
        }
        if Screen::of_output().width.is_none() {
            return Err(Failure::new(
                USAGE,
                "top needs a terminal; with --iterations it writes to a file or a pipe",
            ));
        }
        let _raw = Raw::enter()?;
        let mut delay_now = Duration::from_millis(250);
        loop {
            if pressed(delay_now)? {
                return Ok(String::new());
            }
            delay_now = delay;
            let now = look(daemons)?;
            let screen = Screen::of_output();
            let text = text(&before, &now, &screen);
            write(&drawn(&text, screen.height.unwrap_or(usize::MAX)))?;
            before = now;
        }
    };
    for _ in 0..iterations {
        thread::sleep(delay);
        let now = look(daemons)?;
        let text = if daemons.json {
            json_line(&now.value)?
        } else {
            text(&before, &now, &Screen::of_output())
        };
        if !write(&text)? {
            break;
        }
        before = now;
    }
    Ok(String::new())
}

/// A text from the first row of a screen on; where that has too few rows the last one says so.
fn drawn(text: &str, height: usize) -> String {
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    if lines.len() > height {
        let more = lines.len() - height + 1;
        lines.truncate(height.saturating_sub(1));
        lines.push(format!("... {more} lines more than fit here"));
    }
    let mut drawn = HOME.to_owned();
    for (index, line) in lines.iter().take(height).enumerate() {
        let feed = if index == 0 { "" } else { "\r\n" };
        let _ = write!(drawn, "{feed}{line}{CLEAR_LINE}");
    }
    drawn.push_str(CLEAR_BELOW);
    drawn
}

/// The cores at a time.
struct Look {
    at: Instant,
    /// Each called by a name of its own.
    cores: Vec<CoreStatus>,
    /// The sockets that were asked.
    sockets: Vec<String>,
    /// Why some do not answer.
    silent: Vec<String>,
    /// All of it for programs.
    value: Value,
}

impl Look {
    fn of(daemons: &Daemons, lists: Vec<(Daemon, List)>, silent: Vec<Failure>) -> Self {
        let failed = |it: &Failure| json!({ "socket": it.socket, "message": it.text });
        let failed: Vec<_> = silent.iter().map(failed).collect();
        let seen = seen(lists);
        Self {
            at: Instant::now(),
            cores: named(&seen),
            sockets: daemons.sockets(),
            silent: silent.into_iter().map(|it| it.text).collect(),
            value: json!({ "cores": seen, "silent": failed }),
        }
    }
}

fn look(daemons: &Daemons) -> Result<Look> {
    daemons.look_again();
    let (mut lists, mut silent) = (Vec::new(), Vec::new());
    for (daemon, list) in daemons.ask(Daemon::list)? {
        match list {
            Ok(list) => lists.push((daemon, list)),
            Err(failure) => silent.push(failure),
        }
    }
    Ok(Look::of(daemons, lists, silent))
}

/// Something counted, per second.
fn rate(before: u64, now: u64, seconds: f64) -> f64 {
    now.saturating_sub(before) as f64 / seconds
}

/// Four digits at most, with a unit.
fn short(rate: f64) -> String {
    match rate {
        _ if rate < 9.95 && rate > 0.0 => format!("{rate:.1}"),
        _ if rate < 10_000.0 => format!("{rate:.0}"),
        _ if rate < 10e6 => format!("{:.0}k", rate / 1e3),
        _ => format!("{:.0}M", rate / 1e6),
    }
}

/// Eight columns, as full as the queue is.
fn bar(held: u16, size: u16) -> String {
    const COLUMNS: usize = 8;
    let size = usize::from(size.max(1));
    let full = (usize::from(held) * COLUMNS).div_ceil(size).min(COLUMNS);
    format!("{}{} {held}", "#".repeat(full), ".".repeat(COLUMNS - full))
}

fn text(before: &Look, now: &Look, screen: &Screen) -> String {
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(1e-3);
    let running = now
        .cores
        .iter()
        .filter(|core| core.uptime_microseconds.is_some() && core.state != "crashed");
    let daemons = match &now.sockets[..] {
        [socket] => format!("rprocd at {socket}"),
        sockets => format!("rprocd at {} sockets", sockets.len()),
    };
    let title = format!(
        "{daemons}: {} core(s), {} up. Each second:",
        now.cores.len(),
        running.count()
    );
    let mut cores = Table::new(&[
        "CORE", "STATE", "UP", "BOOT", "RUN", "PC", "CRASHES", "IN", "OUT", "KICKS", "TRACE",
        "RELAY",
    ])
    .narrow(&LEAST_WANTED)
    .right(&[2, 3, 4, 6, 7, 8, 9, 10, 11]);
    let mut vdevs = Table::new(&[
        "VDEV",
        "GUEST",
        "IN/s",
        "OUT/s",
        "IN",
        "OUT",
        "DROPPED",
        "FIRMWARE HOLDS",
    ])
    .narrow(&LEAST_WANTED_OF_VDEVS)
    .right(&[2, 3, 4, 5, 6]);
    let mut reasons = String::new();
    for core in &now.cores {
        // A core that was not there before begins with itself.
        let old = before
            .cores
            .iter()
            .find(|old| old.name == core.name)
            .unwrap_or(core);
        let all = |core: &CoreStatus, read: fn(&rprocd::rproc::VdevStatus) -> u64| -> u64 {
            core.vdevs.iter().map(read).sum()
        };
        let per_second = |read: fn(&rprocd::rproc::VdevStatus) -> u64| {
            short(rate(all(old, read), all(core, read), seconds))
        };
        let traced = |core: &CoreStatus| core.traces.iter().map(|it| it.bytes).sum();
        let trace: f64 = rate(traced(old), traced(core), seconds);
        let known = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        cores.row([
            core.name.clone(),
            screen.state(&core.state),
            known(core.uptime_microseconds.map(duration)),
            core.incarnation.to_string(),
            known(run_share(old, core, seconds)),
            known(core.pc.map(address)),
            core.crashes.to_string(),
            per_second(|it| it.to_core.messages),
            per_second(|it| it.to_guest.messages),
            per_second(|it| it.to_core.notifications + it.to_guest.notifications),
            format!("{} B", short(trace)),
            known(relay_time(old, core)),
        ]);
        if let Some(reason) = core.next.as_ref().or(core.last_crash.as_ref()) {
            let line = format!("{}: {reason}", core.name);
            reasons.push_str(&(screen.cut(&line) + "\n"));
        }
        for (index, vdev) in core.vdevs.iter().enumerate() {
            let old = old.vdevs.get(index).unwrap_or(vdev);
            let dropped = |it: &DirectionStatus| {
                it.bad_chains + it.malformed + it.too_long + it.withheld + it.lost
            };
            let bytes = |before: &DirectionStatus, now: &DirectionStatus| {
                size(rate(before.bytes, now.bytes, seconds) as u64)
            };
            let depth = vdev.vrings.get(1).map_or(0, |vring| vring.size);
            vdevs.row([
                format!("{}/{index}", core.name),
                guest(vdev).to_owned(),
                bytes(&old.to_core, &vdev.to_core),
                bytes(&old.to_guest, &vdev.to_guest),
                vdev.to_core.messages.to_string(),
                vdev.to_guest.messages.to_string(),
                (dropped(&vdev.to_core) + dropped(&vdev.to_guest)).to_string(),
                bar(vdev.core_holds, depth),
            ]);
        }
    }
    let mut text = format!("{}\n", screen.cut(&title));
    for line in &now.silent {
        text.push_str(&screen.paint("1;31", &screen.cut(&format!("waiting: {line}"))));
        text.push('\n');
    }
    let _ = write!(text, "\n{}{reasons}\n", cores.text(screen));
    if vdevs.len() > 0 {
        text.push_str(&vdevs.text(screen));
        text.push('\n');
    }
    let help = "q: end   IN: to the core   OUT: to guests   RELAY: of 10 kicks, 9 take at most";
    text.push_str(&screen.paint("2", &screen.cut(help)));
    text.push('\n');
    text
}

/// How much of the time since the last look a core ran.
fn run_share(before: &CoreStatus, now: &CoreStatus, seconds: f64) -> Option<String> {
    let (before, ran) = (before.ran_microseconds?, now.ran_microseconds?);
    now.uptime_microseconds?;
    Some(share(ran.saturating_sub(before), (seconds * 1e6) as u64))
}

/// The time that nine of ten relays took at most, since the last look.
fn relay_time(before: &CoreStatus, now: &CoreStatus) -> Option<String> {
    let counts = now.relay_time.counts.iter().zip(&before.relay_time.counts);
    let counts: Vec<_> = counts
        .map(|(now, before)| now.saturating_sub(*before))
        .collect();
    let all: u64 = counts.iter().sum();
    if all == 0 {
        return None;
    }
    let mut left = all - all / 10;
    for (count, bound) in counts.iter().zip(&now.relay_time.bounds_microseconds) {
        left = left.saturating_sub(*count);
        if left == 0 {
            return Some(duration(*bound));
        }
    }
    Some("long".to_owned())
}

/// The terminal gives keys at once, on a screen of its own.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Result<Self> {
        let failed = |cause: rustix::io::Errno| {
            let text = format!("the standard input is no terminal ({cause}); use --iterations");
            Failure::new(USAGE, text)
        };
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.local_modes
            .remove(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        write(ENTER)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = write(LEAVE);
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Waits for a time, or for a key that ends it: q, Ctrl-C, Ctrl-D, or the end of the input.
fn pressed(time: Duration) -> Result<bool> {
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let input = io::stdin();
        let mut fds = [PollFd::new(&input, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            // The window has another size: draw it anew.
            Err(rustix::io::Errno::INTR) => return Ok(false),
            Err(cause) => return Err(Failure::new(FAILED, format!("cannot wait: {cause}"))),
            Ok(_) => {}
        }
        let mut key = [0];
        match rustix::io::read(&input, &mut key) {
            Ok(0) => return Ok(true),
            Ok(_) if matches!(key[0], b'q' | b'Q' | 3 | 4) => return Ok(true),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_take_four_digits_at_most() {
        let shown = [0.0, 0.25, 9.9, 10.0, 9999.0, 12_345.0, 12_345_678.0].map(short);
        assert_eq!(shown, ["0", "0.2", "9.9", "10", "9999", "12k", "12M"]);
    }

    #[test]
    fn what_does_not_fit_the_screen_is_counted_in_its_last_row() {
        assert_eq!(drawn("a\nb\n", 2), "\x1b[Ha\x1b[K\r\nb\x1b[K\x1b[J");
        let less = drawn("a\nb\nc\nd\n", 2);
        assert_eq!(
            less,
            "\x1b[Ha\x1b[K\r\n... 3 lines more than fit here\x1b[K\x1b[J"
        );
    }

    #[test]
    fn a_bar_is_empty_only_if_nothing_is_held() {
        assert_eq!(bar(0, 256), "........ 0");
        assert_eq!(bar(1, 256), "#....... 1");
        assert_eq!(bar(256, 256), "######## 256");
        assert_eq!(bar(9, 0), "######## 9");
    }
}
