//! `docs/configuration.md` and rprocd.toml(5): every key of the configuration file.
//!
//! What belongs here: how the table of keys (`rprocd::config::keys`) becomes a page. What does not:
//! what a key is for; the table says that, and the daemon reads the file by it.

use rprocd::config::keys::{Described, EXAMPLE, FILE, Need, Section};

use super::document::{Block, markdown};

/// The Markdown page.
pub fn page() -> String {
    let mut text = "# Configuration\n\n".to_owned();
    let mut blocks = introduction();
    blocks.push(Block::part("All keys"));
    blocks.push(Block::Lines("text", overview()));
    blocks.extend(keys());
    blocks.push(Block::part("Example"));
    blocks.push(Block::Lines("toml", EXAMPLE.to_owned()));
    blocks.push(Block::part("Where this page comes from"));
    blocks.push(Block::text(
        "The daemon reads the file by the table in `src/config/keys.rs`. `cargo xtask pages` makes \
         this page and the manual page rprocd.toml(5) from it: change the table, not the page.",
    ));
    text += &markdown(&blocks);
    text
}

/// What comes behind the name in the manual page.
pub fn manual() -> Vec<Block> {
    let mut blocks = vec![Block::part("Description")];
    blocks.extend(introduction());
    blocks.extend(keys());
    blocks.push(Block::part("Files"));
    blocks.push(Block::words(&[
        (
            "/etc/rprocd/rprocd.toml",
            "what `rprocd` reads unless `--config` names another file.",
        ),
        (
            "/etc/rprocd/NAME.toml",
            "what the unit `rprocd@NAME.service` reads.",
        ),
        (
            "/usr/lib/rprocd/firmware",
            "where firmware is looked for unless `firmware-directory` says otherwise.",
        ),
        (
            "/var/lib/rprocd/coredumps",
            "where coredumps go unless `directory` says otherwise.",
        ),
    ]));
    blocks.push(Block::part("Examples"));
    blocks.push(Block::Lines("toml", EXAMPLE.to_owned()));
    blocks.push(Block::part("See also"));
    blocks.push(Block::text(
        "`rprocd`(8), `rprocctl`(1), `rprocctl-config-check`(1)",
    ));
    blocks
}

fn introduction() -> Vec<Block> {
    [
        "`rprocd` reads one TOML file at its start; a change takes effect at the next start. It \
         reads `/etc/rprocd/rprocd.toml`, or the file that `--config` names. There may be several \
         cores and vdevs: each begins with a line `[[core]]` or `[[core.vdev]]` of its own, and the \
         keys that follow belong to it. Cores and vdevs are counted from 0, in messages too.",
        "A path that does not begin with `/` is relative to the folder that holds the file. A key \
         that is not listed here is refused.",
        "`rprocd --check-config` and `rprocctl config check FILE` check whether rprocd would accept \
         a file: its text, and the firmware, folders and groups that it names. They report every \
         mistake at once, each with its line; they start nothing and need no daemon. `rprocctl \
         --json config check FILE` reports the same to programs.",
    ]
    .map(Block::text)
    .into()
}

/// All keys as a skeleton of a file.
fn overview() -> String {
    let mut text = String::new();
    for section in FILE.all() {
        if !section.name.is_empty() {
            text += &format!("\n{}\n", section.header());
        }
        for key in section.keys {
            let is = match key.need() {
                Need::Required => "required".to_owned(),
                Need::Default(value) => format!("default {value}"),
                Need::Otherwise(_) => "optional".to_owned(),
            };
            text += &format!("  {:<22} {:<9} {is}\n", key.name(), key.type_name());
        }
    }
    text
}

fn keys() -> Vec<Block> {
    let mut blocks = Vec::new();
    for section in FILE.all() {
        let heading = match section.name {
            "" => "At the top of the file".to_owned(),
            _ => format!("`{}`", section.header()),
        };
        blocks.push(Block::Part(heading));
        blocks.push(Block::text(section.doc));
        for key in section.keys {
            blocks.extend(describe(section, *key));
        }
    }
    blocks
}

fn describe(section: &Section, key: &dyn Described) -> Vec<Block> {
    let name = match section.name {
        "" => key.name().to_owned(),
        section => format!("{section}.{}", key.name()),
    };
    let mut facts = capital(key.type_name());
    let words = key.words();
    if words.is_empty() && key.type_name() != "boolean" {
        facts += &format!(": {}", key.allowed());
    }
    if let Some(unit) = key.unit() {
        facts += &format!(" {unit}");
    }
    facts += &match key.need() {
        Need::Required => "; required.".to_owned(),
        Need::Default(value) => format!("; default: `{value}`."),
        Need::Otherwise(words) => format!("; without it: {words}."),
    };
    facts += &format!(" Since {}.", key.since());
    let mut blocks = vec![
        Block::Item(format!("`{name}`")),
        Block::Text(facts),
        Block::text(key.doc()),
    ];
    if !words.is_empty() {
        let words = words
            .into_iter()
            .map(|(word, meaning)| (format!("\"{word}\""), format!("{meaning}.")));
        blocks.push(Block::Words(words.collect()));
    }
    if let Some(line) = example(section, key.name()) {
        blocks.push(Block::Text(format!("Example: `{line}`")));
    }
    blocks
}

/// The line of the example that has a key, without its comment.
fn example(section: &Section, key: &str) -> Option<&'static str> {
    let mut current = "";
    for line in EXAMPLE.lines() {
        let line = line.split(" #").next().unwrap_or_default().trim();
        if line.starts_with('[') {
            current = line.trim_matches(['[', ']']);
        } else if current == section.name
            && line.split_once('=').is_some_and(|it| it.0.trim() == key)
        {
            return Some(line);
        }
    }
    None
}

fn capital(word: &str) -> String {
    let mut characters = word.chars();
    let first = characters.next().map(|it| it.to_ascii_uppercase());
    first.into_iter().chain(characters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_an_example_and_is_told_of_in_sentences() {
        for section in FILE.all() {
            assert!(section.doc.ends_with('.'), "{}", section.name);
            for key in section.keys {
                let name = format!("{}.{}", section.name, key.name());
                assert!(example(section, key.name()).is_some(), "{name}");
                assert!(key.doc().ends_with('.'), "{name}");
                assert_eq!(key.doc().matches('`').count() % 2, 0, "{name}");
                assert!(!key.allowed().is_empty(), "{name}");
                assert_eq!(key.since().split('.').count(), 3, "{name}");
            }
        }
    }
}
