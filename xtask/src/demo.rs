//! `cargo xtask demo`: the main job, shown.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::kit::{self, Kit};
use crate::limit::{self, minutes};
use crate::tools::{self, Need};
use crate::vm::{Daemon, Vdev};
use crate::{cargo, firmware, guest};

const MESSAGES: u64 = 10_000;
const SIZES: [usize; 2] = [496, 1];
/// Emulated on a busy machine.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(900);
const SHORT: Duration = Duration::from_secs(180);

/// `cargo xtask demo`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Then stay in the guest, in a shell, with the cores running
    #[arg(long)]
    shell: bool,
}

/// Sets all up, runs the guest, and checks what it says.
pub fn run(options: &Options) -> Result<()> {
    if options.shell {
        guest::need_terminal()?;
    }
    let mut needs = kit::needs();
    needs.push(Need::Target(firmware::TARGET));
    limit::within("getting tools", minutes(60), || {
        tools::prepare(&[("the demo", needs)])
    })?;
    let (kit, _) = limit::within("making the VM kit", minutes(60), || {
        kit::prepare(&kit::Options::default())
    })?;
    let images = limit::within("building the firmware images", minutes(30), firmware::build)?;
    let programs = limit::within("building rprocd", minutes(60), || {
        guest::build_programs("demo")
    })?;

    let path = cargo::root().join("vmm-config/demo/rprocd.toml");
    let config =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    println!("demo: starting rprocd with {}", path.display());
    let daemon = Daemon::start(&programs.join("rprocd"), &config, &images)?;
    let vdevs = vec![
        Vdev::new(&daemon.path("echo.sock"), 0),
        Vdev::new(&daemon.path("tty.sock"), 1),
    ];
    let exchange = || with_guest(options, &kit, &daemon, &programs, vdevs);
    let exchanged = if options.shell {
        // It takes as long as a person likes.
        exchange()
    } else {
        limit::within("the guest", minutes(60), exchange)
    };
    let exchanged = exchanged.map_err(|error| anyhow!("{error:#}{}", daemon.evidence()))?;
    daemon.stop()?;
    println!("demo: guest exchanged {exchanged} messages, 0 wrong");
    Ok(())
}

fn with_guest(
    options: &Options,
    kit: &Kit,
    daemon: &Daemon,
    programs: &Path,
    vdevs: Vec<Vdev>,
) -> Result<u64> {
    let mut guest = guest::boot("demo", kit, vdevs, options.shell)?;
    // Both channels are announced some time after the driver is up.
    guest.wait_for("rprocd-guest-check list", SHORT, |list| {
        list.contains("/dev/rpmsg0") && list.contains("/dev/ttyRPMSG0")
    })?;
    guest.run_shown("rprocd-guest-check list", SHORT)?;
    let mut exchanged = 0;
    for size in SIZES {
        let command =
            format!("rprocd-guest-check exchange /dev/rpmsg0 --count {MESSAGES} --size {size}");
        let output = guest.run_shown(&command, EXCHANGE_LIMIT)?;
        let expected = format!("exchanged {MESSAGES} messages, 0 wrong");
        ensure!(
            output.trim_end().ends_with(&expected),
            "the guest says\n{output}"
        );
        exchanged += MESSAGES;
    }
    guest.run_shown(
        "rprocd-guest-check tty /dev/ttyRPMSG0 'hello from the guest'",
        SHORT,
    )?;

    println!("demo: the trace that core `echo` wrote:");
    cargo::show(
        Command::new(programs.join("rprocctl"))
            .arg("--socket")
            .arg(daemon.path("control.sock"))
            .args(["trace", "echo"]),
    )?;
    if options.shell {
        guest.run("touch /tmp/shell", SHORT)?;
        guest.wait()?;
        println!();
    } else {
        guest.power_off()?;
    }
    Ok(exchanged)
}
