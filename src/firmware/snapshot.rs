//! Reads a firmware file, once: from the firmware directory, or from a descriptor.
//!
//! What belongs here: what may be read at all, and how much. What does not: what the bytes mean.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fstat, open, openat};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// The largest firmware file that is read: 64 MiB.
pub const SNAPSHOT_MAX_BYTES: u64 = 64 << 20;

/// Longest name of a file on Linux (`NAME_MAX`).
const FILE_NAME_MAX_BYTES: usize = 255;

/// Why a firmware file is not read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The name could lead out of the firmware directory.
    #[error("firmware name {name:?} is refused: {reason}")]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The directory could not be opened.
    #[error("cannot open the firmware directory {}", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the host said.
        source: std::io::Error,
    },
    /// The file could not be opened.
    #[error("cannot open firmware {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: std::io::Error,
    },
    /// It is a symbolic link, a FIFO, a device, a directory or a socket.
    #[error("firmware {} is a {kind}, must be a regular file", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// It is larger than [`SNAPSHOT_MAX_BYTES`], or became so while it was read.
    #[error(
        "firmware {} has {bytes} bytes or more, must be at most {SNAPSHOT_MAX_BYTES}",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size as far as it is known.
        bytes: u64,
    },
    /// A descriptor that nothing can be read from.
    #[error(
        "firmware {} cannot be read from its descriptor, which was opened {how}; open it for \
         reading",
        path.display()
    )]
    Descriptor {
        /// The name that came with it.
        path: PathBuf,
        /// How it was opened instead.
        how: &'static str,
    },
    /// The host failed to read it.
    #[error("cannot read firmware {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: std::io::Error,
    },
}

/// Is this the plain name of a file, one that cannot lead out of a folder?
///
/// # Errors
/// What is wrong with the name, as the end of a sentence.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("it is empty")
    } else if name == "." || name == ".." {
        Err("it names a folder")
    } else if name.contains('/') {
        Err("it contains '/'")
    } else if name.contains('\0') {
        Err("it contains a NUL")
    } else if name.len() > FILE_NAME_MAX_BYTES {
        Err("it is longer than 255 bytes")
    } else {
        Ok(())
    }
}

/// The bytes of a firmware file as they were at one moment. Whatever happens to the file later,
/// all that is checked and all that is loaded comes from here.
#[derive(Clone)]
pub struct Snapshot {
    name: String,
    bytes: Vec<u8>,
    sha256: [u8; 32],
    short_hash: String,
}

impl Snapshot {
    /// Reads the file `name` in `directory`, without following a link and without waiting for
    /// anything that is no regular file.
    ///
    /// # Errors
    /// One [`SnapshotError`] for each reason; the file's content does not matter here.
    pub fn read(directory: &Path, name: &str) -> Result<Self, SnapshotError> {
        check_name(name).map_err(|reason| SnapshotError::Name {
            name: name.to_owned(),
            reason,
        })?;
        let path = directory.join(name);
        let folder = open(
            directory,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| SnapshotError::Directory {
            directory: directory.to_owned(),
            source: errno.into(),
        })?;
        // Opened first only as a place: opening a device or a FIFO for reading can already do
        // something to it.
        let place = openat(
            &folder,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| SnapshotError::Open {
            path: path.clone(),
            source: errno.into(),
        })?;
        regular(&place, &path)?;
        // The name may stand for something else by now; NONBLOCK keeps a FIFO from hanging us,
        // and what was opened is looked at again.
        let fd = openat(
            &folder,
            name,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| SnapshotError::Open {
            path: path.clone(),
            source: errno.into(),
        })?;
        let size = regular(&fd, &path)?;
        let bytes = content(File::from(fd), size, path)?;
        Ok(Self::from_bytes(name, bytes))
    }

    /// Reads a file that somebody else has opened, from its first byte on, and calls it `name`,
    /// which must be plain as in a folder. Where the descriptor stands does not matter and stays
    /// so: it may be shared with who opened it.
    ///
    /// A regular file whose system does not answer is waited for.
    ///
    /// # Errors
    /// As [`Snapshot::read`]; [`SnapshotError::Descriptor`] if it is not open for reading.
    pub fn from_file(name: &str, file: File) -> Result<Self, SnapshotError> {
        check_name(name).map_err(|reason| SnapshotError::Name {
            name: name.to_owned(),
            reason,
        })?;
        let path = PathBuf::from(name);
        let size = regular(&file, &path)?;
        let flags = fcntl_getfl(&file).map_err(|errno| SnapshotError::Open {
            path: path.clone(),
            source: errno.into(),
        })?;
        let how = if flags.contains(OFlags::PATH) {
            Some("as a place only (O_PATH)")
        } else if flags.intersection(OFlags::RWMODE) == OFlags::WRONLY {
            Some("for writing only")
        } else {
            None
        };
        if let Some(how) = how {
            return Err(SnapshotError::Descriptor { path, how });
        }
        let bytes = content(FromStart { file: &file, at: 0 }, size, path)?;
        Ok(Self::from_bytes(name, bytes))
    }

