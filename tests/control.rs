//! The control socket as any client sees it, in front of cores whose engine keeps a journal.
//!
//! What belongs here: what a call does to a core, and what the end of a connection does. What does
//! not: `rprocctl`, the daemon's process (see `operator`), what the verbs do inside (`lifecycle`).

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use rprocd::control::{Class, ControlServer, INTERFACE, MAX_MESSAGE_BYTES, Service, class};
use rprocd::engine::scripted::{Journal, Scripted};
use rprocd::rproc::{Core, EventLog, Holder, Policies};
use rprocd::vdev::{Permissions, Socket};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lifecycle::{self, crash, engine, image, running_engine, table, without_recovery};

const PATIENCE: Duration = Duration::from_secs(120);
/// What the server has, and not five seconds, so that a test need not wait for them.
const MESSAGE_PATIENCE: Duration = Duration::from_millis(300);

/// A control socket with one core behind it.
pub struct Served {
    pub folder: TempDir,
    pub cores: Arc<Vec<Core>>,
    pub journal: Journal,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    pub fn new(engine: Scripted, policies: Policies) -> Self {
        let (core, journal) = lifecycle::core(engine, policies);
        Self::with(core, journal)
    }

    pub fn with(core: Core, journal: Journal) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cores = Arc::new(vec![core]);
        let path = folder.path().join("control");
        let all = Permissions::default();
        let events = Arc::new(EventLog::new().unwrap());
        cores[0].tell(events.clone());
        let service = Service {
            cores: cores.clone(),
            events,
            firmware_directory: folder.path().to_owned(),
        };
        let control = Socket::bind(&path, &all).unwrap();
        let monitor = Socket::bind(&folder.path().join("monitor"), &all).unwrap();
        let server = ControlServer::new(control, service).unwrap();
        let server = server.with_monitor(monitor).unwrap();
        let server = server.with_patience(MESSAGE_PATIENCE);
        let ending = Arc::new(AtomicBool::new(false));
        let thread = {
            let ending = ending.clone();
            thread::spawn(move || {
                let mut events =
                    EventManager::<Arc<Mutex<dyn MutEventSubscriber + Send>>>::new().unwrap();
                events.add_subscriber(Arc::new(Mutex::new(server)));
                while !ending.load(Ordering::SeqCst) {
                    events.run_with_timeout(10).unwrap();
                }
            })
        };
        Self {
            folder,
            cores,
            journal,
            ending,
            thread: Some(thread),
        }
    }

    pub fn connect(&self) -> Client {
        self.connect_to("control")
    }

    pub fn connect_to(&self, socket: &str) -> Client {
        let stream = UnixStream::connect(self.folder.path().join(socket)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream }
    }

    fn state(&self) -> String {
        self.cores[0].status().state
    }

    fn holders(&self) -> Vec<String> {
        self.cores[0].status().holders
    }

    /// Drops the server.
    fn end(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.end();
    }
}

pub struct Client {
    pub stream: UnixStream,
}

impl Client {
    pub fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn call(&mut self, method: &str, parameters: &Value) -> Value {
        let call = json!({ "method": method, "parameters": parameters });
        self.say(format!("{call}\0").as_bytes());
        self.answer(0)
    }

    /// The next answer, which ends with this byte.
    pub fn answer(&mut self, end: u8) -> Value {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while self.stream.read(&mut byte).unwrap() == 1 && byte != [end] {
            bytes.push(byte[0]);
        }
        assert_eq!(byte, [end]);
        serde_json::from_slice(&bytes).unwrap()
    }

    #[track_caller]
    pub fn done(&mut self, method: &str, parameters: &Value) {
        let answer = self.call(&format!("io.rprocd.{method}"), parameters);
        assert_eq!(answer, json!({ "parameters": {} }), "{method}");
    }

    /// Why not.
    #[track_caller]
    pub fn refused(&mut self, method: &str, parameters: &Value) -> String {
        let answer = self.call(&format!("io.rprocd.{method}"), parameters);
        assert_eq!(answer["error"], "io.rprocd.Refused", "{answer}");
        answer["parameters"]["reason"].as_str().unwrap().to_owned()
    }

