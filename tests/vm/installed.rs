//! The package, installed on a Debian that runs, with systemd as its PID 1, as the operators' page
//! says it: `docs/operators.md`. Its commands are run as they are printed, by an ordinary user who
//! may use sudo, with a guest of his own.
//!
//! What belongs here: what only the real systemd, apt and QEMU can show about the page, the units
//! and the package. What does not: what the daemon tells whoever started it (`tests/packaging.rs`).
//!
//! The checks share a guest, here called the host as on the page, and build on each other, in the
//! order in which they are written.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use xtask::guest::quoted;
use xtask::kit::{Installed, Kit};
use xtask::page::{self, Place, Step};
use xtask::vm::args::escape;
use xtask::vm::{Guest, GuestOptions};

use super::group::{Environment, LONG, SHORT, trial};

const PAGE: &str = include_str!("../../docs/operators.md");
/// The page's first section, and its last with commands.
const INSTALL: &str = "Install";
const REMOVE: &str = "Upgrade and removal";

/// systemd, a guest of its own, and gdb.
const MEMORY_MIB: u32 = 2048;
/// A processor that QEMU can emulate with all that KVM needs.
const EMULATED: &str = "EPYC-v4,+svm";
/// KVM emulates the emulated processor's mitigations at a great cost.
const APPEND: &str = "mitigations=off systemd.firstboot=no";
/// What stands for `GUEST` on the page: all that QEMU is told of a guest but for its memory and
/// rprocd's devices. It is the guest of the other tests; its second serial port carries out
/// commands.
const OWN_GUEST: &str = "-accel kvm -accel tcg -cpu max -nodefaults -no-user-config -nographic \
    -kernel /srv/vmlinuz -initrd /srv/initramfs.cpio -append \"console=ttyS0 panic=-1 quiet\" \
    -serial mon:stdio -serial unix:/tmp/guest,server=on,wait=off";
/// For one try of what may take a while.
const TRY: Duration = Duration::from_secs(30);

type Check = fn(&mut Guest) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    (
        "the_package_installs_and_starts_nothing",
        the_package_installs,
    ),
    (
        "the_pages_commands_do_what_the_page_says",
        the_pages_commands_work,
    ),
    (
        "the_service_is_ready_when_it_is_said_to_be_and_runs_as_nobody_else",
        the_service_is_ready,
    ),
    (
        "a_core_boots_dies_and_is_dumped_in_the_sandbox",
        a_core_boots_dies_and_is_dumped,
    ),
    (
        "who_is_in_the_group_operates_and_who_is_not_looks",
        who_is_in_the_group_operates,
    ),
    (
        "a_daemon_that_is_killed_comes_back_and_dumps_what_its_cores_had",
        a_killed_daemon_comes_back,
    ),
    (
        "a_daemon_that_hangs_is_ended_by_the_watchdog_and_comes_back",
        a_daemon_that_hangs_comes_back,
    ),
    (
        "whoever_connects_starts_the_daemon_of_a_core_again_and_again",
        whoever_connects_starts_the_daemon,
    ),
    (
        "the_package_goes_and_takes_the_daemons_with_it",
        the_package_goes,
    ),
];

/// The checks; none if no such guest is there.
pub fn trials(environment: &Arc<Environment>) -> Vec<Trial> {
    let installed = match Installed::from_environment() {
        Ok(None) => return Vec::new(),
        Ok(Some(installed)) => Ok(installed),
        Err(error) => Err(format!("{error:#}")),
    };
    let state = Arc::new(Mutex::new(State::New(installed)));
    let check = |(name, check): &(&str, Check)| {
        let (state, environment) = (Arc::clone(&state), Arc::clone(environment));
        let check = *check;
        trial(format!("installed::{name}"), move || {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            run(&mut state, &environment, check)
        })
    };
    CHECKS.iter().map(check).collect()
}

