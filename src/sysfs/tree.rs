//! Files and folders.
//!
//! What belongs here: what there is, its number, name and mode. What does not: what is in it.

/// The most cores that have a number here.
const MAX_CORES: u32 = 1 << 16;
/// The most trace buffers of a core that have a number here.
const MAX_TRACES: u32 = 1 << 12;
/// A core's files are numbered within as many.
const STRIDE: u64 = 1 << 13;

/// What is in a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Content {
    /// sysfs: the core's name.
    Name,
    /// sysfs: its state; takes `start`, `stop` and `detach`.
    State,
    /// sysfs: the file name of its firmware; takes another.
    Firmware,
    /// sysfs: is it restarted when it crashes?
    Recovery,
    /// sysfs: is a coredump written?
    Coredump,
    /// debugfs: the core's name.
    DebugName,
    /// debugfs: takes a number, and has the core crash.
    DebugCrash,
    /// debugfs: as [`Content::Recovery`], and takes prefixes.
    DebugRecovery,
    /// debugfs: as [`Content::Coredump`], and takes prefixes.
    DebugCoredump,
    /// debugfs: the resource table.
    DebugTable,
    /// debugfs: the carveouts.
    DebugCarveouts,
    /// debugfs: what the firmware wrote into a trace buffer.
    DebugTrace(u32),
}

impl Content {
    /// The files of a core in the class, in order.
    pub const CLASS: [Self; 5] = [
        Self::Name,
        Self::State,
        Self::Firmware,
        Self::Recovery,
        Self::Coredump,
    ];
    /// The files of a core in debugfs; those of its trace buffers follow.
    pub const DEBUG: [Self; 6] = [
        Self::DebugName,
        Self::DebugCrash,
        Self::DebugRecovery,
        Self::DebugCoredump,
        Self::DebugTable,
        Self::DebugCarveouts,
    ];

    /// The file's name.
    pub fn name(self) -> String {
        match self {
            Self::Name | Self::DebugName => "name",
            Self::State => "state",
            Self::Firmware => "firmware",
            Self::Recovery | Self::DebugRecovery => "recovery",
            Self::Coredump | Self::DebugCoredump => "coredump",
            Self::DebugCrash => "crash",
            Self::DebugTable => "resource_table",
            Self::DebugCarveouts => "carveout_memories",
            Self::DebugTrace(index) => return format!("trace{index}"),
        }
        .to_owned()
    }

    /// The file's permissions.
    pub fn mode(self) -> u16 {
        match self {
            Self::Name => 0o444,
            Self::State | Self::Firmware | Self::Recovery | Self::Coredump => 0o644,
            Self::DebugCrash => 0o200,
            Self::DebugRecovery | Self::DebugCoredump => 0o600,
            Self::DebugName | Self::DebugTable | Self::DebugCarveouts | Self::DebugTrace(_) => {
                0o400
            }
        }
    }

    /// Is it a file of debugfs?
    pub fn is_debug(self) -> bool {
        !Self::CLASS.contains(&self)
    }

    fn number(self) -> u64 {
        let place = |all: &[Self]| all.iter().position(|it| *it == self);
        let place = |all: &[Self]| place(all).map_or(0, |place| place as u64);
        match self {
            Self::DebugTrace(index) => 64 + u64::from(index),
            it if it.is_debug() => 32 + place(&Self::DEBUG),
            _ => 2 + place(&Self::CLASS),
        }
    }

    fn from_number(number: u64) -> Option<Self> {
        let place = |first: u64| usize::try_from(number - first).ok();
        match number {
            64.. => {
                let index = u32::try_from(number - 64).ok()?;
                (index < MAX_TRACES).then_some(Self::DebugTrace(index))
            }
            32.. => Self::DEBUG.get(place(32)?).copied(),
            2.. => Self::CLASS.get(place(2)?).copied(),
            _ => None,
        }
    }
}

/// A file or a folder. Cores are named by their places in `List`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Node {
    /// What is mounted.
    Root,
    /// `class`
    Class,
    /// `class/remoteproc`
    ClassCores,
    /// `debug`
    Debug,
    /// `debug/remoteproc`
    DebugCores,
    /// `class/remoteproc/remoteprocN`
    ClassCore(u32),
    /// `debug/remoteproc/remoteprocN`
    DebugCore(u32),
    /// A file of a core.
    File(u32, Content),
}

impl Node {
    /// Its inode number.
    pub fn number(self) -> u64 {
        let core = |core: u32, rest: u64| (u64::from(core) + 1) * STRIDE + rest;
        match self {
            Self::Root => 1,
            Self::Class => 2,
            Self::ClassCores => 3,
            Self::Debug => 4,
            Self::DebugCores => 5,
            Self::ClassCore(place) => core(place, 0),
            Self::DebugCore(place) => core(place, 1),
            Self::File(place, content) => core(place, content.number()),
        }
    }

