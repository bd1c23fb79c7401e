//! What the kernel knows of this process (proc(5)), under the names that Kata's shim gives the
//! figures of a hypervisor, so that dashboards made for those go on working.
//!
//! The files are opened by the machine's owner at the first scrape, and read by the thread of the
//! API, which may open nothing.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;

use rustix::fs::{RawDir, SeekFrom, seek};

use crate::memory::read_from_start;
use crate::procfs::meminfo_bytes;
use crate::procfs::stat_fields;

/// Bytes of directory entries that are read at once.
const ENTRIES_BYTES: usize = 4096;

/// Lines of `/proc/self/status` that are bytes, and the items that they are.
const STATUS_BYTES: [(&str, &str); 17] = [
    ("VmPeak:", "vmpeak"),
    ("VmSize:", "vmsize"),
    ("VmLck:", "vmlck"),
    ("VmPin:", "vmpin"),
    ("VmHWM:", "vmhwm"),
    ("VmRSS:", "vmrss"),
    ("RssAnon:", "rssanon"),
    ("RssFile:", "rssfile"),
    ("RssShmem:", "rssshmem"),
    ("VmData:", "vmdata"),
    ("VmStk:", "vmstk"),
    ("VmExe:", "vmexe"),
    ("VmLib:", "vmlib"),
    ("VmPTE:", "vmpte"),
    ("VmPMD:", "vmpmd"),
    ("VmSwap:", "vmswap"),
    ("HugetlbPages:", "hugetlbpages"),
];

/// Those that are numbers.
const STATUS_COUNTS: [(&str, &str); 2] = [
    ("voluntary_ctxt_switches:", "voluntary_ctxt_switches"),
    ("nonvoluntary_ctxt_switches:", "nonvoluntary_ctxt_switches"),
];

/// Lines of `/proc/self/io`.
const IO: [(&str, &str); 7] = [
    ("rchar:", "rchar"),
    ("wchar:", "wchar"),
    ("syscr:", "syscr"),
    ("syscw:", "syscw"),
    ("read_bytes:", "readbytes"),
    ("write_bytes:", "writebytes"),
    ("cancelled_write_bytes:", "cancelledwritebytes"),
];

/// Fields of `/proc/self/stat`, counted from 0 behind the name in brackets.
const STAT: [(usize, &str); 4] = [(11, "utime"), (12, "stime"), (13, "cutime"), (14, "cstime")];
/// The field that has the number of threads.
const THREADS: usize = 17;

/// Columns of `/proc/self/net/dev`, in their order.
const NETDEV: [&str; 16] = [
    "recv_bytes",
    "recv_packets",
    "recv_errs",
    "recv_drop",
    "recv_fifo",
    "recv_frame",
    "recv_compressed",
    "recv_multicast",
    "sent_bytes",
    "sent_packets",
    "sent_errs",
    "sent_drop",
    "sent_fifo",
    "sent_colls",
    "sent_carrier",
    "sent_compressed",
];

/// The files that say it, open. One that cannot be had leaves its figures out.
#[derive(Debug, Default)]
pub struct ProcessFiles {
    stat: Option<File>,
    status: Option<File>,
    io: Option<File>,
    netdev: Option<File>,
    descriptors: Option<File>,
}

/// A figure with the items that it consists of.
pub(super) type Items = Vec<(&'static str, u64)>;

/// What they say.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub stat: Items,
    pub status: Items,
    pub io: Items,
    /// By interface of the process's network namespace.
    pub netdev: Vec<(String, Items)>,
    pub threads: Option<u64>,
    pub descriptors: Option<u64>,
}

impl ProcessFiles {
    /// Opens them.
    pub fn open() -> Self {
        let open = |name: &str| File::open(format!("/proc/self/{name}")).ok();
        Self {
            stat: open("stat"),
            status: open("status"),
            io: open("io"),
            netdev: open("net/dev"),
            descriptors: open("fd"),
        }
    }

