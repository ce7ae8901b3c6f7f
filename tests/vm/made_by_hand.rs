//! A stock kernel and the stock driver alone: no announcements, the guest makes the channel.

use anyhow::{Result, ensure};

use crate::group::{Group, Machines, SHORT};

/// One core that may not announce.
pub const GROUP: &Group = &Group {
    name: "made_by_hand",
    config: r#"
        firmware-directory = "firmware"
        [control]
        socket = "control.sock"
        [[core]]
        name = "echo"
        engine = "rv32"
        memory-mib = 4
        firmware = "echo.elf"
        [[core.vdev]]
        socket = "echo.sock"
        announce = false
    "#,
    sockets: &["echo.sock"],
    append: "rprocd.defer=0",
    checks: &[
        ("nothing_is_announced", nothing_announced),
        ("a_channel_made_by_the_guest_works", channel_by_hand),
        ("the_daemons_own_memory_is_below_16_mib", memory),
    ],
};

/// Where the echo firmware listens.
const ENDPOINT: u32 = 1024;

fn nothing_announced(machines: &mut Machines) -> Result<()> {
    machines
        .guest
        .run("test ! -e /sys/module/virtio_rpmsg_defer", SHORT)?;
    let list = machines.list_with(&["/dev/rpmsg_ctrl0"])?;
    ensure!(
        !list.contains("name=rpmsg-raw"),
        "a channel came by itself:\n{list}"
    );
    ensure!(
        !list.contains("rpmsg_ns"),
        "the name service was offered:\n{list}"
    );
    Ok(())
}

fn channel_by_hand(machines: &mut Machines) -> Result<()> {
    machines.guest.run(
        &format!("rprocd-guest-check create-channel /dev/rpmsg_ctrl0 rpmsg-raw {ENDPOINT}"),
        SHORT,
    )?;
    machines.list_with(&["/dev/rpmsg0"])?;
    machines.exchange("/dev/rpmsg0", 2_000, 496)?;
    machines.exchange("/dev/rpmsg0", 2_000, 1)
}

fn memory(machines: &mut Machines) -> Result<()> {
    let bytes = machines.daemon.own_memory()?;
    ensure!(
        bytes < 16 << 20,
        "rprocd has {} KiB of its own",
        bytes / 1024
    );
    Ok(())
}
