//! What the linker needs to know. The sizes are in `memory.x`.

fn main() {
    // The library's linker script, and the folder in which it finds our `memory.x`.
    println!("cargo::rustc-link-arg-bins=-Tlink.x");
    println!("cargo::rustc-link-search={}", env!("CARGO_MANIFEST_DIR"));
    println!("cargo::rerun-if-changed=memory.x");
    // Nameless labels would otherwise stand between a debugger and the names of functions.
    println!("cargo::rustc-link-arg-bins=--discard-locals");
}
