//! `cargo xtask guest`: a script of somebody's, in a guest, against firmware of somebody's.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use libtest_mimic::{Failed, Trial};
use xtask::guest::{Job, Options};

use crate::group::Environment;

/// The example, in a guest of its own.
pub fn trials(environment: &Arc<Environment>) -> Vec<Trial> {
    let environment = Arc::clone(environment);
    let name = "script::the_example_script_gets_its_answer_and_the_command_ends_as_the_script_does";
    vec![Trial::test(name, move || {
        example(&environment).map_err(|error| Failed::from(format!("{error:#}")))
    })]
}

/// A status that nothing else ends with.
const STATUS: u8 = 77;

fn example(environment: &Environment) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("a script.sh");
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let example = fs::read_to_string(repository.join("examples/guest-script.sh"))?;
    // The example ends with 1 where it fails. Where it does not, it gets here.
    fs::write(&script, format!("{example}\nexit {STATUS}\n"))?;
    let options = Options {
        firmware: vec![environment.image("echo"), environment.image("tty")],
        config: None,
        script: Some(script),
        shell: false,
        timeout: 120,
    };
    let status = Job::prepare(&options)?.run(environment.kit()?, environment.programs()?)?;
    ensure!(status == STATUS, "it ended with {status}");
    Ok(())
}
