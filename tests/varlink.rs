//! The control socket as others implement its other end: systemd's `varlinkctl`, and a Varlink
//! library.
//!
//! What belongs here: that they understand the interface and each kind of answer. What does not:
//! what the answers say.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use rprocd::control::INTERFACE;
use serde_json::{Value, json};
use varlink::{Connection, MethodCall};
use zlink_idl::{Field, Interface, Type};

use crate::frontend::process::{Core, Daemon};

/// systemd's client. Where there is none these tests hold nothing, and say so.
fn varlinkctl() -> Option<OsString> {
    let program = std::env::var_os(xtask::kit::VARLINKCTL_VARIABLE);
    if program.is_none() {
        eprintln!(
            "SKIPPED: {} names no varlinkctl; `cargo xtask test` fetches one",
            xtask::kit::VARLINKCTL_VARIABLE
        );
    }
    program
}

fn address(daemon: &Daemon) -> String {
    format!("unix:{}", daemon.socket("control").display())
}

#[track_caller]
fn said(output: Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn systemds_varlinkctl_finds_its_way() {
    let Some(program) = varlinkctl() else {
        return;
    };
    let daemon = Daemon::start(&[Core::default()]);
    let address = address(&daemon);
    let run = |words: &[&str]| Command::new(&program).args(words).output().unwrap();
    let info = said(run(&["info", &address]));
    assert!(
        info.contains("rprocd") && info.contains("io.rprocd"),
        "{info}"
    );
    let methods = said(run(&["list-methods", &address]));
    assert!(methods.contains("io.rprocd.OpenCoredump"), "{methods}");
    let interface = said(run(&["introspect", &address, "io.rprocd"]));
    for word in [
        "interface io.rprocd",
        "method Events(",
        "error Refused",
        "type Core",
    ] {
        assert!(interface.contains(word), "{word} is not in\n{interface}");
    }
    let list = said(run(&[
        "--json=short",
        "call",
        &address,
        "io.rprocd.List",
        "{}",
    ]));
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["cores"][0]["name"], "echo");
    let refused = run(&["call", &address, "io.rprocd.Start", r#"{"core": "nobody"}"#]);
    assert!(!refused.status.success());
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("io.rprocd.NoSuchCore"), "{error}");
    let mut watcher = Command::new(&program)
        .args([
            "--more",
            "--json=short",
            "call",
            &address,
            "io.rprocd.Events",
        ])
        .arg(r#"{"since": 0}"#)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watcher.stdout.take().unwrap()).lines();
    let mut events = || -> Value {
        // As it writes them: one document an answer, each begun by RS, or none.
        let line = lines.next().unwrap().unwrap();
        serde_json::from_str(line.trim_start_matches('\x1e')).unwrap()
    };
    assert_eq!(events()["events"][0]["detail"], "offline");
    said(run(&[
        "call",
        &address,
        "io.rprocd.Crash",
        r#"{"core": "echo"}"#,
    ]));
    loop {
        let answer = events();
        let told = answer["events"].as_array().unwrap().clone();
        if told.iter().any(|event| event["what"] == "crash") {
            break;
        }
    }
    watcher.kill().unwrap();
    watcher.wait().unwrap();
}

#[test]
fn a_varlink_library_calls_and_is_told_errors_and_streams() {
    let daemon = Daemon::start(&[Core::default()]);
    let connection = Connection::with_address(&address(&daemon)).unwrap();
    let call = |method: &'static str, parameters: Value| {
        MethodCall::<Value, Value, varlink::Error>::new(connection.clone(), method, parameters)
    };
    let list = call("io.rprocd.List", json!({})).call().unwrap();
    assert_eq!(list["cores"][0]["name"], "echo");
    let refused = call("io.rprocd.Stop", json!({ "core": "nobody" })).call();
    let refused = refused.unwrap_err();
    let varlink::ErrorKind::VarlinkErrorReply(reply) = refused.kind() else {
        panic!("{refused}");
    };
    assert_eq!(reply.error.as_deref(), Some("io.rprocd.NoSuchCore"));
    let mut change = call("io.rprocd.Start", json!({ "core": "echo" }));
    assert!(change.call().is_err(), "it runs already");
    // A change that tells how it goes on, and ends.
    call("io.rprocd.Stop", json!({ "core": "echo" }))
        .call()
        .unwrap();
    let mut start = call("io.rprocd.Start", json!({ "core": "echo" }));
    let told: Vec<_> = start.more().unwrap().map(Result::unwrap).collect();
    let (last, told) = told.split_last().unwrap();
    assert_eq!(*last, json!({}));
    assert_eq!(told.last().unwrap()["event"]["detail"], "running");
    // And one that goes on.
    let mut events = call("io.rprocd.Events", json!({ "since": 0 }));
    let first = events.more().unwrap().next().unwrap().unwrap();
    assert_eq!(first["events"][0]["seq"], 0);
}

#[test]
fn the_interface_is_what_another_parser_takes() {
    let interface = Interface::try_from(INTERFACE).unwrap();
    assert_eq!(interface.name().as_str(), "io.rprocd");
    let mut methods = interface.methods();
    assert!(methods.any(|method| method.name().as_str() == "Events"));
    let mut errors = interface.errors();
    assert!(errors.any(|error| error.name().as_str() == "Refused"));
}

/// Where an object has other fields than the interface says, if it does.
fn fields(interface: &Interface<'_>, value: &Value, members: &[&Field<'_>]) -> Option<String> {
    let Some(object) = value.as_object() else {
        return Some(format!("{value} is no object"));
    };
    for name in object.keys() {
        if !members.iter().any(|member| member.name().as_str() == name) {
            return Some(format!("{name} is not in the interface"));
        }
    }
    members.iter().find_map(|member| {
        let name = member.name().as_str();
        let found = object.get(name).unwrap_or(&Value::Null);
        let wrong = differs(interface, found, member.ty())?;
        Some(format!("{name}: {wrong}"))
    })
}

