//! `cargo xtask fresh`: README's two commands on a machine that has nothing of anybody's.
//!
//! A bare Debian tree is made, with git, a C compiler, CA certificates and the Rust toolchain; HEAD
//! is cloned into it, and the commands run in it, in namespaces of their own. So whatever a step needs
//! and does not install itself is found missing here.
//!
//! What may go in: what this machine is told about its surroundings (apt's sources, proxies,
//! certificates, names), and rustup with one toolchain. What may not: anything that was built,
//! fetched or installed for this project before.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cargo;
use crate::kit::{self, command, tail};
use crate::limit::{self, minutes};
use crate::tools::{self, tool};

/// `cargo xtask fresh`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Where the tree is made: a new or empty folder [default: a new one in /var/tmp]
    ///
    /// It is removed when all went well, and kept when something failed. 10 GB will do.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Run this in the tree, and not README's commands; may be given again
    #[arg(long = "command", value_name = "COMMAND")]
    commands: Vec<String>,
    /// Keep the tree though all went well
    #[arg(long)]
    keep: bool,
}

/// A command in the tree has ended with a status that is ours too.
#[derive(Debug)]
pub struct Failed {
    command: String,
    /// What the command ended with.
    pub code: u8,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ended with {}", self.command, self.code)
    }
}

impl std::error::Error for Failed {}

/// The verbs that README promises to strangers.
const VERBS: [&str; 2] = ["demo", "test"];
/// The tree is a small Debian, and this is in it beside.
const PACKAGES: &str = "git,gcc,libc6-dev,ca-certificates";
const TREE_LIMIT: Duration = minutes(30);
const COMMAND_LIMIT: Duration = minutes(90);
/// All that the commands build, with the toolchain.
const SPACE: u64 = 10_000_000_000;
/// Where the clone lies in the tree.
const CLONE: &str = "root/rprocd";
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// rustup is each of these by its name.
const RUSTUP_NAMES: [&str; 8] = [
    "cargo",
    "cargo-clippy",
    "cargo-fmt",
    "clippy-driver",
    "rustc",
    "rustdoc",
    "rustfmt",
    "rust-gdb",
];

/// Runs them, and ends with the status of the first that failed.
pub fn run(options: &Options) -> Result<()> {
    let commands = if options.commands.is_empty() {
        let path = cargo::root().join("README.md");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        commands_of(&text)?
    } else {
        options.commands.clone()
    };
    if let Err(obstacle) = can_make_a_tree() {
        let banner = "*".repeat(78);
        eprintln!(
            "{banner}\nfresh: NO FRESH MACHINE CAN BE MADE HERE: {obstacle:#}\nfresh: the commands \
             run on this machine as it is, with whatever is installed and\nfresh: cached on it. \
             That they pass here does not show that they pass elsewhere.\n{banner}"
        );
        return run_all(&commands, |words| {
            command("bash")
                .args(["-c", words])
                .stdin(Stdio::null())
                .current_dir(cargo::root())
                .status()
        });
    }
    let place = Place::new(options.root.as_deref())?;
    let done = in_tree(&place, &commands);
    match &done {
        Ok(()) if !options.keep => place.remove()?,
        _ => println!("fresh: the tree is kept: {}", place.tree().display()),
    }
    done
}

fn in_tree(place: &Place, commands: &[String]) -> Result<()> {
    let begun = Instant::now();
    limit::within("making the Debian tree", TREE_LIMIT, || make(place))?;
    println!(
        "fresh: the tree is made after {}",
        limit::text(begun.elapsed())
    );
    run_all(commands, |words| {
        println!("fresh: in {}", place.tree().display());
        enter(&place.tree(), words).status()
    })
}

