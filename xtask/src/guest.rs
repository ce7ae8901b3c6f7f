//! `cargo xtask guest`: the kit's Linux guest against anybody's firmware, and a script run in it.
//!
//! What belongs here: putting a configuration together or taking a given one, carrying the script
//! into the guest, and what is shown of a run that went wrong. The demo starts its machines with
//! the same functions. What does not: starting QEMU and the daemon themselves (`vm`).

use std::fmt::Write as _;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rprocd::config::Config;
use rprocd::control::client::Connection;
use rprocd::engine::ImageRules;
use rprocd::firmware::{Image, Snapshot};
use rprocd::report::sentence;
use rprocd::rproc::{CheckOptions, check};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cargo;
use crate::kit::{self, Kit};
use crate::limit::{self, minutes};
use crate::tools;
use crate::vm::{Console, Daemon, Guest, GuestOptions, Vdev};

/// What a run ends with that did not get as far as the script's own status; as of `timeout(1)`.
const FAILED: u8 = 125;
/// As many vdevs as the guest's machine has ports for: `vmm-config/qemu/machine.args`.
const PORTS: usize = 4;
/// Longer scripts are a mistake: they are held in the guest's memory.
const SCRIPT_MAX_BYTES: u64 = 4 << 20;
/// Memories that a core is tried with, in MiB, until one holds the firmware.
const MEMORIES_MIB: [u64; 3] = [4, 32, 256];
const CORE_NAME_MAX: usize = 31;
const SHORT: Duration = Duration::from_secs(180);
/// So long the guest may take to know what the firmware has announced.
const ANNOUNCED_LIMIT: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the kernel's messages the console shows errors only. dmesg has them all.
pub const QUIET: &str = "loglevel=4";

/// `cargo xtask guest`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// ELF images: a core for each, called after its file. With --config: images that take the
    /// place of those that it names
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present = "config")]
    pub firmware: Vec<PathBuf>,
    /// An rprocd.toml of your own; the guest gets a device for each vdev in it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A shell script, run in the guest; the command ends with its status
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
    /// A shell in the guest, after the script if there is one
    #[arg(long)]
    pub shell: bool,
    /// The script is killed after so many seconds; the status is 124 then
    #[arg(long, value_name = "SECONDS", default_value_t = 300,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
}

/// Runs the guest. The code is the script's own, or 125 where there is none because of an error,
/// which is then printed.
pub fn run(options: &Options) -> ExitCode {
    match try_run(options) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn try_run(options: &Options) -> Result<u8> {
    // Cheap refusals first: the kit may take minutes.
    let job = Job::prepare(options)?;
    let needs = vec![("the guest", kit::needs())];
    limit::within("getting tools", minutes(60), || tools::prepare(&needs))?;
    let (kit, _) = limit::within("making the VM kit", minutes(60), || {
        kit::prepare(&kit::Options::default())
    })?;
    let programs = limit::within("building rprocd", minutes(60), || build_programs("guest"))?;
    job.run(&kit, &programs)
}

/// All that was asked for, read and found good.
pub struct Job<'a> {
    options: &'a Options,
    script: Option<Script>,
    staged: Staged,
}

impl<'a> Job<'a> {
    /// Reads script, configuration and images.
    ///
    /// # Errors
    /// What cannot be used, and why.
    pub fn prepare(options: &'a Options) -> Result<Self> {
        if options.shell {
            need_terminal()?;
        }
        let script = options.script.as_deref().map(Script::read).transpose()?;
        let staged = match &options.config {
            None => Staged::made(&options.firmware)?,
            Some(config) => Staged::given(config, &options.firmware)?,
        };
        Ok(Self {
            options,
            script,
            staged,
        })
    }

