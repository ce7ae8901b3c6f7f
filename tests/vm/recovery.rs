//! Firmware that dies and comes back, under stock drivers.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use rprocd::rproc::CoreStatus;

use crate::group::{Group, LONG, Machines, SHORT};

/// `chaos`, started again at once however often it dies, and a terminal that an operator stops.
pub const GROUP: &Group = &Group {
    name: "recovery",
    config: r#"
        firmware-directory = "firmware"
        [control]
        socket = "control.sock"
        [[core]]
        name = "chaos"
        engine = "rv32"
        memory-mib = 4
        firmware = "chaos.elf"
        [core.recovery]
        minimum-run-time-ms = 0
        hold-after = 0
        [[core.vdev]]
        socket = "chaos.sock"
        [[core]]
        name = "tty"
        engine = "rv32"
        memory-mib = 4
        firmware = "tty.elf"
        [[core.vdev]]
        socket = "tty.sock"
    "#,
    sockets: &["chaos.sock", "tty.sock"],
    append: "",
    checks: &[
        (
            "after_each_of_fifty_deaths_the_channel_comes_back_and_every_message_is_accounted_for",
            fifty_deaths,
        ),
        (
            "the_terminal_goes_with_its_core_and_comes_back_with_it",
            terminal,
        ),
    ],
};

const TTY: &str = "/dev/ttyRPMSG0";

fn operator(machines: &Machines, words: &[&str]) -> Result<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_rprocctl"))
        .arg("--socket")
        .arg(machines.daemon.path("control.sock"))
        .args(words)
        .output()
        .context("rprocctl")?;
    ensure!(
        output.status.success(),
        "rprocctl {words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).context("rprocctl's output")
}

fn status(machines: &Machines, core: &str) -> Result<CoreStatus> {
    #[derive(Deserialize)]
    struct Answer {
        cores: Vec<CoreStatus>,
    }
    let text = operator(machines, &["status", "--json"])?;
    let Answer { cores } = serde_json::from_str(&text).context("rprocctl's JSON")?;
    let found = cores.into_iter().find(|found| found.name == core);
    found.with_context(|| format!("no core {core} in {text}"))
}

fn fifty_deaths(machines: &mut Machines) -> Result<()> {
    let said = machines.guest.run("rprocd-guest-check survive 50", LONG)?;
    let core = status(machines, "chaos")?;
    ensure!(core.crashes == 50 && core.state == "running", "{core:?}");
    let figure = |before: &str| -> Result<u64> {
        let (_, rest) = said.rsplit_once(before).context("no figures")?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().context("no number")
    };
    let (sent, answered) = (figure("sent ")?, figure("answered ")?);
    let vdev = &core.vdevs[0];
    let lost = vdev.to_core.lost + vdev.to_guest.lost;
    // Each incarnation announced its channel, and each but the last had it withdrawn.
    let delivered = vdev.to_guest.messages - 51 - 50;
    ensure!(
        sent == delivered + lost,
        "{sent} were sent, {delivered} answers delivered, {lost} counted as lost\n{said}\n{core:?}"
    );
    // Linux's character device throws away what is not read yet when its channel goes.
    ensure!(answered <= delivered, "{said}\n{core:?}");
    Ok(())
}

fn terminal(machines: &mut Machines) -> Result<()> {
    let echo = format!("rprocd-guest-check tty {TTY} 'a line'");
    machines.guest.run(&echo, SHORT)?;
    for _ in 0..3 {
        operator(machines, &["stop", "tty"])?;
        machines
            .guest
            .wait_for("ls /dev", SHORT, |nodes| !nodes.contains("ttyRPMSG0"))?;
        operator(machines, &["start", "tty"])?;
        machines
            .guest
            .wait_for("ls /dev", SHORT, |nodes| nodes.contains("ttyRPMSG0"))?;
        machines.guest.run(&echo, SHORT)?;
    }
    Ok(())
}
