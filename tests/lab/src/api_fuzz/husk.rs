//! A husk that serves its API, and a client of it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use husk_tests::{end_of, kill};

use crate::command::command;
use crate::sys;

/// When an answer, a start or an end is taken never to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// The process, killed should it still be there in the end.
pub struct Husk {
    child: Child,
    socket: PathBuf,
}

impl Husk {
    /// Starts it in `folder`, where files that requests name without a folder come to lie.
    ///
    /// # Errors
    ///
    /// It does not listen in time.
    pub fn start(program: &Path, folder: &Path) -> Result<Self> {
        let socket = folder.join("api.sock");
        let mut husk = command(program);
        sys::die_with_parent(&mut husk);
        husk.arg("--api-socket").arg(&socket).current_dir(folder);
        // Standard input stays open and silent, as a shim's may.
        husk.stdin(Stdio::piped()).stdout(Stdio::null());
        let child = husk.spawn().context("cannot start husk")?;
        let husk = Self { child, socket };
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(&husk.socket).is_err() {
            ensure!(Instant::now() < deadline, "husk does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(husk)
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// One request; status and body of the answer.
    ///
    /// # Errors
    ///
    /// There is none in time, or it is no answer.
    pub fn ask(&self, method: &str, name: &str, body: &str) -> Result<(u16, String)> {
        let mut stream = UnixStream::connect(&self.socket).context("cannot connect to husk")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = body.len();
        let head = format!("{method} /api/v1/{name} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .with_context(|| format!("{name} is not answered"))?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.context("no status")?, body.into()))
    }

    /// What its open descriptors lead to, in order.
    ///
    /// # Errors
    ///
    /// It is gone.
    pub fn descriptors(&self) -> Result<Vec<String>> {
        let folder = format!("/proc/{}/fd", self.child.id());
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {folder}: husk has ended"))?;
        // One may be closed before it is looked at.
        let targets = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        let mut targets: Vec<String> = targets.map(|target| target.display().to_string()).collect();
        targets.sort();
        Ok(targets)
    }

    /// Has it forget its VM, and waits until no more descriptors are open than `before`: clients leave unannounced.
    ///
    /// # Errors
    ///
    /// More stay open.
    pub fn settle(&self, before: &[String]) -> Result<()> {
        self.ask("PUT", "vm.delete", "")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.descriptors()?;
            if now.len() <= before.len() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("descriptors were left open: {before:?} before the requests, {now:?} now");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as a shim does.
    ///
    /// # Errors
    ///
    /// It does not end, not in time, or not well.
    pub fn end(&mut self) -> Result<()> {
        let (status, body) = self.ask("PUT", "vmm.shutdown", "")?;
        ensure!(status == 204, "vmm.shutdown was answered {status}: {body}");
        let status = end_of(&mut self.child, PATIENCE)?.context("husk does not end")?;
        ensure!(status.success(), "husk ended with {status}");
        Ok(())
    }
}

impl Drop for Husk {
    fn drop(&mut self) {
        let _ = kill(&mut self.child);
    }
}
