//! One husk as `/proc` has it (proc(5)): whose process it is, what it was started with, and its socket.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::limited::look_at_all;
use crate::log::Tag;
use crate::procfs;
use crate::procfs::meminfo_bytes;

/// Clock ticks a second in `/proc`: `USER_HZ`, which on x86 is the same for all kernels.
const TICKS: u64 = 100;
/// The names under which Kata starts its hypervisor, and husk's own.
const NAMES: [&str; 2] = ["husk", "cloud-hypervisor"];
/// The most that is read of what a process was started with.
const ARGUMENTS_BYTES: usize = 1 << 20;
/// The most that is read of the sockets of its network namespace, some 100 bytes each.
const SOCKETS_BYTES: usize = 16 << 20;

/// A husk that serves a VM, or will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HuskProcess {
    /// Its process, as seen from here.
    pub pid: u32,
    /// Its number in the innermost namespace it is in: what it says of itself.
    pub own_pid: u32,
    /// Where it serves the API, if it does.
    pub socket: Option<PathBuf>,
    /// What it was started with, as far as `known` says.
    pub arguments: Vec<String>,
    /// How much of that is known.
    pub known: KnownArguments,
    /// How long it has run.
    pub uptime: Duration,
    /// `S`, `R`, `T` and so on.
    pub state: char,
    /// Processor time so far.
    pub processor_time: Duration,
    /// `/proc/PID`.
    pub folder: PathBuf,
}

/// How much is known of what a process was started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownArguments {
    /// All of it.
    All,
    /// What is in the first MiB, words that are whole: no shell passes as much to husk, but a
    /// process can make the kernel show more.
    Beginning,
    /// Nothing: the kernel did not say in time.
    None,
}

/// Every husk with a VM that this user may look into, by the number of its process; one of which
/// the kernel does not say within `limit` what it was started with, too. `proc` is `/proc`.
pub fn all(proc: &Path, limit: Duration) -> Vec<HuskProcess> {
    let pids = procfs::numbers(proc).unwrap_or_default();
    let husks = pids.into_iter().filter(|pid| runs_husk(proc, *pid)).collect();
    look_into(proc, husks, limit)
}

/// Those of the processes `pids` that have a VM, or may have one.
fn look_into(proc: &Path, pids: Vec<u32>, limit: Duration) -> Vec<HuskProcess> {
    let cmdline = |pid: &u32| (*pid, proc.join(pid.to_string()).join("cmdline"));
    let items = pids.iter().map(cmdline).collect();
    let read = look_at_all("arguments", items, limit, |path| arguments(&path).ok());
    let husks = pids.into_iter().zip(read).filter_map(|(pid, read)| {
        let (arguments, known) = match read {
            Some(read) => read.filter(|(arguments, _)| has_a_vm(arguments))?,
            None => (Vec::new(), KnownArguments::None),
        };
        HuskProcess::with(proc, pid, arguments, known)
    });
    husks.collect()
}

/// The words of a file like `/proc/PID/cmdline`.
fn arguments(path: &Path) -> io::Result<(Vec<String>, KnownArguments)> {
    let (bytes, is_cut) = procfs::beginning(path, ARGUMENTS_BYTES)?;
    let mut words: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
    if is_cut {
        words.pop();
    }
    let words = words.into_iter().filter(|word| !word.is_empty());
    let arguments = words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let known = if is_cut {
        KnownArguments::Beginning
    } else {
        KnownArguments::All
    };
    Ok((arguments, known))
}

/// Whether the program of process `pid` is called as husk is. Only who may look into a process is told.
fn runs_husk(proc: &Path, pid: u32) -> bool {
    let program = fs::read_link(proc.join(pid.to_string()).join("exe"));
    let name = program
        .ok()
        .and_then(|program| Some(program.file_name()?.to_str()?.to_owned()));
    name.is_some_and(|name| is_name(name.trim_end_matches(" (deleted)")))
}

impl HuskProcess {
    /// The husk whose process is `pid`; `None` if it is none with a VM, or not for this user to
    /// look into. The kernel has `limit` to say what it was started with.
    pub fn find(proc: &Path, pid: u32, limit: Duration) -> Option<Self> {
        runs_husk(proc, pid).then(|| Self::called_anything(proc, pid, limit))?
    }

    /// As [`find`](Self::find), for a process that the user has named: its program's file may be called anything.
    pub fn called_anything(proc: &Path, pid: u32, limit: Duration) -> Option<Self> {
        look_into(proc, vec![pid], limit).pop()
    }

