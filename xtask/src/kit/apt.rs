//! Debian's archive: where it is, which versions it has, and their packages.
//!
//! apt runs with a state of its own in the cache: with no package installed and with the suites
//! that are wanted here. So it checks signatures and finds out what is needed as ever, and neither
//! reads nor changes what the machine has installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::cache::{Cache, command};
use super::write_atomically;

/// Overrides the address that the machine's apt sources give.
const ARCHIVE_VARIABLE: &str = "RPROCD_DEBIAN_ARCHIVE";
/// The first QEMU whose generic vhost-user device a user can create.
pub const OLDEST_QEMU: (u32, u32) = (10, 2);
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];
/// The first that has a QEMU that is new enough is taken. A suite, and one that adds to it.
const SUITES: [(&str, Option<&str>); 3] = [
    ("trixie", Some("trixie-backports")),
    ("testing", None),
    ("sid", None),
];
const CHOICE_FILE: &str = "choice.json";

/// What was decided when the kit was first made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Choice {
    /// Of the tables above.
    pub suite: String,
    /// Taken in preference to `suite`, where it has a package.
    pub addition: Option<String>,
    /// Debian's version of the QEMU packages.
    pub qemu: String,
    /// The kernel's release, as `uname -r` has it.
    pub kernel: String,
    /// Debian's version of the kernel packages.
    pub kernel_package: String,
}

impl Choice {
    /// What an earlier run decided.
    pub fn load(cache: &Cache) -> Option<Self> {
        serde_json::from_slice(&fs::read(cache.root().join(CHOICE_FILE)).ok()?).ok()
    }

    /// The kernel's `linux-source-X`.
    pub fn source_package(&self) -> Result<String> {
        let mut numbers = self.kernel.split(|c: char| !c.is_ascii_digit());
        match (numbers.next(), numbers.next()) {
            (Some(major), Some(minor)) if !major.is_empty() && !minor.is_empty() => {
                Ok(format!("linux-source-{major}.{minor}"))
            }
            _ => bail!("kernel release `{}` has no version", self.kernel),
        }
    }
}

/// apt, with a state of its own.
pub struct Apt<'a> {
    cache: &'a Cache,
    /// The suites that its lists are of, in this run.
    updated: Option<String>,
}

impl<'a> Apt<'a> {
    /// Does nothing yet.
    pub fn new(cache: &'a Cache) -> Self {
        Self {
            cache,
            updated: None,
        }
    }

    /// Finds the first suites that have what is needed, and notes their versions.
    pub fn choose(&mut self) -> Result<Choice> {
        let mut tried = Vec::new();
        let mut unreachable = None;
        for (suite, addition) in SUITES {
            if let Err(error) = self.update(suite, addition) {
                tried.push(format!("{suite}: its package lists cannot be fetched"));
                unreachable.get_or_insert(error);
                continue;
            }
            match self.look_at(suite, addition) {
                Ok(choice) => {
                    println!(
                        "kit: chose QEMU {} and kernel {} from {}",
                        choice.qemu,
                        choice.kernel,
                        addition.unwrap_or(suite)
                    );
                    let text = serde_json::to_vec_pretty(&choice)?;
                    write_atomically(&self.cache.root().join(CHOICE_FILE), &text)?;
                    return Ok(choice);
                }
                Err(error) => tried.push(format!("{suite}: {error:#}")),
            }
        }
        if let Some(error) = unreachable {
            return Err(error.context(format!(
                "cannot fetch package lists from {}, which needs the network once \
                 ({ARCHIVE_VARIABLE} names another archive)",
                archive()?
            )));
        }
        bail!(
            "no Debian suite has a QEMU from {}.{} on and a kernel:\n{}",
            OLDEST_QEMU.0,
            OLDEST_QEMU.1,
            tried.join("\n")
        )
    }

    fn look_at(&self, suite: &str, addition: Option<&str>) -> Result<Choice> {
        let mut choice = Choice {
            suite: suite.to_owned(),
            addition: addition.map(str::to_owned),
            qemu: String::new(),
            kernel: String::new(),
            kernel_package: String::new(),
        };
        choice.qemu = self.candidate(&choice, "qemu-system-x86")?;
        let version = upstream_version(&choice.qemu);
        ensure!(
            version >= Some(OLDEST_QEMU),
            "QEMU {} is too old",
            choice.qemu
        );
        let image = "linux-image-cloud-amd64";
        choice.kernel_package = self.candidate(&choice, image)?;
        let depends = self.ask(
            &choice,
            &["depends", &format!("{image}={}", choice.kernel_package)],
        )?;
        choice.kernel = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
            .with_context(|| format!("{image} depends on no kernel"))?
            .to_owned();
        Ok(choice)
    }

