//! Time limits: nothing that is begun here may hang.
//!
//! What belongs here: how long a piece of work may take, what it was doing when that is over, and
//! the end of the processes that it has started. What does not: which limit a step has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};

/// How long processes have to end by themselves once they are asked to.
const GRACE: Duration = Duration::from_secs(5);
/// How long the work may take to notice that its processes are gone.
const LAST: Duration = Duration::from_secs(60);
/// The exit status of timeout(1).
const STATUS: i32 = 124;
/// Of a command line so much is shown.
const SHOWN: usize = 160;

/// Minutes.
pub const fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

/// Does `work`, and ends what it has started when it takes longer than `limit`. Then the error says
/// so, and what was running. Work that does not even end then ends this process, with a sentence.
pub fn within<T>(what: &str, limit: Duration, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let watch = Watch::start(what, limit);
    let result = work();
    match watch.stop() {
        None => result,
        Some(sentence) => Err(match result {
            Ok(_) => anyhow!("{sentence}"),
            Err(error) => anyhow!("{sentence}\n{error:#}"),
        }),
    }
}

/// A thread that waits for the end of a piece of work.
struct Watch {
    done: Sender<()>,
    thread: JoinHandle<()>,
    /// What is to be said when the limit was over.
    sentence: Arc<Mutex<Option<String>>>,
}

impl Watch {
    fn start(what: &str, limit: Duration) -> Self {
        let (done, is_done) = mpsc::channel();
        let sentence = Arc::new(Mutex::new(None));
        let (what, said) = (what.to_owned(), Arc::clone(&sentence));
        let thread = thread::spawn(move || {
            let over = |time| is_done.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
            if !over(limit) {
                return;
            }
            let text = format!(
                "{what} has not ended after {}; it is ended now. {}",
                text(limit),
                doing(&descendants())
            );
            eprintln!("limit: {text}");
            *said.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
            end_descendants();
            if over(LAST) {
                eprintln!(
                    "limit: {what} goes on though all its processes were ended {} ago: it waits \
                     for something in this process, which ends now",
                    self::text(LAST)
                );
                std::process::exit(STATUS);
            }
        });
        Self {
            done,
            thread,
            sentence,
        }
    }

    /// Stops the watch; returns what is to be said if the limit was over.
    fn stop(self) -> Option<String> {
        drop(self.done);
        let _ = self.thread.join();
        let mut sentence = self.sentence.lock().unwrap_or_else(PoisonError::into_inner);
        sentence.take()
    }
}

/// A time as a person says it.
pub fn text(time: Duration) -> String {
    match (time.as_secs() / 60, time.as_secs() % 60) {
        (0, seconds) => format!("{seconds} s"),
        (minutes, 0) => format!("{minutes} min"),
        (minutes, seconds) => format!("{minutes} min {seconds} s"),
    }
}

/// A process: enough to tell it from a later one of the same number.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    id: i32,
    parent: i32,
    /// When it was started, in clock ticks since the machine was.
    start: u64,
    /// It has ended, and its parent has not asked for its status.
    is_dead: bool,
    name: String,
}

/// The line of `/proc/PID/stat`. Source: proc_pid_stat(5); the name, in brackets, may hold anything.
fn parse(stat: &str) -> Option<Process> {
    let (before, after) = stat.rsplit_once(')')?;
    let (id, name) = before.split_once(" (")?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    Some(Process {
        id: id.parse().ok()?,
        parent: fields.get(1)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
        is_dead: *fields.first()? == "Z",
        name: name.to_owned(),
    })
}

fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name();
            name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
        })
        .filter_map(|entry| parse(&fs::read_to_string(entry.path().join("stat")).ok()?))
        .collect()
}

/// Of `all`, those that `root` has started, and those that these have started; parents first.
fn below(root: i32, all: &[Process]) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<&Process>> = BTreeMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(process);
    }
    let (mut found, mut seen) = (Vec::new(), BTreeSet::from([root]));
    let mut next = vec![root];
    while let Some(parent) = next.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            if seen.insert(child.id) {
                found.push((*child).clone());
                next.push(child.id);
            }
        }
    }
    found
}

/// The living processes that this one has started, and those that these have started.
fn descendants() -> Vec<Process> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let mut found = below(own, &all());
    found.retain(|process| !process.is_dead);
    found
}