/// The guest: not started yet, running, or lost with a check that failed, since the next ones
/// build on it.
enum State {
    New(Result<Installed, String>),
    Running(Box<Guest>),
    Broken,
}

fn run(state: &mut State, environment: &Environment, check: Check) -> Result<()> {
    let mut guest = match std::mem::replace(state, State::Broken) {
        State::New(installed) => {
            let installed = installed.map_err(anyhow::Error::msg)?;
            Box::new(boot(environment.kit()?, installed)?)
        }
        State::Running(guest) => guest,
        State::Broken => bail!("the guest was lost in an earlier check"),
    };
    if let Err(error) = check(&mut guest) {
        let look = "journalctl --no-pager -n 60; tail -n 20 /tmp/terminal-*.log";
        let journal = guest.ask(look, SHORT);
        let journal = journal.map_or_else(|error| format!("{error:#}"), |answer| answer.output);
        return Err(error.context(format!("the guest's journal ends with\n{journal}")));
    }
    *state = State::Running(guest);
    Ok(())
}

fn boot(kit: &Kit, installed: Installed) -> Result<Guest> {
    let disk = escape(&installed.disk.to_string_lossy());
    let mut more = vec![
        "-drive".to_owned(),
        // What is written goes with this run.
        format!("file={disk},format=raw,if=virtio,snapshot=on"),
    ];
    if kit.accel != "kvm" {
        more.extend(["-cpu".to_owned(), EMULATED.to_owned()]);
    }
    let kit = Kit {
        initramfs: installed.initramfs,
        ..kit.clone()
    };
    let options = GuestOptions {
        memory_mib: Some(MEMORY_MIB),
        append: APPEND.to_owned(),
        more,
        ..GuestOptions::default()
    };
    let mut guest = Guest::boot(&kit, &options)?;
    let profile = format!("export GUEST={}", quoted(OWN_GUEST));
    let command = format!(
        "printf '%s\\n' {} >> /home/alice/.profile",
        quoted(&profile)
    );
    guest.run(&command, SHORT)?;
    Ok(guest)
}

/// A command that writes the lines of `text` to a file.
fn write(text: &str, file: &str) -> String {
    let lines: Vec<String> = text.lines().map(quoted).collect();
    format!("printf '%s\\n' {} > {file}", lines.join(" "))
}

/// Follows the page: runs the steps, each as it is printed, and looks whether it prints what the
/// page says.
fn follow<'a>(guest: &mut Guest, steps: impl IntoIterator<Item = &'a Step>) -> Result<()> {
    for step in steps {
        take(guest, step).with_context(|| {
            format!(
                "docs/operators.md, line {}:\n{}\n",
                step.line, step.commands
            )
        })?;
    }
    Ok(())
}

