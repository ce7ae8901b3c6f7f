//! `rprocfs`: rprocd's cores as files. It knows only the control socket, and needs no privilege but
//! to mount.

mod arguments;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::thread;

use clap::Parser;
use log::{LevelFilter, error};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use arguments::Arguments;
use rprocd::sysfs::fuse;
use rprocd::sysfs::namespace::READY;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::new()
        .filter_level(LevelFilter::Warn)
        // It reports as failures what it answers with "not implemented", as is meant.
        .filter_module("fuser", LevelFilter::Off)
        .format(|out, record| writeln!(out, "rprocfs: {}", record.args()))
        .init();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            error!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    if arguments.with_parent {
        let parent = getppid();
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|cause| format!("cannot end with the process that started this: {cause}"))?;
        // It may have been too late for a signal.
        if getppid() != parent {
            return Err("the process that started this is gone".to_owned());
        }
    }
    let place = &arguments.mountpoint;
    let mut session = fuse::mount(&arguments.socket, place).map_err(|cause| {
        format!(
            "cannot mount on {}: {cause}; is it a folder, is there a /dev/fuse (`modprobe fuse`), \
             and may you mount (as root, or with fusermount3)?",
            place.display()
        )
    })?;
    let unmounter = session.unmount_callable();
    end_on_signals(unmounter, place.clone())
        .map_err(|cause| format!("cannot wait for signals: {cause}"))?;
    // Who started this may wait for it, or not listen any more.
    let mut output = io::stdout();
    let _ = writeln!(
        output,
        "rprocfs: {}: {} {READY}",
        place.display(),
        arguments.socket.display()
    );
    let _ = output.flush();
    session
        .run()
        .map_err(|cause| format!("{} is not served any more: {cause}", place.display()))
}

/// Unmounts and ends when it is asked to. Who still has files open then finds them dead.
fn end_on_signals(mut unmounter: fuser::SessionUnmounter, place: PathBuf) -> io::Result<()> {
    let (wake, ended) = std::os::unix::net::UnixStream::pair()?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(signal, wake.try_clone()?)?;
    }
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            // Otherwise the pipe would be over.
            let _wake = wake;
            loop {
                let mut fds = [PollFd::new(&ended, PollFlags::IN)];
                match poll(&mut fds, None) {
                    Err(rustix::io::Errno::INTR) => {}
                    _ => break,
                }
            }
            if unmounter.unmount().is_err() {
                // Somebody is in it; it goes when they are.
                if let Err(cause) = unmount(&place, UnmountFlags::DETACH) {
                    error!("{} stays mounted: {cause}", place.display());
                    process::exit(1);
                }
            }
            process::exit(0);
        })
        .map(drop)
}
