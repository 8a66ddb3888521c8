//! Looks whether the helper binary for the target's architecture is there, and says so.
//!
//! It neither compiles nor downloads anything. `scripts/build-helper` puts the file where this
//! looks for it, and `cargo package` carries it along; why, is decision record 0001 in `src/docs`.
//! With the file, the crate is compiled with `cfg(sandbox_helper)` and the environment variable
//! `SANDBOX_HELPER_FILE` (for `include_bytes!`) set to its path. Without it everything still
//! compiles, and what needs the helper fails at run time with an error that names the command.
//!
//! The helper itself links this crate and must not carry an older copy of itself, so its build
//! sets `SANDBOX_WITHOUT_HELPER`.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(sandbox_helper)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SANDBOX_WITHOUT_HELPER");
    // The folder, not the file: cargo takes a missing file for changed in every build.
    println!("cargo::rerun-if-changed=helper");

    let variable = |name: &str| env::var(name).expect("cargo sets it for every build script");
    // The helper is a Linux program wherever the host's half runs: a guest has the architecture
    // of its host, not its operating system.
    let arch = variable("CARGO_CFG_TARGET_ARCH");
    let file = Path::new(&variable("CARGO_MANIFEST_DIR"))
        .join("helper")
        .join(format!("{arch}-unknown-linux-gnu.gz"));
    if env::var_os("SANDBOX_WITHOUT_HELPER").is_none() && file.is_file() {
        println!("cargo::rustc-cfg=sandbox_helper");
        println!("cargo::rustc-env=SANDBOX_HELPER_FILE={}", file.display());
    }
}