    /// Runs rprocd, which is in the folder `programs`, and the guest. What it ends with is the
    /// script's status.
    pub fn run(self, kit: &Kit, programs: &Path) -> Result<u8> {
        let staged = self.staged;
        let kit = match &self.script {
            Some(script) => {
                let folder = staged.folder.path();
                &kit.with_file(&script.place, &script.content, folder)?
            }
            None => kit,
        };
        let daemon = Daemon::start(
            &programs.join("rprocd"),
            &staged.config,
            &staged.folder.path().join("firmware"),
        )?;
        let control = match &staged.control {
            Some(socket) => socket.clone(),
            None => daemon.path("control.sock"),
        };
        let vdevs = staged.devices(&daemon);
        let evidence = || what_cores_say(&control, programs) + &daemon.evidence();
        let asked = (self.options, self.script.as_ref());
        let result = in_guest(asked, kit, vdevs, &control, &evidence)
            .map_err(|error| anyhow!("{error:#}{}", evidence()));
        // A dump that is being written is finished first.
        let stopped = daemon.stop();
        staged.keep_coredumps();
        let status = result?;
        stopped?;
        Ok(status)
    }
}

fn in_guest(
    (options, script): (&Options, Option<&Script>),
    kit: &Kit,
    vdevs: Vec<Vdev>,
    control: &Path,
    evidence: &dyn Fn() -> String,
) -> Result<u8> {
    let mut guest = boot("guest", kit, vdevs, options.shell)?;
    let known = wait_for_announced(&mut guest, control)?;
    let mut status = 0;
    match script {
        Some(script) => {
            println!("guest: running {}", script.file.display());
            // Not through the agent, which answers when all is over: on the console it is seen as
            // it comes. stty waits for what is still on its way out (TCSADRAIN).
            let command = format!(
                "cd /root; ./{} </dev/null >/dev/console 2>&1; code=$?; \
                 stty -F /dev/console onlcr; exit $code",
                quoted(&script.name)
            );
            let limit = Duration::from_secs(options.timeout);
            let answer = guest.ask(&command, limit)?;
            guest.show_all();
            print!("{}", answer.output);
            status = u8::try_from(answer.exit).unwrap_or(1);
        }
        None => {
            guest.run_shown("rprocd-guest-check list", SHORT)?;
        }
    }
    if !known {
        println!("guest: the guest does not list all that the firmware has announced");
    }
    if status != 0 {
        // Now: a core may be restarted when its guest is gone.
        println!("{}", evidence());
        println!("guest: the script ended with {status}");
    }
    if options.shell {
        guest.run("touch /tmp/shell", SHORT)?;
        guest.wait()?;
        println!();
    } else {
        guest.power_off()?;
    }
    Ok(status)
}

/// A shell needs somebody who types.
pub fn need_terminal() -> Result<()> {
    ensure!(
        std::io::stdin().is_terminal(),
        "--shell needs a terminal to type in"
    );
    Ok(())
}

/// Builds the daemon and `rprocctl` as they are released; returns the folder with both. `who` is
/// the command that says so.
pub fn build_programs(who: &str) -> Result<PathBuf> {
    println!("{who}: building rprocd");
    cargo::show(cargo::cargo().args(["build", "--release", "--package", "rprocd", "--bins"]))?;
    Ok(cargo::target_directory()?.join("release"))
}

/// Boots a guest with these devices, and says what it is. Its console is shown, or is this
/// terminal.
pub fn boot(who: &str, kit: &Kit, vdevs: Vec<Vdev>, shell: bool) -> Result<Guest> {
    let how = match kit.accel.as_str() {
        "kvm" => "with KVM",
        _ => "emulated: a minute or so",
    };
    println!(
        "{who}: booting Linux {} in {} ({how})",
        kit.kernel_version, kit.qemu_version
    );
    let (append, console) = if shell {
        (format!("{QUIET} rprocd.mode=shell"), Console::Terminal)
    } else {
        (QUIET.to_owned(), Console::Shown)
    };
    Guest::boot(
        kit,
        &GuestOptions {
            vdevs,
            append,
            console,
            ..GuestOptions::default()
        },
    )
}

/// The script: what is in it, and where the guest has it.
struct Script {
    file: PathBuf,
    name: String,
    /// In the guest's file system.
    place: String,
    content: Vec<u8>,
}

