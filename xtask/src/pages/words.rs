//! What manual pages say beside what a command line says of itself.
//!
//! What belongs here: files, environment, exit statuses, examples, where to read on. What does not:
//! options and verbs, which are in the programs' `arguments.rs`, and keys of the configuration.

use super::document::Block;
use super::{rprocctl, rprocd};

/// Commands of a page, and what each is for: the program or verb, and its examples.
const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "rprocd",
        &[
            (
                "Say everything that is wrong with a configuration, and start nothing:",
                "rprocd --config /etc/rprocd/m0.toml --check-config",
            ),
            (
                "Serve its cores until a signal comes:",
                "rprocd --config /etc/rprocd/m0.toml",
            ),
        ],
    ),
    (
        "rprocctl",
        &[
            ("All cores, and one in full:", "rprocctl list"),
            ("", "rprocctl info m0"),
            ("A live view:", "rprocctl top"),
            ("What happens from now on:", "rprocctl events --follow"),
            ("The same to a program:", "rprocctl --json list"),
        ],
    ),
    (
        "rprocctl-list",
        &[(
            "The names of all cores, for a script:",
            "rprocctl --json list | jq -r '.cores[].name'",
        )],
    ),
    (
        "rprocctl-top",
        &[(
            "Five looks at intervals of two seconds, into a file:",
            "rprocctl top --delay 2 --iterations 5 > looks.txt",
        )],
    ),
    (
        "rprocctl-start",
        &[
            (
                "Start a core with another firmware:",
                "rprocctl start m0 --firmware ./build/app.elf",
            ),
            (
                "Hold it for as long as a script runs that writes to the standard input:",
                "rprocctl start --while-connected m0",
            ),
        ],
    ),
    (
        "rprocctl-stop",
        &[(
            "Stop it, and be content if it does not run:",
            "rprocctl stop --if-running m0",
        )],
    ),
    (
        "rprocctl-restart",
        &[(
            "Restart it and show how long each step took:",
            "rprocctl restart --progress m0",
        )],
    ),
    (
        "rprocctl-firmware",
        &[
            (
                "What would a core do with a file, entry by entry of its resource table?",
                "rprocctl firmware check m0 ./build/app.elf",
            ),
            ("Give it to the core:", "rprocctl stop m0"),
            ("", "rprocctl firmware set m0 ./build/app.elf"),
            ("", "rprocctl start m0"),
        ],
    ),
    (
        "rprocctl-recovery",
        &[
            (
                "Leave a core as it is when it crashes, to look at it:",
                "rprocctl recovery set m0 disabled",
            ),
            ("Restart it after all:", "rprocctl recovery now m0"),
        ],
    ),
    (
        "rprocctl-coredump",
        &[
            (
                "From a crash to its backtrace:",
                "rprocctl coredump list m0",
            ),
            ("", "rprocctl coredump get m0 --output core.elf"),
            ("", "gdb-multiarch firmware.elf core.elf"),
        ],
    ),
    (
        "rprocctl-trace",
        &[(
            "What the firmware writes, as it writes it:",
            "rprocctl trace --follow m0",
        )],
    ),
    (
        "rprocctl-events",
        &[(
            "What happens to one core, each step too:",
            "rprocctl events --follow --steps m0",
        )],
    ),
    (
        "rprocctl-metrics",
        &[(
            "For node_exporter's textfile collector, from a timer:",
            "rprocctl metrics --output /var/lib/prometheus/node-exporter/rprocd.prom",
        )],
    ),
    (
        "rprocctl-vmm",
        &[(
            "The arguments for a guest with 2 GiB:",
            "rprocctl vmm qemu --memory 2G m0",
        )],
    ),
    (
        "rprocctl-report",
        &[(
            "For a bug report, with crashes in the firmware's source:",
            "rprocctl report --html --symbols firmware.elf --output report.html",
        )],
    ),
    (
        "rprocctl-config-check",
        &[
            (
                "Before a daemon is restarted:",
                "rprocctl config check /etc/rprocd/m0.toml",
            ),
            (
                "Each problem on a line, for an editor:",
                "rprocctl --json config check m0.toml | jq -r '.problems[] | \"\\(.line): \\(.message)\"'",
            ),
        ],
    ),
    (
        "rprocctl-sysfs",
        &[(
            "Run a script that was written for a board, unchanged:",
            "rprocctl sysfs -- ./start-remote-processor.sh",
        )],
    ),
    (
        "rprocfs",
        &[
            (
                "The cores as files, until it is unmounted:",
                "rprocfs /mnt/rprocd",
            ),
            ("", "cat /mnt/rprocd/class/remoteproc/remoteproc0/state"),
            ("", "umount /mnt/rprocd"),
        ],
    ),
];

/// The examples of a page.
pub fn examples(page: &str) -> Vec<(&'static str, &'static str)> {
    let found = EXAMPLES.iter().find(|it| it.0 == page);
    found.map_or_else(Vec::new, |it| it.1.to_vec())
}

