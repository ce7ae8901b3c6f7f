//! A run of `cargo test`, watched: its output is shown as it comes, and a test that hangs is named.
//!
//! Both test runners (libtest and libtest-mimic) write `running N tests`, a line for each test once it
//! has ended, and `test result:`. libtest also names a test that has not ended after a minute. A
//! runner that writes nothing for long has a test that hangs.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{cargo, limit};

/// How often it is looked whether cargo has ended, while nothing is written.
const LOOK: Duration = Duration::from_millis(200);
/// How long the end of the output may take after the end of cargo.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Runs `command`, and ends it when no test ends for as long as `silence`.
pub fn show(command: &mut Command, silence: Duration) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", cargo::words(command)))?;
    let mut pipe = child.stdout.take().context("cargo has no output")?;
    let (sender, receiver) = mpsc::channel();
    // It is not waited for: a process that a test left behind may hold the pipe.
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut chunk) {
            if sender.send(chunk[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut progress = Progress::default();
    let mut heard = Instant::now();
    let status = loop {
        match receiver.recv_timeout(LOOK) {
            Ok(chunk) => {
                let mut output = std::io::stdout().lock();
                output.write_all(&chunk)?;
                output.flush()?;
                progress.add(&String::from_utf8_lossy(&chunk));
                heard = Instant::now();
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK),
        }
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if progress.is_running && heard.elapsed() >= silence {
            let sentence = progress.sentence(silence);
            eprintln!("\nlimit: {sentence}");
            limit::end_descendants();
            let _ = child.wait();
            bail!("{sentence}; `{}` was ended", cargo::words(command));
        }
    };
    // What was written last may be on its way still. A process that was left behind may hold the pipe.
    while let Ok(chunk) = receiver.recv_timeout(LAST_WORDS) {
        let mut output = std::io::stdout().lock();
        output.write_all(&chunk)?;
        output.flush()?;
    }
    if !status.success() {
        bail!("`{}` failed ({status})", cargo::words(command));
    }
    Ok(())
}

/// What the runners have said.
#[derive(Debug, Default)]
struct Progress {
    /// Tests run: between `running` and `test result:`.
    is_running: bool,
    /// Have not ended after a minute.
    late: BTreeSet<String>,
    /// The last line, as far as it is there.
    line: String,
}

impl Progress {
    fn add(&mut self, text: &str) {
        for part in text.split_inclusive('\n') {
            self.line.push_str(part);
            if part.ends_with('\n') {
                let line = std::mem::take(&mut self.line);
                self.take(line.trim());
            }
        }
    }

    fn take(&mut self, line: &str) {
        if line.starts_with("running ") && (line.ends_with(" test") || line.ends_with(" tests")) {
            self.is_running = true;
        } else if line.starts_with("test result:") {
            self.is_running = false;
            self.late.clear();
        } else if let Some(rest) = line.strip_prefix("test ") {
            if let Some((name, _)) = rest.split_once(" has been running for over ") {
                self.late.insert(name.to_owned());
            } else if let Some((name, _)) = rest.split_once(" ... ") {
                self.late.remove(name.trim());
            }
        }
    }

    fn sentence(&self, silence: Duration) -> String {
        let mut names: Vec<&str> = self.late.iter().map(String::as_str).collect();
        // One whose name is there and whose result is not.
        let begun = self.line.trim().strip_prefix("test ");
        names.extend(begun.and_then(|line| Some(line.split_once(" ...")?.0.trim())));
        let which = match names[..] {
            [] => "the runner has not said which one runs".to_owned(),
            _ => format!("not ended: {}", names.join(", ")),
        };
        format!("no test has ended for {}; {which}", limit::text(silence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_have_not_ended_are_named() {
        let mut progress = Progress::default();
        progress.add("\nrunning 3 tests\ntest a::one ... ok\ntest a::two has been running for ");
        progress.add("over 60 seconds\ntest a::three has been running for over 60 seconds\n");
        progress.add("test a::three ... FAILED\n");
        assert!(progress.is_running);
        assert_eq!(
            progress.sentence(limit::minutes(15)),
            "no test has ended for 15 min; not ended: a::two"
        );
        progress.add("test result: FAILED. 2 passed; 1 failed\n");
        assert!(!progress.is_running);
        progress.add("\nrunning 1 test\ntest b::four ... ");
        assert_eq!(
            progress.sentence(limit::minutes(1)),
            "no test has ended for 1 min; not ended: b::four"
        );
    }

    /// In a process of its own: it ends all that this process has started.
    const CHILD: &str = "RPROCD_TEST_SUITE_CHILD";

    #[test]
    fn a_run_in_which_a_test_hangs_is_ended_and_the_test_is_named() {
        if std::env::var_os(CHILD).is_some() {
            let script = "echo; echo 'running 2 tests'; echo 'test quick ... ok'; \
                printf 'test slow ... '; sleep 1000";
            let mut command = Command::new("sh");
            let error = show(command.args(["-c", script]), Duration::from_secs(1)).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("not ended: slow; `sh"), "{error}");
            return;
        }
        let name = "suite::tests::a_run_in_which_a_test_hangs_is_ended_and_the_test_is_named";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("1 passed"), "{text}");
    }

    #[test]
    fn a_run_that_ends_tells_how() {
        let mut good = Command::new("sh");
        let good = show(good.args(["-c", "echo nothing to do"]), limit::minutes(1));
        good.unwrap();
        let mut bad = Command::new("sh");
        let bad = show(bad.args(["-c", "exit 101"]), limit::minutes(1)).unwrap_err();
        assert!(bad.to_string().contains("101"), "{bad}");
    }
}
