//! What goes on until it is ended: traces, events, the steps of a change.
//!
//! What belongs here: asking on, and a line for each thing. What does not: tables.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::terminal::{time, write};
use crate::{Daemon, Failure, Result};
use rprocd::control::TracePiece;
use rprocd::control::client;
use rprocd::rproc::Event;

/// Does a change, and shows what happens meanwhile.
pub fn progress(daemon: &Daemon, method: &str, parameters: &Value) -> Result<String> {
    #[derive(Deserialize)]
    struct Told {
        event: Option<Event>,
    }
    let mut connection = daemon.connect()?;
    connection.send(method, parameters, true, &[])?;
    loop {
        let answer = connection.answer(method)?;
        let Told { event } = client::read(method, answer.parameters)?;
        if let Some(event) = event {
            write(&line(daemon, &event)?)?;
        }
        if !answer.continues {
            return Ok(String::new());
        }
    }
}

fn line(daemon: &Daemon, event: &Event) -> Result<String> {
    if daemon.json {
        let text = serde_json::to_string(event)
            .map_err(|cause| Failure::new(1, format!("the answer cannot be shown: {cause}")))?;
        return Ok(text + "\n");
    }
    let about = match event.vdev {
        Some(vdev) => format!("{}/vdev{vdev}", event.core),
        None => event.core.clone(),
    };
    Ok(format!(
        "{} {} {about}: {}: {}\n",
        event.seq,
        time(event.time),
        event.what,
        event.detail
    ))
}

#[derive(Deserialize)]
struct Excerpt {
    events: Vec<Event>,
    lost: u64,
    next: u64,
}

/// What has happened, and with `follow` what happens.
pub fn events(
    daemon: &Daemon,
    core: Option<&str>,
    since: Option<u64>,
    follow: bool,
    steps: bool,
) -> Result<String> {
    let method = "io.rprocd.Events";
    let mut connection = daemon.connect()?;
    let parameters = |since: Option<u64>| json!({ "core": core, "since": since });
    let show = |excerpt: &Excerpt| -> Result<bool> {
        if excerpt.lost > 0 {
            let lost = excerpt.lost;
            eprintln!(
                "rprocctl: {lost} events are not kept any more; `rprocctl list` tells how things are"
            );
        }
        let mut text = String::new();
        for event in &excerpt.events {
            if steps || event.what != "step" {
                text += &line(daemon, event)?;
            }
        }
        write(&text)
    };
    if follow {
        // Any time may pass until something happens.
        connection.send(method, &parameters(since), true, &[])?;
        connection.set_patience(None)?;
        loop {
            let answer = connection.answer(method)?;
            if !show(&client::read(method, answer.parameters)?)? {
                return Ok(String::new());
            }
        }
    }
    let mut since = since;
    loop {
        let excerpt: Excerpt = connection.call(method, &parameters(since))?;
        if !show(&excerpt)? || since == Some(excerpt.next) {
            return Ok(String::new());
        }
        since = Some(excerpt.next);
    }
}

#[derive(Deserialize)]
struct Buffers {
    buffers: Vec<TracePiece>,
}

/// Writes what is there, piece by piece; to follow is to be told more. Returns the line feed that is
/// missing at the end.
pub fn trace(daemon: &Daemon, core: &str, follow: bool) -> Result<String> {
    let method = "io.rprocd.Trace";
    let mut connection = daemon.connect()?;
    let mut shown = Shown::new(daemon, core);
    if follow {
        connection.send(method, &json!({ "core": core }), true, &[])?;
        connection.set_patience(None)?;
        loop {
            let answer = connection.answer(method)?;
            let Buffers { buffers } = client::read(method, answer.parameters)?;
            if !shown.show(&buffers)? {
                return Ok(String::new());
            }
        }
    }
    let mut since: Vec<u64> = Vec::new();
    // Where the buffers were when they were first asked: a firmware that goes on writing is
    // not waited for.
    let mut goal: Option<Vec<u64>> = None;
    loop {
        let parameters = json!({ "core": core, "since": since });
        let Buffers { buffers } = connection.call(method, &parameters)?;
        let goal = goal.get_or_insert_with(|| buffers.iter().map(|piece| piece.end).collect());
        if !shown.show(&buffers)? {
            return Ok(String::new());
        }
        let next: Vec<_> = buffers.iter().map(|piece| piece.next).collect();
        // Without a step there is nothing but, perhaps, the beginning of a character.
        let moved = next != since && buffers.iter().any(|piece| !piece.text.is_empty());
        let reached = next.iter().zip(&*goal).all(|(next, goal)| next >= goal);
        since = next;
        if !moved || reached {
            return Ok(shown.end());
        }
    }
}

/// A trace on its way to the output.
struct Shown<'a> {
    daemon: &'a Daemon,
    core: &'a str,
    in_line: bool,
}

impl<'a> Shown<'a> {
    fn new(daemon: &'a Daemon, core: &'a str) -> Self {
        Self {
            daemon,
            core,
            in_line: false,
        }
    }

    /// Says whether anybody still reads it.
    fn show(&mut self, buffers: &[TracePiece]) -> Result<bool> {
        for (index, piece) in buffers.iter().enumerate() {
            let core = self.core;
            for gap in gaps(piece) {
                eprintln!("rprocctl: {core}: trace buffer {index}: {gap}");
            }
            let text = if !self.daemon.json {
                piece.text.clone()
            } else if piece.text.is_empty() {
                continue;
            } else {
                let value = json!({ "core": core, "buffer": index, "text": piece.text });
                format!("{value}\n")
            };
            if !write(&text)? {
                return Ok(false);
            }
            if let Some(last) = text.chars().next_back() {
                self.in_line = last != '\n';
            }
        }
        Ok(true)
    }

    fn end(self) -> String {
        if self.in_line { "\n" } else { "" }.to_owned()
    }
}

/// What is missing in front of a piece, in words.
fn gaps(piece: &TracePiece) -> Vec<String> {
    let mut gaps = Vec::new();
    if piece.lost > 0 {
        let lost = piece.lost;
        gaps.push(format!("{lost} bytes were gone before they were asked for"));
    }
    if piece.overruns > 0 {
        let times = piece.overruns;
        gaps.push(format!(
            "text was overwritten before rprocd looked ({times} times)"
        ));
    }
    gaps
}
