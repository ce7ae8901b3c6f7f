//! What goes on until it is ended: events, the steps of a change.
//!
//! What belongs here: asking on, and a line for each thing. What does not: tables, traces.

use std::collections::HashSet;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::daemons::{Daemon, Daemons, List};
use crate::failure::{ENDED, FAILED, Failure, Result};
use crate::terminal::{time, write};
use rprocd::control::client::{self, CallError, Connection};
use rprocd::rproc::Event;

const METHOD: &str = "io.rprocd.Events";
/// Events that are shown before those that are followed.
const LINES: usize = 10;

/// What a failure means while a daemon is followed: that it hangs up is how it ends.
pub fn ended(daemon: &Daemon, cause: CallError) -> Failure {
    match cause {
        CallError::HungUp | CallError::Unreachable { .. } => {
            let text = format!("rprocd at {} ended", daemon.socket.display());
            Failure::new(ENDED, text).at(&daemon.socket)
        }
        cause => daemon.failed(cause),
    }
}

/// A value in a line.
pub fn json_line(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string(value);
    let text = text.map_err(|cause| {
        let text = format!("the answer cannot be shown: {cause}");
        Failure::new(FAILED, text)
    });
    Ok(text? + "\n")
}

/// Does a change, and shows what happens meanwhile.
pub fn progress(daemon: &Daemon, method: &str, parameters: &Value) -> Result<()> {
    #[derive(Deserialize)]
    struct Told {
        event: Option<Event>,
    }
    let mut connection = daemon.connect(method)?;
    let failed = |cause| daemon.failed(cause);
    connection
        .send(method, parameters, true, &[])
        .map_err(failed)?;
    loop {
        let answer = connection.answer(method).map_err(failed)?;
        let Told { event } = client::read(method, answer.parameters)?;
        if let Some(event) = event {
            let line = if daemon.json {
                json_line(&event)?
            } else {
                line(&event, &event.core)
            };
            write(&line)?;
        }
        if !answer.continues {
            return Ok(());
        }
    }
}

/// An event of a core that is called `core` here.
fn line(event: &Event, core: &str) -> String {
    let vdev = event.vdev.map(|it| format!("/vdev{it}"));
    format!(
        "{} {} {core}{}: {}: {}\n",
        event.seq,
        time(event.time),
        vdev.unwrap_or_default(),
        event.what,
        event.detail
    )
}

#[derive(Deserialize)]
struct Excerpt {
    events: Vec<Event>,
    lost: u64,
    next: u64,
}

/// Which events are shown.
pub struct Wanted<'a> {
    /// Of this core.
    pub core: Option<&'a str>,
    /// From this number on.
    pub since: Option<u64>,
    /// So many of those that have happened.
    pub lines: Option<usize>,
    /// And those that happen from now on.
    pub follow: bool,
    /// Steps as well.
    pub steps: bool,
}

impl Wanted<'_> {
    fn parameters(&self, since: Option<u64>) -> Value {
        json!({ "core": self.core, "since": since })
    }

    fn has(&self, event: &Event) -> bool {
        self.steps || event.what != "step"
    }
}

/// What a daemon has told of what has happened.
struct Past {
    connection: Connection,
    events: Vec<Event>,
    lost: u64,
    next: u64,
    /// Its cores, where there are other daemons.
    cores: Vec<String>,
}

/// All events that a daemon keeps, from a number on.
fn past(daemon: &Daemon, wanted: &Wanted<'_>, several: bool) -> Result<Past> {
    let mut connection = daemon.connect(METHOD)?;
    let failed = |cause| daemon.failed(cause);
    let mut since = wanted.since;
    let (mut events, mut lost) = (Vec::new(), 0);
    let next = loop {
        let parameters = wanted.parameters(since);
        let excerpt: Excerpt = connection.call(METHOD, &parameters).map_err(failed)?;
        events.extend(excerpt.events.into_iter().filter(|it| wanted.has(it)));
        lost += excerpt.lost;
        if since == Some(excerpt.next) {
            break excerpt.next;
        }
        since = Some(excerpt.next);
    };
    let cores = if several {
        let List { cores, .. } = daemon.list()?;
        cores.into_iter().map(|core| core.name).collect()
    } else {
        Vec::new()
    };
    Ok(Past {
        connection,
        events,
        lost,
        next,
        cores,
    })
}

/// How events are shown.
struct Shown {
    json: bool,
    /// Names that cores of more than one daemon have.
    shared: HashSet<String>,
}

impl Shown {
    fn value(daemon: &Daemon, event: &Event) -> Value {
        let mut value = json!(event);
        value["daemon"] = json!(daemon.socket);
        value
    }

    fn line(&self, daemon: &Daemon, event: &Event) -> Result<String> {
        if self.json {
            return json_line(&Self::value(daemon, event));
        }
        Ok(if self.shared.contains(&event.core) {
            line(
                event,
                &format!("{} ({})", event.core, daemon.socket.display()),
            )
        } else {
            line(event, &event.core)
        })
    }

