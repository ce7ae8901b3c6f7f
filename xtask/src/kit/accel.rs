//! KVM or emulation. The node /dev/kvm may be there and still not boot a kernel, so a kernel is
//! booted.

use std::fs::{self, OpenOptions};
use std::time::Duration;

use anyhow::Result;

use super::cache::Cache;
use super::{Kit, write_atomically};
use crate::vm::{self, Guest, GuestOptions};

/// KVM needs a second. Without an answer by then it hangs.
const PROBE_LIMIT: Duration = Duration::from_secs(60);
/// What our init writes in a probe.
const REACHED: &str = "rprocd-guest: userspace reached";

/// `kvm` if it boots the kit's kernel, else `tcg`. Remembered for this boot of the machine.
pub fn choose(cache: &Cache, kit: &Kit) -> Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let file = cache.root().join("accel");
    let node = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    // The node too: another user's cache may have been copied.
    let key = format!(
        "{} {} {} {}",
        boot.trim(),
        kit.qemu_version,
        kit.kernel_version,
        if node.is_ok() { "node" } else { "no node" }
    );
    let known = fs::read_to_string(&file).unwrap_or_default();
    if let Some((known_key, accel)) = known.rsplit_once('\n')
        && known_key == key
    {
        return Ok(accel.to_owned());
    }
    let accel = if let Err(error) = node {
        println!("kit: /dev/kvm cannot be opened ({error}), the guest will be emulated");
        "tcg"
    } else {
        println!("kit: trying KVM");
        match probe(kit) {
            Ok(true) => "kvm",
            Ok(false) => {
                println!("kit: KVM does not boot a kernel here, the guest will be emulated");
                "tcg"
            }
            Err(error) => {
                println!("kit: KVM does not work ({error:#}), the guest will be emulated");
                "tcg"
            }
        }
    };
    write_atomically(&file, format!("{key}\n{accel}").as_bytes())?;
    Ok(accel.to_owned())
}

fn probe(kit: &Kit) -> Result<bool> {
    let kit = Kit {
        accel: "kvm".to_owned(),
        ..kit.clone()
    };
    let options = GuestOptions {
        append: "rprocd.mode=probe panic=-1".to_owned(),
        ..Default::default()
    };
    let mut guest = Guest::start(&kit, &options)?;
    Ok(vm::wait_until(PROBE_LIMIT, || {
        if guest.console().contains(REACHED) {
            return Some(true);
        }
        // It gave up by itself.
        guest.has_exited().then_some(false)
    })
    .unwrap_or(false))
}
