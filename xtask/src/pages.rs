//! `cargo xtask pages`: manual pages, and completions for shells.
//!
//! They are made from the command lines of the programs, which have no part in it: what makes them
//! is not in the programs.

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

/// Makes them, and says where.
pub fn run() -> Result<()> {
    let folder = build()?;
    println!("pages: {}", folder.display());
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
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone().display_name(name))
        .section(section)
        .manual("rprocd")
        .render(&mut page)?;
    let path = folder.join(format!("{name}.{section}"));
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    for verb in command.get_subcommands() {
        if verb.get_name() != "help" && !verb.is_hide_set() {
            let name = format!("{name}-{}", verb.get_name());
            pages(verb, &name, section, folder)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_and_verb_has_a_page_and_each_shell_its_completions() {
        let folder = build().unwrap();
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
}