    /// What has this inode number, if anything can.
    pub fn from_number(number: u64) -> Option<Self> {
        if number < STRIDE {
            let tops = [
                Self::Root,
                Self::Class,
                Self::ClassCores,
                Self::Debug,
                Self::DebugCores,
            ];
            return tops.into_iter().find(|it| it.number() == number);
        }
        let place = u32::try_from(number / STRIDE - 1).ok()?;
        if place >= MAX_CORES {
            return None;
        }
        Some(match number % STRIDE {
            0 => Self::ClassCore(place),
            1 => Self::DebugCore(place),
            rest => Self::File(place, Content::from_number(rest)?),
        })
    }

    /// Its name in its folder.
    pub fn name(self) -> String {
        match self {
            Self::Root => String::new(),
            Self::Class => "class".to_owned(),
            Self::Debug => "debug".to_owned(),
            Self::ClassCores | Self::DebugCores => "remoteproc".to_owned(),
            Self::ClassCore(place) | Self::DebugCore(place) => format!("remoteproc{place}"),
            Self::File(_, content) => content.name(),
        }
    }

    /// The folder it is in; the root is in itself.
    pub fn parent(self) -> Self {
        match self {
            Self::Root | Self::Class | Self::Debug => Self::Root,
            Self::ClassCores => Self::Class,
            Self::DebugCores => Self::Debug,
            Self::ClassCore(_) => Self::ClassCores,
            Self::DebugCore(_) => Self::DebugCores,
            Self::File(place, content) if content.is_debug() => Self::DebugCore(place),
            Self::File(place, _) => Self::ClassCore(place),
        }
    }

    /// Its permissions. debugfs is its owner's.
    pub fn mode(self) -> u16 {
        match self {
            Self::File(_, content) => content.mode(),
            Self::Debug | Self::DebugCores => 0o700,
            _ => 0o755,
        }
    }

    /// What is in this folder, where there are these cores: for each, its trace buffers.
    pub fn children(self, traces: &[usize]) -> Vec<Self> {
        // More have no numbers.
        let places = 0..u32::try_from(traces.len()).map_or(u32::MAX, |it| it.min(MAX_CORES));
        let files = |place, contents: &[Content]| -> Vec<Self> {
            let contents = contents.iter();
            contents.map(|it| Self::File(place, *it)).collect()
        };
        match self {
            Self::Root => vec![Self::Class, Self::Debug],
            Self::Class => vec![Self::ClassCores],
            Self::Debug => vec![Self::DebugCores],
            Self::ClassCores => places.map(Self::ClassCore).collect(),
            Self::DebugCores => places.map(Self::DebugCore).collect(),
            Self::ClassCore(place) => files(place, &Content::CLASS),
            Self::DebugCore(place) => {
                let buffers = traces.get(place as usize).copied().unwrap_or(0);
                let buffers = u32::try_from(buffers).map_or(u32::MAX, |it| it.min(MAX_TRACES));
                let mut all = files(place, &Content::DEBUG);
                all.extend((0..buffers).map(|it| Self::File(place, Content::DebugTrace(it))));
                all
            }
            Self::File(..) => Vec::new(),
        }
    }

    /// Does what is in it depend on which cores there are?
    pub fn depends_on_cores(self) -> bool {
        // In the class a core that is there has all of its files.
        !matches!(
            self,
            Self::Root | Self::Class | Self::Debug | Self::ClassCore(_)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(node: Node, traces: &[usize]) -> Vec<Node> {
        let mut nodes = vec![node];
        for child in node.children(traces) {
            assert_eq!(child.parent(), node);
            nodes.extend(all(child, traces));
        }
        nodes
    }

    #[test]
    fn every_file_has_a_number_of_its_own_and_is_found_by_it() {
        let nodes = all(Node::Root, &[0, 3, 1]);
        assert_eq!(nodes.len(), 5 + 3 * (2 + 5 + 6) + 4);
        let mut numbers: Vec<_> = nodes.iter().map(|it| it.number()).collect();
        for (node, number) in nodes.iter().zip(&numbers) {
            assert_eq!(Node::from_number(*number), Some(*node));
        }
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), nodes.len());
    }

    #[test]
    fn a_number_that_nothing_has_names_nothing() {
        for number in [
            0,
            6,
            STRIDE - 1,
            STRIDE + 7,
            STRIDE + 31,
            STRIDE + 38,
            u64::MAX,
        ] {
            assert_eq!(Node::from_number(number), None, "{number}");
        }
        let last = Node::File(65535, Content::DebugTrace(4095));
        assert_eq!(Node::from_number(last.number()), Some(last));
    }
}
