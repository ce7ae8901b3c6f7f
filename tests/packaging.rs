//! What an installed rprocd is to its system.
//!
//! What belongs here: the systemd unit, and what the daemon tells systemd. What does not: what the
//! daemon does (see `operator`).

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::frontend::process::{Core, Daemon};

const PATIENCE: Duration = Duration::from_secs(10);

/// Its scale goes from 0 to 10, in tenths; a service that nobody has hardened has 9.6.
const MOST_EXPOSED: &str = "--threshold=10";

#[test]
fn the_unit_gives_the_daemon_little_to_abuse() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/rprocd.service");
    let analyze = Command::new("systemd-analyze")
        .args(["security", "--offline=true", MOST_EXPOSED])
        .arg(&unit)
        .output();
    let output = match analyze {
        Ok(output) => output,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no systemd-analyze (package systemd)");
            return;
        }
        Err(cause) => panic!("{cause}"),
    };
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn systemd_hears_when_the_daemon_is_ready_and_when_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let variable = format!("NOTIFY_SOCKET={}", path.display());
    let mut daemon = Daemon::start_under(&["env", &variable], &[Core::default()]);
    let next = || {
        let mut bytes = [0; 512];
        let len = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    };
    let said = next();
    assert!(said.lines().any(|line| line == "READY=1"), "{said}");
    assert!(
        said.lines().any(|line| line == "STATUS=1 core(s)"),
        "{said}"
    );
    daemon.ask_to_end();
    assert_eq!(next().trim_end(), "STOPPING=1");
    assert!(daemon.wait_for_end().unwrap().success());
}
