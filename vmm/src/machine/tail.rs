//! What the guest has printed last, for whoever wants to know why it ended: a few KiB a port, kept only while somebody
//! listens to events, or the guest gives memory back.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use husk_devices::lock;

/// Bytes that are kept of each port.
const KEPT_BYTES: usize = 4 << 10;
/// The longest text that is told of an end.
const TEXT_BYTES: usize = 1 << 10;
/// The longest line that is looked at.
const LINE_BYTES: usize = 256;
/// Lines about a guest without memory that wait to be told.
const KILLS: usize = 8;

/// How Linux begins the line that says why it panics.
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// What a line has in it by which Linux says whom it killed for lack of memory: its own, or a control group's.
const KILLED: [&[u8]; 2] = [
    b"Out of memory: Killed process",
    b"Memory cgroup out of memory: Killed process",
];

/// What each port has printed last. Clones share it; the default keeps nothing, and costs nothing.
#[derive(Clone, Debug, Default)]
pub struct Tail(Option<Arc<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    wanted: AtomicBool,
    ports: Mutex<Vec<Arc<Mutex<Port>>>>,
}

#[derive(Debug, Default)]
struct Port {
    kept: VecDeque<u8>,
    line: Vec<u8>,
    kills: Vec<String>,
    /// Lines of that kind for which there was no room.
    more_kills: u64,
}

/// An output whose end is kept.
struct Kept {
    output: Box<dyn Write + Send>,
    shared: Arc<Shared>,
    port: Arc<Mutex<Port>>,
}

impl Tail {
    /// Keeps nothing yet.
    pub fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// Keeps what is printed from now on, or forgets it.
    pub fn keep(&self, on: bool) {
        let Some(shared) = &self.0 else { return };
        if shared.wanted.swap(on, Ordering::Relaxed) && !on {
            for port in lock(&shared.ports).iter() {
                *lock(port) = Port::default();
            }
        }
    }

    /// The output of one more port, of the machine that is being built.
    pub(super) fn wrap(&self, output: Box<dyn Write + Send>) -> Box<dyn Write + Send> {
        let Some(shared) = &self.0 else { return output };
        let mut ports = lock(&shared.ports);
        // Those of a machine that is gone.
        ports.retain(|port| Arc::strong_count(port) > 1);
        let port = Arc::<Mutex<Port>>::default();
        ports.push(port.clone());
        let shared = shared.clone();
        Box::new(Kept { output, shared, port })
    }

    /// What the guest said when it panicked, else what it said last: the words of the guest, as
    /// text without control characters but ends of lines. `None` if nothing is known.
    pub fn last_words(&self) -> Option<String> {
        let ports = lock(&self.0.as_ref()?.ports);
        let texts = ports.iter().map(|port| Vec::from(lock(port).kept.clone()));
        let texts: Vec<Vec<u8>> = texts.filter(|text| !text.is_empty()).collect();
        let panicked = texts.iter().find_map(|text| {
            let begin = text.windows(PANIC.len()).rposition(|at| at == PANIC)?;
            text.get(begin..)?.chunks(TEXT_BYTES).next()
        });
        let last = || texts.first()?.rchunks(TEXT_BYTES).next();
        panicked.or_else(last).map(readable)
    }

    /// Whether one of those [lines](Self::take_kills) says that a control group of the guest had no
    /// memory left, and not the guest.
    pub fn is_of_group(line: &str) -> bool {
        line.contains("Memory cgroup out of memory: ")
    }

    /// Lines by which the guest has said whom it killed for lack of memory, each once; and how many more there were.
    pub fn take_kills(&self) -> (Vec<String>, u64) {
        let (mut kills, mut more): (Vec<String>, _) = (Vec::new(), 0);
        let Some(shared) = &self.0 else { return (kills, more) };
        // A guest may have two consoles, which say the same.
        for port in lock(&shared.ports).iter() {
            let mut port = lock(port);
            for line in std::mem::take(&mut port.kills) {
                if !kills.contains(&line) {
                    kills.push(line);
                }
            }
            more = more.max(std::mem::take(&mut port.more_kills));
        }
        (kills, more)
    }
}

