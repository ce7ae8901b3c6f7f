//! Channels and endpoints made by hand, through `/dev/rpmsg_ctrlN`.

use std::fs::OpenOptions;

use anyhow::{Context, Result, ensure};

use self::ioctl::EndpointInfo;

/// Longest name with its closing zero, in bytes.
const NAME_SIZE: usize = 32;

pub fn create_channel(control: &str, name: &str, dst: u32) -> Result<bool> {
    request::<{ ioctl::CREATE_DEV }>(control, name, u32::MAX, dst)?;
    println!("created channel {name} to {dst:#x}");
    Ok(true)
}

pub fn release_channel(control: &str, name: &str, dst: u32) -> Result<bool> {
    request::<{ ioctl::RELEASE_DEV }>(control, name, u32::MAX, dst)?;
    println!("released channel {name} to {dst:#x}");
    Ok(true)
}

pub fn create_endpoint(control: &str, name: &str, src: u32, dst: u32) -> Result<bool> {
    request::<{ ioctl::CREATE_EPT }>(control, name, src, dst)?;
    println!("created endpoint {name} from {src:#x} to {dst:#x}");
    Ok(true)
}

fn request<const OPCODE: u32>(control: &str, name: &str, src: u32, dst: u32) -> Result<()> {
    ensure!(
        name.len() < NAME_SIZE,
        "`{name}`: a name has at most {} bytes",
        NAME_SIZE - 1
    );
    let mut info = EndpointInfo {
        name: [0; NAME_SIZE],
        src,
        dst,
    };
    info.name[..name.len()].copy_from_slice(name.as_bytes());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(control)
        .with_context(|| format!("cannot open {control}"))?;
    ioctl::call::<OPCODE>(&file, info)
        .with_context(|| format!("{control} refused `{name}`, src {src:#x}, dst {dst:#x}"))
}

mod ioctl {
    //! The one place with a system call that the compiler cannot check.
    #![expect(unsafe_code, reason = "ioctl has no safe form")]

    use std::os::fd::AsFd;

    use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

    /// `struct rpmsg_endpoint_info` of Linux's `uapi/linux/rpmsg.h`.
    #[repr(C)]
    pub struct EndpointInfo {
        pub name: [u8; super::NAME_SIZE],
        pub src: u32,
        pub dst: u32,
    }

    const GROUP: u8 = 0xb5;
    pub const CREATE_EPT: Opcode = opcode::write::<EndpointInfo>(GROUP, 1);
    pub const CREATE_DEV: Opcode = opcode::write::<EndpointInfo>(GROUP, 3);
    pub const RELEASE_DEV: Opcode = opcode::write::<EndpointInfo>(GROUP, 4);

    /// `OPCODE` is one of the three above: the kernel reads an `EndpointInfo` and writes nothing.
    pub fn call<const OPCODE: Opcode>(
        fd: impl AsFd,
        info: EndpointInfo,
    ) -> Result<(), rustix::io::Errno> {
        const { assert!(OPCODE == CREATE_EPT || OPCODE == CREATE_DEV || OPCODE == RELEASE_DEV) };
        // SAFETY: each of the three opcodes is defined with `struct rpmsg_endpoint_info` as the
        // structure that the kernel reads, which `EndpointInfo` mirrors.
        let request = unsafe { Setter::<OPCODE, EndpointInfo>::new(info) };
        // SAFETY: the request only reads the structure it owns.
        unsafe { ioctl(fd, request) }
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn opcodes_are_linux_s() {
            assert_eq!(super::CREATE_EPT, 0x4028_b501);
            assert_eq!(super::CREATE_DEV, 0x4028_b503);
            assert_eq!(super::RELEASE_DEV, 0x4028_b504);
        }
    }
}