/// Runs each command until one fails, and shows time and status of each.
fn run_all(commands: &[String], run: impl Fn(&str) -> std::io::Result<ExitStatus>) -> Result<()> {
    let mut lines = Vec::new();
    let mut failed = None;
    for words in commands {
        println!("fresh: $ {words}");
        let begun = Instant::now();
        let status = limit::within(&format!("`{words}`"), COMMAND_LIMIT, || {
            run(words).context("cannot be started")
        });
        let time = begun.elapsed().as_secs();
        let (code, note) = match &status {
            Ok(status) => (code(*status), String::new()),
            Err(error) => (1, format!(": {error:#}")),
        };
        lines.push(format!("fresh: exit {code} after {time} s: {words}{note}"));
        println!("{}", lines[lines.len() - 1]);
        if code != 0 {
            failed = Some(Failed {
                command: words.clone(),
                code,
            });
            break;
        }
    }
    println!("fresh: summary");
    for line in lines {
        println!("{line}");
    }
    failed.map_or(Ok(()), |failed| Err(failed.into()))
}

/// As shells count: 128 and the signal's number.
fn code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(1)
}

/// The commands of README: of each verb the first line in a block of code, in README's order.
fn commands_of(readme: &str) -> Result<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    let mut in_block = false;
    for line in readme.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
            continue;
        }
        let line = line.trim();
        let line = line.strip_prefix("$ ").unwrap_or(line);
        let mut words = line.split_whitespace();
        if in_block
            && (words.next(), words.next()) == (Some("cargo"), Some("xtask"))
            && let Some(verb) = words.next().filter(|verb| VERBS.contains(verb))
            && !found
                .iter()
                .any(|known| known.split_whitespace().nth(2) == Some(verb))
        {
            found.push(line.to_owned());
        }
    }
    ensure!(
        found.len() == VERBS.len(),
        "README.md shows {found:?} in its blocks of code, and must show a line `cargo xtask {}` and \
         a line `cargo xtask {}`",
        VERBS[0],
        VERBS[1]
    );
    Ok(found)
}

/// Why this machine cannot make such a tree, if it cannot.
fn can_make_a_tree() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "only root can make a Debian tree and enter it"
    );
    tools::need(&[
        tool("debootstrap", "debootstrap"),
        tool("unshare", "util-linux"),
        tool("setpriv", "util-linux"),
        tool("git", "git"),
        tool("tar", "tar"),
    ])?;
    // In a container root may be no more than a name.
    let probe = "mount -t tmpfs tmpfs /mnt && mount --bind / /mnt";
    let output = unshare().args(["sh", "-c", probe]).output()?;
    ensure!(
        output.status.success(),
        "root may not mount in a mount namespace of its own (a container needs CAP_SYS_ADMIN): {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    toolchain().map(drop)
}

/// The folder of this run.
struct Place {
    folder: PathBuf,
    /// It was there before us, and stays.
    is_given: bool,
}

impl Place {
    fn new(given: Option<&Path>) -> Result<Self> {
        let place = match given {
            None => {
                let parent = Path::new("/var/tmp");
                let folder = tempfile::Builder::new()
                    .prefix("rprocd-fresh-")
                    .tempdir_in(parent)
                    .with_context(|| format!("cannot make a folder in {}", parent.display()))?;
                Self {
                    folder: folder.keep(),
                    is_given: false,
                }
            }
            Some(folder) => {
                let is_given = folder.exists();
                fs::create_dir_all(folder)
                    .with_context(|| format!("cannot make {}", folder.display()))?;
                let folder = folder.canonicalize()?;
                ensure!(
                    fs::read_dir(&folder)?.next().is_none(),
                    "{} is not empty: name a new or an empty folder with --root",
                    folder.display()
                );
                Self { folder, is_given }
            }
        };
        let space = rustix::fs::statvfs(&place.folder)?;
        let space = space.f_bavail.saturating_mul(space.f_frsize);
        if space < SPACE {
            println!(
                "fresh: {} has {} MB of space, and {} MB may be needed",
                place.folder.display(),
                space / 1_000_000,
                SPACE / 1_000_000
            );
        }
        // debootstrap makes devices and files that must run.
        fs::set_permissions(&place.folder, fs::Permissions::from_mode(0o755))?;
        Ok(place)
    }

    fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("tree.log")
    }

    /// Runs a step of making the tree; its output is in the log.
    fn run(&self, command: &mut Command) -> Result<()> {
        let path = self.log();
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("cannot write {}", path.display()))?;
        let status = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        if !status.success() {
            bail!(
                "`{}` failed ({status}); {} ends with\n{}",
                cargo::words(command),
                path.display(),
                tail(&path, 15)
            );
        }
        Ok(())
    }

    /// Removes all of it. Links are removed and not followed; where something is still mounted,
    /// nothing is.
    fn remove(self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read mounts")?;
        if let Some(mount) = mounted_below(&mounts, &self.folder) {
            bail!(
                "{} is still mounted: the tree is left as it is",
                mount.display()
            );
        }
        let entries = fs::read_dir(&self.folder)?.flatten();
        for entry in entries {
            let path = entry.path();
            let removed = if entry.file_type()?.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
        if !self.is_given {
            fs::remove_dir(&self.folder)?;
        }
        Ok(())
    }
}

/// The first mount at or below `folder`, of the text of mountinfo. Source: proc_pid_mountinfo(5), the
/// fifth field; blanks are written as \040.
fn mounted_below(mountinfo: &str, folder: &Path) -> Option<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(field.replace("\\040", " ")))
        .find(|mount| mount.starts_with(folder))
}

fn make(place: &Place) -> Result<()> {
    let tree = place.tree();
    let archive = kit::machine_archive()?;
    println!(
        "fresh: making a bare Debian {} in {}",
        archive.suite,
        tree.display()
    );
    let mut debootstrap = command("debootstrap");
    debootstrap
        .arg("--variant=minbase")
        .arg(format!("--include={PACKAGES}"))
        .arg(&archive.suite)
        .arg(&tree)
        .arg(&archive.uri);
    if std::env::var_os("http_proxy").is_none()
        && let Some(proxy) = apt_settings()?.iter().find_map(|line| {
            line.strip_prefix("Acquire::http::Proxy \"")?
                .strip_suffix("\";")
        })
    {
        debootstrap.env("http_proxy", proxy);
    }
    place.run(&mut debootstrap)?;
    write(
        &tree.join("etc/apt/sources.list"),
        &archive.lines.join("\n"),
    )?;
    write(
        &tree.join("etc/apt/apt.conf.d/90machine"),
        &apt_settings()?.join("\n"),
    )?;
    for file in ["/etc/resolv.conf", "/etc/hosts"] {
        // A link there would lead out of the tree.
        let inside = tree.join(&file[1..]);
        if inside.symlink_metadata().is_ok() {
            fs::remove_file(&inside)?;
        }
        if Path::new(file).exists() {
            fs::copy(file, &inside).with_context(|| format!("cannot copy {file}"))?;
        }
    }
    certificates(&tree)?;
    rust(place, &tree)?;
    clone(place, &tree)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, format!("{text}\n")).with_context(|| format!("cannot write {}", path.display()))
}

/// How this machine's apt reaches its archives: proxies and the like, as lines of its configuration.
fn apt_settings() -> Result<Vec<String>> {
    const KINDS: [&str; 5] = [
        "Acquire::http::",
        "Acquire::https::",
        "Acquire::Check-",
        "Acquire::Retries",
        "Acquire::ForceIPv",
    ];
    let output = command("apt-config").arg("dump").output();
    let output = output.context("cannot run apt-config")?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| KINDS.iter().any(|kind| line.starts_with(kind)))
        .map(str::to_owned)
        .collect())
}

/// The authorities that this machine trusts: some networks have one of their own.
fn certificates(tree: &Path) -> Result<()> {
    let folder = Path::new("/usr/local/share/ca-certificates");
    let inside = tree.join("usr/local/share/ca-certificates");
    fs::create_dir_all(&inside)?;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|kind| kind == "crt") {
            fs::copy(entry.path(), inside.join(entry.file_name()))?;
        }
    }
    let status = enter(tree, "update-ca-certificates >/dev/null").status()?;
    ensure!(
        status.success(),
        "update-ca-certificates failed in the tree"
    );
    Ok(())
}

/// rustup's program, its settings, and the folder of the toolchain that builds this workspace.
struct Toolchain {
    rustup: PathBuf,
    settings: PathBuf,
    folder: PathBuf,
}