    /// Fetches the suites' lists, once in a run.
    fn update(&mut self, suite: &str, addition: Option<&str>) -> Result<()> {
        let suites: Vec<&str> = std::iter::once(suite).chain(addition).collect();
        let key = suites.join(" and ");
        if self.updated.as_ref() == Some(&key) {
            return Ok(());
        }
        let sources = sources(&suites)?;
        let state = self.state();
        if state.exists() {
            fs::remove_dir_all(&state)?;
        }
        for folder in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(state.join(folder))?;
        }
        fs::write(state.join("status"), "")?;
        fs::write(state.join("sources.list"), sources.join("\n") + "\n")?;
        println!("kit: fetching the package lists of {key} (about 10 MB)");
        self.cache.run(
            "apt",
            self.command("apt-get", suite, addition).arg("update"),
        )?;
        self.updated = Some(key);
        Ok(())
    }

    /// The lines of apt's sources for the chosen suites.
    pub fn sources(&self, choice: &Choice) -> Result<Vec<String>> {
        let suites: Vec<&str> = std::iter::once(choice.suite.as_str())
            .chain(choice.addition.as_deref())
            .collect();
        sources(&suites)
    }

    fn state(&self) -> PathBuf {
        self.cache.root().join("apt")
    }

    fn command(&self, program: &str, suite: &str, addition: Option<&str>) -> Command {
        let state = self.state();
        let mut command = command(program);
        let mut set = |name: &str, value: &str| {
            command.arg("-o").arg(format!("{name}={value}"));
        };
        let path = |name: &str| state.join(name).to_string_lossy().into_owned();
        set("Dir::State", &path(""));
        set("Dir::State::status", &path("status"));
        set("Dir::State::lists", &path("lists"));
        set("Dir::Cache", &path(""));
        set("Dir::Cache::archives", &path("archives"));
        set("Dir::Etc::sourcelist", &path("sources.list"));
        set("Dir::Etc::sourceparts", "/dev/null");
        set("Dir::Etc::preferences", "/dev/null");
        set("Dir::Etc::preferencesparts", "/dev/null");
        set("APT::Architecture", "amd64");
        set("APT::Architectures", "amd64");
        set("APT::Default-Release", addition.unwrap_or(suite));
        // Else it is content when nothing at all could be fetched.
        set("APT::Update::Error-Mode", "any");
        set("APT::Get::List-Cleanup", "false");
        set("APT::Sandbox::User", &user_name());
        set("Acquire::Languages", "none");
        set(
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
            "false",
        );
        set(
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled",
            "false",
        );
        set("Acquire::Retries", "3");
        command
    }

    fn command_for(&self, program: &str, choice: &Choice) -> Command {
        self.command(program, &choice.suite, choice.addition.as_deref())
    }

    fn ask(&self, choice: &Choice, words: &[&str]) -> Result<String> {
        let output = self.command_for("apt-cache", choice).args(words).output()?;
        ensure!(
            output.status.success(),
            "`apt-cache {}` failed: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The version that would be installed.
    fn candidate(&self, choice: &Choice, package: &str) -> Result<String> {
        let policy = self.ask(choice, &["policy", package])?;
        policy
            .lines()
            .find_map(|line| line.trim().strip_prefix("Candidate: "))
            .filter(|version| *version != "(none)")
            .map(str::to_owned)
            .with_context(|| format!("there is no package {package}"))
    }

    /// The version of `package` that would be fetched.
    pub fn version(&mut self, choice: &Choice, package: &str) -> Result<String> {
        self.update(&choice.suite, choice.addition.as_deref())?;
        self.candidate(choice, package)
    }

    /// True if there is such a package.
    pub fn has(&mut self, choice: &Choice, package: &str) -> Result<bool> {
        self.update(&choice.suite, choice.addition.as_deref())?;
        Ok(self.candidate(choice, package).is_ok())
    }

    /// Fetches `packages` and all that they depend on, and unpacks it into `tree`.
    pub fn unpack_closure(
        &mut self,
        choice: &Choice,
        what: &str,
        packages: &[&str],
        tree: &Path,
    ) -> Result<()> {
        self.update(&choice.suite, choice.addition.as_deref())?;
        let words = ["install", "--no-install-recommends", "--yes"];
        let plan = self
            .command_for("apt-get", choice)
            .args(words)
            .arg("--print-uris")
            .args(packages)
            .output()?;
        let megabytes = planned_bytes(&String::from_utf8_lossy(&plan.stdout)) / 1_000_000;
        println!("kit: fetching {what} (about {megabytes} MB)");
        self.clear_archives()?;
        let mut fetch = self.command_for("apt-get", choice);
        fetch.args(words).arg("--download-only").args(packages);
        self.cache
            .run("apt", &mut fetch)
            .with_context(|| gone(choice))?;
        println!("kit: unpacking {what}");
        self.unpack(&self.state().join("archives"), tree)
    }

    /// Fetches just `package`, without what it depends on, and unpacks it into `folder`.
    pub fn unpack_one(&mut self, choice: &Choice, package: &str, folder: &Path) -> Result<()> {
        self.update(&choice.suite, choice.addition.as_deref())?;
        let show = self.ask(choice, &["show", package])?;
        let size: u64 = show
            .lines()
            .find_map(|line| line.strip_prefix("Size: ")?.parse().ok())
            .unwrap_or_default();
        println!(
            "kit: fetching {package} (about {} MB)",
            size.div_ceil(1_000_000)
        );
        self.clear_archives()?;
        let archives = self.state().join("archives");
        let mut fetch = self.command_for("apt-get", choice);
        fetch.current_dir(&archives).args(["download", package]);
        self.cache
            .run("apt", &mut fetch)
            .with_context(|| gone(choice))?;
        self.unpack(&archives, folder)
    }

    fn clear_archives(&self) -> Result<()> {
        let archives = self.state().join("archives");
        if archives.exists() {
            fs::remove_dir_all(&archives)?;
        }
        fs::create_dir_all(archives.join("partial"))?;
        Ok(())
    }

    fn unpack(&self, archives: &Path, tree: &Path) -> Result<()> {
        fs::create_dir_all(tree)?;
        for entry in fs::read_dir(archives)?.flatten() {
            if entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "deb")
            {
                // tar by hand: it must not replace a folder's link by a folder.
                let script = "dpkg-deb --fsys-tarfile \"$1\" | tar -x -C \"$2\" \
                    --keep-directory-symlink --no-same-owner --exclude=./usr/share/doc \
                    --exclude=./usr/share/locale --exclude=./usr/share/man \
                    --exclude=./usr/share/info";
                let mut unpack = command("bash");
                unpack
                    .args(["-o", "pipefail", "-c", script, "unpack"])
                    .arg(entry.path())
                    .arg(tree);
                self.cache.run("unpack", &mut unpack)?;
            }
        }
        self.clear_archives()
    }
}

