//! More than one rprocd on a host, and none: what rprocctl finds without being told.
//!
//! What belongs here: which daemon is asked, what is shown of all of them, and what is said where one
//! does not answer. What does not: what each verb shows of one daemon (see `rprocctl`).

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

use crate::frontend::process::{Core, Daemon};

/// rprocctl, which is told of these sockets by its environment.
fn command(sockets: &[&Path], words: &[&str]) -> Command {
    let sockets: Vec<_> = sockets.iter().map(|it| it.to_str().unwrap()).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rprocctl"));
    command.env("RPROCD_SOCKET", sockets.join(":")).args(words);
    command
}

/// What it says about these daemons: exit status, standard output, standard error.
fn said(daemons: &[&Daemon], words: &[&str]) -> (i32, String, String) {
    let sockets: Vec<_> = daemons.iter().map(|it| it.socket("control")).collect();
    let sockets: Vec<_> = sockets.iter().map(|it| it.as_path()).collect();
    parts(command(&sockets, words).output().unwrap())
}

fn parts(output: Output) -> (i32, String, String) {
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[track_caller]
fn done(daemons: &[&Daemon], words: &[&str]) -> String {
    let (status, text, error) = said(daemons, words);
    assert_eq!((status, error.as_str()), (0, ""), "{words:?}");
    text
}

#[track_caller]
fn value(daemons: &[&Daemon], words: &[&str]) -> Value {
    let text = done(daemons, &[words, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|cause| panic!("{words:?}: {cause}: {text}"))
}

fn socket(daemon: &Daemon) -> String {
    daemon.socket("control").display().to_string()
}

/// A core of this name.
fn with(name: &str) -> Daemon {
    Daemon::start(&[Core {
        name,
        ..Core::default()
    }])
}

/// One that is there no more, its socket left behind.
fn dead() -> Daemon {
    let mut daemon = with("dead");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(daemon.pid().try_into().unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    daemon.wait_for_end().unwrap();
    daemon
}

/// Something that goes on, and its lines.
fn following(daemons: &[&Daemon], words: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let sockets: Vec<_> = daemons.iter().map(|it| it.socket("control")).collect();
    let sockets: Vec<_> = sockets.iter().map(|it| it.as_path()).collect();
    let mut child = command(&sockets, words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

#[track_caller]
fn until(lines: &mut Lines<BufReader<ChildStdout>>, wanted: &str) -> String {
    let found = lines.map(Result::unwrap).find(|it| it.contains(wanted));
    found.unwrap_or_else(|| panic!("{wanted:?} does not come"))
}

#[test]
fn what_looks_shows_the_cores_of_every_daemon_together() {
    let (a, b) = (with("m0"), with("m1"));
    let both = [&a, &b];
    let text = done(&both, &["list"]);
    let rows: Vec<_> = text.lines().filter(|it| it.contains("running")).collect();
    assert_eq!(rows.len(), 2, "{text}");
    assert!(
        rows[0].starts_with("m0 ") && rows[1].starts_with("m1 "),
        "{text}"
    );
    assert!(text.ends_with(&format!(
        "rprocd at {}: m0\nrprocd at {}: m1\n",
        socket(&a),
        socket(&b)
    )));
    let list = value(&both, &["list"]);
    assert_eq!(list["cores"][1]["name"], "m1");
    assert_eq!(list["cores"][1]["daemon"], socket(&b));
    assert_eq!(list["daemons"][0]["socket"], socket(&a));
    assert!(list["daemons"][0]["nextEvent"].as_u64().unwrap() > 0);
    for verb in ["ping", "version"] {
        let text = done(&both, &[verb]);
        assert!(
            text.contains(&socket(&a)) && text.contains(&socket(&b)),
            "{text}"
        );
        let daemons = value(&both, &[verb])["daemons"].clone();
        assert_eq!(daemons.as_array().unwrap().len(), 2, "{verb}");
    }
    let report = value(&both, &["report"]);
    assert_eq!(report["cores"][1]["status"]["name"], "m1");
    assert_eq!(report["daemons"].as_array().unwrap().len(), 2);
    let page = done(&both, &["report", "--html"]);
    assert!(
        page.contains("<h2>m0 ") && page.contains("<h2>m1 "),
        "{page}"
    );
    let top = done(&both, &["top", "-n", "1", "-d", "0.01"]);
    assert!(
        top.contains("rprocd at 2 sockets: 2 core(s), 2 up"),
        "{top}"
    );
    // Events of both, by their times.
    let events = value(&both, &["events"]);
    let events = events.as_array().unwrap();
    let times = events.iter().map(|it| it["time"].as_u64().unwrap());
    assert!(times.is_sorted());
    for daemon in both {
        let of = |it: &&Value| it["daemon"] == socket(daemon);
        assert!(events.iter().any(|it| of(&it)));
    }
    let (status, _, error) = said(&both, &["events", "--since", "0"]);
    assert_eq!(status, 2);
    assert!(error.contains("choose one with --socket"), "{error}");
}

#[test]
fn metrics_of_several_daemons_have_one_head_each() {
    let (a, b) = (with("m0"), with("m1"));
    let text = done(&[&a, &b], &["metrics"]);
    let mut heads: Vec<_> = text.lines().filter(|it| it.starts_with("# TYPE")).collect();
    let all = heads.len();
    heads.sort_unstable();
    heads.dedup();
    assert_eq!(heads.len(), all, "{text}");
    for core in ["m0", "m1"] {
        let line = format!("rprocd_core_state{{core=\"{core}\",state=\"running\"}} 1\n");
        assert!(text.contains(&line), "{text}");
    }
    let metrics = value(&[&a, &b], &["metrics"]);
    let state = &metrics["metrics"][0];
    assert_eq!(
        (&state["name"], &state["type"]),
        (&"rprocd_core_state".into(), &"gauge".into())
    );
    assert_eq!(state["series"][0]["labels"]["core"], "m0");
    // The same core in both: the daemons tell the series apart.
    let c = with("m0");
    let text = done(&[&a, &c], &["metrics"]);
    let line = format!(
        "rprocd_core_boots_total{{core=\"m0\",daemon=\"{}\"}} 1\n",
        socket(&c)
    );
    assert!(text.contains(&line), "{text}");
}

#[test]
fn a_verb_for_one_core_goes_to_the_daemon_that_has_it() {
    let (a, b) = (with("m0"), with("m1"));
    let both = [&a, &b];
    done(&both, &["suspend", "m1"]);
    assert_eq!(b.status()[0].state, "suspended");
    assert_eq!(a.status()[0].state, "running");
    assert!(done(&both, &["info", "m1"]).contains("suspended"));
    assert!(done(&both, &["trace", "m0"]).contains("incarnation 1"));
    let (status, _, error) = said(&both, &["stop", "m3"]);
    assert_eq!(status, 3);
    assert!(
        error.contains("there is no core \"m3\"; did you mean \"m0\"?"),
        "{error}"
    );
    let (status, _, error) = said(&both, &["sysfs", "true"]);
    assert_eq!(status, 2);
    assert!(
        error.contains("sysfs is for one rprocd, and there are 2"),
        "{error}"
    );
}

#[test]
fn a_core_of_one_name_in_two_daemons_is_not_guessed() {
    let (a, b) = (with("m0"), with("m0"));
    let (status, text, error) = said(&[&a, &b], &["stop", "m0"]);
    assert_eq!((status, text.as_str()), (2, ""));
    for word in [&socket(&a), &socket(&b), "--socket"] {
        assert!(error.contains(word), "{error}");
    }
    for daemon in [&a, &b] {
        assert_eq!(daemon.status()[0].state, "running");
        let list = done(&[&a, &b], &["list"]);
        assert!(list.contains(&format!("m0 ({})", socket(daemon))), "{list}");
    }
    // --socket chooses, and may be given twice.
    done(&[&a, &b], &["stop", "m0", "--socket", &socket(&b)]);
    assert_eq!(b.status()[0].state, "offline");
    let twice = ["--socket", &socket(&a), "--socket", &socket(&b), "list"];
    assert!(done(&[], &twice).contains("offline"));
}

#[test]
fn a_daemon_that_is_dead_hides_no_other_and_shows_in_the_exit_status() {
    let (a, gone) = (with("m0"), dead());
    let both = [&gone, &a];
    for words in [
        &["list"][..],
        &["ping"],
        &["metrics"],
        &["report"],
        &["events"],
    ] {
        let (status, text, error) = said(&both, words);
        assert_eq!(status, 5, "{words:?}");
        assert!(
            text.contains("m0") || words == ["ping"],
            "{words:?}: {text}"
        );
        let sentence = format!("nobody listens at {}", socket(&gone));
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains(&sentence), "{error}");
    }
    // For programs as an object, beside the document.
    let (status, text, error) = said(&both, &["list", "--json"]);
    assert_eq!(status, 5);
    serde_json::from_str::<Value>(&text).unwrap();
    let error: Value = serde_json::from_str(&error).unwrap();
    assert_eq!(error["error"]["kind"], "unreachable");
    assert_eq!(error["error"]["socket"], socket(&gone));
    // The core may be the dead one's.
    assert_eq!(said(&both, &["info", "m0"]).0, 0);
    let (status, _, error) = said(&both, &["info", "dead"]);
    assert_eq!(status, 5, "{error}");
    assert!(
        error.contains("no rprocd that answers has a core \"dead\""),
        "{error}"
    );
}

#[test]
fn without_a_daemon_it_says_how_to_start_one() {
    let folder = tempfile::tempdir().unwrap();
    let none = folder.path().join("control");
    let (status, _, error) = parts(command(&[&none], &["list"]).output().unwrap());
    assert_eq!(status, 5);
    assert!(error.contains("rprocd --config FILE"), "{error}");
    if Path::new("/run/rprocd").exists() {
        eprintln!("SKIPPED: this host has a /run/rprocd");
        return;
    }
    let (status, _, error) = parts(command(&[], &["list"]).output().unwrap());
    assert_eq!(status, 5);
    for word in [
        "no rprocd runs on this host",
        "systemctl start rprocd",
        "--socket",
    ] {
        assert!(error.contains(word), "{error}");
    }
    let (status, text, _) = parts(command(&[], &["version"]).output().unwrap());
    assert_eq!(status, 5);
    assert!(text.starts_with("rprocctl 0."), "{text}");
}

#[test]
fn who_follows_events_sees_the_last_ones_and_is_told_of_each_daemon_that_ends() {
    let (mut a, mut b) = (with("m0"), with("m1"));
    let (child, mut lines) = following(&[&a, &b], &["events", "--follow", "--lines", "1"]);
    // The last of all, and then what happens.
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains(" m1: "), "{first}");
    done(&[&a], &["suspend", "m0"]);
    assert!(
        lines
            .next()
            .unwrap()
            .unwrap()
            .ends_with(" m0: state: suspended")
    );
    done(&[&b], &["suspend", "m1"]);
    assert!(
        lines
            .next()
            .unwrap()
            .unwrap()
            .ends_with(" m1: state: suspended")
    );
    a.ask_to_end();
    a.wait_for_end().unwrap();
    done(&[&b], &["resume", "m1"]);
    until(&mut lines, " m1: state: running");
    b.ask_to_end();
    b.wait_for_end().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(9));
    let error = String::from_utf8(output.stderr).unwrap();
    let expected = [&a, &b].map(|it| format!("rprocctl: rprocd at {} ended", socket(it)));
    assert_eq!(error.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn top_waits_for_a_daemon_that_ends_and_finds_the_next_one() {
    let mut daemon = with("m0");
    let words = ["top", "--iterations", "100000", "--delay", "0.02"];
    let (mut child, mut lines) = following(&[&daemon], &words);
    until(&mut lines, "1 core(s), 1 up");
    daemon.ask_to_end();
    daemon.wait_for_end().unwrap();
    let waiting = until(&mut lines, "waiting: ");
    assert!(waiting.contains(&socket(&daemon)), "{waiting}");
    let _again = daemon.again();
    until(&mut lines, "1 core(s), 1 up");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_shell_is_told_the_names_of_cores_and_files_and_nothing_without_a_daemon() {
    let (a, b) = (with("m0"), with("m1"));
    done(&[&b], &["crash", "m1"]);
    let asked = |daemons: &[&Daemon], words: &[&str]| {
        let sockets: Vec<_> = daemons.iter().map(|it| it.socket("control")).collect();
        let sockets: Vec<_> = sockets.iter().map(|it| it.as_path()).collect();
        let all = [&["--", "rprocctl"], words].concat();
        let output = command(&sockets, &all)
            .env("COMPLETE", "bash")
            .env("_CLAP_IFS", " ")
            .env("_CLAP_COMPLETE_INDEX", words.len().to_string())
            .output()
            .unwrap();
        let (status, text, error) = parts(output);
        assert_eq!((status, error.as_str()), (0, ""), "{words:?}");
        text
    };
    let both = [&a, &b];
    let names = |words: &[&str]| {
        let text = asked(&both, words);
        let names = text.split(' ').filter(|it| !it.starts_with('-'));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(&["info", ""]), ["m0", "m1"]);
    assert_eq!(names(&["recovery", "set", "m1"]), ["m1"]);
    assert_eq!(names(&["events", "m"]), ["m0", "m1"]);
    assert_eq!(
        names(&["recovery", "set", "m1", ""]),
        ["enabled", "disabled"]
    );
    let files = names(&["firmware", "set", "m0", "ec"]);
    assert!(files.contains(&"echo.elf".to_owned()), "{files:?}");
    let files = names(&["start", "m0", "--firmware", "tt"]);
    assert!(files.contains(&"tty.elf".to_owned()), "{files:?}");
    // Of the socket that has been typed.
    assert_eq!(names(&["--socket", &socket(&b), "info", ""]), ["m1"]);
    let none = dead();
    for words in [["info", ""], ["trace", "m"]] {
        let text = asked(&[&none], &words);
        assert!(!text.split(' ').any(|it| it.starts_with('m')), "{text}");
    }
    let list = done(&both, &["firmware", "list"]);
    assert!(
        list.contains("echo.elf") && list.contains("tty.elf"),
        "{list}"
    );
}