    /// Process `pid`, which was started with `arguments`, as far as they are `known`.
    fn with(proc: &Path, pid: u32, arguments: Vec<String>, known: KnownArguments) -> Option<Self> {
        let folder = proc.join(pid.to_string());
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        let fields = procfs::stat_fields(&stat);
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        let ticks = |ticks: u64| Duration::from_millis(ticks.saturating_mul(1000 / TICKS));
        let started = ticks(number(19)?);
        let now = fs::read_to_string(proc.join("uptime")).ok()?;
        let now = now.split_whitespace().next()?.parse().ok()?;
        let status = fs::read_to_string(folder.join("status")).unwrap_or_default();
        let own_pid = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let own_pid = own_pid.and_then(|pids| pids.split_whitespace().last()?.parse().ok());
        Some(Self {
            pid,
            own_pid: own_pid.unwrap_or(pid),
            socket: socket(&folder, &arguments),
            arguments,
            known,
            uptime: Duration::try_from_secs_f64(now).ok()?.saturating_sub(started),
            state: fields.first()?.chars().next()?,
            processor_time: ticks(number(11)?.saturating_add(number(12)?)),
            folder,
        })
    }

    /// Whether its arguments are those of a husk that has a VM, and of no other program that is likely to run here.
    pub fn is_started_as_husk(&self) -> bool {
        let runs = self.arguments.get(1).is_some_and(|first| first == "run");
        self.option("--api-socket").is_some() || (runs && self.option("--kernel").is_some())
    }

    /// The pod that it is for: what its log calls it. A VM of which that says nothing is `-`.
    pub fn pod(&self) -> String {
        let chosen = self.option("--log-tag").and_then(|tag| tag.parse().ok());
        let tag: Option<Tag> = chosen.or_else(|| Tag::of_socket(self.socket.as_deref()?));
        tag.map_or_else(|| "-".to_owned(), |tag| tag.as_str().to_owned())
    }

    /// What it is called that it does not answer.
    pub fn silence(&self) -> &'static str {
        match self.state {
            'T' | 't' => "stopped",
            _ => "no answer",
        }
    }

    /// Bytes of the item `name` of its status, such as `RssAnon:`.
    pub fn status_bytes(&self, name: &str) -> Option<u64> {
        meminfo_bytes(&fs::read_to_string(self.folder.join("status")).ok()?, name)
    }

    /// Where this process reaches its socket: through `/proc/PID/root` if husk has another root or
    /// mount namespace than this process, as in a container.
    pub fn reachable_socket(&self) -> Option<PathBuf> {
        let socket = self.socket.as_ref()?;
        let own = Path::new("/proc/self");
        let same = |name: &str| fs::read_link(self.folder.join(name)).ok() == fs::read_link(own.join(name)).ok();
        if same("ns/mnt") && same("root") {
            return Some(socket.clone());
        }
        let below = socket.strip_prefix("/").ok()?;
        Some(self.folder.join("root").join(below))
    }

    /// `path` as the process meant it, who has a folder of its own to start from.
    pub fn whole_path(&self, path: &Path) -> PathBuf {
        whole_path(&self.folder, path)
    }

    /// The value of its option `--name`, if it was given.
    pub fn option(&self, name: &str) -> Option<&str> {
        option(&self.arguments, name)
    }
}

#[cfg(test)]
impl HuskProcess {
    /// One for tests: this process, without a socket.
    pub(crate) fn sample() -> Self {
        Self {
            pid: std::process::id(),
            own_pid: std::process::id(),
            socket: None,
            arguments: Vec::new(),
            known: KnownArguments::All,
            uptime: Duration::ZERO,
            state: 'S',
            processor_time: Duration::ZERO,
            folder: "/proc/self".into(),
        }
    }
}

/// Whether a program called `name` is husk: also as `husk install` calls it, by version and digest behind `husk-`.
fn is_name(name: &str) -> bool {
    let version = name.strip_prefix("husk-").and_then(|version| version.chars().next());
    NAMES.contains(&name) || version.is_some_and(|first| first.is_ascii_digit())
}

/// Whether a process started so has a VM, or will: others of husk's commands have none.
fn has_a_vm(arguments: &[String]) -> bool {
    let first = arguments.get(1).map(String::as_str);
    // Further behind it may be the value of an option, such as --cmdline.
    let is_help = arguments.iter().skip(1).take(2).any(|word| word == "--help");
    first.is_some_and(|first| first == "run" || first.starts_with('-')) && !is_help
}

