//! Those who watch: answers that go on, as any client of the control socket sees them.
//!
//! What belongs here: events, traces and progress over the socket, descriptors that go with calls,
//! and that nobody who watches or waits is in anybody's way. What does not: what the verbs do.

use std::fs;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rprocd::control::client::{CallError, Connection};
use rprocd::engine::scripted::Op;
use rprocd::rproc::{CoreStatus, EVENTS_KEPT, Event, Policies};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::{Client, Served, this};
use crate::firmware::table_builder::Table;
use crate::lifecycle::{self, crash, eager, engine, image, table, without_recovery};

const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Deserialize)]
struct Excerpt {
    events: Vec<Event>,
    lost: u64,
    next: u64,
}

fn connection(served: &Served) -> Connection {
    Connection::open(&served.folder.path().join("control"), PATIENCE).unwrap()
}

/// A connection that is told events from number `since` on.
fn watch(served: &Served, since: Option<u64>) -> Connection {
    let mut connection = connection(served);
    let parameters = json!({ "since": since });
    connection
        .send("io.rprocd.Events", &parameters, true, &[])
        .unwrap();
    connection
}

fn next(connection: &mut Connection) -> Excerpt {
    let answer = connection.answer("io.rprocd.Events").unwrap();
    assert!(answer.continues);
    serde_json::from_value(answer.parameters).unwrap()
}

/// Everything until an event of that kind and detail.
fn until(connection: &mut Connection, what: &str, detail: &str) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let excerpt = next(connection);
        assert_eq!(excerpt.lost, 0);
        events.extend(excerpt.events);
        let is_it = |event: &Event| event.what == what && event.detail == detail;
        if events.iter().any(is_it) {
            return events;
        }
    }
}

fn words(events: &[Event]) -> Vec<String> {
    let told = events.iter().filter(|event| event.what != "step");
    told.map(|event| format!("{} {}", event.what, event.detail))
        .collect()
}

#[test]
fn who_watches_is_told_each_change_in_order_and_with_a_number_of_its_own() {
    let served = Served::new(engine(), eager());
    let mut watcher = watch(&served, None);
    let first = next(&mut watcher);
    assert!(first.events.is_empty());
    let mut client = served.connect();
    client.done("Start", &this());
    served.journal.crash(crash("on purpose"));
    lifecycle::wait_for(&served.cores[0], "running");
    client.done("SetRecovery", &json!({ "core": "core", "enabled": false }));
    client.done("Stop", &this());
    let events = until(&mut watcher, "state", "offline");
    let numbers: Vec<_> = events.iter().map(|event| event.seq).collect();
    let expected: Vec<_> = (first.next..first.next + numbers.len() as u64).collect();
    assert_eq!(numbers, expected);
    let words = words(&events);
    let recovery = words.iter().position(|it| it.starts_with("recovery "));
    let mut expected = vec![
        "state running",
        "crash fatal error: on purpose",
        "state crashed",
        "state running",
        "recovery-policy disabled",
        "state offline",
    ];
    expected.insert(4, &words[recovery.unwrap()]);
    assert_eq!(words, expected);
    let steps = events.iter().filter(|event| event.what == "step");
    assert!(steps.count() > 10);
}

#[test]
fn events_are_told_in_lots_however_fast_they_happen() {
    /// What `control::server` gathers for.
    const PERIOD: Duration = Duration::from_millis(10);
    /// Events of one answer.
    const MOST: u64 = 128;
    let served = Served::new(engine(), Policies::default());
    let begun = Instant::now();
    let mut watcher = watch(&served, None);
    let first = next(&mut watcher).next;
    let mut client = served.connect();
    for _ in 0..100 {
        client.done("Start", &this());
        client.done("Stop", &this());
    }
    let end = end(&mut client);
    let (mut tellings, mut seen) = (0, first);
    while seen < end {
        let excerpt = next(&mut watcher);
        assert_eq!(excerpt.lost, 0);
        seen = excerpt.next;
        tellings += 1;
    }
    assert!(end - first > 1000);
    let periods = begun.elapsed().as_micros() / PERIOD.as_micros();
    let full = u128::from((end - first) / MOST);
    assert!(
        tellings <= periods + 1 + full,
        "{tellings} in {periods} periods, of which {full} may be full"
    );
}