impl Script {
    fn read(file: &Path) -> Result<Self> {
        let shown = file.display();
        let len = length(file, "script")?;
        ensure!(
            len <= SCRIPT_MAX_BYTES,
            "the script {shown} has {len} bytes; the guest takes {SCRIPT_MAX_BYTES} at most"
        );
        let content = fs::read(file).with_context(|| format!("cannot read the script {shown}"))?;
        let first = content.split(|byte| *byte == b'\n').next();
        ensure!(
            !first.is_some_and(|line| line.ends_with(b"\r")),
            "the lines of the script {shown} end as on DOS, with a carriage return, which no shell \
             of Linux takes: remove them, as with `sed -i 's/\\r$//'`"
        );
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok(Self {
            file: file.to_owned(),
            place: format!("root/{name}"),
            name,
            content,
        })
    }
}

/// How long a file is; devices and pipes, which may have no end, are refused.
fn length(file: &Path, what: &str) -> Result<u64> {
    let shown = file.display();
    let data = fs::metadata(file).with_context(|| format!("cannot read the {what} {shown}"))?;
    ensure!(
        data.is_file(),
        "the {what} {shown} is no file that can be read to its end: give a regular file"
    );
    Ok(data.len())
}

/// A word for a shell.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A configuration, the firmware for it, and what the guest is given of it.
struct Staged {
    /// With a folder `firmware`.
    folder: TempDir,
    coredumps: TempDir,
    config: String,
    sockets: Vec<PathBuf>,
    /// Where the daemon answers, if not in its own folder.
    control: Option<PathBuf>,
}

impl Staged {
    fn new() -> Result<Self> {
        let temporary = |prefix| tempfile::Builder::new().prefix(prefix).tempdir();
        let folder = temporary("rprocd-guest-")?;
        fs::create_dir(folder.path().join("firmware"))?;
        Ok(Self {
            folder,
            coredumps: temporary("rprocd-coredumps-")?,
            config: String::new(),
            sockets: Vec::new(),
            control: None,
        })
    }

    /// A core for each image, with a socket for each vdev that it declares.
    fn made(images: &[PathBuf]) -> Result<Self> {
        let mut staged = Self::new()?;
        let mut config = "firmware-directory = \"firmware\"\n\
                          [control]\nsocket = \"control.sock\"\n"
            .to_owned();
        let mut names: Vec<String> = Vec::new();
        for file in images {
            let firmware = judge(file)?;
            let name = core_name(file, &names);
            println!(
                "guest: core {name} runs {}: {} MiB of memory, {} vdev(s)",
                file.display(),
                firmware.memory_mib,
                firmware.vdevs
            );
            let image = format!("{name}.elf");
            fs::write(
                staged.folder.path().join("firmware").join(&image),
                firmware.snapshot.bytes(),
            )?;
            write!(
                config,
                "\n[[core]]\nname = \"{name}\"\nengine = \"rv32\"\nmemory-mib = {}\n\
                 firmware = \"{image}\"\n[core.coredump]\nmode = \"enabled\"\ndirectory = {:?}\n",
                firmware.memory_mib,
                staged.coredumps.path()
            )?;
            for index in 0..firmware.vdevs {
                let socket = format!("{name}-vdev{index}.sock");
                write!(
                    config,
                    "[[core.vdev]]\nsocket = \"{socket}\"\nannounce = true\n"
                )?;
                staged.sockets.push(socket.into());
            }
            names.push(name);
        }
        staged.config = config;
        staged.ports_are_enough()?;
        Ok(staged)
    }