    /// Events that are not kept any more.
    fn lost(&self, daemon: &Daemon, lost: u64) -> Result<bool> {
        if lost == 0 {
            return Ok(true);
        }
        if self.json {
            return write(&json_line(
                &json!({ "lost": lost, "daemon": daemon.socket }),
            )?);
        }
        eprintln!(
            "rprocctl: {lost} events are not kept any more; `rprocctl list` tells how things are"
        );
        Ok(true)
    }
}

/// What has happened, and with `follow` what happens.
pub fn events(daemons: &Daemons, wanted: &Wanted<'_>) -> Result<String> {
    let pasts = match wanted.core {
        Some(core) => {
            let daemon = daemons.of_core(core)?;
            let past = past(&daemon, wanted, false)?;
            vec![(daemon, past)]
        }
        None => {
            if wanted.since.is_some() {
                daemons.only("a number of an event")?;
            }
            let several = daemons.all()?.len() > 1;
            daemons.each(|daemon| past(daemon, wanted, several))?
        }
    };
    let (mut seen, mut shared) = (HashSet::new(), HashSet::new());
    for core in pasts.iter().flat_map(|(_, past)| &past.cores) {
        if !seen.insert(core) {
            shared.insert(core.clone());
        }
    }
    let shown = Shown {
        json: daemons.json,
        shared,
    };
    let events = pasts
        .iter()
        .flat_map(|(daemon, past)| past.events.iter().map(move |it| (daemon, it)));
    let mut events: Vec<_> = events.collect();
    // Each daemon's own are in order.
    events.sort_by_key(|(_, event)| event.time);
    let most = match wanted.lines {
        Some(lines) => lines,
        None if wanted.follow && wanted.since.is_none() => LINES,
        None => events.len(),
    };
    let events = &events[events.len().saturating_sub(most)..];
    if daemons.json && !wanted.follow {
        // The standard output has one document.
        for (daemon, past) in pasts.iter().filter(|(_, it)| it.lost > 0) {
            if wanted.since.is_some() {
                eprintln!("{}", json!({ "lost": past.lost, "daemon": daemon.socket }));
            }
        }
        let events: Vec<_> = events.iter().map(|(of, it)| Shown::value(of, it)).collect();
        return crate::daemons::shown(true, &events, String::new);
    }
    // Without a number nothing was asked for that could be lost.
    for (daemon, past) in pasts.iter().filter(|_| wanted.since.is_some()) {
        shown.lost(daemon, past.lost)?;
    }
    let mut text = String::new();
    for (daemon, event) in events {
        text += &shown.line(daemon, event)?;
    }
    if !write(&text)? || !wanted.follow {
        return Ok(String::new());
    }
    follow(daemons, wanted, &shown, pasts)
}

/// What happens from now on, at all of them.
fn follow(
    daemons: &Daemons,
    wanted: &Wanted<'_>,
    shown: &Shown,
    pasts: Vec<(Daemon, Past)>,
) -> Result<String> {
    // Whoever does not read what is shown is not read for: the daemon counts what is lost.
    let (tell, told) = sync_channel(1);
    let mut left = pasts.len();
    for (daemon, past) in pasts {
        let parameters = wanted.parameters(Some(past.next));
        let tell = tell.clone();
        // It ends with the process, or with its daemon.
        thread::spawn(move || listen(&daemon, past.connection, &parameters, &tell));
    }
    while let Ok((daemon, answer)) = told.recv() {
        let excerpt = match answer {
            Ok(excerpt) => excerpt,
            Err(failure) => {
                left -= 1;
                if left == 0 {
                    return Err(failure);
                }
                daemons.complain(&failure);
                continue;
            }
        };
        let mut text = String::new();
        for event in excerpt.events.iter().filter(|it| wanted.has(it)) {
            text += &shown.line(&daemon, event)?;
        }
        if !shown.lost(&daemon, excerpt.lost)? || !write(&text)? {
            break;
        }
    }
    Ok(String::new())
}

/// Passes on what a daemon tells, until it ends.
fn listen(
    daemon: &Daemon,
    mut connection: Connection,
    parameters: &Value,
    tell: &SyncSender<(Daemon, Result<Excerpt>)>,
) {
    // Any time may pass until something happens.
    let asked = connection
        .send(METHOD, parameters, true, &[])
        .and_then(|()| connection.set_patience(None));
    let mut next = asked.and_then(|()| connection.answer(METHOD));
    loop {
        let excerpt = next.and_then(|answer| client::read(METHOD, answer.parameters));
        let excerpt = excerpt.map_err(|cause| ended(daemon, cause));
        let over = excerpt.is_err();
        if tell.send((daemon.clone(), excerpt)).is_err() || over {
            return;
        }
        next = connection.answer(METHOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_vdev_names_it() {
        let event = Event {
            seq: 7,
            time: 0,
            core: "m0".into(),
            incarnation: 1,
            what: "guest".into(),
            vdev: Some(1),
            detail: "gone".into(),
            trace: Vec::new(),
        };
        assert_eq!(
            line(&event, "m0"),
            "7 1970-01-01T00:00:00.000000Z m0/vdev1: guest: gone\n"
        );
    }
}