/// The lines of apt's sources for suites of Debian's archive.
fn sources(suites: &[&str]) -> Result<Vec<String>> {
    let archive = archive()?;
    let keyring = KEYRINGS
        .iter()
        .find(|path| Path::new(path).exists())
        .context("Debian's keys are missing: install the package debian-archive-keyring")?;
    let line =
        |suite| format!("deb [signed-by={keyring}] {archive} {suite} main non-free-firmware");
    Ok(suites.iter().map(line).collect())
}

fn gone(choice: &Choice) -> String {
    format!(
        "cannot fetch packages for QEMU {} and kernel {}; if the archive has moved on to newer \
         versions, `cargo xtask kit --update` takes those",
        choice.qemu, choice.kernel
    )
}

/// apt gives up an administrator's rights for another user's, who cannot reach our cache.
fn user_name() -> String {
    if rustix::process::geteuid().is_root() {
        "root".to_owned()
    } else {
        String::new()
    }
}

/// The sum of what `--print-uris` announces.
fn planned_bytes(plan: &str) -> u64 {
    plan.lines()
        .filter(|line| line.starts_with('\''))
        .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
        .sum()
}

/// Major and minor of `1:11.1.3+ds-1`.
fn upstream_version(version: &str) -> Option<(u32, u32)> {
    let upstream = version
        .split_once(':')
        .map_or(version, |(_, upstream)| upstream);
    let mut numbers = upstream.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The address of Debian's archive, from the machine's own apt sources.
fn archive() -> Result<String> {
    if let Ok(archive) = std::env::var(ARCHIVE_VARIABLE) {
        return Ok(archive);
    }
    let sources = machine_sources();
    pick_archive(&sources).with_context(|| {
        format!(
            "this machine's apt sources name no Debian archive: set {ARCHIVE_VARIABLE} to its \
             address, or put a QEMU from {}.{} on first on PATH",
            OLDEST_QEMU.0, OLDEST_QEMU.1
        )
    })
}

/// The Debian that this machine is, or could be.
#[derive(Debug, PartialEq, Eq)]
pub struct MachineArchive {
    /// Where it is fetched from.
    pub uri: String,
    /// Its name there.
    pub suite: String,
    /// Lines for sources.list: it, and what adds to it, as this machine has them.
    pub lines: Vec<String>,
}

/// Debian's archive, as this machine's apt sources have it.
pub fn machine_archive() -> Result<MachineArchive> {
    let sources = machine_sources();
    of_machine(&sources, std::env::var(ARCHIVE_VARIABLE).ok()).with_context(|| {
        format!(
            "this machine's apt sources name no Debian archive: set {ARCHIVE_VARIABLE} to its \
             address"
        )
    })
}

fn of_machine(sources: &[Source], given: Option<String>) -> Option<MachineArchive> {
    if let Some(uri) = given {
        let suite = SUITES[0].0.to_owned();
        let lines = vec![format!("deb {uri} {suite} main")];
        return Some(MachineArchive { uri, suite, lines });
    }
    let uri = pick_archive(sources)?;
    let of_it = |source: &&Source| source.uri == uri;
    let suite = sources.iter().find(of_it)?.suite.clone();
    let adds = format!("{suite}-");
    let lines = sources
        .iter()
        .filter(|source| source.suite == suite || source.suite.starts_with(&adds))
        .map(|source| format!("deb {} {} main", source.uri, source.suite))
        .collect();
    Some(MachineArchive { uri, suite, lines })
}

fn machine_sources() -> Vec<Source> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => sources.extend(parse_deb822(&text)),
            Some("list") => sources.extend(parse_one_line(&text)),
            _ => {}
        }
    }
    sources
}