    pub(super) fn read(&self) -> Process {
        let text = |file: &Option<File>| {
            let text = file.as_ref().map(read_from_start);
            text.and_then(Result::ok).unwrap_or_default()
        };
        let (stat, status) = (text(&self.stat), text(&self.status));
        let fields = stat_fields(&stat);
        let field = |at: usize| fields.get(at)?.parse().ok();
        let mut all: Items = items(&STATUS_BYTES, |name| meminfo_bytes(&status, name));
        all.extend(items(&STATUS_COUNTS, |name| value(&status, name)));
        let io = text(&self.io);
        Process {
            stat: STAT
                .iter()
                .filter_map(|(at, item)| Some((*item, field(*at)?)))
                .collect(),
            status: all,
            io: items(&IO, |name| value(&io, name)),
            netdev: text(&self.netdev).lines().filter_map(interface).collect(),
            threads: field(THREADS),
            descriptors: self.descriptors.as_ref().and_then(|folder| count(folder).ok()),
        }
    }
}

impl Process {
    /// Bytes of `item` of the status.
    pub fn status_of(&self, item: &str) -> Option<u64> {
        let found = self.status.iter().find(|(known, _)| *known == item);
        found.map(|(_, value)| *value)
    }
}

fn items(names: &[(&'static str, &'static str)], value: impl Fn(&str) -> Option<u64>) -> Items {
    let named = names.iter().filter_map(|(line, item)| Some((*item, value(line)?)));
    named.collect()
}

fn value(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}

/// A line of `/proc/self/net/dev`; the two above the table have no colon.
fn interface(line: &str) -> Option<(String, Items)> {
    let (name, values) = line.split_once(':')?;
    let values = values.split_whitespace().map_while(|value| value.parse().ok());
    Some((name.trim().to_owned(), NETDEV.into_iter().zip(values).collect()))
}

/// Entries of `folder` but `.` and `..`. The descriptor of `folder` is among those of `/proc/self/fd`.
fn count(folder: &File) -> io::Result<u64> {
    seek(folder, SeekFrom::Start(0))?;
    let mut buffer = [MaybeUninit::uninit(); ENTRIES_BYTES];
    let mut entries = RawDir::new(folder, &mut buffer);
    let mut count = 0;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        count += u64::from(!entry.file_name().to_bytes().starts_with(b"."));
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_this_process_are_read() {
        let files = ProcessFiles::open();
        let process = files.read();
        assert_eq!(process.stat.len(), STAT.len());
        assert!(process.status.len() > 15, "{:?}", process.status);
        assert!(process.status_of("vmrss").unwrap() > 0 && process.threads.unwrap() > 0);
        assert!(process.netdev.iter().all(|(_, items)| items.len() == NETDEV.len()));
        let before = process.descriptors.unwrap();
        let _more = File::open("/dev/null").unwrap();
        // Other tests of this process open files, too.
        assert!(before > 5 && files.read().descriptors.unwrap() > 5);
    }

    #[test]
    fn descriptors_are_counted_as_entries_and_each_time_anew() {
        let folder = tempfile::tempdir().unwrap();
        let open = File::open(folder.path()).unwrap();
        for files in 1..=200 {
            File::create(folder.path().join(files.to_string())).unwrap();
            if files % 50 == 0 {
                assert_eq!(count(&open).unwrap(), files);
            }
        }
    }

    #[test]
    fn a_programs_name_does_not_move_the_fields() {
        let stat = "42 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 0";
        let fields = stat_fields(stat);
        assert_eq!((fields[0], fields[11], fields[THREADS]), ("S", "11", "17"));
        assert!(stat_fields("").is_empty());
    }

    #[test]
    fn interfaces_have_their_columns_by_name() {
        assert!(interface(" face |bytes    packets errs").is_none());
        let (name, items) = interface("  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16").unwrap();
        assert_eq!(
            (name.as_str(), items[0], items[7]),
            ("eth0", ("recv_bytes", 1), ("recv_multicast", 8))
        );
        assert_eq!((items[8], items[15]), (("sent_bytes", 9), ("sent_compressed", 16)));
    }
}
