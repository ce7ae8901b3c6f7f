//! QEMU's machine protocol: one JSON object a line.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::wait_until;

const LIMIT: Duration = Duration::from_secs(20);

/// A connection to a QEMU.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects, and leaves the negotiation phase.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = wait_until(LIMIT, || UnixStream::connect(path).ok())
            .with_context(|| format!("QEMU does not listen on {}", path.display()))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut qmp = Self {
            reader: BufReader::new(stream),
            events: Vec::new(),
        };
        qmp.receive().context("QEMU sent no greeting")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// One command, and what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes())?;
        loop {
            let answer = self
                .receive()
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

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU closed the connection");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU sent no JSON: {line}"))
    }
}