#[test]
fn from_a_list_on_nothing_is_missed() {
    let served = Served::new(engine(), Policies::default());
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct List {
        cores: Vec<CoreStatus>,
        next_event: u64,
    }
    let list: List = connection(&served)
        .call("io.rprocd.List", &json!({}))
        .unwrap();
    assert_eq!(list.cores[0].state, "offline");
    served.connect().done("Start", &this());
    let events = until(
        &mut watch(&served, Some(list.next_event)),
        "state",
        "running",
    );
    assert_eq!(events[0].seq, list.next_event);
    // Without `more` there is one answer, with all that is kept.
    let all: Excerpt = connection(&served)
        .call("io.rprocd.Events", &json!({}))
        .unwrap();
    assert_eq!((all.events[0].seq, all.lost), (0, 0));
    assert_eq!(all.next, all.events.len() as u64);
    let none: Excerpt = connection(&served)
        .call("io.rprocd.Events", &json!({ "since": all.next }))
        .unwrap();
    assert!(none.events.is_empty());
}

#[test]
fn a_watcher_that_does_not_read_loses_counted_events_and_the_daemon_keeps_nothing_for_it() {
    let served = Served::new(engine(), eager());
    let mut client = served.connect();
    let mut slow = watch(&served, None);
    let first = next(&mut slow).next;
    let mut others: Vec<_> = (0..14).map(|_| watch(&served, None)).collect();
    for other in &mut others {
        assert!(next(other).events.is_empty());
    }
    // More than the log and the connection's buffers in the kernel take together.
    let goal = first + 8 * EVENTS_KEPT as u64;
    let mut told = first;
    while told < goal {
        for _ in 0..50 {
            client.done("Start", &this());
            client.done("Stop", &this());
        }
        // Those who read have missed nothing.
        let end = end(&mut client);
        for other in &mut others {
            let mut seen = told;
            while seen < end {
                let excerpt = next(other);
                assert_eq!(excerpt.lost, 0);
                seen = excerpt.next;
            }
        }
        told = end;
    }
    let mut seen = first;
    let mut lost = 0;
    while seen < told {
        let excerpt = next(&mut slow);
        lost += excerpt.lost;
        let numbers: Vec<_> = excerpt.events.iter().map(|event| event.seq).collect();
        seen += excerpt.lost;
        assert_eq!(
            numbers,
            (seen..seen + numbers.len() as u64).collect::<Vec<_>>()
        );
        seen = excerpt.next;
    }
    assert!(lost > 0);
}

fn end(client: &mut Client) -> u64 {
    let list = client.call("io.rprocd.List", &json!({}));
    list["parameters"]["nextEvent"].as_u64().unwrap()
}

#[test]
fn a_change_that_is_asked_with_more_tells_how_it_goes_on() {
    let served = Served::new(engine(), Policies::default());
    let mut connection = connection(&served);
    connection
        .send("io.rprocd.Start", &this(), true, &[])
        .unwrap();
    let mut steps = Vec::new();
    loop {
        let answer = connection.answer("io.rprocd.Start").unwrap();
        if !answer.continues {
            assert_eq!(answer.parameters, json!({}));
            break;
        }
        let event: Event = serde_json::from_value(answer.parameters["event"].clone()).unwrap();
        steps.push(format!("{} {}", event.what, event.detail));
    }
    assert!(steps[0].starts_with("step boot: sanity check"), "{steps:?}");
    assert_eq!(steps.last().unwrap(), "state running");
}

/// A start that the engine is in the middle of, until it is told to go on.
fn held_start(served: &Served, parameters: &Value) -> (mpsc::Sender<()>, Connection) {
    let (go, wait) = mpsc::channel::<()>();
    let (tell, begun) = mpsc::channel();
    served.journal.at_next(Op::Start, move || {
        tell.send(()).unwrap();
        let _ = wait.recv_timeout(PATIENCE);
    });
    let mut starting = connection(served);
    starting
        .send("io.rprocd.Start", parameters, false, &[])
        .unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    (go, starting)
}

#[test]
fn while_one_call_waits_for_a_core_others_are_answered() {
    let served = Served::new(engine(), Policies::default());
    let (go, mut starting) = held_start(&served, &this());
    // The core is not there for anybody now, but the daemon is.
    let mut client = served.connect();
    let info = client.call("org.varlink.service.GetInfo", &json!({}));
    assert_eq!(info["parameters"]["product"], "rprocd");
    assert!(next(&mut watch(&served, Some(0))).next > 0);
    go.send(()).unwrap();
    assert!(!starting.answer("io.rprocd.Start").unwrap().continues);
}