fn option<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let mut words = arguments.iter().skip(1);
    while let Some(word) = words.next() {
        // The one option whose value may look like another.
        if word == "--cmdline" && name != "--cmdline" {
            words.next();
            continue;
        }
        let Some(rest) = word.strip_prefix(name) else { continue };
        match rest.strip_prefix('=') {
            Some(value) => return Some(value),
            None if rest.is_empty() => return words.next().map(String::as_str),
            None => {}
        }
    }
    None
}

/// Where the API is served: by name, or on a descriptor that was passed, whose name the kernel knows.
fn socket(folder: &Path, arguments: &[String]) -> Option<PathBuf> {
    let place = option(arguments, "--api-socket")?;
    if let Some(fd) = place.strip_prefix("fd=") {
        let link = fs::read_link(folder.join("fd").join(fd)).ok()?;
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned();
        let (sockets, _) = procfs::beginning(&folder.join("net/unix"), SOCKETS_BYTES).ok()?;
        // Num RefCount Protocol Flags Type St Inode Path
        return sockets.split(|byte| *byte == b'\n').find_map(|line| {
            let line = String::from_utf8_lossy(line).into_owned();
            let mut words = line.split_whitespace().skip(6);
            (words.next()? == inode).then(|| words.next().map(PathBuf::from))?
        });
    }
    let path = Path::new(OsStr::from_bytes(
        place.strip_prefix("path=").unwrap_or(place).as_bytes(),
    ))
    .to_owned();
    Some(whole_path(folder, &path))
}

