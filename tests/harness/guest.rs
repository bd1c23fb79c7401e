//! A running VM as a test sees it: what the guest says, what can be typed, how it ends.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use husk_guest::Answer;
use husk_guest::answer::Report;
use tempfile::TempDir;

use crate::boot::VMM;
use crate::transcript::Transcript;
use crate::{end_of, kill, pty};

/// How long a guest may be silent: ten times what bare metal needs for a boot, and as much again for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// The test's ends of the VMM's standard streams.
pub(crate) struct Streams {
    pub input: Option<File>,
    pub output: Option<File>,
    /// The test's end of a terminal, for its size and settings.
    pub terminal: Option<File>,
}

/// A VM under test. Killed when dropped.
pub struct Guest {
    child: Child,
    input: Option<File>,
    terminal: Option<File>,
    chunks: Receiver<Vec<u8>>,
    /// Tells the reader of the output to close its end.
    hung_up: Arc<AtomicBool>,
    errors: Option<JoinHandle<String>>,
    /// Everything that the guest has said.
    transcript: Transcript,
    answers: Vec<Answer>,
    command: String,
    folder: TempDir,
}

/// A VM that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The VMM's exit code, if no signal killed it.
    pub code: Option<i32>,
    /// All answers of the guest.
    pub answers: Vec<Answer>,
    /// Everything on standard output.
    pub transcript: String,
    /// Everything on standard error.
    pub errors: String,
    /// The folder that the VMM ran in.
    pub folder: TempDir,
}

impl Guest {
    pub(crate) fn new(mut child: Child, streams: Streams, command: String, folder: TempDir) -> Self {
        let (sender, chunks) = mpsc::channel();
        let hung_up = Arc::new(AtomicBool::new(false));
        if let Some(output) = streams.output {
            let hung_up = Arc::clone(&hung_up);
            thread::spawn(move || read_chunks(output, &sender, &hung_up));
        }
        let errors = child.stderr.take().map(|mut errors| {
            thread::spawn(move || {
                let mut text = Vec::new();
                let _ = errors.read_to_end(&mut text);
                String::from_utf8_lossy(&text).into_owned()
            })
        });
        let Streams { input, terminal, .. } = streams;
        Self {
            child,
            input,
            terminal,
            chunks,
            hung_up,
            errors,
            transcript: Transcript::default(),
            answers: Vec::new(),
            command,
            folder,
        }
    }

    /// The VMM's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The folder that the VMM runs in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The guest's next answer.
    pub fn answer(&mut self) -> Answer {
        loop {
            while let Some(line) = self.transcript.next_line() {
                match Answer::parse(&line) {
                    Some(Ok(answer)) => {
                        self.answers.push(answer.clone());
                        return answer;
                    }
                    Some(Err(error)) => self.fail(&format!("torn answer {line:?}: {error}")),
                    None => {}
                }
            }
            self.receive("an answer");
        }
    }

    /// Waits until the guest has said `text`.
    pub fn expect(&mut self, text: &str) {
        while !self.transcript.contains(text) {
            self.receive(text);
        }
    }

    /// Types on the guest's console.
    pub fn type_text(&mut self, text: &str) {
        let typed = self.input.as_mut().map(|input| input.write_all(text.as_bytes()));
        if !matches!(typed, Some(Ok(()))) {
            self.fail(&format!("the VMM takes no input: {typed:?}"));
        }
    }

    /// Closes the VMM's standard input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Closes the terminal, as a window that is shut.
    pub fn close_terminal(&mut self) {
        self.input = None;
        self.terminal = None;
        self.hung_up.store(true, Ordering::Relaxed);
    }

    /// The test's end of the terminal.
    pub fn terminal(&self) -> &File {
        match &self.terminal {
            Some(terminal) => terminal,
            None => panic!("this VM has no terminal"),
        }
    }

    /// Sends a signal to the VMM.
    pub fn signal(&self, signal: i32) {
        pty::kill(self.child.id(), signal).unwrap_or_else(|error| panic!("cannot signal the VMM: {error}"));
    }