    /// There was nothing to do; how the core is.
    #[track_caller]
    pub fn already_so(&mut self, method: &str, parameters: &Value) -> String {
        let answer = self.call(&format!("io.rprocd.{method}"), parameters);
        assert_eq!(answer["error"], "io.rprocd.AlreadySo", "{answer}");
        assert_eq!(answer["parameters"]["core"], parameters["core"]);
        answer["parameters"]["reason"].as_str().unwrap().to_owned()
    }

    /// Waits until the server has hung up.
    fn is_over(&mut self) {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).unwrap();
    }

    pub fn hang_up(mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
        self.is_over();
    }
}

pub fn this() -> Value {
    json!({ "core": "core" })
}

fn while_connected() -> Value {
    json!({ "core": "core", "whileConnected": true })
}

#[test]
fn every_method_of_the_contract_is_there_and_no_parameter_is_guessed() {
    let served = Served::new(engine(), Policies::default());
    let mut client = served.connect();
    let methods: Vec<_> = INTERFACE
        .lines()
        .filter_map(|line| line.strip_prefix("method ")?.split_once('('))
        .collect();
    assert!(methods.len() > 10, "{methods:?}");
    for (method, _) in methods {
        let parameters = json!({ "core": "core", "enabled": true, "nonsense": 1 });
        let answer = client.call(&format!("io.rprocd.{method}"), &parameters);
        let expected = "org.varlink.service.InvalidParameter";
        assert_eq!(answer["error"], expected, "{method}");
    }
    assert!(served.journal.take().is_empty());
}

#[test]
fn a_line_is_answered_by_a_line_and_a_message_by_a_message() {
    let served = Served::new(engine(), Policies::default());
    let mut client = served.connect();
    client.say(b"{\"method\": \"io.rprocd.List\",\n \"parameters\": {}}\n");
    client.say(b"{\"method\": \"io.rprocd.List\"}\0");
    let line = client.answer(b'\n');
    assert_eq!(line["parameters"]["cores"][0]["name"], "core");
    assert_eq!(client.answer(0), line);
}

#[test]
fn what_was_asked_before_nonsense_is_answered_before_the_end() {
    for nonsense in [vec![b'['; 64], vec![b'x'; MAX_MESSAGE_BYTES + 1]] {
        let served = Served::new(engine(), Policies::default());
        let mut client = served.connect();
        client.say(b"{\"method\": \"io.rprocd.List\"}\0");
        client.say(&nonsense);
        assert!(client.answer(0)["parameters"]["cores"].is_array());
        let last = client.answer(b'\n');
        assert_eq!(last["error"], "io.rprocd.NotACall");
        client.is_over();
    }
}

#[test]
fn a_message_that_takes_too_long_is_hung_up_on_however_much_of_it_comes() {
    let served = Served::new(engine(), Policies::default());
    let (mut silent, mut dripping, mut idle) =
        (served.connect(), served.connect(), served.connect());
    silent.say(b"{");
    let deadline = Instant::now() + PATIENCE;
    while dripping.stream.write_all(b"{ ").is_ok() {
        assert!(Instant::now() < deadline, "it may take for ever");
        thread::sleep(MESSAGE_PATIENCE / 10);
    }
    silent.is_over();
    // Who says nothing may stay.
    let list = idle.call("io.rprocd.List", &json!({}));
    assert!(list["parameters"]["cores"].is_array());
}

#[test]
fn through_the_monitor_socket_everything_is_seen_and_nothing_changed() {
    let served = Served::new(engine(), Policies::default());
    let mut client = served.connect_to("monitor");
    let methods: Vec<_> = INTERFACE
        .lines()
        .filter_map(|line| line.strip_prefix("method ")?.split_once('('))
        .map(|(name, _)| format!("io.rprocd.{name}"))
        .collect();
    let mut looks = 0;
    for method in &methods {
        let answer = client.call(method, &this());
        let denied = answer["error"] == "io.rprocd.Denied";
        assert_eq!(
            denied,
            class(method) != Class::Observe,
            "{method}: {answer}"
        );
        looks += usize::from(!denied);
    }
    assert!((2..methods.len()).contains(&looks), "{looks}");
    assert!(served.journal.take().is_empty());
    let list = client.call("io.rprocd.List", &json!({}));
    assert_eq!(list["parameters"]["cores"][0]["state"], "offline");
}