/// One line of the machine's apt sources.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suite: String,
}

/// A source of Debian itself: one of its suites, and none that only adds to one.
fn pick_archive(sources: &[Source]) -> Option<String> {
    const NAMES: [&str; 11] = [
        "bullseye",
        "bookworm",
        "trixie",
        "forky",
        "duke",
        "sid",
        "oldoldstable",
        "oldstable",
        "stable",
        "testing",
        "unstable",
    ];
    sources
        .iter()
        .find(|source| NAMES.contains(&source.suite.as_str()))
        .map(|source| source.uri.clone())
}

/// `deb [options] URI SUITE COMPONENT...`
fn parse_one_line(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some(rest) = line
            .strip_prefix("deb")
            .filter(|rest| rest.starts_with([' ', '\t']))
        else {
            continue;
        };
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
            None => rest,
        };
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else {
            continue;
        };
        if words.any(|component| component == "main") {
            sources.push(Source {
                uri: uri.to_owned(),
                suite: suite.to_owned(),
            });
        }
    }
    sources
}

/// Paragraphs of `Field: value`, in which a value may go on in indented lines.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for paragraph in lines.split(|line| line.trim().is_empty()) {
        let mut fields: Vec<(String, Vec<String>)> = Vec::new();
        for line in paragraph {
            let words = |text: &str| {
                text.split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            if line.starts_with([' ', '\t']) {
                if let Some((_, values)) = fields.last_mut() {
                    values.extend(words(line));
                }
            } else if let Some((name, value)) = line.split_once(':') {
                fields.push((name.to_ascii_lowercase(), words(value)));
            }
        }
        let values = |name: &str| {
            fields
                .iter()
                .find(|(field, _)| field == name)
                .map_or(&[][..], |(_, values)| values.as_slice())
        };
        let has = |name: &str, value: &str| values(name).iter().any(|word| word == value);
        if has("enabled", "no") || !has("types", "deb") || !has("components", "main") {
            continue;
        }
        for uri in values("uris") {
            for suite in values("suites") {
                sources.push(Source {
                    uri: uri.clone(),
                    suite: suite.clone(),
                });
            }
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(uri: &str, suite: &str) -> Source {
        Source {
            uri: uri.to_owned(),
            suite: suite.to_owned(),
        }
    }

    #[test]
    fn one_line_sources_are_read() {
        let text = "# deb http://no.example/debian sid main\n\
            deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main contrib\n\
            deb-src http://b.example/debian bookworm main\n\
            deb http://c.example/x stable nonfree # main\n\
            deb\thttp://d.example/debian-security bookworm-security main\n";
        assert_eq!(
            parse_one_line(text),
            [
                source("http://a.example/debian", "bookworm"),
                source("http://d.example/debian-security", "bookworm-security"),
            ]
        );
    }

    #[test]
    fn deb822_sources_are_read() {
        let text = "Types: deb deb-src\n# a remark\nURIs: http://a.example/debian\n\
            Suites: bookworm\n bookworm-updates\nComponents: main\n\n\
            Enabled: no\nTypes: deb\nURIs: http://b.example/debian\nSuites: sid\nComponents: main\n\
            \nTypes: deb-src\nURIs: http://c.example/debian\nSuites: sid\nComponents: main\n";
        assert_eq!(
            parse_deb822(text),
            [
                source("http://a.example/debian", "bookworm"),
                source("http://a.example/debian", "bookworm-updates"),
            ]
        );
    }

    #[test]
    fn the_archive_is_not_that_of_security_or_of_others() {
        let sources = [
            source("http://s.example/debian-security", "bookworm-security"),
            source("http://o.example/repository", "nodistro"),
            source("http://a.example/debian", "trixie"),
        ];
        assert_eq!(pick_archive(&sources).unwrap(), "http://a.example/debian");
        assert_eq!(pick_archive(&sources[..2]), None);
    }

    #[test]
    fn a_machine_s_debian_is_its_suite_with_what_adds_to_it() {
        let sources = [
            source("http://o.example/repository", "nodistro"),
            source("http://a.example/debian", "bookworm"),
            source("http://a.example/debian", "bookworm-updates"),
            source("http://s.example/debian-security", "bookworm-security"),
            source("http://b.example/more", "bookwormish"),
        ];
        let found = of_machine(&sources, None).unwrap();
        assert_eq!(
            (&*found.uri, &*found.suite),
            ("http://a.example/debian", "bookworm")
        );
        assert_eq!(
            found.lines,
            [
                "deb http://a.example/debian bookworm main",
                "deb http://a.example/debian bookworm-updates main",
                "deb http://s.example/debian-security bookworm-security main",
            ]
        );
        let given = of_machine(&sources, Some("http://mine.example".to_owned())).unwrap();
        assert_eq!(given.lines, ["deb http://mine.example trixie main"]);
        assert_eq!(of_machine(&sources[..1], None), None);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(upstream_version("1:11.1.3+ds-1~bpo13+1"), Some((11, 1)));
        assert_eq!(upstream_version("10.0.2"), Some((10, 0)));
        assert!(upstream_version("1:10.0.13+ds-0+deb13u1") < Some(OLDEST_QEMU));
        assert!(upstream_version("nonsense") < Some(OLDEST_QEMU));
    }

    #[test]
    fn the_size_of_a_fetch_is_summed() {
        let plan = "Reading package lists...\n'http://x/a.deb' a.deb 1000000 SHA256:1\n\
            'http://x/b.deb' b.deb 234 SHA256:2\n";
        assert_eq!(planned_bytes(plan), 1_000_234);
    }

    #[test]
    fn the_source_package_follows_the_kernel() {
        let choice = |kernel: &str| Choice {
            suite: String::new(),
            addition: None,
            qemu: String::new(),
            kernel: kernel.to_owned(),
            kernel_package: String::new(),
        };
        let release = "7.3.4+deb13-cloud-amd64";
        assert_eq!(
            choice(release).source_package().unwrap(),
            "linux-source-7.3"
        );
        assert!(choice("cloud").source_package().is_err());
    }
}
