//! The guest with the module of `vmm-config/guest`; the firmware announces its channels.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::group::{Group, LONG, Machines, SHORT};

/// Three cores: echo, tty, and the far side of the kernel's client sample.
pub const GROUP: &Group = &Group {
    name: "announced",
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
        announce = true
        [[core]]
        name = "tty"
        engine = "rv32"
        memory-mib = 4
        firmware = "tty.elf"
        [[core.vdev]]
        socket = "tty.sock"
        announce = true
        [[core]]
        name = "sample"
        engine = "rv32"
        memory-mib = 4
        firmware = "client-sample.elf"
        [[core.vdev]]
        socket = "sample.sock"
        announce = true
    "#,
    sockets: &["echo.sock", "tty.sock", "sample.sock"],
    append: "",
    checks: &[
        ("the_guest_lists_what_each_core_announces", lists_devices),
        ("short_and_longest_messages_come_back", sizes),
        ("ten_thousand_messages_of_496_bytes_come_back", many_long),
        ("ten_thousand_messages_of_1_byte_come_back", many_short),
        ("two_hundred_messages_may_be_on_their_way", wide_window),
        ("the_terminal_echoes", terminal),
        ("the_kernels_client_sample_finishes", client_sample),
        ("an_idle_daemon_uses_no_processor_time", idle),
        ("the_daemons_own_memory_is_below_16_mib", memory),
        (
            "unbinding_and_binding_the_driver_ends_in_a_working_channel",
            rebind,
        ),
        (
            "the_guest_module_cannot_be_removed_while_it_is_needed",
            module_stays,
        ),
        (
            "stopping_and_continuing_the_guest_ends_in_a_working_channel",
            stop_and_continue,
        ),
        (
            "unplugging_and_plugging_the_device_ends_in_a_working_channel",
            replug,
        ),
        ("a_reboot_ends_in_a_working_channel", reboot),
    ],
};

const RAW: &str = "/dev/rpmsg0";
const TTY: &str = "/dev/ttyRPMSG0";

fn both_channels(machines: &mut Machines) -> Result<()> {
    machines.list_with(&[RAW, TTY]).map(drop)
}

fn channel_works(machines: &mut Machines) -> Result<()> {
    both_channels(machines)?;
    machines.exchange(RAW, 200, 496)
}

fn lists_devices(machines: &mut Machines) -> Result<()> {
    let wanted = [
        "name=rpmsg-raw ",
        "name=rpmsg-tty ",
        "name=rpmsg-client-sample ",
        RAW,
        TTY,
    ];
    machines.list_with(&wanted).map(drop)
}

fn sizes(machines: &mut Machines) -> Result<()> {
    for size in [0, 1, 2, 15, 16, 17, 255, 256, 495, 496] {
        machines.exchange(RAW, 100, size)?;
    }
    Ok(())
}

fn many_long(machines: &mut Machines) -> Result<()> {
    machines.exchange(RAW, 10_000, 496)
}

fn many_short(machines: &mut Machines) -> Result<()> {
    machines.exchange(RAW, 10_000, 1)
}

fn wide_window(machines: &mut Machines) -> Result<()> {
    let command = format!("rprocd-guest-check exchange {RAW} --count 5000 --size 400 --window 200");
    machines.guest.run(&command, LONG).map(drop)
}

fn terminal(machines: &mut Machines) -> Result<()> {
    machines
        .guest
        .run(&format!("rprocd-guest-check tty {TTY} 'a line'"), SHORT)
        .map(drop)
}

fn client_sample(machines: &mut Machines) -> Result<()> {
    machines
        .guest
        .run("insmod /modules/rpmsg_client_sample.ko", SHORT)?;
    // Its last word, after its hundredth message.
    machines
        .guest
        .wait_for("dmesg | grep rpmsg_client_sample", SHORT, |log| {
            log.contains("goodbye!")
        })?;
    machines
        .guest
        .run("rmmod rpmsg_client_sample", SHORT)
        .map(drop)
}

