//! Writes the fixed part of the linker script, `link.x`, and puts it where the linker of every
//! image that uses this library finds it. What an image chooses is in its own `memory.x`.

use std::path::PathBuf;
use std::{env, fs};

#[allow(dead_code)]
#[path = "../src/engine/rv32/board.rs"]
mod board;

/// Bytes for the trap handler's stack, which nobody chooses: the handler is ours.
const TRAP_STACK_SIZE: u32 = 4 * 1024;
/// Bytes of stack below which no image works for sure. `chaos`, with three services and traffic, was
/// found to use 3.7 KiB in a coredump; code that is not optimised uses more.
const STACK_MIN: u32 = 8 * 1024;
/// Bytes of trace below which no image works: a few of the longest lines.
const TRACE_MIN: u32 = 1024;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=memory.x");
    println!("cargo::rerun-if-changed=../src/engine/rv32/board.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(folder.join("link.x"), link_script()).expect("OUT_DIR is writable");
    // For the images of other packages too. Those ask for the script themselves, with the next line.
    println!("cargo::rustc-link-search={}", folder.display());
    println!("cargo::rustc-link-arg-bins=-Tlink.x");
    // Thousands of nameless labels would otherwise stand between a debugger and the names.
    println!("cargo::rustc-link-arg-bins=--discard-locals");
}

/// The program headers are spelt out, without FILEHDR and PHDRS: left to itself the linker puts
/// the ELF headers into the first segment, below the start of RAM.
fn link_script() -> String {
    let base = board::ram::BASE;
    // RAM is followed by nothing, and addresses have 32 bits.
    let most = u32::MAX - base;
    format!(
        "\
OUTPUT_ARCH(riscv)
ENTRY(_start)

INCLUDE memory.x

ASSERT(STACK_SIZE >= {STACK_MIN} && STACK_SIZE % 16 == 0,
    \"memory.x: STACK_SIZE must be a multiple of 16, and {STACK_MIN} bytes or more\");
ASSERT(TRACE_SIZE >= {TRACE_MIN} && TRACE_SIZE % 16 == 0,
    \"memory.x: TRACE_SIZE must be a multiple of 16, and {TRACE_MIN} bytes or more\");
ASSERT(CARVEOUT_SIZE > 0 && CARVEOUT_SIZE % 4096 == 0 && CARVEOUT_SIZE <= {most},
    \"memory.x: CARVEOUT_SIZE must be a multiple of 4096 (a page), and less than 2 GiB\");

__carveout = {base:#x};
__carveout_size = CARVEOUT_SIZE;
__stack_top = {base:#x} + STACK_SIZE;
__trap_stack_top = __stack_top + {TRAP_STACK_SIZE};
__trace = __trap_stack_top;
__trace_size = TRACE_SIZE;

PHDRS
{{
    trace PT_LOAD FLAGS(6);
    code PT_LOAD FLAGS(5);
    data PT_LOAD FLAGS(6);
}}

SECTIONS
{{
    .trace __trace (NOLOAD) : {{ . += TRACE_SIZE; }} :trace

    .text __trace + TRACE_SIZE : {{ KEEP(*(.text.start)) *(.text .text.*) }} :code
    .rodata : ALIGN(16) {{ *(.rodata .rodata.* .srodata .srodata.*) }} :code

    .resource_table ALIGN(0x1000) : {{ KEEP(*(.resource_table)) }} :data
    .data : ALIGN(16) {{ *(.data .data.* .sdata .sdata.*) }} :data
    .bss (NOLOAD) : ALIGN(16)
    {{
        __bss_start = .;
        *(.sbss .sbss.* .bss .bss.* COMMON)
        . = ALIGN(4);
        __bss_end = .;
    }} :data
    __image_end = .;

    /DISCARD/ : {{ *(.eh_frame .eh_frame_hdr) }}
}}

ASSERT(__image_end <= {base:#x} + CARVEOUT_SIZE,
    \"the image does not fit its carveout: raise CARVEOUT_SIZE in memory.x\");
ASSERT(SIZEOF(.resource_table) != 0,
    \"the image has no resource table: is rprocd_guest_fw used in it?\");
"
    )
}