    /// What `file` says; `images` take the place of those of the same names.
    fn given(file: &Path, images: &[PathBuf]) -> Result<Self> {
        let mut staged = Self::new()?;
        let file = std::path::absolute(file)?;
        length(&file, "configuration")?;
        let text = fs::read_to_string(&file)
            .with_context(|| format!("cannot read the configuration {}", file.display()))?;
        let config = Config::parse(&text, &file).map_err(|error| anyhow!(sentence(&error)))?;
        let named: Vec<&str> = config
            .cores
            .iter()
            .map(|core| core.firmware.as_str())
            .collect();
        let into = staged.folder.path().join("firmware");
        for name in &named {
            let image = config.firmware_directory.join(name);
            // One that is not there may be given, or is the daemon's to refuse.
            if image.is_file() {
                fs::copy(&image, into.join(name))
                    .with_context(|| format!("cannot copy {}", image.display()))?;
            }
        }
        for image in images {
            let name = image.file_name().unwrap_or_default().to_string_lossy();
            ensure!(
                named.contains(&&*name),
                "no core of {} runs {name}: its cores run {}; rename the image, or the `firmware` \
                 of a core",
                file.display(),
                named.join(", ")
            );
            fs::write(into.join(&*name), judge(image)?.snapshot.bytes())?;
        }
        staged.control = config
            .control
            .as_ref()
            .map(|control| control.socket.clone());
        staged.sockets = config
            .cores
            .iter()
            .flat_map(|core| core.vdevs.iter().map(|vdev| vdev.socket.clone()))
            .collect();
        staged.config = with_absolute_paths(&text, file.parent().unwrap_or(Path::new("/")))?;
        staged.ports_are_enough()?;
        Ok(staged)
    }

    fn ports_are_enough(&self) -> Result<()> {
        ensure!(
            self.sockets.len() <= PORTS,
            "there are {} vdevs, and the guest's machine has ports for {PORTS}: run fewer cores",
            self.sockets.len()
        );
        Ok(())
    }

    /// The guest's devices. A relative socket is in the daemon's folder.
    fn devices(&self, daemon: &Daemon) -> Vec<Vdev> {
        self.sockets
            .iter()
            .enumerate()
            .map(|(number, socket)| Vdev {
                // The names of files may be alike, and may be none for QEMU.
                id: format!("vdev{number}"),
                ..Vdev::new(&daemon.path(&socket.to_string_lossy()), number)
            })
            .collect()
    }

    /// Says where the coredumps are and keeps them, if there are any.
    fn keep_coredumps(self) {
        let entries = fs::read_dir(self.coredumps.path());
        if entries.is_ok_and(|mut entries| entries.next().is_some()) {
            let kept = self.coredumps.keep();
            println!(
                "guest: firmware crashed; its coredumps are in {}",
                kept.display()
            );
        }
    }
}

/// An image that a core of engine rv32 takes.
struct Firmware {
    snapshot: Snapshot,
    memory_mib: u64,
    vdevs: usize,
}

/// What a boot would make of the image, with the least memory that will do.
fn judge(file: &Path) -> Result<Firmware> {
    length(file, "firmware")?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let open = fs::File::open(file);
    let open = open.with_context(|| format!("cannot read the firmware {}", file.display()))?;
    let snapshot = Snapshot::from_file(&name, open).map_err(|error| anyhow!(sentence(&error)))?;
    let mut refusal = String::new();
    for memory_mib in MEMORIES_MIB {
        let options = CheckOptions {
            memory_bytes: memory_mib << 20,
            ..CheckOptions::default()
        };
        let verdict = check(&snapshot, &options).map_err(|error| anyhow!(sentence(&error)))?;
        match verdict.refusal() {
            Some(why) => why.clone_into(&mut refusal),
            None => {
                let image = Image::parse(snapshot.bytes(), &ImageRules::RV32)
                    .map_err(|error| anyhow!(sentence(&error)))?;
                let vdevs = image.table.map_or(0, |it| it.table.vdevs().count());
                return Ok(Firmware {
                    snapshot,
                    memory_mib,
                    vdevs,
                });
            }
        }
    }
    bail!("{} is refused: {refusal}", file.display())
}

/// What a configuration may call a core: the file's name, in its letters.
fn core_name(file: &Path, taken: &[String]) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let mut name: String = stem
        .to_lowercase()
        .chars()
        .map(|it| match it {
            'a'..='z' | '0'..='9' | '-' | '_' => it,
            _ => '-',
        })
        .take(CORE_NAME_MAX - 3)
        .collect();
    if name.is_empty() {
        name.push_str("core");
    }
    let alone = name.clone();
    for number in 2.. {
        if !taken.contains(&name) {
            break;
        }
        name = format!("{alone}-{number}");
    }
    name
}