/// A path of the process in `folder`, from wherever that stands.
fn whole_path(folder: &Path, path: &Path) -> PathBuf {
    match fs::read_link(folder.join("cwd")) {
        Ok(from) if path.is_relative() => from.join(path),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, Mode};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    /// Nobody writes into a FIFO: whoever reads from it waits, as for a process whose memory is locked.
    #[test]
    fn a_process_that_cannot_be_looked_into_is_shown_and_keeps_nobody_waiting() {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 90_001, "/usr/bin/husk", &["husk", "--api-socket", "/s"]);
        process(proc.path(), 90_002, "/usr/bin/husk", &[]);
        let cmdline = proc.path().join("90002/cmdline");
        fs::remove_file(&cmdline).unwrap();
        rustix::fs::mknodat(CWD, &cmdline, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let found = loop {
            let found = all(proc.path(), Duration::from_millis(20));
            // The other is there as soon as the host gives its thread its turn.
            if found.iter().any(|husk| husk.known == KnownArguments::All) {
                break found;
            }
        };
        let hanging = found.iter().find(|husk| husk.pid == 90_002).unwrap();
        assert_eq!((hanging.known, hanging.socket.as_ref()), (KnownArguments::None, None));
        assert_eq!(hanging.uptime, Duration::from_millis(50_500));
        drop(fs::File::options().write(true).open(cmdline).unwrap());
    }

    #[test]
    fn of_arguments_without_end_the_first_are_read() {
        let proc = tempfile::tempdir().unwrap();
        process(
            proc.path(),
            90_003,
            "/usr/bin/husk",
            &["husk", "--api-socket", "/s", "x"],
        );
        let cmdline = proc.path().join("90003/cmdline");
        let file = fs::File::options().append(true).open(&cmdline).unwrap();
        file.set_len(1 << 40).unwrap();
        let found = HuskProcess::find(proc.path(), 90_003, LONG).unwrap();
        assert_eq!(found.known, KnownArguments::Beginning);
        assert_eq!(found.arguments, ["husk", "--api-socket", "/s", "x"]);
        // What stands across the limit is no word.
        fs::write(
            &cmdline,
            format!("husk\0--api-socket\0/s\0{}", "y".repeat(ARGUMENTS_BYTES)),
        )
        .unwrap();
        let found = HuskProcess::find(proc.path(), 90_003, LONG).unwrap();
        assert_eq!(found.arguments, ["husk", "--api-socket", "/s"]);
    }

    /// A process in a folder like `/proc`.
    fn process(proc: &Path, pid: u32, program: &str, arguments: &[&str]) {
        let folder = proc.join(pid.to_string());
        fs::create_dir_all(folder.join("fd")).unwrap();
        fs::create_dir_all(folder.join("net")).unwrap();
        symlink(program, folder.join("exe")).unwrap();
        symlink("/srv", folder.join("cwd")).unwrap();
        fs::write(folder.join("cmdline"), arguments.join("\0") + "\0").unwrap();
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 5 0 1000 0";
        fs::write(folder.join("stat"), stat).unwrap();
        fs::write(folder.join("status"), format!("NSpid:\t{pid}\t3\nRssAnon:\t  12 kB\n")).unwrap();
        fs::write(proc.join("uptime"), "60.5 1\n").unwrap();
    }

    #[test]
    fn husks_with_a_vm_are_found_and_others_are_not() {
        let proc = tempfile::tempdir().unwrap();
        let proc = proc.path();
        let vm = ["husk", "--api-socket", "/run/vc/vm/abc/clh-api.sock", "-v"];
        process(proc, 12, "/usr/bin/husk (deleted)", &vm);
        process(
            proc,
            9,
            "/opt/kata/bin/cloud-hypervisor",
            &["x", "--api-socket=path=web/api.sock"],
        );
        process(proc, 10, "/usr/bin/husk", &["husk", "run", "--kernel", "k"]);
        process(proc, 13, "/usr/bin/husk", &["husk", "ctl", "/s", "info"]);
        process(proc, 14, "/usr/bin/husk", &["husk", "fs", "--socket-path", "x"]);
        process(proc, 15, "/usr/bin/bash", &vm);
        process(proc, 17, "/opt/husk/lib/husk/husk-0.1.0-def5d3d26b6e", &vm);
        process(proc, 18, "/opt/husk/lib/husk/husk-0.1.0-def5d3d26b6e (deleted)", &vm);
        process(proc, 19, "/usr/bin/husk-tests", &vm);
        process(proc, 20, "/usr/bin/husk-", &vm);
        process(proc, 16, "/usr/bin/husk", &["husk"]);
        fs::create_dir(proc.join("self")).unwrap();
        let husks = all(proc, LONG);
        let shown: Vec<_> = husks.iter().map(|husk| (husk.pid, husk.pod())).collect();
        assert_eq!(
            shown,
            [
                (9, "web".into()),
                (10, "-".into()),
                (12, "abc".into()),
                (17, "abc".into()),
                (18, "abc".into())
            ]
        );
        assert_eq!(husks[0].socket.as_deref(), Some(Path::new("/srv/web/api.sock")));
        let HuskProcess {
            own_pid,
            uptime,
            state,
            processor_time,
            ..
        } = husks[2];
        assert_eq!((own_pid, state), (3, 'S'));
        assert_eq!(uptime, Duration::from_millis(50_500));
        assert_eq!(processor_time, Duration::from_secs(2));
        assert_eq!(husks[2].status_bytes("RssAnon:"), Some(12 << 10));
    }

    #[test]
    fn a_husk_is_called_what_its_log_calls_it() {
        let pod = |arguments: &[&str], socket: &str| {
            let husk = HuskProcess {
                arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
                socket: Some(socket.into()),
                ..HuskProcess::sample()
            };
            husk.pod()
        };
        for (socket, name) in [
            ("/run/husk/web.sock", "web"),
            ("/run/vc/vm/4f1e/clh-api.sock", "4f1e"),
            ("/run/my pod/api.sock", "my_pod"),
            ("/tmp/api.sock", "-"),
        ] {
            assert_eq!(pod(&["husk", "--api-socket", socket], socket), name);
        }
        let tagged = ["husk", "--api-socket", "/run/x.sock", "--log-tag=web"];
        assert_eq!(pod(&tagged, "/run/x.sock"), "web");
    }

    #[test]
    fn a_socket_that_was_passed_is_found_by_its_number() {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 5, "/husk", &["husk", "--api-socket", "fd=3"]);
        let folder = proc.path().join("5");
        symlink("socket:[4242]", folder.join("fd/3")).unwrap();
        let sockets = "Num RefCount Protocol Flags Type St Inode Path\n\
                       0: 2 0 0 1 1 42 /other\n0: 2 0 0 1 1 4242 /run/pod7/api.sock\n";
        fs::write(folder.join("net/unix"), sockets).unwrap();
        let husk = HuskProcess::find(proc.path(), 5, LONG).unwrap();
        assert_eq!(husk.socket.as_deref(), Some(Path::new("/run/pod7/api.sock")));
        assert_eq!(husk.pod(), "pod7");
    }
}