/// What runs, as a person reads it.
fn doing(processes: &[Process]) -> String {
    if processes.is_empty() {
        return "It was running no other program.".to_owned();
    }
    let mut text = "It was running:".to_owned();
    for process in processes {
        let line = fs::read(format!("/proc/{}/cmdline", process.id)).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let line = match line.trim() {
            "" => process.name.as_str(),
            line => line,
        };
        let mut shown: String = line.chars().take(SHOWN).collect();
        if shown.len() < line.len() {
            shown.push_str("...");
        }
        text.push_str(&format!("\n  {:>7}  {shown}", process.id));
    }
    text
}

/// Ends every process that this one has started, and those that these have started: asks them to,
/// and kills what is left a little later.
pub fn end_descendants() {
    let mut known = descendants();
    for process in &known {
        send(process, Signal::TERM);
    }
    let gone = crate::vm::wait_until(GRACE, || {
        let now = all();
        let alive = |process: &Process| {
            let same = |other: &&Process| other.id == process.id && other.start == process.start;
            now.iter().find(same).is_some_and(|other| !other.is_dead)
        };
        (!known.iter().any(alive) && descendants().is_empty()).then_some(())
    });
    if gone.is_none() {
        // Also those whose parents are gone: they are in the list from before.
        known.extend(descendants());
        let now = all();
        for process in known {
            if now
                .iter()
                .any(|other| other.id == process.id && other.start == process.start)
            {
                send(&process, Signal::KILL);
            }
        }
    }
}

fn send(process: &Process, signal: Signal) {
    if let Some(pid) = Pid::from_raw(process.id) {
        // It may have ended just now.
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_line_of_proc_is_read_whatever_the_name_is() {
        let line = "42 (a ) (b) S 7 42 42 0 -1 4194304 1 0 0 0 3 1 0 0 20 0 1 0 9001 5000 100 0";
        let process = parse(line).unwrap();
        assert_eq!((process.id, process.parent, process.start), (42, 7, 9001));
        assert_eq!(process.name, "a ) (b");
        assert!(!process.is_dead);
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn descendants_are_found_through_their_parents_and_others_are_not() {
        let process = |id, parent| Process {
            id,
            parent,
            start: 0,
            is_dead: false,
            name: String::new(),
        };
        let all = [
            process(1, 0),
            process(10, 1),
            process(11, 10),
            process(12, 11),
            process(20, 1),
        ];
        let found: Vec<i32> = below(10, &all).iter().map(|process| process.id).collect();
        assert_eq!(found, [11, 12]);
    }

    #[test]
    fn times_are_said_in_minutes_and_seconds() {
        assert_eq!(text(Duration::from_secs(7)), "7 s");
        assert_eq!(text(minutes(3)), "3 min");
        assert_eq!(text(Duration::from_secs(61)), "1 min 1 s");
    }

    /// In a process of its own: it ends all that this process has started.
    const CHILD: &str = "RPROCD_TEST_LIMIT_CHILD";

    #[test]
    fn work_over_its_limit_is_ended_with_all_it_has_started_and_named() {
        if std::env::var_os(CHILD).is_some() {
            let error = within("the step `naps`", Duration::from_secs(1), || {
                // The shell waits for what it has started in turn, which does not end when asked to.
                let nap = "trap '' TERM; (trap '' TERM; while :; do sleep 1000; done) & wait";
                Command::new("sh").args(["-c", nap]).status()?;
                Ok(())
            });
            let error = error.unwrap_err().to_string();
            assert!(
                error.starts_with("the step `naps` has not ended after 1 s"),
                "{error}"
            );
            assert!(error.contains("sleep 1000"), "{error}");
            assert_eq!(descendants(), []);
            return;
        }
        let name = "limit::tests::work_over_its_limit_is_ended_with_all_it_has_started_and_named";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
    }

    #[test]
    fn work_within_its_limit_is_left_alone() {
        assert_eq!(within("a sum", minutes(1), || Ok(1 + 1)).unwrap(), 2);
        let error = within::<()>("a step", minutes(1), || Err(anyhow!("broken")));
        assert_eq!(error.unwrap_err().to_string(), "broken");
    }
}
