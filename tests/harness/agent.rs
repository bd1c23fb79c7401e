//! The pod's agent, reached as the shims reach Kata's: through the VMM's hybrid vsock socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use husk_guest::frame::{self, Kind};
use husk_guest::resources::Resources;
use husk_guest::{Answer, Call, Reply, Step};

use crate::api::Shim;
use crate::body::SHARE;
use crate::witness::Witness;

/// How long the agent may think. Nothing that it is asked takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(240);

/// The longest answer to a handshake.
const MAX_HANDSHAKE_BYTES: usize = 32;

/// Connects to `port` of the guest. `None` if the connection was closed: nobody listens there, or not yet.
///
/// # Errors
///
/// There is no such socket, or what comes back is neither `OK <port>` nor the end.
pub fn dial(socket: &Path, port: u32, shim: Shim) -> Result<Option<UnixStream>> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("no vsock at {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let verb = match shim {
        Shim::Rust => "connect",
        Shim::Go => "CONNECT",
    };
    if let Err(error) = stream.write_all(format!("{verb} {port}\n").as_bytes()) {
        ensure!(error.kind() == io::ErrorKind::BrokenPipe, "cannot dial {port}: {error}");
        return Ok(None);
    }
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) if line.is_empty() => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Ok(0) => bail!("a handshake that ends in {:?}", String::from_utf8_lossy(&line)),
            Ok(_) => line.extend(byte),
            Err(error) => return Err(error).context("no answer to a handshake"),
        }
        ensure!(line.len() < MAX_HANDSHAKE_BYTES, "an endless handshake");
    }
    let text = String::from_utf8_lossy(&line).into_owned();
    let granted = text.strip_prefix("OK ").and_then(|rest| rest.strip_suffix('\n'));
    ensure!(
        granted.is_some_and(|port| port.parse::<u32>().is_ok()),
        "strange handshake {text:?}"
    );
    Ok(Some(stream))
}

/// One connection to the agent.
#[derive(Debug)]
pub struct Agent {
    stream: BufReader<UnixStream>,
    witness: Option<Witness>,
}

/// What a program left on its streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its exit code, or 128 and the signal.
    pub code: i32,
    /// Its standard output.
    pub output: Vec<u8>,
    /// Its standard error.
    pub errors: Vec<u8>,
}