/// Where a value is not of a type of the interface, if it is not.
fn differs(interface: &Interface<'_>, value: &Value, kind: &Type<'_>) -> Option<String> {
    let of = |is: bool, word: &str| (!is).then(|| format!("{value} is no {word}"));
    match kind {
        Type::Optional(_) if value.is_null() => None,
        Type::Optional(inner) => differs(interface, value, inner),
        Type::Array(inner) => match value.as_array() {
            Some(list) => list.iter().find_map(|item| differs(interface, item, inner)),
            None => of(false, "list"),
        },
        Type::Map(_) => of(value.is_object(), "object"),
        Type::Bool => of(value.is_boolean(), "bool"),
        Type::Int => of(value.is_i64(), "int"),
        Type::Float => of(value.is_f64(), "float"),
        Type::String | Type::Enum(_) => of(value.is_string(), "string"),
        Type::ForeignObject | Type::Any => None,
        Type::Object(list) => fields(interface, value, &list.iter().collect::<Vec<_>>()),
        Type::Custom(name) => {
            let mut kinds = interface.custom_types();
            let kind = kinds.find(|kind| kind.name() == name).unwrap();
            match kind.as_object() {
                Some(object) => fields(interface, value, &object.fields().collect::<Vec<_>>()),
                None => of(value.is_string(), "string"),
            }
        }
    }
}

#[test]
fn answers_have_the_fields_of_the_interface_and_no_others() {
    let interface = Interface::try_from(INTERFACE).unwrap();
    let daemon = Daemon::start(&[Core {
        settings: "[core.coredump]\nmode = \"inline\"\ndirectory = \".\"",
        ..Core::default()
    }]);
    let connection = Connection::with_address(&address(&daemon)).unwrap();
    let echo = || json!({ "core": "echo" });
    let calls = [
        ("Crash", echo()),
        ("Recover", echo()),
        ("List", json!({})),
        ("Events", json!({})),
        ("Trace", echo()),
        ("Memory", echo()),
        ("Resources", echo()),
        ("Coredumps", echo()),
        (
            "CheckFirmware",
            json!({ "core": "echo", "firmware": "echo.elf" }),
        ),
        ("CheckConfig", json!({ "text": "" })),
        ("SetCoredump", json!({ "core": "echo", "mode": "enabled" })),
        ("SetRecovery", json!({ "core": "echo", "enabled": true })),
        ("Stop", echo()),
        (
            "SetFirmware",
            json!({ "core": "echo", "firmware": "tty.elf" }),
        ),
        ("List", json!({})),
    ];
    for (method, parameters) in calls {
        let name = format!("io.rprocd.{method}");
        let mut methods = interface.methods();
        let kind = methods.find(|kind| kind.name().as_str() == method).unwrap();
        let connection = connection.clone();
        let mut call =
            MethodCall::<Value, Value, varlink::Error>::new(connection, name, parameters);
        let (answer, elements): (_, Vec<_>) = match call.call() {
            Ok(answer) => (answer, kind.outputs().collect()),
            Err(cause) => {
                let varlink::ErrorKind::VarlinkErrorReply(reply) = cause.kind() else {
                    panic!("{method}: {cause}");
                };
                let name = reply.error.as_deref().unwrap();
                let name = name.strip_prefix("io.rprocd.").unwrap();
                let parameters = reply.parameters.clone().unwrap();
                let mut errors = interface.errors();
                let kind = errors.find(|kind| kind.name().as_str() == name).unwrap();
                (parameters, kind.fields().collect())
            }
        };
        if let Some(wrong) = fields(&interface, &answer, &elements) {
            panic!("{method}: {wrong}");
        }
    }
}
