//! The files as a file system, by FUSE.
//!
//! What belongs here: the kernel's questions and our answers. What does not: what is in a file.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenAccMode, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use log::warn;
use rustix::fs::OFlags;
use rustix::process::{getegid, geteuid};

use super::files::{Daemon, Files, MAX_WRITE_BYTES, Refusal, Socket};
use super::tree::{Content, Node};

/// Nothing is kept by the kernel.
const NO_TIME: Duration = Duration::ZERO;
/// Files that are asked at one time; each may wait for the daemon. It talks to more.
const THREADS: usize = 4;
/// The largest write that the kernel hands on in one piece. It is more than is taken, so that what
/// is too long is refused by its first piece.
const MAX_REQUEST_BYTES: u32 = 2 * MAX_WRITE_BYTES as u32;

/// The cores as a file system.
pub struct View<D> {
    files: Files<D>,
    /// What each open file that is being read was given at its beginning.
    open: Mutex<HashMap<u64, Vec<u8>>>,
    next: AtomicU64,
    since: SystemTime,
    owner: (u32, u32),
}

/// Mounts the files of the cores behind `socket` on the folder `place`.
///
/// # Errors
/// What the host says.
pub fn mount(socket: &Path, place: &Path) -> io::Result<Session<View<Socket>>> {
    let view = View {
        files: Files::new(Socket(socket.to_owned())),
        open: Mutex::default(),
        next: AtomicU64::new(1),
        since: SystemTime::now(),
        owner: (geteuid().as_raw(), getegid().as_raw()),
    };
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("rprocfs".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoExec,
        MountOption::NoDev,
        MountOption::NoSuid,
    ];
    // Others may look, as in sysfs; who is not root may not offer that.
    config.acl = if geteuid().is_root() {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    config.n_threads = Some(THREADS);
    Session::new(view, place, &config)
}

fn errno(refusal: &Refusal) -> Errno {
    Errno::from_i32(refusal.errno.raw_os_error())
}

impl<D: Daemon> View<D> {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Vec<u8>>> {
        // It is whole between any two lines.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(&self, node: Node) -> FileAttr {
        let (kind, size) = match node {
            Node::File(_, content) if content.is_debug() => (FileType::RegularFile, 0),
            Node::File(..) => (FileType::RegularFile, MAX_WRITE_BYTES as u64),
            _ => (FileType::Directory, 0),
        };
        FileAttr {
            ino: INodeNo(node.number()),
            size,
            blocks: 0,
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            crtime: self.since,
            kind,
            perm: node.mode(),
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// What is in a folder now.
    fn children(&self, node: Node) -> Result<Vec<Node>, Errno> {
        let traces = if node.depends_on_cores() {
            self.files.traces().map_err(|refusal| {
                complain("the list of cores", &refusal);
                errno(&refusal)
            })?
        } else {
            Vec::new()
        };
        Ok(node.children(&traces))
    }

    fn content(&self, place: u32, content: Content) -> Result<Vec<u8>, Errno> {
        self.files.read(place, content).map_err(|refusal| {
            complain(&file(place, content), &refusal);
            errno(&refusal)
        })
    }
}

fn file(place: u32, content: Content) -> String {
    format!("remoteproc{place}/{}", content.name())
}

/// An errno does not say why; where there is a reason, it is told to who runs rprocfs.
fn complain(what: &str, refusal: &Refusal) {
    if let Some(why) = &refusal.why {
        warn!("{what}: {why}");
    }
}

impl<D: Daemon + 'static> Filesystem for View<D> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What a kernel does not take is what it has anyway, and that is more.
        let _ = config.set_max_write(MAX_REQUEST_BYTES);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(parent) = Node::from_number(parent.0) else {
            return reply.error(Errno::ENOENT);
        };
        match self.children(parent) {
            Ok(children) => match children
                .into_iter()
                .find(|it| name == OsStr::new(&it.name()))
            {
                Some(node) => reply.entry(&NO_TIME, &self.attributes(node), Generation(0)),
                None => reply.error(Errno::ENOENT),
            },
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match Node::from_number(ino.0) {
            Some(node) => reply.attr(&NO_TIME, &self.attributes(node)),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// To truncate is accepted and does nothing: `>` does it before it writes.
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if mode.is_some() || uid.is_some() || gid.is_some() {
            return reply.error(Errno::EPERM);
        }
        match Node::from_number(ino.0) {
            Some(node) => reply.attr(&NO_TIME, &self.attributes(node)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(node) = Node::from_number(ino.0) else {
            return reply.error(Errno::ENOENT);
        };
        let children = match self.children(node) {
            Ok(children) => children,
            Err(errno) => return reply.error(errno),
        };
        let own = [(node, ".".to_owned()), (node.parent(), "..".to_owned())];
        let entries = children.into_iter().map(|it| (it, it.name()));
        let entries = own.into_iter().chain(entries);
        // The offset is the place of the next one.
        for ((node, name), next) in entries.zip(1..).skip(usize::try_from(offset).unwrap_or(0)) {
            let kind = self.attributes(node).kind;
            if reply.add(INodeNo(node.number()), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Some(Node::File(_, content)) = Node::from_number(ino.0) else {
            return reply.error(Errno::EISDIR);
        };
        // sysfs holds even root to the modes; debugfs lets it open what it then cannot use.
        let mode = content.mode();
        let (reads, writes) = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => (true, false),
            OpenAccMode::O_WRONLY => (false, true),
            OpenAccMode::O_RDWR => (true, true),
        };
        let denied = (reads && mode & 0o444 == 0) || (writes && mode & 0o222 == 0);
        if denied && !content.is_debug() {
            return reply.error(Errno::EACCES);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // Every read and write comes here, whatever the size and whatever was read before.
        reply.opened(FileHandle(number), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(Node::File(place, content)) = Node::from_number(ino.0) else {
            return reply.error(Errno::EISDIR);
        };
        // A reader that goes on gets the rest of what it began with.
        let kept = (offset > 0).then(|| self.open().get(&handle.0).cloned());
        let bytes = match kept.flatten() {
            Some(bytes) => bytes,
            None => match self.content(place, content) {
                Ok(bytes) => bytes,
                Err(errno) => return reply.error(errno),
            },
        };
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let to = from.saturating_add(size as usize).min(bytes.len());
        reply.data(&bytes[from..to]);
        if offset == 0 {
            self.open().insert(handle.0, bytes);
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(Node::File(place, content)) = Node::from_number(ino.0) else {
            return reply.error(Errno::EISDIR);
        };
        // `>>` begins at what it believes to be the end. Anything else that does not begin at the
        // beginning is the rest of something, and half of a word must not be taken for one.
        let appends = flags.0.cast_unsigned() & OFlags::APPEND.bits() != 0;
        if offset != 0 && !appends {
            return reply.error(Errno::EINVAL);
        }
        match self.files.write(place, content, data) {
            // It was held against the limit.
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(refusal) => {
                complain(&file(place, content), &refusal);
                reply.error(errno(&refusal));
            }
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.open().remove(&handle.0);
        reply.ok();
    }

    // What there is comes from the cores, and nothing is made or removed by hand.

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EACCES);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }
}