#[test]
fn a_client_that_leaves_while_its_call_is_on_its_way_holds_nothing() {
    let served = Served::new(engine(), Policies::default());
    let held = json!({ "core": "core", "whileConnected": true });
    let (go, starting) = held_start(&served, &held);
    drop(starting);
    go.send(()).unwrap();
    lifecycle::wait_for(&served.cores[0], "offline");
    assert!(served.cores[0].status().holders.is_empty());
    assert_eq!(served.cores[0].status().incarnation, 1);
}

/// A firmware as a file of its own, outside of any firmware directory.
fn file(table: &Table) -> fs::File {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, image(table).bytes()).unwrap();
    file
}

#[test]
fn a_firmware_can_be_an_open_file() {
    let served = Served::new(engine(), Policies::default());
    let mut connection = connection(&served);
    let parameters = json!({ "core": "core", "firmware": "given.elf", "fileDescriptor": 0 });
    let method = "io.rprocd.SetFirmware";
    let file = file(&table());
    connection
        .send(method, &parameters, false, &[file.as_fd()])
        .unwrap();
    connection.answer(method).unwrap();
    assert_eq!(served.cores[0].status().firmware, "given.elf");
    // It is only asked for, and does not come.
    connection.send(method, &parameters, false, &[]).unwrap();
    let Err(CallError::Refused(reason)) = connection.answer(method) else {
        panic!("it is taken");
    };
    assert!(
        reason.contains("fileDescriptor is 0, and 0 came"),
        "{reason}"
    );
    // What is no file of firmware.
    for (file, why) in [
        (fs::File::open("/dev/zero").unwrap(), "regular"),
        (tempfile::tempfile().unwrap(), "0 bytes"),
    ] {
        connection
            .send(method, &parameters, false, &[file.as_fd()])
            .unwrap();
        let Err(CallError::Refused(reason)) = connection.answer(method) else {
            panic!("it is taken");
        };
        assert!(reason.contains(why), "{reason}");
    }
    assert_eq!(served.cores[0].status().firmware, "given.elf");
}

#[test]
fn a_firmware_is_judged_without_being_used() {
    let served = Served::new(engine(), Policies::default());
    let mut connection = connection(&served);
    let method = "io.rprocd.CheckFirmware";
    let parameters = json!({ "core": "core", "fileDescriptor": 0 });
    let before = served.cores[0].status();
    // The judge has a board that the scripted core has not, so no device is asked for.
    let plain = Table::new().carveout(0x8000_0000, 0x2000, "image");
    connection
        .send(method, &parameters, false, &[file(&plain).as_fd()])
        .unwrap();
    let answer = connection.answer(method).unwrap().parameters;
    assert_eq!(answer["accepted"], true, "{answer}");
    let empty = tempfile::tempfile().unwrap();
    connection
        .send(method, &parameters, false, &[empty.as_fd()])
        .unwrap();
    let answer = connection.answer(method).unwrap().parameters;
    assert_eq!(answer["accepted"], false);
    let report = answer["report"].as_str().unwrap();
    assert!(report.starts_with("firmware is refused"), "{report}");
    assert_eq!(served.cores[0].status().firmware, before.firmware);
    assert!(served.journal.take().is_empty());
}

#[test]
fn coredumps_are_listed_and_opened_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let dumps = lifecycle::dumps(folder.path());
    let (core, journal) = lifecycle::core_with_dumps(engine(), without_recovery(), dumps);
    let served = Served::with(core, journal);
    let mut client = served.connect();
    client.done("Start", &this());
    client.done("Crash", &this());
    let list = client.call("io.rprocd.Coredumps", &this());
    let dump = &list["parameters"]["dumps"][0];
    assert_eq!(dump["incarnation"], 1);
    assert_eq!(dump["complete"], true);
    let status = served.cores[0].status();
    assert_eq!(
        (status.coredumps.written, status.coredump_mode.as_str()),
        (1, "inline")
    );
    let mut connection = connection(&served);
    let method = "io.rprocd.OpenCoredump";
    let parameters = json!({ "core": "core", "name": dump["name"] });
    connection.send(method, &parameters, false, &[]).unwrap();
    let mut answer = connection.answer(method).unwrap();
    assert_eq!(answer.parameters, json!({ "fileDescriptor": 0 }));
    let mut bytes = Vec::new();
    let mut file = fs::File::from(answer.fds.pop().unwrap());
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    assert_eq!(&bytes[..4], b"\x7fELF");
    for name in ["../secret", "core.elf", ""] {
        let reason = client.refused("OpenCoredump", &json!({ "core": "core", "name": name }));
        assert!(reason.contains("has no coredump"), "{reason}");
    }
}

