//! `cargo xtask pages`: manual pages, completions for shells, `docs/configuration.md` and
//! `docs/stable-names.md`.
//!
//! They are made from the command lines of the programs and the table of the configuration's keys,
//! which have no part in it: what makes them is not in the programs.
//!
//! | file | |
//! |---|---|
//! | this one | which pages there are |
//! | `words.rs` | what manual pages say beside options and verbs |
//! | `configuration.rs` | every key of the configuration |
//! | `names.rs` | `docs/stable-names.md`: names that stay |
//! | `document.rs` | Markdown and roff |

mod configuration;
mod document;
#[cfg(test)]
mod links;
mod names;
mod words;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
use clap_complete::{Shell, generate_to};

use crate::cargo;

// The command lines, as the programs have them.
#[path = "../../src/bin/rprocctl/arguments.rs"]
#[allow(dead_code, reason = "only the words are of use here")]
mod rprocctl;
#[path = "../../src/bin/rprocd/arguments.rs"]
#[allow(dead_code, reason = "only the words are of use here")]
mod rprocd;
#[path = "../../src/bin/rprocfs/arguments.rs"]
#[allow(dead_code, reason = "only the words are of use here")]
mod rprocfs;

/// The program whose completions ask it.
const ASKS: &str = "rprocctl";
/// What says, in the environment of a program, that a shell asks: clap's own name.
const VARIABLE: &str = "COMPLETE";

/// Each program: its command line, and the section of its pages.
fn programs() -> [(Command, &'static str); 3] {
    [
        (rprocctl::Arguments::command(), "1"),
        (rprocd::Arguments::command(), "8"),
        (rprocfs::Arguments::command(), "8"),
    ]
}

/// The page of the configuration in the checkout.
const CONFIGURATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");

/// The names that stay.
const NAMES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/stable-names.md");

/// Makes them, and says where.
pub fn run() -> Result<()> {
    let folder = build()?;
    println!("pages: {}", folder.display());
    let names = fs::read_to_string(NAMES).unwrap_or_default();
    for (path, page) in [
        (CONFIGURATION, configuration::page()),
        (NAMES, names::page(&names)),
    ] {
        if fs::read_to_string(path).ok().as_deref() != Some(&page) {
            fs::write(path, page).with_context(|| format!("cannot write {path}"))?;
            println!("{path}: written anew");
        }
    }
    Ok(())
}

/// Makes them all anew; returns the folder with `man` and `completions`.
pub fn build() -> Result<PathBuf> {
    let folder = cargo::target_directory()?.join("pages");
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    for folder in [&man, &completions] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    for (mut command, section) in programs() {
        let name = command.get_name().to_owned();
        if name == ASKS {
            asking_completions(&name, &completions)?;
        } else {
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                generate_to(shell, &mut command, &name, &completions)?;
            }
        }
        command.build();
        pages(&command, &name, section, &man)?;
    }
    configuration_page(&man)?;
    Ok(folder)
}