#[test]
fn a_client_that_asks_and_does_not_read_holds_up_itself_only() {
    let served = Served::new(engine(), Policies::default());
    let mut greedy = served.connect();
    greedy.stream.set_nonblocking(true).unwrap();
    let calls = b"{\"method\": \"io.rprocd.List\"}\0".repeat(100);
    let mut sent = 0;
    // Until nobody takes its calls any more: what waits for it has a limit.
    let mut refused = 0;
    while refused < 20 {
        match greedy.stream.write(&calls) {
            Ok(len) => sent += len,
            Err(_) => {
                refused += 1;
                thread::sleep(Duration::from_millis(10));
            }
        }
        assert!(sent < 64 << 20, "its calls are taken without end");
    }
    let list = served.connect().call("io.rprocd.List", &json!({}));
    assert!(list["parameters"]["cores"].is_array());
}

#[test]
fn a_core_started_for_a_connection_is_stopped_however_that_ends() {
    type End = fn(&mut Client);
    let ends: [(&str, End); 4] = [
        ("it hangs up", |client| {
            client.stream.shutdown(Shutdown::Write).unwrap();
        }),
        ("it talks nonsense", |client| client.say(b"nonsense\0")),
        ("it does not end a message", |client| {
            client.say(&vec![b'x'; MAX_MESSAGE_BYTES + 1]);
        }),
        ("it goes in the middle of a message", |client| {
            client.say(b"{\"method\":");
            client.stream.shutdown(Shutdown::Both).unwrap();
        }),
    ];
    let served = Served::new(engine(), Policies::default());
    for (round, (name, end)) in ends.into_iter().enumerate() {
        let mut client = served.connect();
        client.done("Start", &while_connected());
        assert_eq!(served.state(), "running", "{name}");
        let holder = format!("control connection {}", round + 1);
        assert_eq!(served.holders(), [holder], "{name}");
        end(&mut client);
        let deadline = Instant::now() + PATIENCE;
        while served.state() != "offline" {
            assert!(
                Instant::now() < deadline,
                "{name}: the core is held for ever"
            );
            thread::yield_now();
        }
    }
}

#[test]
fn a_server_that_goes_lets_go_of_what_its_connections_held() {
    let mut served = Served::new(engine(), Policies::default());
    let mut client = served.connect();
    client.done("Start", &while_connected());
    served.end();
    assert_eq!(served.state(), "offline");
    client.is_over();
}

#[test]
fn a_core_that_somebody_else_holds_as_well_runs_on() {
    for operator_first in [true, false] {
        let served = Served::new(engine(), Policies::default());
        let (mut operator, mut client) = (served.connect(), served.connect());
        if operator_first {
            operator.done("Start", &this());
            client.done("Start", &while_connected());
        } else {
            client.done("Start", &while_connected());
            operator.done("Start", &json!({ "core": "core", "whileConnected": null }));
        }
        assert_eq!(served.holders(), ["operator", "control connection 2"]);
        let why = client.already_so("Start", &while_connected());
        assert!(why.contains("running already"), "{why}");
        client.hang_up();
        assert_eq!(served.holders(), ["operator"]);
        operator.hang_up();
        assert_eq!(served.state(), "running");
    }
    let served = Served::new(engine(), Policies::default());
    let (mut one, mut other) = (served.connect(), served.connect());
    one.done("Start", &while_connected());
    other.done("Start", &while_connected());
    one.hang_up();
    assert_eq!(served.state(), "running");
    other.hang_up();
    assert_eq!(served.state(), "offline");
}

#[test]
fn a_connection_that_has_lost_its_hold_stops_nothing_at_its_end() {
    let served = Served::new(engine(), Policies::default());
    let (mut operator, mut client) = (served.connect(), served.connect());
    client.done("Start", &while_connected());
    operator.done("Stop", &this());
    assert!(served.holders().is_empty());
    operator.done("Start", &this());
    client.hang_up();
    assert_eq!(served.state(), "running");
    assert_eq!(served.holders(), ["operator"]);
}

#[test]
fn a_core_that_could_not_be_started_is_held_by_nobody() {
    let served = Served::new(engine(), Policies::default());
    let mut client = served.connect();
    let start = rprocd::engine::scripted::Op::Start;
    served.journal.fail_next(start);
    let why = client.refused("Start", &while_connected());
    assert!(why.contains("cannot be booted"), "{why}");
    served.cores[0].start(Holder::Operator).unwrap();
    client.hang_up();
    assert_eq!(served.state(), "running");
}

