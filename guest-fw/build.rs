//! Writes the linker script from the numbers in `src/layout.rs`, so that the linker, the resource
//! table and the code cannot disagree about where things are.

use std::path::PathBuf;
use std::{env, fs};

#[allow(dead_code)]
#[path = "../src/engine/rv32/board.rs"]
mod board;
#[allow(dead_code)]
#[path = "src/layout.rs"]
mod layout;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/layout.rs");
    println!("cargo::rerun-if-changed=../src/engine/rv32/board.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let script = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("link.x");
    fs::write(&script, link_script()).expect("OUT_DIR is writable");
    println!("cargo::rustc-link-arg-bins=-T{}", script.display());
    // Thousands of nameless labels would otherwise stand between a debugger and the names.
    println!("cargo::rustc-link-arg-bins=--discard-locals");
}

/// The program headers are spelt out, without FILEHDR and PHDRS: left to itself the linker puts
/// the ELF headers into the first segment, below the start of RAM.
fn link_script() -> String {
    format!(
        "\
OUTPUT_ARCH(riscv)
ENTRY(_start)

__stack_top = {stack_top:#x};
__trap_stack_top = {trap_stack_top:#x};

PHDRS
{{
    trace PT_LOAD FLAGS(6);
    code PT_LOAD FLAGS(5);
    data PT_LOAD FLAGS(6);
}}

SECTIONS
{{
    .trace {trace:#x} (NOLOAD) : {{ . += {trace_size:#x}; }} :trace

    .text {image:#x} : {{ KEEP(*(.text.start)) *(.text .text.*) }} :code
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

ASSERT(__image_end <= {end:#x}, \"the image does not fit its carveout\");
ASSERT(SIZEOF(.resource_table) != 0, \"the image has no resource table\");
",
        stack_top = layout::STACK_TOP,
        trap_stack_top = layout::TRAP_STACK_TOP,
        trace = layout::TRACE_BASE,
        trace_size = layout::TRACE_SIZE,
        image = layout::IMAGE_BASE,
        end = layout::CARVEOUT_BASE + layout::CARVEOUT_SIZE,
    )
}
