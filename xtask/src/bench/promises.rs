//! What the project promises of its speed, held against what was measured.
//!
//! What belongs here: the promises, each a ratio or a count of one run. What does not: measuring,
//! and consequences: a promise that is missed is printed, and nothing fails.

use serde_json::Value;

/// How far a figure may go in the wrong direction.
#[derive(Clone, Copy)]
enum Limit {
    AtLeast(f64),
    AtMost(f64),
    /// At most, but for what a counter that is read a moment early or late makes.
    Counted(f64),
}

impl Limit {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(limit) => value >= limit,
            Self::AtMost(limit) => value <= limit,
            Self::Counted(limit) => value <= limit + 0.0005,
        }
    }

    fn show(self) -> String {
        match self {
            Self::AtLeast(limit) => format!(">= {limit}"),
            Self::AtMost(limit) | Self::Counted(limit) => format!("<= {limit}"),
        }
    }
}

/// One promise and what became of it.
pub struct Promise {
    what: &'static str,
    aim: Limit,
    floor: Limit,
    /// Nothing if a side of it was not measured.
    value: Option<f64>,
}

impl Promise {
    fn verdict(&self) -> &'static str {
        match self.value {
            None => "not measured",
            Some(value) if self.aim.holds(value) => "PASS",
            Some(value) if self.floor.holds(value) => "MISS, the floor holds",
            Some(_) => "MISS",
        }
    }

    /// For the results.
    pub fn json(&self) -> Value {
        serde_json::json!({
            "promise": self.what,
            "value": self.value,
            "aim": self.aim.show(),
            "floor": self.floor.show(),
            "verdict": self.verdict(),
        })
    }
}

/// What was measured, to be asked by name.
pub struct Results<'a>(pub &'a Value);

impl Results<'_> {
    fn cell(&self, contestant: &str, wait: &str, in_flight: u64) -> Option<&Value> {
        self.0["cells"].as_array()?.iter().find(|cell| {
            cell["contestant"] == contestant
                && cell["wait"] == wait
                && cell["in_flight"] == in_flight
                && cell["size"] == 512
        })
    }

    /// The middle of nanoseconds a message.
    pub fn ns(&self, contestant: &str, wait: &str, in_flight: u64) -> Option<f64> {
        self.cell(contestant, wait, in_flight)?["ns"][1].as_f64()
    }

    fn count(&self, what: &str, wait: &str, in_flight: u64) -> Option<f64> {
        self.cell("relay", wait, in_flight)?[what].as_f64()
    }

    /// rpmsg's figure over another way's in the same guest.
    fn in_guest(&self, way: &str, figure: &str) -> Option<f64> {
        let ratios = self.0["in_guest"]["ratios"].as_array()?;
        let ratio = ratios.iter().find(|ratio| ratio["to"] == way)?;
        ratio[figure]["median"].as_f64()
    }

    /// A figure of the processes with many vdevs.
    pub fn crowd(&self, manner: &str, vdevs: u64) -> Option<&Value> {
        self.0["scaling"]
            .as_array()?
            .iter()
            .find(|crowd| crowd["manner"] == manner && crowd["vdevs"] == vdevs)
    }
}

fn over(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    Some(one? / other?)
}

