//! `docs/stable-names.md`: every name that scripts and programs rely on.
//!
//! What belongs here: which names there are, and that none goes. What does not: what stable means;
//! `docs/stability.md` says that.
//!
//! `cargo xtask pages` adds names to the page and never takes one away; a name that goes is taken out
//! by hand, by somebody who has read the rules.

use std::collections::BTreeSet;

use clap::Command;
use rprocd::config::keys::FILE;
use rprocd::metrics::METRICS;

use super::{programs, rprocctl, rprocd as daemon};

const INTERFACE: &str = include_str!("../../../src/control/io.rprocd.varlink");

const INTRODUCTION: &str = "\
# Stable names

What these names are, and what is promised of them, is in [stability.md](stability.md).
`cargo xtask pages` adds new ones.

";

/// The page with all names that are there, and all that it had already.
pub fn page(before: &str) -> String {
    let mut names = of_page(before);
    names.extend(present());
    let mut text = format!("{INTRODUCTION}```text\n");
    for name in names {
        text += &name;
        text.push('\n');
    }
    text + "```\n"
}

/// The names that a page has.
pub fn of_page(page: &str) -> BTreeSet<String> {
    let lines = page.lines().skip_while(|line| *line != "```text").skip(1);
    lines
        .take_while(|line| *line != "```")
        .map(str::to_owned)
        .collect()
}

/// The names that are there.
pub fn present() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for section in FILE.all() {
        for key in section.keys {
            let dot = if section.name.is_empty() { "" } else { "." };
            names.insert(format!("key {}{dot}{}", section.name, key.name()));
            for (word, _) in key.words() {
                names.insert(format!(
                    "key {}{dot}{} = \"{word}\"",
                    section.name,
                    key.name()
                ));
            }
        }
    }
    for metric in &METRICS {
        names.insert(format!("metric {}", metric.name));
    }
    let words = ["method", "error"];
    for line in INTERFACE.lines() {
        let mut parts = line.split([' ', '(']);
        if let (Some(kind), Some(name)) = (parts.next(), parts.next())
            && words.contains(&kind)
        {
            names.insert(format!("{kind} io.rprocd.{name}"));
        }
    }
    for (status, ..) in rprocctl::STATUSES {
        names.insert(format!("status rprocctl {status}"));
    }
    for (status, _) in daemon::EXIT_STATUS {
        names.insert(format!("status rprocd {status}"));
    }
    for (command, _) in programs() {
        let name = command.get_name().to_owned();
        of_command(&command, &name, &mut names);
    }
    names
}

fn of_command(command: &Command, name: &str, names: &mut BTreeSet<String>) {
    names.insert(format!("command {name}"));
    for argument in command.get_arguments().filter(|it| !it.is_hide_set()) {
        if let Some(long) = argument.get_long() {
            names.insert(format!("option {name} --{long}"));
        }
    }
    for verb in command
        .get_subcommands()
        .filter(|it| it.get_name() != "help")
    {
        of_command(verb, &format!("{name} {}", verb.get_name()), names);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::pages::NAMES;

    #[test]
    fn no_stable_name_is_gone_and_each_that_is_there_is_on_the_page() {
        let page = fs::read_to_string(NAMES).unwrap();
        let (promised, present) = (of_page(&page), present());
        let gone: Vec<_> = promised.difference(&present).collect();
        assert!(
            gone.is_empty(),
            "{gone:?} were promised to stay; docs/stability.md says how something goes"
        );
        let missing: Vec<_> = present.difference(&promised).collect();
        assert!(
            missing.is_empty(),
            "{missing:?} are not in docs/stable-names.md; run `cargo xtask pages`"
        );
        for kind in [
            "key", "metric", "method", "error", "status", "command", "option",
        ] {
            let mut promised = promised.iter();
            assert!(
                promised.any(|it| it.starts_with(&format!("{kind} "))),
                "{kind}"
            );
        }
    }
}
