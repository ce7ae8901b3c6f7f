//! What a VMM is told, so that it attaches to the vdevs of a core.
//!
//! What belongs here: the options of each VMM, and what it cannot do. What does not: where the
//! figures come from.
//!
//! A wrong figure is not always refused: QEMU aborts when a guest's driver starts with a larger
//! queue than the daemon takes, and refuses to start with more queues. So all of them are said.

use rprocd::rproc::{CoreStatus, VdevStatus};

use crate::arguments::Vmm;
use crate::failure::{FAILED, Failure};

/// Descriptors of a guest's queue. Linux's rpmsg driver posts at most 256 buffers, whatever a queue
/// takes, so more would be of no use.
const QUEUE_SIZE: u16 = 256;
/// Configuration space that QEMU's device can have.
const QEMU_MAX_CONFIG: usize = 256;

/// The virtio devices that crosvm attaches over vhost-user, by id.
const CROSVM_TYPES: [(u32, &str); 14] = [
    (1, "net"),
    (2, "block"),
    (3, "console"),
    (4, "rng"),
    (5, "balloon"),
    (8, "scsi"),
    (9, "9p"),
    (16, "gpu"),
    (18, "input"),
    (19, "vsock"),
    (25, "sound"),
    (26, "fs"),
    (32, "scmi"),
    (48, "media"),
];

/// The arguments for all vdevs of a core, each a word.
pub fn arguments(vmm: Vmm, core: &CoreStatus, memory: u64) -> Result<Vec<String>, Failure> {
    if core.vdevs.is_empty() {
        return Err(Failure::new(
            FAILED,
            format!(
                "core {} has no vdevs, so there is nothing to attach",
                core.name
            ),
        ));
    }
    let memory = size(memory);
    let mut words = match vmm {
        Vmm::Qemu => vec![
            "-object".to_owned(),
            format!("memory-backend-memfd,id=guest-memory,size={memory},share=on"),
            "-machine".to_owned(),
            "q35,memory-backend=guest-memory".to_owned(),
            "-m".to_owned(),
            memory,
        ],
        Vmm::CloudHypervisor => vec!["--memory".to_owned(), format!("size={memory},shared=on")],
        Vmm::Crosvm => Vec::new(),
    };
    for (index, vdev) in core.vdevs.iter().enumerate() {
        let id = id(&core.name, index);
        let socket = vdev.socket.as_ref().ok_or_else(|| {
            Failure::new(
                FAILED,
                format!("nothing listens for vdev {index} of core {}", core.name),
            )
        })?;
        words.extend(match vmm {
            Vmm::Qemu => qemu(&id, socket, vdev)?,
            Vmm::CloudHypervisor => cloud_hypervisor(&id, socket, vdev)?,
            Vmm::Crosvm => crosvm(&id, socket, vdev)?,
        });
    }
    Ok(words)
}

/// A size as every VMM reads it: whole GiB or MiB.
fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes.is_multiple_of(1 << 30) => format!("{}G", bytes >> 30),
        _ => format!("{}M", bytes >> 20),
    }
}

/// What a vdev is called in a VMM. QEMU's ids begin with a letter, and a core's name need not.
fn id(core: &str, vdev: usize) -> String {
    let prefix = if core.starts_with(|c: char| c.is_ascii_alphabetic()) {
        ""
    } else {
        "core-"
    };
    format!("{prefix}{core}-vdev{vdev}")
}

fn qemu(id: &str, socket: &str, vdev: &VdevStatus) -> Result<Vec<String>, Failure> {
    if vdev.config_bytes > QEMU_MAX_CONFIG {
        return Err(Failure::new(
            FAILED,
            format!(
                "{id} has {} bytes of configuration space, and QEMU's device takes at most \
                 {QEMU_MAX_CONFIG}",
                vdev.config_bytes
            ),
        ));
    }
    let config = match vdev.config_bytes {
        0 => String::new(),
        bytes => format!(",config_size={bytes}"),
    };
    // QEMU splits option values at commas; a doubled one is itself.
    let path = socket.replace(',', ",,");
    Ok(vec![
        "-chardev".to_owned(),
        format!("socket,id={id}-socket,path={path}"),
        "-device".to_owned(),
        format!(
            "vhost-user-test-device-pci,id={id},chardev={id}-socket,virtio-id={},num_vqs={},\
             vq_size={QUEUE_SIZE}{config}",
            vdev.device_id,
            vdev.vrings.len()
        ),
    ])
}

fn cloud_hypervisor(id: &str, socket: &str, vdev: &VdevStatus) -> Result<Vec<String>, Failure> {
    plain(id, socket)?;
    let sizes = vec![QUEUE_SIZE.to_string(); vdev.vrings.len()].join(",");
    Ok(vec![
        "--generic-vhost-user".to_owned(),
        format!(
            "id={id},socket={socket},device_type={},queue_sizes=[{sizes}]",
            vdev.device_id
        ),
    ])
}

fn crosvm(id: &str, socket: &str, vdev: &VdevStatus) -> Result<Vec<String>, Failure> {
    plain(id, socket)?;
    let device = vdev.device_id;
    let Some((_, kind)) = CROSVM_TYPES.iter().find(|(known, _)| *known == device) else {
        let known: Vec<_> = CROSVM_TYPES
            .iter()
            .map(|(id, kind)| format!("{id} ({kind})"))
            .collect();
        return Err(Failure::new(
            FAILED,
            format!(
                "{id} is virtio device {device}, and crosvm has no type for it: over vhost-user it \
                 attaches {}; use QEMU or cloud-hypervisor",
                known.join(", ")
            ),
        ));
    };
    Ok(vec![
        "--vhost-user".to_owned(),
        format!("type={kind},socket={socket},max-queue-size={QUEUE_SIZE}"),
    ])
}

/// Those that split option values at commas and cannot have one inside.
fn plain(id: &str, socket: &str) -> Result<(), Failure> {
    if socket.contains([',', '[', ']', '"']) {
        return Err(Failure::new(
            FAILED,
            format!(
                "the socket of {id} is {socket}, and this VMM cannot be told a path with a comma, a \
                 bracket or a quote; choose another in rprocd's configuration"
            ),
        ));
    }
    Ok(())
}

/// Words for a shell, an option and its value in each line.
pub fn for_a_shell(words: &[String]) -> String {
    let lines: Vec<_> = words
        .chunks(2)
        .map(|pair| {
            let words: Vec<_> = pair.iter().map(|word| quoted(word)).collect();
            words.join(" ")
        })
        .collect();
    lines.join(" \\\n") + "\n"
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:@+".contains(c);
    if word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_units_and_ids_begin_with_a_letter() {
        assert_eq!(
            [1 << 30, 3 << 29, 512 << 20].map(size),
            ["1G", "1536M", "512M"]
        );
        assert_eq!(id("m0", 1), "m0-vdev1");
        assert_eq!([id("0", 0), id("_x", 0)], ["core-0-vdev0", "core-_x-vdev0"]);
    }

    #[test]
    fn what_a_shell_would_take_apart_is_quoted() {
        let words = ["--a", "size=1G", "-b", "x[1,2]", "-c", "it's"].map(str::to_owned);
        assert_eq!(
            for_a_shell(&words),
            "--a size=1G \\\n-b 'x[1,2]' \\\n-c 'it'\\''s'\n"
        );
    }
}
