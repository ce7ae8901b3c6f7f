//! Firmware that dies and comes back, under stock drivers.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use rprocd::rproc::CoreStatus;

use crate::group::{Group, LONG, Machines, SHORT};

/// Two cores with `chaos`, of which one at a time runs, so that all channels in the guest are its
/// own. `eager` is started again at once however often it dies; `mortal` stays dead.
pub const GROUP: &Group = &Group {
    name: "recovery",
    config: r#"
        firmware-directory = "firmware"
        [control]
        socket = "control.sock"
        [[core]]
        name = "eager"
        engine = "rv32"
        memory-mib = 4
        firmware = "chaos.elf"
        [core.recovery]
        minimum-run-time-ms = 0
        hold-after = 0
        [[core.vdev]]
        socket = "eager.sock"
        [[core]]
        name = "mortal"
        engine = "rv32"
        memory-mib = 4
        firmware = "chaos.elf"
        auto-boot = false
        [core.recovery]
        enabled = false
        [[core.vdev]]
        socket = "mortal.sock"
    "#,
    sockets: &["eager.sock", "mortal.sock"],
    // The client sample tells the log of every greeting.
    append: "log_buf_len=16M",
    checks: &[
        (
            "after_each_of_fifty_deaths_three_drivers_channels_come_back_and_every_message_is_accounted_for",
            fifty_deaths,
        ),
        (
            "the_terminal_goes_with_its_core_and_comes_back_with_it",
            terminal,
        ),
        (
            "without_recovery_the_channels_go_and_stay_away_until_a_start",
            without_recovery,
        ),
    ],
};

/// What `chaos` announces.
const CHANNELS: [&str; 3] = ["rpmsg-raw", "rpmsg-tty", "rpmsg-client-sample"];
/// So many looks, a tenth of a second of the guest's time apart, must find nothing.
const AWAY: u32 = 30;

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
    let core = status(machines, "eager")?;
    ensure!(core.crashes == 50 && core.state == "running", "{core:?}");
    let figure = |before: &str| -> Result<u64> {
        let (_, rest) = said.rsplit_once(before).context("no figures")?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().context("no number")
    };
    let (sent, answered) = (figure("sent ")?, figure("answered ")?);
    let vdev = &core.vdevs[0];
    let lost = vdev.to_core.lost + vdev.to_guest.lost;
    // Each incarnation announced its channels, and each but the last had them withdrawn.
    let delivered = vdev.to_guest.messages - CHANNELS.len() as u64 * (51 + 50);
    ensure!(
        sent == delivered + lost,
        "{sent} were sent, {delivered} answers delivered, {lost} counted as lost\n{said}\n{core:?}"
    );
    // Linux's character device throws away what is not read yet when its channel goes, and so does
    // its terminal.
    ensure!(answered <= delivered, "{said}\n{core:?}");
    Ok(())
}

fn terminal(machines: &mut Machines) -> Result<()> {
    all_there(machines)?;
    for _ in 0..3 {
        operator(machines, &["stop", "eager"])?;
        all_away(machines)?;
        operator(machines, &["start", "eager"])?;
        let node = all_there(machines)?;
        machines
            .guest
            .run(&format!("rprocd-guest-check tty {node} 'a line'"), SHORT)?;
    }
    Ok(())
}

fn without_recovery(machines: &mut Machines) -> Result<()> {
    operator(machines, &["stop", "eager"])?;
    all_away(machines)?;
    for (incarnation, death) in (1..).zip(["illegal", "hang"]) {
        operator(machines, &["start", "mortal"])?;
        all_there(machines)?;
        machines
            .guest
            .run(&format!("rprocd-guest-check die {death}"), LONG)?;
        all_away(machines)?;
        let looks = format!(
            "for look in $(seq {AWAY}); do sleep 0.1; rprocd-guest-check list; ls /dev; done"
        );
        let seen = machines.guest.run(&looks, SHORT)?;
        ensure!(
            CHANNELS.iter().all(|name| !seen.contains(name)) && !seen.contains("ttyRPMSG"),
            "it did not stay away:\n{seen}"
        );
        all_away(machines)?;
        let core = status(machines, "mortal")?;
        ensure!(
            core.state == "crashed" && core.crashes == incarnation,
            "{core:?}"
        );
    }
    operator(machines, &["start", "mortal"])?;
    all_there(machines)?;
    // With no death at all it sees that all three answer.
    machines.guest.run("rprocd-guest-check survive 0", LONG)?;
    operator(machines, &["stop", "mortal"])?;
    all_away(machines)?;
    operator(machines, &["start", "eager"])?;
    all_there(machines).map(drop)
}

/// Waits until the three channels are there, with the device nodes of those that have some. The
/// terminal's node: its number is another one if the last was still open when it came.
fn all_there(machines: &mut Machines) -> Result<String> {
    let complete = |list: &str| {
        CHANNELS.iter().all(|name| node_of(list, name).is_some())
            && node_of(list, "rpmsg-raw") != Some("none")
            && node_of(list, "rpmsg-tty") != Some("none")
    };
    let list = machines
        .guest
        .wait_for("rprocd-guest-check list", SHORT, complete)?;
    let node = node_of(&list, "rpmsg-tty").context("the terminal has gone")?;
    Ok(node.to_owned())
}

/// The node that the list gives for the channel called `name`, if the channel is there.
fn node_of<'a>(list: &'a str, name: &str) -> Option<&'a str> {
    let name = format!("name={name}");
    let mut lines = list.lines();
    let line = lines.find(|line| line.split(' ').any(|word| word == name))?;
    line.split(' ').find_map(|word| word.strip_prefix("node="))
}

/// Waits until there is no channel of `chaos` any more and no device node of one.
fn all_away(machines: &mut Machines) -> Result<()> {
    let gone = |list: &str| CHANNELS.iter().all(|name| node_of(list, name).is_none());
    machines
        .guest
        .wait_for("rprocd-guest-check list", SHORT, gone)?;
    machines
        .guest
        .run("! ls /dev | grep -E '^(rpmsg|ttyRPMSG)[0-9]'", SHORT)
        .map(drop)
}