fn take(guest: &mut Guest, step: &Step) -> Result<()> {
    let file = format!("/tmp/step-{}", step.line);
    let command = match step.place {
        Place::Terminal => return open_terminal(guest, step.line, &step.commands),
        // A new login has the groups that a user was given. Whoever is asked says yes.
        Place::Host => {
            guest.run(&write(&step.commands, &file), SHORT)?;
            format!("echo y | runuser -l alice -c 'bash -e {file}'")
        }
        Place::Guest => {
            // The page says: once it is up.
            guest.run(&in_guest("true", LONG), LONG)?;
            let command = format!("{}; sh -e {file}", write(&step.commands, &file));
            in_guest(&command, TRY)
        }
    };
    let soon = step.prints.as_ref().is_some_and(|prints| prints.soon);
    let end = Instant::now() + LONG;
    loop {
        let answer = guest.ask(&command, LONG)?;
        let missing = match &step.prints {
            Some(prints) => prints.missing_in(&answer.output),
            None => None,
        };
        if answer.exit == 0 && missing.is_none() {
            return Ok(());
        }
        if !soon || Instant::now() > end {
            let missing = missing.map(|line| format!(", and no line `{line}`"));
            bail!(
                "ended with {}{} in\n{}",
                answer.exit,
                missing.unwrap_or_default(),
                answer.output
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The command that runs `command` in the guest's guest.
fn in_guest(command: &str, limit: Duration) -> String {
    let seconds = limit.as_secs();
    let command = quoted(command);
    format!("rprocd-guest-check ask /tmp/guest {seconds} {command}")
}

/// Runs a command that ends when it is told to, in a terminal.
fn open_terminal(guest: &mut Guest, number: usize, command: &str) -> Result<()> {
    let step = format!("/tmp/step-{number}");
    guest.run(&write(command, &step), SHORT)?;
    // Nobody types: the terminal's input is a pipe that stays open.
    let inner = format!("stty rows 24 cols 80; exec bash -e {step}");
    let terminal = format!(
        "mkfifo {step}.in; TERM=linux exec script --quiet --return --flush --command {} \
         /tmp/terminal-{number}.log 0<>{step}.in",
        quoted(&inner)
    );
    let login = format!("runuser -l alice -c {}", quoted(&terminal));
    guest.run(
        &format!("systemd-run --quiet --unit=terminal-{number} {login} > /dev/null"),
        SHORT,
    )?;
    Ok(())
}

/// Ends what runs in terminals. All of it must still have run.
fn close_terminals(guest: &mut Guest, steps: &[Step]) -> Result<()> {
    for step in steps.iter().filter(|step| step.place == Place::Terminal) {
        let unit = format!("terminal-{}", step.line);
        let state = says(guest, &format!("systemctl is-active {unit} || true"))?;
        ensure!(
            state == "active",
            "docs/operators.md, line {}: `{}` has ended by itself",
            step.line,
            step.commands
        );
        guest.run(&format!("systemctl stop {unit}"), LONG)?;
    }
    Ok(())
}

/// The steps of one section of the page.
fn section<'a>(steps: &'a [Step], heading: &str) -> Result<Vec<&'a Step>> {
    let found: Vec<_> = steps.iter().filter(|it| it.heading == heading).collect();
    ensure!(
        !found.is_empty(),
        "docs/operators.md has no commands under a heading `{heading}`"
    );
    Ok(found)
}

/// What a command says, without the end of its last line.
fn says(guest: &mut Guest, command: &str) -> Result<String> {
    Ok(guest.run(command, SHORT)?.trim_end().to_owned())
}

fn expect(guest: &mut Guest, command: &str, expected: &str) -> Result<()> {
    let said = says(guest, command)?;
    ensure!(
        said == expected,
        "`{command}` says\n{said}\nand not\n{expected}"
    );
    Ok(())
}

/// Runs a command that must fail with this exit status.
fn fails(guest: &mut Guest, command: &str, exit: i32) -> Result<String> {
    let answer = guest.ask(command, SHORT)?;
    ensure!(
        answer.exit == exit,
        "`{command}` ended with {} and not {exit}:\n{}",
        answer.exit,
        answer.output
    );
    Ok(answer.output)
}

/// Waits until systemd has started the service again, for the first time.
fn is_started_again(guest: &mut Guest) -> Result<()> {
    guest.wait_for("systemctl show -P NRestarts rprocd@m0", SHORT, |text| {
        text.trim() == "1"
    })?;
    guest.wait_for("systemctl is-active rprocd@m0", SHORT, |text| {
        text.trim() == "active"
    })?;
    Ok(())
}

fn coredumps(guest: &mut Guest) -> Result<usize> {
    let list = says(guest, "rprocctl --json coredump list m0")?;
    let list: serde_json::Value = serde_json::from_str(&list).context("no JSON")?;
    let dumps = list
        .as_array()
        .with_context(|| format!("no list: {list}"))?;
    Ok(dumps.len())
}

fn the_package_installs(guest: &mut Guest) -> Result<()> {
    let steps = page::steps(PAGE)?;
    follow(guest, section(&steps, INSTALL)?)?;
    expect(
        guest,
        "stat -c '%U %G %a' /var/lib/rprocd",
        "rprocd rprocd 750",
    )?;
    expect(
        guest,
        "cat /usr/share/qemu/vhost-user/50-rprocd.json | grep -c vhost-user-rpmsg",
        "1",
    )?;
    expect(
        guest,
        "/usr/libexec/vhost-user-rpmsg --print-capabilities | grep -c '\"rpmsg\"'",
        "1",
    )?;
    for unit in ["rprocd.service", "rprocd@m0.service", "rprocd@m0.socket"] {
        expect(
            guest,
            &format!("systemctl is-enabled {unit}; systemctl is-active {unit} || true"),
            "disabled\ninactive",
        )?;
    }
    // This Debian leaves out what is read by people.
    let changed = "dpkg --verify rprocd | grep -v -e /usr/share/doc/ -e /usr/share/man/ || true";
    expect(guest, changed, "")?;
    expect(guest, "dpkg --audit", "")
}

fn the_pages_commands_work(guest: &mut Guest) -> Result<()> {
    let steps = page::steps(PAGE)?;
    let walk = steps
        .iter()
        .filter(|step| step.heading != INSTALL && step.heading != REMOVE);
    follow(guest, walk)?;
    close_terminals(guest, &steps)
}

fn the_service_is_ready(guest: &mut Guest) -> Result<()> {
    guest.run("systemctl restart rprocd@m0", SHORT)?;
    // No waiting: it has said so.
    let list = says(guest, "rprocctl -s /run/rprocd/m0/control list")?;
    ensure!(list.contains("m0"), "{list}");
    expect(
        guest,
        "stat -c '%U %G' /proc/$(systemctl show -P MainPID rprocd@m0)",
        "rprocd rprocd",
    )?;
    expect(
        guest,
        "cd /run/rprocd/m0 && stat -c '%U %G %a' control vdev0 monitor",
        "rprocd rprocd 660\nrprocd rprocd 660\nrprocd rprocd 666",
    )?;
    let status = says(guest, "systemctl show -P StatusText rprocd@m0")?;
    ensure!(status.contains("1 core"), "{status}");
    Ok(())
}

fn a_core_boots_dies_and_is_dumped(guest: &mut Guest) -> Result<()> {
    let before = coredumps(guest)?;
    guest.run("rprocctl crash m0", SHORT)?;
    guest.wait_for("rprocctl info m0", SHORT, |info| info.contains("running"))?;
    let list = "rprocctl --json coredump list m0 | grep -c .elf";
    guest.wait_for(list, SHORT, |count| count.trim().parse() == Ok(before + 1))?;
    expect(
        guest,
        "stat -c '%U %G %a' /var/lib/rprocd/m0/*.elf | sort -u",
        "rprocd rprocd 600",
    )?;
    guest.run("rprocctl coredump get m0 -o /tmp/core.elf", SHORT)?;
    // The journal has it as a warning or worse, once for each incarnation that crashed.
    let crashes = "journalctl -u rprocd@m0 -p warning -o cat | grep -c 'm0: crash #1' || true";
    expect(guest, crashes, "2")
}

fn who_is_in_the_group_operates(guest: &mut Guest) -> Result<()> {
    let stranger = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let group = "$(stat -c %g /run/rprocd/m0/control)";
    let member = format!("setpriv --reuid=1000 --regid=1000 --groups={group}");
    let (control, monitor) = ("-s /run/rprocd/m0/control", "-s /run/rprocd/m0/monitor");
    guest.run(&format!("{stranger} rprocctl {monitor} list"), SHORT)?;
    fails(guest, &format!("{stranger} rprocctl {control} stop m0"), 6)?;
    fails(guest, &format!("{stranger} rprocctl {monitor} stop m0"), 6)?;
    guest.run(&format!("{member} rprocctl {control} restart m0"), SHORT)?;
    let log = says(guest, "journalctl -u rprocd@m0 -o cat | grep 'uid 1000'")?;
    ensure!(log.contains("m0"), "{log}");
    Ok(())
}

fn a_killed_daemon_comes_back(guest: &mut Guest) -> Result<()> {
    let before = coredumps(guest)?;
    guest.run(
        "systemctl kill --kill-whom=main --signal=KILL rprocd@m0",
        SHORT,
    )?;
    is_started_again(guest)?;
    let after = coredumps(guest)?;
    ensure!(after == before + 1, "{before} coredumps, and then {after}");
    Ok(())
}

fn a_daemon_that_hangs_comes_back(guest: &mut Guest) -> Result<()> {
    guest.run(
        "mkdir -p /run/systemd/system/rprocd@.service.d && printf '[Service]\\nWatchdogSec=10\\n' \
         > /run/systemd/system/rprocd@.service.d/watchdog.conf && systemctl daemon-reload && \
         systemctl restart rprocd@m0",
        SHORT,
    )?;
    // It pings while its core runs.
    guest.run("sleep 15", SHORT)?;
    expect(guest, "systemctl show -P NRestarts rprocd@m0", "0")?;
    guest.run(
        "systemctl kill --kill-whom=main --signal=STOP rprocd@m0",
        SHORT,
    )?;
    is_started_again(guest)?;
    let log = says(
        guest,
        "journalctl -u rprocd@m0 -o cat | grep -i 'watchdog timeout'",
    )?;
    ensure!(!log.is_empty());
    guest.run(
        "rm -r /run/systemd/system/rprocd@.service.d && systemctl daemon-reload",
        SHORT,
    )?;
    Ok(())
}

/// On the page the core m1 was left with a socket unit, and its daemon running.
fn whoever_connects_starts_the_daemon(guest: &mut Guest) -> Result<()> {
    for _ in 0..2 {
        guest.run("systemctl stop rprocd@m1.service", SHORT)?;
        expect(
            guest,
            "systemctl is-active rprocd@m1.service || true",
            "inactive",
        )?;
        expect(
            guest,
            "systemctl show -P Result rprocd@m1.service",
            "success",
        )?;
        let list = says(guest, "rprocctl -s /run/rprocd/m1/control list")?;
        ensure!(list.contains("m1"), "{list}");
        expect(guest, "systemctl is-active rprocd@m1.service", "active")?;
        expect(
            guest,
            "stat -c '%U %G %a' /run/rprocd/m1/vdev0",
            "rprocd rprocd 660",
        )?;
    }
    // The other daemon's sockets are still there.
    guest.run("rprocctl -s /run/rprocd/m0/control list", SHORT)?;
    Ok(())
}

fn the_package_goes(guest: &mut Guest) -> Result<()> {
    let steps = page::steps(PAGE)?;
    let steps = section(&steps, REMOVE)?;
    let [restart, remove, purge] = steps[..] else {
        bail!("the page's last section has {} steps", steps.len());
    };
    follow(guest, [restart, remove])?;
    // Both of them ran.
    expect(
        guest,
        "systemctl is-active rprocd@m0 rprocd@m1 || true",
        "inactive\ninactive",
    )?;
    fails(guest, "ls /run/rprocd", 2)?;
    expect(guest, "ls /etc/rprocd", "m0.toml\nm1.toml\nrprocd.toml")?;
    guest.run("ls /var/lib/rprocd/m0/*.elf", SHORT)?;
    follow(guest, [purge])?;
    // What the operator wrote is the operator's.
    expect(guest, "ls /etc/rprocd", "m1.toml")?;
    expect(guest, "ls /usr/local/lib/rprocd/firmware", "my.elf")?;
    fails(guest, "ls /var/lib/rprocd", 2)?;
    expect(guest, "find /etc/systemd/system -name 'rprocd@*'", "")
}
