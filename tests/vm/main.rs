//! Tests with a real Linux guest: QEMU, a stock kernel, stock drivers, and the daemon.
//!
//! `cargo xtask test` runs them, with the kit that it made. What belongs here: what only a guest
//! can show. Few boots and many checks: the checks of one group share a guest and run in the order
//! in which they are written, and the group ends with a look at the guest's kernel log. A check
//! leaves the guest as it found it, with working channels.

mod announced;
mod group;
mod installed;
mod made_by_hand;
mod recovery;
mod script;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use self::group::Environment;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Checks of a group wait for each other. More threads would only mix them up.
    arguments.test_threads = Some(1);
    let environment = match Environment::read() {
        Ok(environment) => Arc::new(environment),
        // Listing needs no kit.
        Err(_) if arguments.list => Arc::new(Environment::default()),
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(group::trials(&environment, announced::GROUP));
    trials.extend(group::trials(&environment, made_by_hand::GROUP));
    trials.extend(group::trials(&environment, recovery::GROUP));
    trials.extend(script::trials(&environment));
    trials.extend(installed::trials(&environment));
    libtest_mimic::run(&arguments, trials).exit_code()
}