/// All of them: the relay's own, then those of the whole path.
pub fn all(results: &Results<'_>) -> Vec<Promise> {
    use Limit::{AtLeast, AtMost, Counted};
    let ns = |contestant, wait, in_flight| results.ns(contestant, wait, in_flight);
    let eventfd = results.0["yardsticks"]["eventfd_ns"][1].as_f64();
    let mut all = Vec::new();
    let mut add = |what, value, aim, floor| {
        all.push(Promise {
            what,
            aim,
            floor,
            value,
        });
    };
    let with = results.0["hugepages"] == true;
    add(
        if with {
            "rate polled, 256 in flight / DPDK with hugepages"
        } else {
            "rate polled, 256 in flight / DPDK (no hugepages)"
        },
        over(ns("dpdk", "polled", 256), ns("relay", "polled", 256)),
        AtLeast(1.2),
        AtLeast(1.0),
    );
    add(
        "the same / rust-vmm, plain",
        over(ns("plain", "polled", 256), ns("relay", "polled", 256)),
        AtLeast(8.0),
        AtLeast(5.0),
    );
    add(
        "round trip polled / DPDK",
        over(ns("relay", "polled", 1), ns("dpdk", "polled", 1)),
        AtMost(0.95),
        AtMost(1.1),
    );
    add(
        "round trip asleep / eventfd on two CPUs",
        over(ns("relay", "asleep", 1), eventfd),
        AtMost(1.1),
        AtMost(1.25),
    );
    add(
        "the same / vhost-device-vsock",
        over(ns("relay", "asleep", 1), ns("vsock", "asleep", 1)),
        AtMost(0.7),
        AtMost(0.8),
    );
    add(
        "round trip lingering / polled",
        over(ns("relay", "lingering", 1), ns("relay", "polled", 1)),
        AtMost(1.25),
        AtMost(2.0),
    );
    add(
        "asleep, 32 in flight / rust-vmm, plain",
        over(ns("relay", "asleep", 32), ns("plain", "asleep", 32)),
        AtMost(0.85),
        AtMost(1.0),
    );
    add(
        "asleep, 256 in flight / rust-vmm, plain",
        over(ns("relay", "asleep", 256), ns("plain", "asleep", 256)),
        AtMost(0.35),
        AtMost(0.5),
    );
    for (in_flight, limit, kicks, calls) in [
        (
            1,
            1.0,
            "kicks a message, 1 in flight",
            "calls a message, 1 in flight",
        ),
        (
            32,
            0.035,
            "kicks a message, 32 in flight",
            "calls a message, 32 in flight",
        ),
        (
            256,
            0.006,
            "kicks a message, 256 in flight",
            "calls a message, 256 in flight",
        ),
    ] {
        let count = |what| results.count(what, "asleep", in_flight);
        let limit = Counted(limit);
        add(kicks, count("kicks"), limit, limit);
        add(calls, count("calls"), limit, limit);
    }
    add(
        "wake-ups a round trip, asleep",
        results.count("switches", "asleep", 1),
        AtMost(2.05),
        AtMost(2.5),
    );
    let in_turn = |vdevs| results.crowd("polls", vdevs)?["ns_in_turn"]["spread"][1].as_f64();
    add(
        "16 vdevs in turn / 1, polled",
        over(in_turn(16), in_turn(1)),
        AtMost(1.1),
        AtMost(1.25),
    );
    let one = |vdevs| results.crowd("sleeps", vdevs)?["ns_one_of_them"]["spread"][1].as_f64();
    add(
        "1 beside 63 idle / 1 alone, asleep",
        over(one(64), one(1)),
        AtMost(1.03),
        AtMost(1.1),
    );
    let idle = |vdevs| results.crowd("sleeps", vdevs)?["idle_bytes"].as_f64();
    let each = idle(64).zip(idle(1));
    add(
        "KiB of an idle vdev",
        each.map(|(many, one)| (many - one) / 63.0 / 1024.0),
        AtMost(256.0),
        AtMost(256.0),
    );
    add(
        "CPU seconds of 64 idle ones in a second",
        results
            .crowd("sleeps", 64)
            .and_then(|it| it["cpu_in_a_silent_second"].as_f64()),
        AtMost(0.0005),
        AtMost(0.0005),
    );
    add(
        "rv32: rate asleep, 32 in flight / vhost-device-vsock",
        over(ns("vsock", "asleep", 32), ns("rv32", "asleep", 32)),
        AtLeast(5.0),
        AtLeast(5.0),
    );
    add(
        "rv32: round trip asleep / vhost-device-vsock",
        over(ns("rv32", "asleep", 1), ns("vsock", "asleep", 1)),
        AtMost(1.0),
        AtMost(1.0),
    );
    add(
        "rv32: rate polled, 256 in flight / relay alone",
        over(ns("relay", "polled", 256), ns("rv32", "polled", 256)),
        AtLeast(0.25),
        AtLeast(0.25),
    );
    let guest = |what: &str| results.in_guest("vsock", what);
    add(
        "in a Linux guest: round trip / vsock",
        guest("rtt"),
        AtMost(0.7),
        AtMost(0.7),
    );
    add(
        "in a Linux guest: rate / vsock",
        guest("rate"),
        AtLeast(3.0),
        AtLeast(3.0),
    );
    all
}

/// Prints them.
pub fn show(promises: &[Promise]) {
    println!(
        "\n{:<54}{:>8}{:>9}{:>9}",
        "Promise", "value", "aim", "floor"
    );
    for promise in promises {
        let value = match promise.value {
            None => "-".to_owned(),
            Some(value) if value.abs() < 0.1 && value != 0.0 => format!("{value:.4}"),
            Some(value) => format!("{value:.2}"),
        };
        println!(
            "{:<54}{value:>8}{:>9}{:>9}  {}",
            promise.what,
            promise.aim.show(),
            promise.floor.show(),
            promise.verdict()
        );
    }
}