    /// A snapshot of bytes that are in memory already.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Self {
        let sha256: [u8; 32] = Sha256::digest(&bytes).into();
        let short_hash = sha256[..8].iter().map(|b| format!("{b:02x}")).collect();
        Self {
            name: name.to_owned(),
            bytes,
            sha256,
            short_hash,
        }
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The first 16 digits of what `sha256sum` prints for the file.
    pub fn short_hash(&self) -> &str {
        &self.short_hash
    }

    /// SHA-256 of the whole file.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({} bytes, sha256 {})",
            self.name,
            self.bytes.len(),
            self.short_hash
        )
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads a file without moving its descriptor.
struct FromStart<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read_at(into, self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

/// All of a file that had `size` bytes a moment ago. One that grows is cut off by the limit, one
/// that shrinks ends early; the checks of the content see what came.
fn content(file: impl Read, size: u64, path: PathBuf) -> Result<Vec<u8>, SnapshotError> {
    if size > SNAPSHOT_MAX_BYTES {
        return Err(SnapshotError::TooLarge { path, bytes: size });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    let read = file.take(SNAPSHOT_MAX_BYTES + 1).read_to_end(&mut bytes);
    match read {
        Ok(read) if read as u64 > SNAPSHOT_MAX_BYTES => Err(SnapshotError::TooLarge {
            path,
            bytes: read as u64,
        }),
        Ok(_) => Ok(bytes),
        Err(source) => Err(SnapshotError::Read { path, source }),
    }
}

/// The size of a regular file, or the refusal of anything else.
fn regular(fd: impl std::os::fd::AsFd, path: &Path) -> Result<u64, SnapshotError> {
    let stat = fstat(fd).map_err(|errno| SnapshotError::Open {
        path: path.to_owned(),
        source: errno.into(),
    })?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(u64::try_from(stat.st_size).unwrap_or(0)),
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "FIFO",
        FileType::Directory => "directory",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Socket => "socket",
        FileType::Unknown => "file of unknown type",
    };
    Err(SnapshotError::NotRegular {
        path: path.to_owned(),
        kind,
    })
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::fs;
    use std::io::{Seek, SeekFrom, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_regular_file_is_read_whole_and_hashed_as_sha256sum_does() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.elf"), b"abc").unwrap();
        let snapshot = Snapshot::read(folder.path(), "a.elf").unwrap();
        assert_eq!(snapshot.bytes(), b"abc");
        assert_eq!(snapshot.name(), "a.elf");
        assert_eq!(snapshot.short_hash(), "ba7816bf8f01cfea");
        assert_eq!(
            snapshot.to_string(),
            "a.elf (3 bytes, sha256 ba7816bf8f01cfea)"
        );
    }

    #[test]
    fn a_snapshot_does_not_change_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.elf");
        fs::write(&path, b"abc").unwrap();
        let snapshot = Snapshot::read(folder.path(), "a.elf").unwrap();
        fs::write(&path, b"other").unwrap();
        assert_eq!(snapshot.bytes(), b"abc");
    }

    #[test]
    fn a_name_cannot_lead_out_of_the_folder() {
        let long = "a".repeat(256);
        for (name, reason) in [
            ("", "it is empty"),
            (".", "it names a folder"),
            ("..", "it names a folder"),
            ("../a", "it contains '/'"),
            ("/dev/zero", "it contains '/'"),
            ("a/b", "it contains '/'"),
            ("a\0", "it contains a NUL"),
            (&long, "it is longer than 255 bytes"),
        ] {
            let error = Snapshot::read(Path::new("/"), name).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("firmware name {name:?} is refused: {reason}")
            );
        }
        assert_eq!(check_name(&"a".repeat(255)), Ok(()));
        assert_eq!(check_name("..."), Ok(()));
    }

    #[test]
    fn what_is_no_regular_file_is_refused_by_its_kind_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("real"), b"abc").unwrap();
        symlink("real", at("link")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        fs::create_dir(at("directory")).unwrap();
        for (name, kind) in [
            ("link", "symbolic link"),
            ("zero", "symbolic link"),
            ("fifo", "FIFO"),
            ("socket", "socket"),
            ("directory", "directory"),
        ] {
            let error = Snapshot::read(folder.path(), name).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "firmware {} is a {kind}, must be a regular file",
                    at(name).display()
                )
            );
        }
        let error = Snapshot::read(Path::new("/dev"), "zero").unwrap_err();
        assert_eq!(
            error.to_string(),
            "firmware /dev/zero is a character device, must be a regular file"
        );
    }

    #[test]
    fn a_missing_file_and_a_missing_folder_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let error = Snapshot::read(folder.path(), "a").unwrap_err();
        assert!(matches!(error, SnapshotError::Open { .. }));
        assert!(error.source().is_some());
        let error = Snapshot::read(&folder.path().join("none"), "a").unwrap_err();
        assert!(matches!(error, SnapshotError::Directory { .. }));
    }

    #[test]
    fn a_file_over_the_limit_is_refused_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::create(folder.path().join("big")).unwrap();
        file.set_len(SNAPSHOT_MAX_BYTES + 1).unwrap();
        let error = Snapshot::read(folder.path(), "big").unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("has 67108865 bytes or more, must be at most 67108864")
        );
    }

    #[test]
    fn a_file_that_grows_while_it_is_read_is_cut_off_and_one_that_shrinks_ends() {
        let path = PathBuf::from("a.elf");
        let error = content(io::repeat(1), 3, path.clone()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "firmware a.elf has 67108865 bytes or more, must be at most 67108864"
        );
        assert_eq!(content(&b"abc"[..], 1000, path).unwrap(), b"abc");
    }

    #[test]
    fn a_descriptor_is_read_from_the_first_byte_and_stays_where_it_stands() {
        let memory = rustix::fs::memfd_create("fw", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        for mut file in [tempfile::tempfile().unwrap(), File::from(memory)] {
            file.write_all(b"abcdef").unwrap();
            file.seek(SeekFrom::Start(4)).unwrap();
            let snapshot = Snapshot::from_file("a.elf", file.try_clone().unwrap()).unwrap();
            assert_eq!(
                (snapshot.name(), snapshot.bytes()),
                ("a.elf", &b"abcdef"[..])
            );
            assert_eq!(file.stream_position().unwrap(), 4);
            file.set_len(SNAPSHOT_MAX_BYTES + 1).unwrap();
            let error = Snapshot::from_file("a.elf", file).unwrap_err();
            assert!(matches!(error, SnapshotError::TooLarge { .. }), "{error}");
        }
    }

    #[test]
    fn a_descriptor_of_anything_but_a_file_is_refused_by_its_kind() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, _writer) = std::io::pipe().unwrap();
        let (socket, _peer) = UnixStream::pair().unwrap();
        for (file, kind) in [
            (File::from(OwnedFd::from(pipe)), "FIFO"),
            (File::from(OwnedFd::from(socket)), "socket"),
            (File::open("/dev/zero").unwrap(), "character device"),
            (File::open(folder.path()).unwrap(), "directory"),
        ] {
            assert_eq!(
                Snapshot::from_file("a.elf", file).unwrap_err().to_string(),
                format!("firmware a.elf is a {kind}, must be a regular file")
            );
        }
    }

    #[test]
    fn a_descriptor_that_cannot_be_read_and_a_name_that_is_none_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let written = File::create(&path).unwrap();
        let place = open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for (file, how) in [
            (written, "for writing only"),
            (File::from(place), "as a place only (O_PATH)"),
        ] {
            assert_eq!(
                Snapshot::from_file("a.elf", file).unwrap_err().to_string(),
                format!(
                    "firmware a.elf cannot be read from its descriptor, which was opened {how}; \
                     open it for reading"
                )
            );
        }
        let file = File::open(&path).unwrap();
        let error = Snapshot::from_file("../a", file).unwrap_err();
        assert!(matches!(error, SnapshotError::Name { .. }), "{error}");
    }

    #[test]
    fn an_empty_file_is_an_empty_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), b"").unwrap();
        assert!(
            Snapshot::read(folder.path(), "a")
                .unwrap()
                .bytes()
                .is_empty()
        );
    }
}