#[test]
fn a_core_that_runs_already_is_attached_and_let_go_of() {
    let served = Served::new(running_engine(&table()), Policies::default());
    let mut client = served.connect();
    let why = client.refused("Stop", &this());
    assert!(why.contains("attach it first"), "{why}");
    client.done("Attach", &this());
    assert_eq!(served.state(), "attached");
    assert_eq!(served.holders(), ["operator"]);
    client.done("Detach", &this());
    assert_eq!(served.state(), "detached");
    client.done("Start", &while_connected());
    assert_eq!(served.state(), "attached");
    client.hang_up();
    assert_eq!(served.state(), "detached");
}

#[test]
fn a_core_is_paused_and_goes_on() {
    let served = Served::new(engine(), Policies::default());
    let mut client = served.connect();
    client.done("Start", &this());
    client.done("Suspend", &this());
    assert_eq!(served.state(), "suspended");
    let why = client.refused("Start", &this());
    assert!(why.contains("resume it"), "{why}");
    client.done("Resume", &this());
    assert_eq!(served.state(), "running");
    let why = client.already_so("Resume", &this());
    assert!(why.contains("running already"), "{why}");
}

#[test]
fn recovery_is_asked_for_once_or_from_now_on() {
    let served = Served::new(engine(), without_recovery());
    let mut client = served.connect();
    let why = client.already_so("Recover", &this());
    assert!(why.contains("offline already"), "{why}");
    client.done("Start", &this());
    let die = || {
        let before = served.cores[0].status().crashes;
        served.journal.crash(crash("of old age"));
        while served.cores[0].status().crashes == before {
            thread::yield_now();
        }
    };
    die();
    assert_eq!(served.state(), "crashed");
    client.done("Recover", &this());
    assert_eq!(served.state(), "running");
    assert!(!served.cores[0].status().recovery);
    die();
    client.done("SetRecovery", &json!({ "core": "core", "enabled": true }));
    assert_eq!(served.state(), "running");
    assert!(served.cores[0].status().recovery);
    assert_eq!(served.cores[0].status().incarnation, 3);
    client.done("SetRecovery", &json!({ "core": "core", "enabled": false }));
    die();
    assert_eq!(served.state(), "crashed");
}

#[test]
fn another_firmware_is_a_file_of_the_firmware_directory_for_an_offline_core() {
    let served = Served::new(engine(), Policies::default());
    let mut client = served.connect();
    let mut set = |firmware: &str| {
        let parameters = json!({ "core": "core", "firmware": firmware });
        client.call("io.rprocd.SetFirmware", &parameters)
    };
    let bytes = image(&table()).bytes().to_vec();
    std::fs::write(served.folder.path().join("other.elf"), bytes).unwrap();
    std::fs::write(served.folder.path().join("text.elf"), "no firmware at all").unwrap();
    for (firmware, words) in [
        ("../other.elf", "it contains '/'"),
        ("none.elf", "cannot open firmware"),
        ("control", "is a socket"),
        ("text.elf", "the firmware of core core is not changed"),
    ] {
        let answer = set(firmware);
        assert_eq!(answer["error"], "io.rprocd.Refused");
        let why = answer["parameters"]["reason"].as_str().unwrap();
        assert!(why.contains(words), "{why}");
        assert_eq!(served.cores[0].status().firmware, "script.elf");
    }
    assert_eq!(set("other.elf"), json!({ "parameters": {} }));
    assert_eq!(served.cores[0].status().firmware, "other.elf");
    served.cores[0].start(Holder::Operator).unwrap();
    let answer = set("other.elf");
    let why = answer["parameters"]["reason"].as_str().unwrap();
    assert!(why.contains("stop it first"), "{why}");
}

#[test]
fn a_core_that_is_not_there_is_told_apart_for_each_method() {
    let served = Served::new(engine(), Policies::default());
    let mut client = served.connect();
    for (method, parameters) in [
        ("Start", json!({ "core": "none", "whileConnected": true })),
        ("Attach", json!({ "core": "none" })),
        ("SetRecovery", json!({ "core": "none", "enabled": true })),
        ("SetFirmware", json!({ "core": "none", "firmware": "a" })),
    ] {
        let answer = client.call(&format!("io.rprocd.{method}"), &parameters);
        assert_eq!(answer["error"], "io.rprocd.NoSuchCore", "{method}");
        assert_eq!(answer["parameters"]["core"], "none");
    }
}