impl Agent {
    /// Talks on a connection that [`dial`] made.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream: BufReader::new(stream),
            witness: None,
        }
    }

    /// Has `witness` say what the VM does when the agent has thought for too long.
    #[must_use]
    pub fn watched_by(self, witness: Witness) -> Self {
        Self {
            witness: Some(witness),
            ..self
        }
    }

    /// Asks, and waits for the reply.
    ///
    /// # Errors
    ///
    /// The agent is gone, or says something strange. That it could not do what was asked is a [`Reply::Failed`].
    pub fn ask(&mut self, call: &Call) -> Result<Reply> {
        self.send(call)?;
        self.reply().with_context(|| format!("{call:?}"))
    }

    /// Asks for what cannot fail.
    ///
    /// # Errors
    ///
    /// It failed.
    pub fn must(&mut self, call: &Call) -> Result<Reply> {
        match self.ask(call)? {
            Reply::Failed { error, .. } => bail!("{call:?}: {error}"),
            reply => Ok(reply),
        }
    }

    /// Asks for what cannot fail, and how long the guest took for it by its own clock. That need
    /// not agree with this side's to the last percent.
    ///
    /// # Errors
    ///
    /// It failed, or took no time at all.
    pub fn time(&mut self, call: Call) -> Result<(Duration, Reply)> {
        let reply = self.must(&Call::Time { of: Box::new(call) })?;
        let Reply::Timed { nanoseconds, result } = reply else {
            bail!("no time: {reply:?}")
        };
        let took = Duration::from_nanos(nanoseconds);
        ensure!(!took.is_zero(), "the guest's clock stands still");
        Ok((took, *result))
    }

    /// Mounts the pod's share on `target`; how long that took in the guest.
    ///
    /// # Errors
    ///
    /// There is none, or nobody serves it.
    pub fn mount_share(&mut self, target: &str) -> Result<Duration> {
        let call = Call::Mount {
            source: SHARE.into(),
            target: target.into(),
            kind: "virtiofs".into(),
        };
        Ok(self.time(call)?.0)
    }

    /// Processors and memory as the guest's kernel lists them now.
    ///
    /// # Errors
    ///
    /// The kernel does not say.
    pub fn resources(&mut self) -> Result<Resources> {
        self.resources_after(&Step::Resources)
    }

    /// Has the guest bring processors online until there are `cpus`, and all its memory, as Kata's
    /// agent does when a container is to start; what there is then.
    ///
    /// # Errors
    ///
    /// They do not come.
    pub fn bring_online(&mut self, cpus: usize) -> Result<Resources> {
        self.resources_after(&Step::Online(cpus))
    }

    fn resources_after(&mut self, step: &Step) -> Result<Resources> {
        match self.must(&Call::step(step))? {
            Reply::Answer {
                answer: Answer::Resources(resources),
            } => Ok(resources),
            other => bail!("{step}: {other:?}"),
        }
    }

    /// Has the guest load a driver that its init has left out.
    ///
    /// # Errors
    ///
    /// There is none, or its kernel refuses it.
    pub fn load_module(&mut self, name: &str) -> Result<()> {
        self.must(&Call::step(&Step::Module(name.into()))).map(drop)
    }

    /// Runs a program that must succeed; what it wrote.
    ///
    /// # Errors
    ///
    /// It did not start, or did not exit with 0.
    pub fn run(&mut self, command: &[&str]) -> Result<String> {
        match self.must(&Call::run(command))? {
            Reply::Ran { code: 0, stdout, .. } => Ok(stdout),
            other => bail!("{command:?}: {other:?}"),
        }
    }

    /// Sends a call whose reply is a stream, and gives that out.
    ///
    /// # Errors
    ///
    /// The agent is gone.
    pub fn stream(mut self, call: &Call) -> Result<UnixStream> {
        self.send(call)?;
        ensure!(self.stream.buffer().is_empty(), "the agent spoke before it was asked");
        Ok(self.stream.into_inner())
    }

    /// Runs a program with `input` on its standard input, its streams passing while it runs.
    ///
    /// # Errors
    ///
    /// The agent is gone, or does not keep to the frames.
    pub fn exec(self, command: &[&str], input: &[u8]) -> Result<ExecOutput> {
        let stream = self.stream(&Call::Exec {
            command: command.iter().map(ToString::to_string).collect(),
        })?;
        // Beside the reading: a program may write before it has read everything.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let pieces = input.chunks(frame::MAX_BYTES).chain([[].as_slice()]);
                pieces
                    .map(|piece| frame::write(&mut &stream, Kind::Input, piece))
                    .find(Result::is_err)
            });
            collect(&stream)
        })
    }

    /// The reply to what was sent before.
    ///
    /// # Errors
    ///
    /// As [`Agent::ask`].
    pub fn reply(&mut self) -> Result<Reply> {
        let mut line = String::new();
        self.stream.read_line(&mut line).map_err(|error| self.silent(error))?;
        ensure!(!line.is_empty(), "the agent hung up");
        serde_json::from_str(&line).with_context(|| format!("strange reply {line:?}"))
    }

    /// Why there is no reply: after a wait for it, with what the VM does.
    fn silent(&self, error: io::Error) -> anyhow::Error {
        let doing = match (error.kind(), &self.witness) {
            (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, Some(witness)) => format!(": {}", witness.doing()),
            _ => String::new(),
        };
        anyhow::Error::from(error).context(format!("the agent does not reply{doing}"))
    }

    /// Sends the end of a stream.
    ///
    /// # Errors
    ///
    /// The agent is gone.
    pub fn close_write(&self) -> io::Result<()> {
        self.stream.get_ref().shutdown(Shutdown::Write)
    }

    /// Sends a call without waiting for anything.
    ///
    /// # Errors
    ///
    /// The agent is gone.
    pub fn send(&mut self, call: &Call) -> Result<()> {
        let line = serde_json::to_string(call)? + "\n";
        self.stream
            .get_mut()
            .write_all(line.as_bytes())
            .context("the agent takes no call")
    }
}

/// Reads frames up to the exit code.
fn collect(mut stream: &UnixStream) -> Result<ExecOutput> {
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    loop {
        match frame::read(&mut stream)?.context("a program without an end")? {
            (Kind::Output, content) => output.extend(content),
            (Kind::Errors, content) => errors.extend(content),
            (Kind::Exit, code) => {
                let code = code.try_into().ok().context("a strange exit code")?;
                return Ok(ExecOutput {
                    code: i32::from_le_bytes(code),
                    output,
                    errors,
                });
            }
            (Kind::Input, _) => bail!("input comes back"),
        }
    }
}
