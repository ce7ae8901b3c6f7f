//! Checks that share a guest.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Failed, Trial};
use xtask::kit::Kit;
use xtask::limit::{self, minutes};
use xtask::vm::{Daemon, Guest, GuestOptions, Vdev};

/// For commands that only look. Both are for what hangs: on a busy machine an emulated guest may be
/// a hundred times slower than on an idle one.
pub const SHORT: Duration = Duration::from_secs(180);
/// For ten thousand messages.
pub const LONG: Duration = Duration::from_secs(900);
/// For one test. When it is over, the guest and the daemon are ended, and the test says so.
const LIMIT: Duration = minutes(40);

/// What all tests need.
#[derive(Debug, Default)]
pub struct Environment {
    kit: Option<Kit>,
    daemon: PathBuf,
    firmware: PathBuf,
}

impl Environment {
    /// Reads it from the variables that `cargo xtask test` sets. `RPROCD_VM_DAEMON` may name
    /// another daemon than the one that was just built.
    pub fn read() -> Result<Self> {
        let variable = "RPROCD_VM_FIRMWARE";
        let firmware =
            std::env::var_os(variable).with_context(|| format!("{variable} is not set"))?;
        Ok(Self {
            kit: Some(Kit::from_environment()?),
            daemon: std::env::var_os("RPROCD_VM_DAEMON")
                .unwrap_or_else(|| env!("CARGO_BIN_EXE_rprocd").into())
                .into(),
            firmware: firmware.into(),
        })
    }
}

impl Environment {
    /// What guests are started with.
    pub fn kit(&self) -> Result<&Kit> {
        self.kit.as_ref().context("no kit")
    }

    /// The folder with the daemon, `rprocctl` beside it.
    pub fn programs(&self) -> Result<&Path> {
        self.daemon.parent().context("no daemon")
    }

    /// An image of guest-fw.
    pub fn image(&self, name: &str) -> PathBuf {
        self.firmware.join(format!("{name}.elf"))
    }
}

/// Something that must hold.
pub type Check = fn(&mut Machines) -> Result<()>;

/// A guest, its daemon, and the checks that they are held against.
pub struct Group {
    /// Goes before the checks' names.
    pub name: &'static str,
    /// The daemon's configuration, with paths relative to its folder.
    pub config: &'static str,
    /// The sockets that are plugged into the guest, in the order of its ports.
    pub sockets: &'static [&'static str],
    /// More words for the guest's kernel.
    pub append: &'static str,
    /// What must hold, and what shows it.
    pub checks: &'static [(&'static str, Check)],
}

/// Both sides.
pub struct Machines {
    /// Before the daemon, so that it goes first.
    pub guest: Guest,
    /// The daemon.
    pub daemon: Daemon,
    /// The guest's devices.
    pub vdevs: Vec<Vdev>,
}

impl Machines {
    fn start(environment: &Environment, group: &Group) -> Result<Self> {
        let kit = environment.kit()?;
        let daemon = Daemon::start(&environment.daemon, group.config, &environment.firmware)?;
        let vdevs: Vec<Vdev> = group
            .sockets
            .iter()
            .enumerate()
            .map(|(port, socket)| Vdev::new(&daemon.path(socket), port))
            .collect();
        let options = GuestOptions {
            vdevs: vdevs.clone(),
            append: group.append.to_owned(),
            ..GuestOptions::default()
        };
        let guest = Guest::boot(kit, &options)
            .map_err(|error| anyhow::anyhow!("{error:#}{}", daemon.evidence()))?;
        Ok(Self {
            guest,
            daemon,
            vdevs,
        })
    }

    /// The guest's list of rpmsg devices, once `wanted` are all among its words.
    pub fn list_with(&mut self, wanted: &[&str]) -> Result<String> {
        self.guest
            .wait_for("rprocd-guest-check list", SHORT, |list| {
                wanted.iter().all(|word| list.contains(word))
            })
    }

    /// Sends `count` messages of `size` bytes through `device` and has each answer checked.
    pub fn exchange(&mut self, device: &str, count: u32, size: usize) -> Result<()> {
        let command = format!("rprocd-guest-check exchange {device} --count {count} --size {size}");
        let output = self.guest.run(&command, LONG)?;
        let expected = format!("exchanged {count} messages, 0 wrong");
        ensure!(
            output.trim_end().ends_with(&expected),
            "`{command}` says\n{output}"
        );
        Ok(())
    }
}

/// The machines of a group: not started yet, running, or not to be had.
enum State {
    New,
    Running(Box<Machines>),
    Broken,
}

/// A test that ends, one way or the other.
pub fn trial(name: String, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    let what = format!("the test {name}");
    Trial::test(name, move || {
        limit::within(&what, LIMIT, test).map_err(|error| Failed::from(format!("{error:#}")))
    })
}

/// The group's checks, one trial each, and the end: kernel log, power-off, daemon's exit.
pub fn trials(environment: &Arc<Environment>, group: &'static Group) -> Vec<Trial> {
    let state = Arc::new(Mutex::new(State::New));
    let mut trials = Vec::new();
    for (name, check) in group.checks {
        let (state, environment) = (Arc::clone(&state), Arc::clone(environment));
        let name = format!("{}::{name}", group.name);
        trials.push(trial(name, move || {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            run_check(&mut state, &environment, group, *check)
        }));
    }
    let name = format!("{}::the_guest_ends_with_a_clean_kernel_log", group.name);
    trials.push(trial(name, move || {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Broken) {
            State::Running(machines) => end(*machines),
            State::New => Ok(()),
            State::Broken => bail!("the guest was lost in an earlier check"),
        }
    }));
    trials
}

fn run_check(
    state: &mut State,
    environment: &Environment,
    group: &Group,
    check: Check,
) -> Result<()> {
    if let State::New = state {
        *state = State::Broken;
        *state = State::Running(Box::new(Machines::start(environment, group)?));
    }
    let State::Running(machines) = state else {
        bail!("the guest was lost in an earlier check");
    };
    let result = check(machines).map_err(|error| {
        anyhow::anyhow!(
            "{error:#}{}\n--- the guest's console ends with\n{}",
            machines.daemon.evidence(),
            machines.guest.console_tail()
        )
    });
    if machines.guest.has_exited() {
        *state = State::Broken;
    }
    result
}

fn end(mut machines: Machines) -> Result<()> {
    clean_kernel_log(&mut machines)?;
    machines.guest.power_off()?;
    machines.daemon.stop()
}

/// No BUG, no WARNING, no call trace since the guest's last start.
pub fn clean_kernel_log(machines: &mut Machines) -> Result<()> {
    let log = machines.guest.run("dmesg", SHORT)?;
    let bad: Vec<&str> = log.lines().filter(|line| is_bad(line)).collect();
    ensure!(
        bad.is_empty(),
        "the guest's kernel complained:\n{}\n--- all of it\n{log}",
        bad.join("\n")
    );
    // Earlier starts of this guest are only on its console.
    let console = machines.guest.console();
    let bad: Vec<&str> = console.lines().filter(|line| is_bad(line)).collect();
    ensure!(
        bad.is_empty(),
        "the guest's kernel complained:\n{}",
        bad.join("\n")
    );
    Ok(())
}

fn is_bad(line: &str) -> bool {
    const WORDS: [&str; 7] = [
        "BUG:",
        "WARNING:",
        "Call Trace",
        "Oops",
        "kernel BUG",
        "preemption imbalance",
        "no used buffer",
    ];
    WORDS.iter().any(|word| line.contains(word))
}