/// Completions that ask the program, since it knows the names of cores and files.
fn asking_completions(name: &str, folder: &Path) -> Result<()> {
    let shells: [(&dyn EnvCompleter, String); 3] = [
        (&Bash, format!("{name}.bash")),
        (&Zsh, format!("_{name}")),
        (&Fish, format!("{name}.fish")),
    ];
    for (shell, file) in shells {
        let mut script = Vec::new();
        shell.write_registration(VARIABLE, name, name, name, &mut script)?;
        if shell.name() == "zsh" {
            // zsh loads the file when it is needed first, and wants an answer then.
            let completer = format!("_clap_dynamic_completer_{name}");
            write!(
                script,
                "\nif [[ \"${{funcstack[1]}}\" = \"_{name}\" ]]; then\n    {completer} \"$@\"\nfi\n"
            )?;
        }
        let path = folder.join(file);
        fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A page for a command and one for each of its verbs.
fn pages(command: &Command, name: &str, section: &str, folder: &Path) -> Result<()> {
    let mut command = command.clone();
    if command.find_subcommand("help").is_some() {
        // There is no page for it.
        command = command.mut_subcommand("help", |it| it.hide(true));
    }
    let man = clap_mangen::Man::new(command.clone().display_name(name))
        .title(name.to_uppercase())
        .section(section)
        .date(date())
        .source(concat!("rprocd ", env!("CARGO_PKG_VERSION")))
        .manual("rprocd");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    document::roff(&words::of(name)).to_writer(&mut page)?;
    write(folder, &format!("{name}.{section}"), &page)?;
    for verb in command.get_subcommands() {
        if verb.get_name() != "help" && !verb.is_hide_set() {
            let name = format!("{name}-{}", verb.get_name());
            pages(verb, &name, section, folder)?;
        }
    }
    Ok(())
}

/// The page of the configuration file.
fn configuration_page(folder: &Path) -> Result<()> {
    let mut page = roff::Roff::new();
    let source = concat!("rprocd ", env!("CARGO_PKG_VERSION"));
    let date = date();
    page.control("TH", ["RPROCD.TOML", "5", &date, source, "rprocd"]);
    page.control("SH", ["NAME"]);
    page.text([roff::roman("rprocd.toml - the configuration of rprocd")]);
    let mut text = Vec::new();
    page.to_writer(&mut text)?;
    document::roff(&configuration::manual()).to_writer(&mut text)?;
    write(folder, "rprocd.toml.5", &text)
}

/// When the last release was made, as the changelog has it: pages are the same whenever they are made.
fn date() -> String {
    let changelog = include_str!("../../CHANGELOG.md");
    let headings = changelog.lines().filter(|line| line.starts_with("## "));
    let words = headings.filter_map(|line| line.split_whitespace().last());
    let is_date = |word: &&str| word.split('-').count() == 3 && word.starts_with("20");
    let mut dates = words.filter(is_date);
    dates.next().unwrap_or("unreleased").to_owned()
}

/// Writes a page that was made of several.
fn write(folder: &Path, name: &str, page: &[u8]) -> Result<()> {
    let page = String::from_utf8_lossy(page);
    // Each part begins with the same definition.
    let preamble = roff::Roff::new().render();
    let page = page.replace(&preamble, "");
    let path = folder.join(name);
    fs::write(&path, preamble + &page).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::*;

    /// The pages, made once: each making begins with an empty folder.
    fn built() -> &'static Path {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        BUILT.get_or_init(|| build().unwrap())
    }

    #[test]
    fn every_program_and_verb_has_a_page_and_each_shell_its_completions() {
        let folder = built();
        for page in [
            "rprocctl.1",
            "rprocctl-list.1",
            "rprocctl-coredump-get.1",
            "rprocd.8",
            "rprocfs.8",
        ] {
            let text = fs::read_to_string(folder.join("man").join(page)).unwrap();
            let name = page.rsplit_once('.').unwrap().0.replace('-', "\\-");
            assert!(text.contains(&name), "{page}:\n{text}");
            assert!(text.contains(".SH SYNOPSIS"), "{page}");
        }
        for file in ["rprocctl.bash", "_rprocctl", "rprocctl.fish", "rprocd.bash"] {
            let text = fs::read_to_string(folder.join("completions").join(file)).unwrap();
            let asks = text.contains("COMPLETE=") && text.contains("rprocctl --")
                || text.contains("\"rprocctl\" --");
            assert!(asks || text.contains("--config"), "{file}:\n{text}");
        }
    }

    #[test]
    fn the_page_of_the_configuration_is_what_the_table_of_keys_says() {
        let page = fs::read_to_string(CONFIGURATION).unwrap_or_default();
        assert!(
            page == configuration::page(),
            "docs/configuration.md is not what src/config/keys.rs says; run `cargo xtask pages`"
        );
    }

    /// All verbs of a command, and the name of the page of each.
    fn verbs(command: &Command, name: &str) -> Vec<(String, Command)> {
        let mut found = vec![(name.to_owned(), command.clone())];
        for verb in command.get_subcommands() {
            if verb.get_name() != "help" {
                found.extend(verbs(verb, &format!("{name}-{}", verb.get_name())));
            }
        }
        found
    }

    #[test]
    fn examples_of_manual_pages_are_of_verbs_that_are_there_and_are_understood_by_them() {
        let mut known = Vec::new();
        for (mut command, _) in programs() {
            command.build();
            let name = command.get_name().to_owned();
            known.extend(verbs(&command, &name));
        }
        for page in words::pages() {
            assert!(known.iter().any(|it| it.0 == page), "{page}");
            for (_, example) in words::examples(page) {
                let line = example.split(['|', '>']).next().unwrap();
                let words: Vec<_> = line.split_whitespace().collect();
                let program = programs().into_iter().map(|it| it.0);
                let mut program = program.filter(|it| it.get_name() == words[0]);
                match program.next() {
                    Some(program) => {
                        let read = program.try_get_matches_from(&words);
                        assert!(read.is_ok(), "{page}: {example}: {}", read.unwrap_err());
                    }
                    None => assert!(
                        ["gdb-multiarch", "cat", "umount"].contains(&words[0]),
                        "{page}: {example}"
                    ),
                }
            }
        }
    }

    #[test]
    fn the_pages_of_programs_have_what_manual_pages_have() {
        let folder = built().join("man");
        let all = ["EXIT STATUS", "FILES", "EXAMPLES", "SEE ALSO"];
        for (page, more) in [
            ("rprocd.8", &["ENVIRONMENT"][..]),
            ("rprocctl.1", &["ENVIRONMENT"]),
            ("rprocfs.8", &[]),
        ] {
            let text = fs::read_to_string(folder.join(page)).unwrap();
            for heading in all.iter().chain(more) {
                let line = format!("\n.SH \"{heading}\"\n");
                let bare = format!("\n.SH {heading}\n");
                assert!(
                    text.contains(&line) || text.contains(&bare),
                    "{page}: {heading}\n{text}"
                );
            }
        }
        let text = fs::read_to_string(folder.join("rprocd.toml.5")).unwrap();
        assert!(text.contains("firmware\\-directory"), "{text}");
    }
}
