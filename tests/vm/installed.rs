//! The package, installed on a Debian that runs, with systemd as its PID 1.
//!
//! What belongs here: what only the real systemd and the real dpkg can show about the units and the
//! package. What does not: what the daemon tells whoever started it (`tests/packaging.rs`).
//!
//! The checks share a guest and build on each other, in the order in which they are written. The
//! guest's cores have no guests of their own.

use std::ffi::OsString;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use xtask::kit::{INSTALLED_VARIABLE, Kit};
use xtask::vm::{Guest, GuestOptions};

use super::group::{Environment, LONG, SHORT, trial};

/// systemd, and twice its initramfs.
const MEMORY_MIB: u32 = 1024;

type Check = fn(&mut Guest) -> Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("the_package_installs", the_package_installs),
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
        "the_package_goes_and_takes_the_daemon_with_it",
        the_package_goes,
    ),
];

/// The checks; none if no such guest is there.
pub fn trials(environment: &Arc<Environment>) -> Vec<Trial> {
    let Some(initramfs) = std::env::var_os(INSTALLED_VARIABLE) else {
        return Vec::new();
    };
    let state = Arc::new(Mutex::new(State::New(initramfs)));
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
    New(OsString),
    Running(Box<Guest>),
    Broken,
}

fn run(state: &mut State, environment: &Environment, check: Check) -> Result<()> {
    let mut guest = match std::mem::replace(state, State::Broken) {
        State::New(initramfs) => {
            let kit = Kit {
                initramfs: initramfs.into(),
                ..environment.kit()?.clone()
            };
            let options = GuestOptions {
                memory_mib: Some(MEMORY_MIB),
                ..GuestOptions::default()
            };
            Box::new(Guest::boot(&kit, &options)?)
        }
        State::Running(guest) => guest,
        State::Broken => anyhow::bail!("the guest was lost in an earlier check"),
    };
    if let Err(error) = check(&mut guest) {
        let journal = guest.ask("journalctl --no-pager -n 60", SHORT);
        let journal = journal.map_or_else(|error| format!("{error:#}"), |answer| answer.output);
        return Err(error.context(format!("the guest's journal ends with\n{journal}")));
    }
    *state = State::Running(guest);
    Ok(())
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
    guest.wait_for("systemctl show -P NRestarts rprocd", SHORT, |text| {
        text.trim() == "1"
    })?;
    guest.wait_for("systemctl is-active rprocd", SHORT, |text| {
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
    // Whether the system has all that the package depends on is not asked of a database that was
    // not made by dpkg; that it runs shows it.
    guest.run("dpkg --force-depends --install /root/rprocd.deb", LONG)?;
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
    expect(
        guest,
        "systemctl is-enabled rprocd.service || true",
        "disabled",
    )?;
    guest.run(
        "mkdir -p /usr/lib/rprocd/firmware && cp /root/echo.elf /root/chaos.elf \
         /usr/lib/rprocd/firmware",
        SHORT,
    )?;
    guest.run(
        "rprocd --config /etc/rprocd/rprocd.toml --check-config",
        SHORT,
    )?;
    Ok(())
}

fn the_service_is_ready(guest: &mut Guest) -> Result<()> {
    guest.run("systemctl enable --now rprocd", SHORT)?;
    // No waiting: it has said so.
    let list = says(guest, "rprocctl list")?;
    ensure!(list.contains("m0"), "{list}");
    expect(
        guest,
        "stat -c '%U %G' /proc/$(systemctl show -P MainPID rprocd)",
        "rprocd rprocd",
    )?;
    expect(
        guest,
        "stat -c '%U %G %a' /run/rprocd/control /run/rprocd/monitor",
        "rprocd rprocd 660\nrprocd rprocd 666",
    )?;
    let status = says(guest, "systemctl show -P StatusText rprocd")?;
    ensure!(status.contains("1 core"), "{status}");
    Ok(())
}

fn a_core_boots_dies_and_is_dumped(guest: &mut Guest) -> Result<()> {
    guest.run("rprocctl crash m0", SHORT)?;
    guest.wait_for("rprocctl list", SHORT, |list| list.contains("running"))?;
    guest.wait_for("rprocctl --json coredump list m0", SHORT, |list| {
        list.contains(".elf")
    })?;
    expect(
        guest,
        "stat -c '%U %G %a' /var/lib/rprocd/coredumps/*.elf",
        "rprocd rprocd 600",
    )?;
    guest.run("rprocctl coredump get m0 -o /tmp/core.elf", SHORT)?;
    // The journal has it as a warning or worse, once.
    expect(
        guest,
        "journalctl -u rprocd -p warning -o cat | grep -c 'm0: crash #1' || true",
        "1",
    )
}

fn who_is_in_the_group_operates(guest: &mut Guest) -> Result<()> {
    let stranger = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let member = "setpriv --reuid=1000 --regid=1000 --groups=$(stat -c %g /run/rprocd/control)";
    guest.run(
        &format!("{stranger} rprocctl -s /run/rprocd/monitor list"),
        SHORT,
    )?;
    fails(guest, &format!("{stranger} rprocctl list"), 6)?;
    fails(
        guest,
        &format!("{stranger} rprocctl -s /run/rprocd/monitor stop m0"),
        6,
    )?;
    guest.run(&format!("{member} rprocctl restart m0"), SHORT)?;
    let log = says(guest, "journalctl -u rprocd -o cat | grep 'uid 1000'")?;
    ensure!(log.contains("m0"), "{log}");
    Ok(())
}

fn a_killed_daemon_comes_back(guest: &mut Guest) -> Result<()> {
    let before = coredumps(guest)?;
    guest.run(
        "systemctl kill --kill-whom=main --signal=KILL rprocd",
        SHORT,
    )?;
    is_started_again(guest)?;
    let after = coredumps(guest)?;
    ensure!(after == before + 1, "{before} coredumps, and then {after}");
    Ok(())
}

fn a_daemon_that_hangs_comes_back(guest: &mut Guest) -> Result<()> {
    guest.run(
        "mkdir -p /run/systemd/system/rprocd.service.d && printf '[Service]\\nWatchdogSec=2\\n' \
         > /run/systemd/system/rprocd.service.d/watchdog.conf && systemctl daemon-reload && \
         systemctl restart rprocd",
        SHORT,
    )?;
    // It pings while its core runs.
    guest.run("sleep 5", SHORT)?;
    expect(guest, "systemctl show -P NRestarts rprocd", "0")?;
    guest.run(
        "systemctl kill --kill-whom=main --signal=STOP rprocd",
        SHORT,
    )?;
    is_started_again(guest)?;
    let log = says(
        guest,
        "journalctl -u rprocd -o cat | grep -i 'watchdog timeout'",
    )?;
    ensure!(!log.is_empty());
    Ok(())
}

fn whoever_connects_starts_the_daemon(guest: &mut Guest) -> Result<()> {
    guest.run(
        "sed -e 's,\"m0\",\"m1\",' -e 's,/run/rprocd/control,/run/rprocd/m1/control,' \
         -e 's,/run/rprocd/m0-vdev0,/run/rprocd/m1/vdev0,' -e '/^monitor/d' \
         -e 's,/var/lib/rprocd/coredumps,/var/lib/rprocd/m1,' \
         /etc/rprocd/rprocd.toml > /etc/rprocd/m1.toml && systemctl enable --now rprocd@m1.socket",
        SHORT,
    )?;
    for _ in 0..2 {
        expect(
            guest,
            "systemctl is-active rprocd@m1.service || true",
            "inactive",
        )?;
        let list = says(guest, "rprocctl -s /run/rprocd/m1/control list")?;
        ensure!(list.contains("m1"), "{list}");
        expect(guest, "systemctl is-active rprocd@m1.service", "active")?;
        expect(
            guest,
            "stat -c '%U %G %a' /run/rprocd/m1/vdev0",
            "rprocd rprocd 660",
        )?;
        guest.run("systemctl stop rprocd@m1.service", SHORT)?;
        expect(
            guest,
            "systemctl show -P Result rprocd@m1.service",
            "success",
        )?;
    }
    // The other daemon's sockets are still there.
    guest.run("rprocctl list", SHORT)?;
    guest.run("systemctl start rprocd@m1.service", SHORT)?;
    Ok(())
}

fn the_package_goes(guest: &mut Guest) -> Result<()> {
    // Both of them run.
    guest.run("dpkg --remove rprocd", LONG)?;
    expect(
        guest,
        "systemctl is-active rprocd rprocd@m1 || true",
        "inactive\ninactive",
    )?;
    fails(guest, "ls /run/rprocd", 2)?;
    expect(guest, "ls /etc/rprocd", "m1.toml\nrprocd.toml")?;
    guest.run("dpkg --purge rprocd", LONG)?;
    // What the operator wrote is the operator's.
    expect(guest, "ls /etc/rprocd", "m1.toml")?;
    Ok(())
}