/// What a page says in the end.
pub fn of(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let statuses = exit_statuses(page);
    if !statuses.is_empty() {
        blocks.push(Block::part("Exit status"));
        blocks.push(Block::Words(statuses));
    } else if page.starts_with("rprocctl-") {
        blocks.push(Block::part("Exit status"));
        blocks.push(Block::text(
            "0 if it is done; the others are listed in `rprocctl`(1).",
        ));
    }
    for (heading, words) in [("Environment", environment(page)), ("Files", files(page))] {
        if !words.is_empty() {
            blocks.push(Block::part(heading));
            blocks.push(Block::words(words));
        }
    }
    let examples = examples(page);
    if !examples.is_empty() {
        blocks.push(Block::part("Examples"));
        let mut lines = String::new();
        for (what, command) in examples {
            if !what.is_empty() {
                if !lines.is_empty() {
                    blocks.push(Block::Lines("sh", std::mem::take(&mut lines)));
                }
                blocks.push(Block::text(what));
            }
            lines += command;
            lines.push('\n');
        }
        blocks.push(Block::Lines("sh", lines));
    }
    blocks.push(Block::part("See also"));
    blocks.push(Block::text(see_also(page)));
    blocks
}

fn exit_statuses(page: &str) -> Vec<(String, String)> {
    let statuses: Vec<(u8, &str)> = match page {
        "rprocctl" => rprocctl::STATUSES.iter().map(|it| (it.0, it.2)).collect(),
        "rprocd" => rprocd::EXIT_STATUS.to_vec(),
        "rprocfs" => vec![
            (0, "it was unmounted, or a signal asked it to end"),
            (1, "something failed; standard error says what"),
            (2, "wrong usage"),
        ],
        "rprocctl-config-check" => vec![
            (0, "rprocd would start with the file; there may be warnings"),
            (1, "the file cannot be read"),
            (
                4,
                "the file is refused; standard error has each mistake with its line",
            ),
        ],
        "rprocctl-sysfs" => vec![
            (126, "the command cannot be run"),
            (127, "there is no such command"),
        ],
        _ => Vec::new(),
    };
    let statuses = statuses.into_iter();
    let mut statuses: Vec<_> = statuses
        .map(|(status, meaning)| (status.to_string(), format!("{meaning}.")))
        .collect();
    if page == "rprocctl-sysfs" {
        let others = "every other status is the command's, or one of `rprocctl`(1).";
        statuses.push(("others".to_owned(), others.to_owned()));
    }
    statuses
}

fn environment(page: &str) -> &'static [(&'static str, &'static str)] {
    match page {
        "rprocd" => &[
            (
                "NOTIFY_SOCKET, WATCHDOG_USEC",
                "set by systemd: it is told when rprocd is ready and when it ends, and that all is \
                 well in between.",
            ),
            (
                "LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID",
                "set by systemd: sockets that it made are used in place of those that would be made \
                 at the same paths.",
            ),
            (
                "JOURNAL_STREAM",
                "set by systemd: log lines begin with a priority instead of a time.",
            ),
        ],
        "rprocctl" => &[
            (
                "RPROCD_SOCKET",
                "the control sockets to use where no --socket is given, separated by colons; without \
                 it, those of every rprocd of this host.",
            ),
            (
                "NO_COLOR",
                "if it is set and not empty, nothing is coloured. What is written to a file or a \
                 pipe never is.",
            ),
            ("TERM", "if it is `dumb`, nothing is coloured."),
        ],
        _ => &[],
    }
}

fn files(page: &str) -> &'static [(&'static str, &'static str)] {
    match page {
        "rprocd" => &[
            (
                "/etc/rprocd/rprocd.toml",
                "the configuration, unless `--config` names another; see `rprocd.toml`(5).",
            ),
            (
                "/etc/rprocd/NAME.toml",
                "the configuration of the unit `rprocd@NAME.service`.",
            ),
            (
                "/usr/lib/rprocd/firmware",
                "firmware, unless the configuration says otherwise.",
            ),
            (
                "/run/rprocd",
                "sockets: `control` and `monitor` for `rprocctl`(1), one for each vdev for the VMM. \
                 They are where the configuration says; this is where the units may make them.",
            ),
            (
                "/var/lib/rprocd",
                "coredumps, in the folder that the configuration names.",
            ),
        ],
        "rprocctl" => &[
            (
                "/run/rprocd/control",
                "the control socket of the unit `rprocd.service`. Who may write to it may do \
                 everything.",
            ),
            (
                "/run/rprocd/NAME/control",
                "the control socket of the unit `rprocd@NAME.service`.",
            ),
            (
                "/run/rprocd/monitor",
                "a socket for looking: everything that shows something works through it, but for \
                 coredumps. So does `/run/rprocd/NAME/monitor`.",
            ),
        ],
        "rprocfs" => &[
            ("/run/rprocd/control", "the control socket that is asked."),
            ("/dev/fuse", "must be there: `modprobe fuse`."),
        ],
        _ => &[],
    }
}

fn see_also(page: &str) -> &'static str {
    match page {
        "rprocd" => {
            "`rprocd.toml`(5), `rprocctl`(1), `rprocfs`(8); the pages in `/usr/share/doc/rprocd`"
        }
        "rprocctl" => {
            "`rprocd`(8), `rprocd.toml`(5), `rprocfs`(8); the pages in `/usr/share/doc/rprocd`"
        }
        "rprocfs" => "`rprocctl-sysfs`(1), `rprocd`(8)",
        "rprocctl-sysfs" => "`rprocctl`(1), `rprocfs`(8)",
        "rprocctl-config" | "rprocctl-config-check" => "`rprocctl`(1), `rprocd.toml`(5)",
        "rprocctl-coredump" | "rprocctl-coredump-get" => "`rprocctl`(1), `gdb`(1)",
        _ => "`rprocctl`(1), `rprocd`(8)",
    }
}

/// Every page that has words of its own.
#[cfg(test)]
pub fn pages() -> impl Iterator<Item = &'static str> {
    EXAMPLES.iter().map(|it| it.0)
}
