//! Programs: run to their end, or with their standard streams passed on as they come.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use husk_guest::Reply;
use husk_guest::frame::{self, Kind};

/// Bytes read from a program at once.
const PIECE: usize = 16 << 10;

fn prepare(command: &[String]) -> Result<Command> {
    let (program, arguments) = command.split_first().context("an empty command")?;
    let mut prepared = Command::new(program);
    prepared
        .args(arguments)
        .env("PATH", "/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(prepared)
}

fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Runs `command` with `input` and collects what it writes.
pub fn run(command: &[String], input: String) -> Result<Reply> {
    let spawned = prepare(command)?.spawn();
    let mut child = spawned.with_context(|| format!("cannot start {command:?}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // Beside the reading: a program may write before it has read everything. That it does not
        // read at all is its own business.
        thread::spawn(move || pipe.write_all(input.as_bytes()));
    }
    let output = child.wait_with_output().with_context(|| format!("lost {command:?}"))?;
    Ok(Reply::Ran {
        code: code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs `command` with its streams on the connection.
pub fn exec(reader: &mut (impl Read + Send), stream: &UnixStream, command: &[String]) -> Result<()> {
    let out = Mutex::new(stream);
    let send =
        |kind, content: &[u8]| frame::write(&mut *out.lock().unwrap_or_else(PoisonError::into_inner), kind, content);
    let spawned = prepare(command).and_then(|mut command| Ok(command.spawn()?));
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            send(
                Kind::Errors,
                format!("cannot start {command:?}: {error:#}\n").as_bytes(),
            )?;
            send(Kind::Exit, &127_i32.to_le_bytes())?;
            return Ok(stream.shutdown(Shutdown::Both)?);
        }
    };
    let (stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(move || feed(reader, stdin));
        let errors = scope.spawn(|| pass_on(stderr.as_mut(), &|content| send(Kind::Errors, content)));
        pass_on(stdout.as_mut(), &|content| send(Kind::Output, content));
        let _ = errors.join();
        let ended = child
            .wait()
            .context("lost the program")
            .and_then(|status| Ok(send(Kind::Exit, &code(status).to_le_bytes())?));
        // Ends the thread that waits for input, too.
        let _ = stream.shutdown(Shutdown::Both);
        ended
    })
}

/// Gives the program its input, until the end of it or of the connection.
fn feed(reader: &mut impl Read, mut stdin: Option<ChildStdin>) {
    while let Ok(Some((Kind::Input, content))) = frame::read(reader) {
        let written = stdin.as_mut().map(|pipe| pipe.write_all(&content));
        if content.is_empty() || !matches!(written, Some(Ok(()))) {
            stdin = None;
        }
    }
}

/// Passes on what a program writes, and its end. When nobody takes it any more, the program finds its pipe closed.
fn pass_on<R: Read>(from: Option<&mut R>, send: &dyn Fn(&[u8]) -> std::io::Result<()>) {
    let Some(from) = from else { return };
    let mut piece = vec![0; PIECE];
    loop {
        let count = from.read(&mut piece).unwrap_or_default();
        let sent = send(piece.get(..count).unwrap_or_default());
        if count == 0 || sent.is_err() {
            return;
        }
    }
}