/// The same configuration for a file in another folder, with the firmware beside it, and a control
/// socket if there is none.
fn with_absolute_paths(text: &str, folder: &Path) -> Result<String> {
    let mut config: toml::Table = text.parse()?;
    config.insert("firmware-directory".into(), "firmware".into());
    match config
        .get_mut("control")
        .and_then(toml::Value::as_table_mut)
    {
        Some(control) => {
            make_absolute(control, "socket", folder);
            make_absolute(control, "monitor", folder);
        }
        None => {
            let mut control = toml::Table::new();
            control.insert("socket".into(), "control.sock".into());
            config.insert("control".into(), control.into());
        }
    }
    for core in tables(config.get_mut("core")) {
        for vdev in tables(core.get_mut("vdev")) {
            make_absolute(vdev, "socket", folder);
        }
        if let Some(dumps) = core.get_mut("coredump").and_then(toml::Value::as_table_mut) {
            make_absolute(dumps, "directory", folder);
        }
    }
    Ok(config.to_string())
}

fn tables(value: Option<&mut toml::Value>) -> impl Iterator<Item = &mut toml::Table> {
    value
        .and_then(toml::Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(toml::Value::as_table_mut)
}

fn make_absolute(table: &mut toml::Table, key: &str, folder: &Path) {
    if let Some(toml::Value::String(path)) = table.get_mut(key) {
        *path = folder.join(&*path).to_string_lossy().into_owned();
    }
}

/// All cores, as the daemon knows them.
fn cores(control: &Path) -> Result<Vec<Value>> {
    let ask = || {
        let mut connection = Connection::open(control, PATIENCE)?;
        connection.call::<Value>("io.rprocd.List", &json!({}))
    };
    let mut list = ask().map_err(|error| anyhow!(sentence(&error)))?;
    match list["cores"].take() {
        Value::Array(cores) => Ok(cores),
        _ => bail!("rprocd lists no cores"),
    }
}

/// Waits until the guest's driver has each vdev and knows what the firmware has announced, so that
/// a script need not. False if that does not come, which is the script's to judge.
fn wait_for_announced(guest: &mut Guest, control: &Path) -> Result<bool> {
    let end = Instant::now() + ANNOUNCED_LIMIT;
    while Instant::now() < end {
        let mut ready = true;
        let mut names = Vec::new();
        for core in cores(control)? {
            for vdev in core["vdevs"].as_array().into_iter().flatten() {
                ready &= vdev["driverOk"] == true;
                for service in vdev["announced"].as_array().into_iter().flatten() {
                    names.extend(service["name"].as_str().map(|name| format!("name={name} ")));
                }
            }
        }
        let list = guest.ask("rprocd-guest-check list", SHORT)?.output;
        if ready && names.iter().all(|name| list.contains(name.as_str())) {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(false)
}

/// For the end of a run that went wrong: each core's state, its last crash, and its trace.
fn what_cores_say(control: &Path, programs: &Path) -> String {
    let cores = match cores(control) {
        Ok(cores) => cores,
        Err(error) => return format!("\n--- the cores cannot be asked: {error:#}"),
    };
    let mut text = String::new();
    for core in cores {
        let word = |key: &str| core[key].as_str().unwrap_or_default();
        let name = word("name");
        // Writing into a String does not fail.
        let _ = write!(
            text,
            "\n--- core {name} is {}, incarnation {}, crashes: {}",
            word("state"),
            core["incarnation"],
            core["crashes"]
        );
        for (what, key) in [("last crash", "lastCrash"), ("its coredump", "lastDump")] {
            if !word(key).is_empty() {
                let _ = write!(text, "\n{what}: {}", word(key));
            }
        }
        let trace = Command::new(programs.join("rprocctl"))
            .arg("--socket")
            .arg(control)
            .args(["trace", name])
            .output();
        let trace = match &trace {
            Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout),
            Ok(output) => String::from_utf8_lossy(&output.stderr),
            Err(error) => error.to_string().into(),
        };
        let _ = write!(text, "\ntrace of {name}:\n{}", trace.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_have_the_names_of_their_files_as_far_as_a_configuration_allows() {
        let named = |file: &str, taken: &[String]| core_name(Path::new(file), taken);
        assert_eq!(named("/x/My Firmware.v2.elf", &[]), "my-firmware-v2");
        assert_eq!(named("echo", &["echo".to_owned()]), "echo-2");
        let two = ["echo".to_owned(), "echo-2".to_owned()];
        assert_eq!(named("other/echo.elf", &two), "echo-3");
        assert!(named(&"a".repeat(100), &[]).len() <= CORE_NAME_MAX - 3);
        assert_eq!(named("..", &[]), "core");
    }

    #[test]
    fn a_configuration_in_another_folder_means_the_same_files() {
        let text = "firmware-directory = \"fw\"\n[control]\nsocket = \"c.sock\"\n\
                    [[core]]\nname = \"m0\"\nengine = \"rv32\"\nfirmware = \"a.elf\"\n\
                    [[core.vdev]]\nsocket = \"v.sock\"\n[core.coredump]\ndirectory = \"/dumps\"\n";
        let moved = with_absolute_paths(text, Path::new("/home/me")).unwrap();
        let config = Config::parse(&moved, Path::new("/tmp/x/rprocd.toml")).unwrap();
        assert_eq!(config.firmware_directory, Path::new("/tmp/x/firmware"));
        assert_eq!(config.control.unwrap().socket, Path::new("/home/me/c.sock"));
        let core = &config.cores[0];
        assert_eq!(core.vdevs[0].socket, Path::new("/home/me/v.sock"));
        assert_eq!(core.coredump.directory, Path::new("/dumps"));
    }

    #[test]
    fn a_configuration_without_control_socket_gets_one() {
        let text = "[[core]]\nname = \"m0\"\nengine = \"rv32\"\nfirmware = \"a.elf\"\n";
        let moved = with_absolute_paths(text, Path::new("/home/me")).unwrap();
        let config = Config::parse(&moved, Path::new("/tmp/x/rprocd.toml")).unwrap();
        assert_eq!(
            config.control.unwrap().socket,
            Path::new("/tmp/x/control.sock")
        );
    }

    #[test]
    fn what_is_no_firmware_is_refused_by_its_name_and_reason() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("notes.elf");
        fs::write(&file, "not an ELF file").unwrap();
        let error = Staged::made(std::slice::from_ref(&file)).err().unwrap();
        let said = format!("{error:#}");
        assert!(said.contains("notes.elf is refused: "), "{said}");
        let error = Staged::made(&[folder.path().join("nothing")])
            .err()
            .unwrap();
        assert!(format!("{error:#}").contains("cannot read the firmware"));
    }

    #[test]
    fn an_image_that_no_core_of_the_configuration_runs_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("rprocd.toml");
        let core = "[[core]]\nname = \"m0\"\nengine = \"rv32\"\nfirmware = \"a.elf\"\n";
        fs::write(&config, core).unwrap();
        let error = Staged::given(&config, &["b.elf".into()]).err().unwrap();
        let said = format!("{error:#}");
        assert!(said.contains("runs b.elf: its cores run a.elf"), "{said}");
    }

    #[test]
    fn a_script_with_carriage_returns_or_without_end_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("test.sh");
        fs::write(&file, "#!/bin/sh\r\nls\r\n").unwrap();
        let error = Script::read(&file).err().unwrap();
        assert!(format!("{error:#}").contains("carriage return"));
        let error = Script::read(Path::new("/dev/zero")).err().unwrap();
        assert!(format!("{error:#}").contains("give a regular file"));
        fs::write(&file, "#!/bin/sh\nls\n").unwrap();
        let script = Script::read(&file).unwrap();
        assert_eq!((&*script.place, &*script.name), ("root/test.sh", "test.sh"));
    }

    #[test]
    fn a_word_with_quotes_and_blanks_stays_one_word() {
        assert_eq!(quoted("it's a test.sh"), "'it'\\''s a test.sh'");
    }
}
