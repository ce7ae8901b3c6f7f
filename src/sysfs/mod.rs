//! The cores as files, as Linux shows its remote processors: for scripts that were written for
//! `/sys/class/remoteproc`.
//!
//! What belongs here: which files there are, what is read from them, what may be written into them,
//! and with which errno that is refused (`Documentation/ABI/testing/sysfs-class-remoteproc`,
//! `remoteproc_sysfs.c` and `remoteproc_debugfs.c` of Linux 6.12). What does not: anything that
//! acts on a core. All of it goes through the control socket, like every other operator.
//!
//! | module | |
//! |---|---|
//! | `tree` | files and folders, their numbers and modes |
//! | `files` | reads and writes as calls of `io.rprocd` |
//! | `words` | how Linux reads what is written |
//! | `tables` | a resource table and carveouts as text |
//! | `fuse` | the same as a file system; with feature `rprocfs` |
//! | [`namespace`] | the file system where scripts look for it |

mod files;
#[cfg(feature = "rprocfs")]
pub mod fuse;
pub mod namespace;
mod tables;
mod tree;
mod words;

pub use files::{Daemon, Files, Refusal, Socket};
pub use tree::{Content, Node};