fn toolchain() -> Result<Toolchain> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let under_home = |variable: &str, name: &str| {
        let set = std::env::var_os(variable).map(PathBuf::from);
        set.or_else(|| Some(home.clone()?.join(name)))
    };
    let rustup_home = under_home("RUSTUP_HOME", ".rustup").context("HOME is not set")?;
    let cargo_home = under_home("CARGO_HOME", ".cargo").context("HOME is not set")?;
    let output = Command::new("rustc")
        .current_dir(cargo::root())
        .args(["--print", "sysroot"])
        .output()
        .context("cannot run rustc")?;
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let rustup = tools::find("rustup").unwrap_or_else(|| cargo_home.join("bin/rustup"));
    let settings = rustup_home.join("settings.toml");
    let of_rustup = folder.starts_with(rustup_home.join("toolchains"));
    ensure!(
        of_rustup && rustup.is_file() && settings.is_file(),
        "the Rust toolchain in {} was not installed by rustup, so it cannot be copied",
        folder.display()
    );
    Ok(Toolchain {
        rustup: rustup.canonicalize()?,
        settings,
        folder,
    })
}

/// Copies the toolchain, as rustup would have installed it: for this machine, and without what was
/// added to it.
fn rust(place: &Place, tree: &Path) -> Result<()> {
    let from = toolchain()?;
    let name = from.folder.file_name().unwrap_or_default();
    println!("fresh: copying the Rust toolchain {}", name.display());
    let home = tree.join("root/.rustup");
    let to = home.join("toolchains").join(name);
    fs::create_dir_all(&to)?;
    let copy = "tar -C \"$1\" --exclude=./share/doc -cf - . | tar -C \"$2\" -xf -";
    place.run(
        command("bash")
            .args(["-o", "pipefail", "-c", copy, "copy"])
            .args([&from.folder, &to]),
    )?;
    fs::copy(&from.settings, home.join("settings.toml"))?;
    let programs = tree.join("root/.cargo/bin");
    fs::create_dir_all(&programs)?;
    fs::copy(&from.rustup, programs.join("rustup"))?;
    for name in RUSTUP_NAMES {
        std::os::unix::fs::symlink("rustup", programs.join(name))?;
    }
    // In the tree's root, where no file of ours says which targets there should be.
    let host = tools::host_target()?;
    let name = name.to_string_lossy();
    let script = format!(
        "cd / && for target in $(rustup target list --installed --toolchain {name}); do \
         [ \"$target\" = {host} ] || rustup target remove --toolchain {name} \"$target\"; done"
    );
    place.run(&mut enter(tree, &script))
}

