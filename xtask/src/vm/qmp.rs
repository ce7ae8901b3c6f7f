//! QEMU's machine protocol: one JSON object a line.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::wait_until;
use super::wire::Wire;

/// For one command, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A connection to a QEMU.
pub struct Qmp {
    wire: Wire,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects, and leaves the negotiation phase.
    pub fn connect(path: &Path) -> Result<Self> {
        let wire = wait_until(LIMIT, || Wire::connect(path).ok()).with_context(|| {
            format!(
                "QEMU took no connection on {} within {} s",
                path.display(),
                LIMIT.as_secs()
            )
        })?;
        let mut qmp = Self {
            wire,
            events: Vec::new(),
        };
        let greeting = qmp.receive(Instant::now() + LIMIT);
        greeting.context("QEMU sent no greeting")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// One command, and what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let deadline = Instant::now() + LIMIT;
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.wire
            .send(line.as_bytes(), LIMIT)
            .with_context(|| format!("QEMU does not take {command}"))?;
        loop {
            let answer = self
                .receive(deadline)
                .with_context(|| format!("no answer to {command}"))?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                bail!("{command}: {}", error["desc"].as_str().unwrap_or("refused"));
            }
            self.events.push(answer);
        }
    }

    /// Waits until QEMU says that the device `id` is out.
    pub fn wait_deleted(&mut self, id: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let is_it =
            |event: &Value| event["event"] == "DEVICE_DELETED" && event["data"]["device"] == id;
        loop {
            if let Some(at) = self.events.iter().position(is_it) {
                self.events.remove(at);
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "the guest did not let go of {id} within {} s",
                    limit.as_secs()
                );
            }
            // Brings events with its answer.
            self.execute("query-status", json!({}))?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Value> {
        let Some(line) = self.wire.line(deadline)? else {
            bail!("QEMU said nothing for {} s", LIMIT.as_secs());
        };
        serde_json::from_str(&line).with_context(|| format!("QEMU sent no JSON: {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    #[test]
    fn events_come_between_and_what_is_refused_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let qemu = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            stream.write_all(b"{\"QMP\":{}}\r\n").unwrap();
            for answer in [
                "{\"return\":{}}\r\n",
                "{\"event\":\"DEVICE_DELETED\",\"data\":{\"device\":\"a\"}}\r\n{\"return\":7}\r\n",
                "{\"error\":{\"desc\":\"no such device\"}}\r\n",
            ] {
                lines.next().unwrap().unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let mut qmp = Qmp::connect(&path).unwrap();
        assert_eq!(qmp.execute("query", json!({})).unwrap(), 7);
        qmp.wait_deleted("a", Duration::ZERO).unwrap();
        let error = qmp.execute("device_del", json!({})).unwrap_err();
        assert_eq!(error.to_string(), "device_del: no such device");
        qemu.join().unwrap();
        let error = qmp.execute("stop", json!({})).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("stop"), "{error}");
    }
}
