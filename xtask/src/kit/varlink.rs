//! systemd's Varlink client, for the tests of the control socket: from PATH, or from Debian's
//! packages. It is there since systemd 255.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::cache::{Cache, command};
use crate::tools;

const PROGRAM: &str = "varlinkctl";

/// Runs the tree's program with the tree's own loader and libraries.
const WRAPPER: &str = r#"#!/bin/sh
# Made by `cargo xtask test`.
tree=$(dirname "$(readlink -f "$0")")/tree
libraries=$tree/usr/lib/x86_64-linux-gnu
exec "$tree/usr/lib64/ld-linux-x86-64.so.2" --library-path "$libraries:$libraries/systemd" \
	"$tree/usr/bin/varlinkctl" "$@"
"#;

/// Finds one, or fetches one.
pub fn get(cache: &Cache) -> Result<PathBuf> {
    if let Some(program) = tools::find(PROGRAM) {
        return Ok(program);
    }
    let folder = super::unpacked(cache, PROGRAM, &["systemd"], |folder| {
        let wrapper = folder.join(PROGRAM);
        fs::write(&wrapper, WRAPPER)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        let version = command(&wrapper).arg("--version").output()?;
        ensure!(
            version.status.success(),
            "{} does not run: {}",
            wrapper.display(),
            String::from_utf8_lossy(&version.stderr).trim()
        );
        Ok(())
    })?;
    Ok(folder.join(PROGRAM))
}