/// Clones HEAD, and nothing that is not committed.
fn clone(place: &Place, tree: &Path) -> Result<()> {
    let git = |words: &[&str]| -> Result<String> {
        let output = command("git")
            .current_dir(cargo::root())
            .args(words)
            .output();
        let output = output.context("cannot run git")?;
        ensure!(
            output.status.success(),
            "`git {}` failed: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let head = git(&["rev-parse", "HEAD"])?;
    println!(
        "fresh: cloning {}",
        git(&["log", "-1", "--format=%h (%s)"])?
    );
    let changes = git(&["status", "--porcelain"])?;
    if !changes.is_empty() {
        eprintln!(
            "fresh: WARNING: the work tree has changes that are not committed, and they are not \
             tried:\n{changes}"
        );
    }
    let folder = tree.join(CLONE);
    place.run(
        command("git")
            .args(["clone", "--quiet", "--no-hardlinks", "--no-checkout"])
            .arg(cargo::root())
            .arg(&folder),
    )?;
    place.run(
        command("git")
            .current_dir(&folder)
            .args(["checkout", "--quiet", "--detach", &head]),
    )
}

/// `unshare` with namespaces for mounts and processes, which end with it, and it with us.
fn unshare() -> Command {
    let mut unshare = command("setpriv");
    unshare
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(["--mount", "--pid", "--fork", "--kill-child"])
        .args(["--propagation", "private"]);
    unshare
}

/// A shell command in the tree, with the tree as its `/`: a mount point, as on a machine. The mounts
/// are in a namespace that ends with the command, and the shell collects what processes are left.
fn enter(tree: &Path, words: &str) -> Command {
    let script = r#"set -eu
        tree=$1; shift
        mount --bind "$tree" "$tree"
        cd "$tree"
        mount -t proc proc proc
        mount --rbind /sys sys
        mount --rbind /dev dev
        mount -t tmpfs tmpfs run
        mount -t tmpfs -o mode=1777 tmpfs tmp
        mkdir -p mnt
        pivot_root . mnt
        cd /
        umount -l /mnt
        code=0
        "$@" || code=$?
        exit $code"#;
    let mut command = unshare();
    command
        .args(["bash", "-c", script, "enter"])
        .arg(tree)
        .args(["env", "-i"])
        .args(environment())
        .args(["bash", "-c"]);
    command.arg(format!(
        "if [ -d \"/{CLONE}\" ]; then cd \"/{CLONE}\"; fi; {words}"
    ));
    command.stdin(Stdio::null());
    command
}

/// What a process in the tree is told.
fn environment() -> Vec<String> {
    const SURROUNDINGS: [&str; 11] = [
        "CI",
        "TERM",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "RUSTUP_DIST_SERVER",
        "RUSTUP_UPDATE_ROOT",
        "RUSTUP_AUTO_INSTALL",
    ];
    let mut set = vec![
        "HOME=/root".to_owned(),
        "USER=root".to_owned(),
        "LANG=C.UTF-8".to_owned(),
        "PATH=/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            .to_owned(),
        format!("SSL_CERT_FILE={BUNDLE}"),
    ];
    let value = |name: &&str| {
        std::env::var(name)
            .ok()
            .map(|value| format!("{name}={value}"))
    };
    set.extend(SURROUNDINGS.iter().filter_map(value));
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_commands_are_those_of_readme() {
        let readme = fs::read_to_string(cargo::root().join("README.md")).unwrap();
        let commands = commands_of(&readme).unwrap();
        assert!(commands[0].starts_with("cargo xtask demo"), "{commands:?}");
        assert!(commands[1].starts_with("cargo xtask test"), "{commands:?}");
    }

    #[test]
    fn of_each_verb_the_first_line_in_a_block_counts() {
        let readme = "Run cargo xtask test.\n```\n$ cargo xtask demo\n```\n```sh\ncargo xtask fw\n\
            cargo xtask test\ncargo xtask demo --shell\n```\n";
        let commands = commands_of(readme).unwrap();
        assert_eq!(commands, ["cargo xtask demo", "cargo xtask test"]);
        let error = commands_of("```\ncargo xtask demo\n```\n").unwrap_err();
        assert!(error.to_string().contains("cargo xtask test"), "{error}");
    }

    #[test]
    fn mounts_below_a_folder_are_seen_and_those_beside_it_are_not() {
        let text = "22 27 0:21 / /proc rw - proc proc rw\n\
            30 27 0:5 / /var/tmp/a\\040b/tree/sys rw - sysfs sysfs rw\n";
        let mount = mounted_below(text, Path::new("/var/tmp/a b"));
        assert_eq!(mount, Some(PathBuf::from("/var/tmp/a b/tree/sys")));
        assert_eq!(mounted_below(text, Path::new("/var/tmp/a")), None);
    }

    #[test]
    fn a_folder_with_something_in_it_is_refused_and_left() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("theirs"), "").unwrap();
        let error = Place::new(Some(folder.path())).err().unwrap().to_string();
        assert!(error.contains("is not empty"), "{error}");
        assert!(folder.path().join("theirs").exists());
    }

    #[test]
    fn removing_a_tree_follows_no_link_out_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("theirs"), "").unwrap();
        let place = Place::new(Some(&folder.path().join("root"))).unwrap();
        fs::create_dir(place.tree()).unwrap();
        std::os::unix::fs::symlink(&outside, place.tree().join("link")).unwrap();
        std::os::unix::fs::symlink(&outside, place.folder.join("link")).unwrap();
        place.remove().unwrap();
        assert!(outside.join("theirs").exists());
        assert!(!folder.path().join("root").exists());
    }

    #[test]
    fn the_first_failure_s_status_is_the_end_of_all() {
        let commands = ["exit 0", "exit 7", "exit 8"].map(str::to_owned);
        let run = |words: &str| command("sh").args(["-c", words]).status();
        let error = run_all(&commands, run).unwrap_err();
        assert_eq!(error.downcast_ref::<Failed>().unwrap().code, 7);
    }
}