fn idle(machines: &mut Machines) -> Result<()> {
    // A core may linger a little before it sleeps, and timers end.
    thread::sleep(Duration::from_secs(2));
    let before = machines.daemon.cpu_ticks()?;
    thread::sleep(Duration::from_secs(5));
    let used = machines.daemon.cpu_ticks()? - before;
    ensure!(
        used == 0,
        "rprocd used {used} clock ticks in 5 s in which nothing was to do"
    );
    Ok(())
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

/// The virtio devices that the driver has, as sysfs names them.
fn bound(machines: &mut Machines) -> Result<Vec<String>> {
    let names = machines.guest.run(
        "cd /sys/bus/virtio/drivers/virtio_rpmsg_bus && ls -d virtio*",
        SHORT,
    )?;
    Ok(names.split_whitespace().map(str::to_owned).collect())
}

fn rebind(machines: &mut Machines) -> Result<()> {
    let devices = bound(machines)?;
    ensure!(
        devices.len() == 3,
        "three devices are plugged in, bound are {devices:?}"
    );
    for round in 0..3 {
        for name in &devices {
            machines.guest.run(&driver("unbind", name), SHORT)?;
        }
        machines
            .guest
            .run("test ! -e /dev/rpmsg0 && test ! -e /dev/ttyRPMSG0", SHORT)?;
        for name in &devices {
            machines.guest.run(&driver("bind", name), SHORT)?;
        }
        channel_works(machines).map_err(|error| error.context(format!("round {round}")))?;
    }
    terminal(machines)
}

fn driver(verb: &str, name: &str) -> String {
    format!("echo {name} > /sys/bus/virtio/drivers/virtio_rpmsg_bus/{verb}")
}

/// And once no device needs it, it goes, leaves nothing behind, and can come back.
fn module_stays(machines: &mut Machines) -> Result<()> {
    let refused = machines.guest.ask("rmmod virtio_rpmsg_defer", SHORT)?;
    ensure!(refused.exit != 0, "rmmod removed a module that is in use");
    let devices = bound(machines)?;
    for name in &devices {
        machines.guest.run(&driver("unbind", name), SHORT)?;
    }
    machines.guest.run("rmmod virtio_rpmsg_defer", SHORT)?;
    machines
        .guest
        .run("insmod /modules/virtio_rpmsg_defer.ko", SHORT)?;
    for name in &devices {
        machines.guest.run(&driver("bind", name), SHORT)?;
    }
    channel_works(machines)
}

fn stop_and_continue(machines: &mut Machines) -> Result<()> {
    machines.guest.pause()?;
    thread::sleep(Duration::from_millis(500));
    machines.guest.resume()?;
    channel_works(machines)?;

    // In the middle of an exchange, too: nothing may be lost.
    let log = "/tmp/exchange.log";
    machines.guest.run(
        &format!("(rprocd-guest-check exchange {RAW} --count 20000 --size 100 >{log} 2>&1; echo over >>{log}) >/dev/null 2>&1 &"),
        SHORT,
    )?;
    for _ in 0..5 {
        machines.guest.pause()?;
        thread::sleep(Duration::from_millis(50));
        machines.guest.resume()?;
        thread::sleep(Duration::from_millis(100));
    }
    let said = machines
        .guest
        .wait_for(&format!("cat {log}"), LONG, |log| log.contains("over"))?;
    ensure!(
        said.contains("exchanged 20000 messages, 0 wrong"),
        "the exchange says\n{said}"
    );
    Ok(())
}

fn replug(machines: &mut Machines) -> Result<()> {
    let echo = machines.vdevs[0].clone();
    for _ in 0..2 {
        machines.guest.unplug(&echo)?;
        machines
            .guest
            .wait_for("ls /dev", SHORT, |nodes| !nodes.contains("rpmsg0"))?;
        machines.guest.plug(&echo)?;
        channel_works(machines)?;
    }
    Ok(())
}

fn reboot(machines: &mut Machines) -> Result<()> {
    crate::group::clean_kernel_log(machines)?;
    machines.guest.reboot()?;
    channel_works(machines)?;
    terminal(machines)
}
