//! The file server of a pod's share, started as the shims start it.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::api::Shim;
use crate::lab::{husk, lab_file};
use crate::pod::PATIENCE;
use crate::{end_of, kill};

/// What the Rust shim waits for on the server's standard error.
const READY: &str = "Waiting for vhost-user socket connection";

/// A running virtiofsd, or husk in its place. It is killed when this is dropped.
#[derive(Debug)]
pub struct FileServer {
    child: Child,
    socket: PathBuf,
    said: Arc<Mutex<String>>,
}

impl FileServer {
    /// Shares `folder` at `socket` as the Rust shim does, and waits until the server says that it is ready.
    ///
    /// # Errors
    ///
    /// It does not start, or ends at once.
    pub fn start(folder: &Path, socket: &Path) -> Result<Self> {
        Self::start_as(Shim::Rust, folder, socket, &[])
    }

    /// As [`FileServer::start`], as `shim` does it, with more arguments.
    ///
    /// # Errors
    ///
    /// As [`FileServer::start`].
    pub fn start_as(shim: Shim, folder: &Path, socket: &Path, more: &[&str]) -> Result<Self> {
        let mut command = Command::new(lab_file("virtiofsd"));
        // Its usual sandbox is a root file system of its own, which a host that runs from its initramfs cannot have.
        command.args(["--sandbox", "chroot"]);
        Self::start_program(command, shim, folder, socket, more)
    }

    /// As [`FileServer::start_as`], with husk in virtiofsd's place, as a link of that name has it started.
    ///
    /// # Errors
    ///
    /// As [`FileServer::start`].
    pub fn start_husk(shim: Shim, folder: &Path, socket: &Path, more: &[&str]) -> Result<Self> {
        let mut command = husk();
        command.arg0("virtiofsd");
        Self::start_program(command, shim, folder, socket, more)
    }

    fn start_program(mut command: Command, shim: Shim, folder: &Path, socket: &Path, more: &[&str]) -> Result<Self> {
        // A socket of an earlier server: the shims have a new folder for each pod.
        let _ = fs::remove_file(socket);
        let mut listener = None;
        command.arg("--shared-dir").arg(folder);
        match shim {
            Shim::Rust => {
                command.arg("--socket-path").arg(socket);
                command.args([
                    "--cache",
                    "auto",
                    "--thread-pool-size=1",
                    "-o",
                    "announce_submounts",
                    "--xattr",
                ]);
            }
            Shim::Go => {
                // The shim's own listener is the server's descriptor 3: here its standard input.
                listener = Some(UnixListener::bind(socket).with_context(|| socket.display().to_string())?);
                command.args(["--fd=0", "--cache=auto", "--thread-pool-size=1", "--announce-submounts"]);
            }
        }
        command.args(more);
        let stdin = listener.map_or_else(Stdio::null, |listener| OwnedFd::from(listener).into());
        command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let said = Arc::default();
        if let Some(stderr) = child.stderr.take() {
            collect(OwnedFd::from(stderr).into(), Arc::clone(&said));
        }
        let mut server = Self {
            child,
            socket: socket.into(),
            said,
        };
        server.wait_until_ready()?;
        Ok(server)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        while !self.said().contains(READY) {
            if let Some(status) = self.child.try_wait()? {
                thread::sleep(Duration::from_millis(100));
                anyhow::bail!("the file server has ended ({status}): {}", self.said());
            }
            ensure!(
                start.elapsed() < PATIENCE,
                "the file server is not ready: {}",
                self.said()
            );
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it has written to its standard error.
    pub fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Kills it in the middle of whatever it does.
    ///
    /// # Errors
    ///
    /// There is no such process.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        kill(&mut self.child)?;
        Ok(())
    }

    /// Waits until it ends by itself, as it does when the VMM has gone.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn ended(mut self) -> Result<()> {
        let status = end_of(&mut self.child, PATIENCE)?;
        ensure!(status.is_some(), "the file server does not end: {}", self.said());
        Ok(())
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        let _ = kill(&mut self.child);
        let _ = fs::remove_file(&self.socket);
    }
}

/// Reads what a server says, to the end of it.
fn collect(mut source: File, said: Arc<Mutex<String>>) {
    thread::spawn(move || {
        let mut piece = [0; 1024];
        while let Ok(count @ 1..) = source.read(&mut piece) {
            let text = String::from_utf8_lossy(piece.get(..count).unwrap_or_default());
            said.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        }
    });
}