    /// Waits until the VM has ended, and that nothing of it is left.
    pub fn wait(mut self) -> Ended {
        let status = self.wait_for_exit();
        while let Ok(chunk) = self.chunks.recv_timeout(Duration::from_secs(5)) {
            self.transcript.push(&chunk);
        }
        while let Some(line) = self.transcript.next_line() {
            self.answers.extend(Answer::parse(&line).and_then(Result::ok));
        }
        let errors = self
            .errors
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        if let Some(signal) = status.signal() {
            panic!("signal {signal} killed the VMM\n{}\n{errors}", self.transcript.text());
        }
        assert_eq!(
            left_behind(self.folder.path()),
            Vec::<String>::new(),
            "the VMM left processes behind"
        );
        let folder = std::mem::replace(&mut self.folder, no_folder());
        Ended {
            code: status.code(),
            answers: std::mem::take(&mut self.answers),
            transcript: self.transcript.text(),
            errors,
            folder,
        }
    }

    fn wait_for_exit(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            // Output is taken all the while: a full pipe must not be what keeps the VM from ending.
            if let Ok(chunk) = self.chunks.recv_timeout(Duration::from_millis(20)) {
                self.transcript.push(&chunk);
                continue;
            }
            match end_of(&mut self.child, Duration::from_millis(5)) {
                Ok(Some(status)) => return status,
                Ok(None) if start.elapsed() < PATIENCE => {}
                other => self.fail(&format!(
                    "the VM did not end within {} s ({other:?})",
                    PATIENCE.as_secs()
                )),
            }
        }
    }

    fn receive(&mut self, wanted: &str) {
        match self.chunks.recv_timeout(PATIENCE) {
            Ok(chunk) => self.transcript.push(&chunk),
            Err(RecvTimeoutError::Timeout) => {
                self.fail(&format!(
                    "silent for {} s while waiting for {wanted}",
                    PATIENCE.as_secs()
                ));
            }
            Err(RecvTimeoutError::Disconnected) => self.fail(&format!("ended while {wanted} was expected")),
        }
    }

    fn fail(&mut self, why: &str) -> ! {
        let status = kill(&mut self.child);
        let errors = self
            .errors
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default();
        panic!(
            "{why}\n{}\nstatus: {status:?}\nguest: {}\nstandard error: {errors}",
            self.command,
            self.transcript.text()
        );
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = kill(&mut self.child);
    }
}

impl Ended {
    /// Asserts the exit code.
    #[track_caller]
    pub fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(
            self.code,
            Some(code),
            "guest: {}\nstandard error: {}",
            self.transcript,
            self.errors
        );
        self
    }

    /// The guest's report.
    #[track_caller]
    pub fn report(&self) -> &Report {
        let report = self.answers.iter().find_map(|answer| match answer {
            Answer::Report(report) => Some(report),
            _ => None,
        });
        report.unwrap_or_else(|| panic!("no report: {}\nstandard error: {}", self.transcript, self.errors))
    }

    /// Asserts that the guest refused nothing.
    #[track_caller]
    pub fn assert_nothing_refused(&self) -> &Self {
        let refused: Vec<_> = self
            .answers
            .iter()
            .filter(|answer| matches!(answer, Answer::Failed { .. }))
            .collect();
        assert!(refused.is_empty(), "{refused:?}");
        self
    }
}

fn read_chunks(mut output: File, chunks: &mpsc::Sender<Vec<u8>>, hung_up: &AtomicBool) {
    let mut buffer = [0; 4096];
    while !hung_up.load(Ordering::Relaxed) {
        if !pty::readable(&output, Duration::from_millis(50)) {
            continue;
        }
        // A terminal whose other side is closed reads as EIO, a pipe as an end.
        let Ok(count) = output.read(&mut buffer) else { return };
        let chunk = buffer.get(..count).unwrap_or_default().to_vec();
        if count == 0 || chunks.send(chunk).is_err() {
            return;
        }
    }
}

fn no_folder() -> TempDir {
    tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary folder: {error}"))
}

/// Command lines of processes that were started by the VMM of the test in `folder`.
fn left_behind(folder: &Path) -> Vec<String> {
    let mark = format!("{VMM}={}", folder.display());
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let marked = processes.filter(|process| {
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == mark.as_bytes())
    });
    marked
        .map(|process| fs::read_to_string(process.path().join("cmdline")).unwrap_or_default())
        .collect()
}
