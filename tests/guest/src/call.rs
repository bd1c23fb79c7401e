//! What the agent in a test guest is asked over vsock and what it replies: a line of JSON each way.
//!
//! A connection carries any number of calls, one after another, and the agent serves any number of
//! connections at once. [`Call::Echo`], [`Call::Sink`], [`Call::Source`], [`Call::Load`] and
//! [`Call::Exec`] are the last of theirs: what follows is a stream, for `Exec` one of
//! [frames](crate::frame).

use serde::{Deserialize, Serialize};

use crate::Answer;
use crate::tree::{Depth, Plan, Survey};

/// The vsock port of the agent, which is the one of Kata's.
pub const AGENT_PORT: u32 = 1024;

/// The vsock port of the agent's log. Nobody listens there unless the kernel's command line has `agent.log_vport=1025`.
pub const LOG_PORT: u32 = 1025;

/// The longest line that the agent reads.
pub const MAX_LINE_BYTES: u64 = 1 << 20;

/// One thing that the agent does.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Call {
    /// A [`Step`](crate::Step), as a command line has it; [`Reply::Answer`], or [`Reply::Done`]
    /// before the guest ends. What needs a console is refused.
    Step {
        /// For example `report`.
        step: String,
    },
    /// Runs a program to its end; [`Reply::Ran`].
    Run {
        /// Program and arguments.
        command: Vec<String>,
        /// Its standard input.
        input: String,
    },
    /// Runs a program; its standard streams follow as frames, both ways at once.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
    },
    /// Mounts a file system, creating the folder; [`Reply::Done`].
    Mount {
        /// What, for example the tag of a share.
        source: String,
        /// Where.
        target: String,
        /// The file system's name.
        kind: String,
    },
    /// Reads a file that is text; [`Reply::Text`].
    Text {
        /// Which.
        path: String,
    },
    /// Writes and syncs a file of a [pattern](crate::pattern); [`Reply::Data`].
    Store {
        /// Where.
        path: String,
        /// Of the pattern.
        seed: u64,
        /// How long.
        bytes: u64,
    },
    /// Reads a whole file; [`Reply::Data`].
    Sum {
        /// Which.
        path: String,
    },
    /// Plants a [tree](crate::tree); [`Reply::Done`].
    Plant {
        /// Its root, which is created.
        path: String,
        /// What to plant.
        plan: Plan,
    },
    /// Surveys a tree; [`Reply::Surveyed`].
    Survey {
        /// Its root.
        path: String,
        /// How closely.
        depth: Depth,
    },
    /// Writes a [pattern](crate::pattern) over the beginning of a file through a mapping;
    /// [`Reply::Data`] of what was there.
    Map {
        /// Which file.
        path: String,
        /// Of the pattern.
        seed: u64,
        /// How long: not longer than the file.
        bytes: u64,
        /// Whether the file is to change.
        shared: bool,
    },
    /// Threads that replace a file by renaming, read it, and count under a lock; [`Reply::Text`] with the last count.
    Storm {
        /// The folder.
        path: String,
        /// How many threads.
        threads: u64,
        /// What each does so often.
        rounds: u64,
    },
    /// Waits for a block device in a PCI slot; [`Reply::Device`].
    DiskAt {
        /// `0000:00:05.0`.
        bdf: String,
    },
    /// Waits until a PCI slot is empty; [`Reply::Done`].
    Gone {
        /// `0000:00:05.0`.
        bdf: String,
    },
    /// Connects to a port of the host, sends a text, and reads to the end; [`Reply::Text`].
    Dial {
        /// The host's port.
        port: u32,
        /// What to send.
        text: String,
    },
    /// Listens on one more port, with the same service; [`Reply::Done`].
    Listen {
        /// The guest's port.
        port: u32,
    },
    /// Does one of the calls above and looks at the guest's monotonic clock before and after;
    /// [`Reply::Timed`], unless it could not be done.
    Time {
        /// Which.
        of: Box<Call>,
    },
    /// [Works](Load) until the caller has closed its side; [`Reply::Worked`].
    Load {
        /// How much of it.
        load: Load,
    },
    /// Sends back what comes, until the end of it.
    Echo,
    /// Takes what comes until the end of it; [`Reply::Data`].
    Sink,
    /// Sends a [pattern](crate::pattern) and closes.
    Source {
        /// Of the pattern.
        seed: u64,
        /// How long.
        bytes: u64,
    },
}

/// Work that checks itself: each kind goes on until the end or until something is not as it was.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Threads that compute.
    pub threads: usize,
    /// Memory that is allocated, written, held, compared and freed again; 0 for none.
    pub memory_bytes: u64,
    /// Where a file is written, read back and removed.
    pub folder: Option<String>,
    /// How long it is.
    pub file_bytes: u64,
}

/// How often each kind of [`Load`] was done.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Rounds {
    /// By all threads together.
    pub processors: u64,
    /// Memory.
    pub memory: u64,
    /// Files.
    pub files: u64,
}

/// What the agent replies.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Nothing more to say.
    Done,
    /// A step's answer.
    Answer {
        /// As it would be on a console.
        answer: Answer,
    },
    /// A program has ended.
    Ran {
        /// Its exit code, or 128 and the signal.
        code: i32,
        /// Its standard output.
        stdout: String,
        /// Its standard error.
        stderr: String,
    },
    /// Words.
    Text {
        /// They.
        text: String,
    },
    /// Bytes went by.
    Data {
        /// How many.
        bytes: u64,
        /// Their [`Checksum`](crate::pattern::Checksum).
        checksum: u64,
    },
    /// A tree was surveyed.
    Surveyed {
        /// What it holds.
        survey: Survey,
    },
    /// A device was found.
    Device {
        /// Its name below `/dev`.
        name: String,
        /// Its place below `/sys/devices`.
        path: String,
    },
    /// A call was timed.
    Timed {
        /// How long it took.
        nanoseconds: u64,
        /// What the call is replied by itself.
        result: Box<Reply>,
    },
    /// A load has ended.
    Worked {
        /// What was done.
        rounds: Rounds,
        /// What went wrong; a kind of work ends with its first error.
        errors: Vec<String>,
    },
    /// It could not be done.
    Failed {
        /// The chain of errors.
        error: String,
        /// The error number, if the kernel gave one.
        errno: Option<i32>,
    },
}

impl Call {
    /// A step as a call.
    pub fn step(step: &crate::Step) -> Self {
        Self::Step { step: step.to_string() }
    }

    /// A program to run, without input.
    pub fn run(command: &[&str]) -> Self {
        Self::Run {
            command: command.iter().map(ToString::to_string).collect(),
            input: String::new(),
        }
    }
}