impl Port {
    fn put(&mut self, bytes: &[u8]) {
        let bytes = bytes.rchunks(KEPT_BYTES).next().unwrap_or_default();
        let excess = self.kept.len().saturating_add(bytes.len()).saturating_sub(KEPT_BYTES);
        self.kept.drain(..excess.min(self.kept.len()));
        self.kept.extend(bytes);
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                byte if self.line.len() < LINE_BYTES => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        let has = |what: &[u8]| self.line.windows(what.len()).any(|at| at == what);
        if KILLED.iter().any(|what| has(what)) {
            match self.kills.len() < KILLS {
                true => self.kills.push(readable(&self.line)),
                false => self.more_kills = self.more_kills.saturating_add(1),
            }
        }
        self.line.clear();
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes);
        if self.shared.wanted.load(Ordering::Relaxed) {
            // What is not written now comes again, or nobody but this hears of it.
            let said = written.as_ref().map_or(bytes.len(), |written| *written);
            lock(&self.port).put(bytes.get(..said).unwrap_or(bytes));
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

fn readable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let kept = text.chars().filter(|c| *c == '\n' || !c.is_control());
    kept.collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept_unless_somebody_wants_it() {
        let tail = Tail::new();
        let mut output = tail.wrap(Box::new(io::sink()));
        output.write_all(b"Kernel panic - not syncing: before\n").unwrap();
        assert_eq!(tail.last_words(), None);
        tail.keep(true);
        output.write_all(b"after\n").unwrap();
        assert_eq!(tail.last_words().unwrap(), "after");
        tail.keep(false);
        assert_eq!(tail.last_words(), None);
        assert_eq!(Tail::default().last_words(), None);
    }

    #[test]
    fn a_panic_is_told_from_its_own_line_on_whatever_port_has_it() {
        let tail = Tail::new();
        tail.keep(true);
        let mut serial = tail.wrap(Box::new(io::sink()));
        let mut console = tail.wrap(Box::new(io::sink()));
        serial.write_all(b"early\x1b\n").unwrap();
        assert_eq!(tail.last_words().unwrap(), "early");
        console.write_all(&[b'x'; 3 * KEPT_BYTES]).unwrap();
        for byte in b"\n[    1.0] Kernel panic - not syncing: Fatal\r\n[    1.1] CPU: 0 \xff\n" {
            console.write_all(&[*byte]).unwrap();
        }
        assert_eq!(
            tail.last_words().unwrap(),
            "Kernel panic - not syncing: Fatal\n[    1.1] CPU: 0 \u{fffd}"
        );
        console.write_all(&[b'y'; 2 * TEXT_BYTES]).unwrap();
        let words = tail.last_words().unwrap();
        assert!(words.ends_with('y') && words.chars().count() < TEXT_BYTES, "{words}");
    }

    #[test]
    fn processes_that_a_guest_kills_are_told_once_and_in_bounds() {
        let tail = Tail::new();
        tail.keep(true);
        let mut ports = [tail.wrap(Box::new(io::sink())), tail.wrap(Box::new(io::sink()))];
        for port in &mut ports {
            port.write_all(b"[    9.1] Out of memory: Killed process 7 (ap")
                .unwrap();
            port.write_all(b"p) total-vm:1kB\nrest\n").unwrap();
        }
        assert_eq!(
            tail.take_kills(),
            (
                vec!["[    9.1] Out of memory: Killed process 7 (app) total-vm:1kB".into()],
                0
            )
        );
        assert_eq!(tail.take_kills(), (Vec::new(), 0));
        for number in 0..100 {
            let line = format!(
                "Memory cgroup out of memory: Killed process {number}{}\n",
                "z".repeat(999)
            );
            ports[0].write_all(line.as_bytes()).unwrap();
        }
        let (kills, more) = tail.take_kills();
        assert_eq!((kills.len(), kills[0].len()), (KILLS, LINE_BYTES));
        assert_eq!(more, 100 - KILLS as u64);
    }

    #[test]
    fn what_a_port_is_given_reaches_its_output() {
        struct Half;
        impl Write for Half {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                Ok(bytes.len() / 2)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert_eq!(Tail::new().wrap(Box::new(Half)).write(b"four").unwrap(), 2);
        assert_eq!(Tail::default().wrap(Box::new(Half)).write(b"four").unwrap(), 2);
    }
}