#[test]
fn memory_and_resource_table_are_told_with_and_without_an_incarnation() {
    let served = Served::new(engine(), Policies::default());
    let mut client = served.connect();
    let kinds = |client: &mut Client| {
        let answer = client.call("io.rprocd.Memory", &this());
        let regions = answer["parameters"]["regions"].as_array().unwrap().clone();
        let mut kinds: Vec<_> = regions.iter().map(|it| it["kind"].to_string()).collect();
        kinds.dedup();
        kinds
    };
    let status = |client: &mut Client| -> Value {
        let answer = client.call("io.rprocd.Resources", &this());
        let entries = answer["parameters"]["entries"].as_array().unwrap().clone();
        let vdev = entries.iter().find(|it| it["kind"] == "vdev").unwrap();
        let fields = vdev["fields"].as_array().unwrap();
        assert_eq!(vdev["vrings"].as_array().unwrap().len(), 2);
        fields.iter().find(|it| it["name"] == "status").unwrap()["value"].clone()
    };
    assert!(!kinds(&mut client).contains(&"\"carveout\"".to_owned()));
    assert_eq!(status(&mut client), 0);
    client.done("Start", &this());
    assert!(kinds(&mut client).contains(&"\"carveout\"".to_owned()));
    let list = client.call("io.rprocd.List", &json!({}));
    let vdev = &list["parameters"]["cores"][0]["vdevs"][0];
    assert_eq!(vdev["deviceId"], 7);
    assert!(vdev["vrings"][1]["da"].as_u64().unwrap() > 0);
}

#[test]
fn a_configuration_is_checked_by_its_text() {
    let served = Served::new(engine(), Policies::default());
    let mut client = served.connect();
    let mut check = |text: &str| {
        let answer = client.call("io.rprocd.CheckConfig", &json!({ "text": text }));
        answer["parameters"].clone()
    };
    let good = "[[core]]\nname = \"m4\"\nengine = \"rv32\"\nfirmware = \"a.elf\"\n";
    assert_eq!(check(good), json!({ "cores": ["m4"] }));
    let bad = check("[[core]]\nnaem = \"m4\"\n");
    let problem = bad["problem"].as_str().unwrap();
    assert!(problem.contains("naem"), "{problem}");
}

#[test]
fn an_operators_crash_is_a_crash_and_is_refused_where_nothing_runs() {
    let served = Served::new(engine(), eager());
    let mut client = served.connect();
    let reason = client.refused("Crash", &this());
    assert!(reason.contains("offline"), "{reason}");
    client.done("Start", &this());
    client.done("Crash", &this());
    lifecycle::wait_for(&served.cores[0], "running");
    let status = served.cores[0].status();
    assert_eq!((status.crashes, status.incarnation), (1, 2));
    assert_eq!(status.crashes_by_reason[2].count, 1);
    assert_eq!(status.recovery_time.total(), 1);
}

#[test]
fn dumps_cannot_be_switched_on_where_there_is_no_place_for_them() {
    let served = Served::new(engine(), Policies::default());
    let mut client = served.connect();
    let mode = |mode: &str| json!({ "core": "core", "mode": mode });
    let reason = client.refused("SetCoredump", &mode("enabled"));
    assert!(reason.contains("[core.coredump]"), "{reason}");
    let reason = client.refused("SetCoredump", &mode("sometimes"));
    assert!(reason.contains("\"sometimes\""), "{reason}");
    client.done("SetCoredump", &mode("disabled"));
}

#[test]
fn a_watcher_that_hangs_up_makes_room_for_another() {
    let served = Served::new(engine(), Policies::default());
    let begun = Instant::now();
    for _ in 0..40 {
        let mut watcher = watch(&served, Some(0));
        next(&mut watcher);
        drop(watcher);
        assert!(begun.elapsed() < PATIENCE);
    }
}

#[test]
fn a_driver_that_gets_nowhere_is_seen_without_waiting_for_it() {
    let served = Served::new(engine(), Policies::default());
    let (go, mut starting) = held_start(&served, &this());
    let core = &served.cores[0];
    let pulse = core.pulse();
    assert!(pulse.is_some());
    assert_eq!(core.pulse(), pulse);
    go.send(()).unwrap();
    starting.answer("io.rprocd.Start").unwrap();
    let end = Instant::now() + PATIENCE;
    while core.pulse() == pulse {
        assert!(Instant::now() < end);
    }
}
