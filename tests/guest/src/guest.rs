//! A test guest: does the steps of its command line in order and answers each.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use husk_guest::{Answer, MARK_END, Step, step};

use crate::{disk, facts, option, setup, sys};

/// The console that the answers go to and `echo` reads from.
struct Console(File);

/// Runs the guest.
///
/// # Errors
///
/// There is no console to answer on. Everything later is an answer.
pub fn run(cmdline: &str) -> Result<()> {
    let modules = setup::load_modules("/modules");
    let console = Console::open(option(cmdline, "husk.console").unwrap_or("ttyS0"))?;
    if let Err(error) = modules {
        console.fail("modules", &error)?;
    }
    match step::split(option(cmdline, "husk.do").unwrap_or("report,poweroff")) {
        Ok(steps) => steps.iter().try_for_each(|step| console.answer(step)),
        Err(error) => console.fail("husk.do", &error.into()),
    }
}

impl Console {
    fn open(name: &str) -> Result<Self> {
        let path = format!("/dev/{name}");
        setup::wait_for(&path)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {path}"))?;
        sys::set_line(&file, sys::Line::Quiet).with_context(|| format!("cannot configure {path}"))?;
        Ok(Self(file))
    }

    /// Begins with a line end and waits until all is sent: no kernel message on the same console can split an answer, and no
    /// power-off can cut it.
    fn say(&self, answer: &Answer) -> Result<()> {
        (&self.0)
            .write_all(format!("\n{}\n", answer.line()).as_bytes())
            .context("cannot write to the console")?;
        sys::drain(&self.0).context("cannot drain the console")
    }

    fn fail(&self, asked: &str, error: &anyhow::Error) -> Result<()> {
        let errno = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
        self.say(&Answer::Failed {
            asked: asked.into(),
            error: format!("{error:#}"),
            errno,
        })
    }

    fn answer(&self, step: &Step) -> Result<()> {
        match self.perform(step) {
            Ok(Some(answer)) => self.say(&answer),
            Ok(None) => Ok(()),
            Err(error) => self.fail(&step.to_string(), &error),
        }
    }

    /// Does one step. `None` if it has answered already.
    fn perform(&self, step: &Step) -> Result<Option<Answer>> {
        let answer = match step {
            Step::Report => Answer::Report(facts::report()?),
            Step::Topology => Answer::Topology {
                processors: facts::processors()?,
            },
            Step::Pci => Answer::Pci {
                functions: facts::pci()?,
            },
            Step::Interrupts => Answer::Interrupts {
                rows: facts::interrupts()?,
            },
            Step::Disk(name) => Answer::Disk(disk::describe(name)?),
            Step::Write(range, seed) => disk::write(range, *seed)?,
            Step::Read(range) => disk::read(range)?,
            Step::Discard(range) => disk::discard(range)?,
            Step::Zero(range) => disk::zero(range)?,
            Step::Parallel(name, jobs) => disk::parallel(name, *jobs)?,
            Step::Random(length) => random(*length)?,
            Step::Echo => return self.echo().map(|()| None),
            Step::Window(changes) => return self.window(*changes).map(|()| None),
            Step::Mark(byte) => return self.mark(*byte).map(|()| None),
            Step::Idle | Step::PowerOff | Step::Reset | Step::Panic => return Err(self.end(step)),
        };
        Ok(Some(answer))
    }

    fn echo(&self) -> Result<()> {
        self.say(&Answer::Listening)?;
        for line in BufReader::new(&self.0).lines() {
            let line = line.context("cannot read from the console")?;
            if line == "end" {
                break;
            }
            self.say(&Answer::Echo { line })?;
        }
        Ok(())
    }

    fn window(&self, changes: usize) -> Result<()> {
        sys::count_resizes();
        sys::control(&self.0).context("cannot make the console the controlling terminal")?;
        let mut seen = None;
        let mut told = 0;
        while told <= changes {
            let now = sys::window(&self.0).context("cannot read the console's size")?;
            if seen.is_none() || (seen != Some(now) && sys::resizes() > 0) {
                self.say(&Answer::Window {
                    rows: now.0,
                    columns: now.1,
                })?;
                seen = Some(now);
                told += 1;
            } else {
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// Writes a byte that whoever watches the console waits for.
    fn mark(&self, byte: u8) -> Result<()> {
        (&self.0).write_all(&[byte]).context("cannot write to the console")?;
        sys::drain(&self.0).context("cannot drain the console")
    }

    /// Ends the guest; an error if it is still there afterwards.
    fn end(&self, step: &Step) -> anyhow::Error {
        if let Err(error) = self.say(&Answer::Bye { to: step.to_string() }) {
            return error;
        }
        if *step == Step::Idle {
            loop {
                thread::sleep(Duration::from_secs(3600));
            }
        }
        if let Err(error) = sys::mark(MARK_END) {
            return error.into();
        }
        match step {
            Step::Reset => sys::leave(sys::Leave::Restart).into(),
            Step::Panic => match fs::write("/proc/sysrq-trigger", "c") {
                Ok(()) => anyhow!("the kernel survived its own crash"),
                Err(error) => error.into(),
            },
            _ => sys::leave(sys::Leave::PowerOff).into(),
        }
    }
}

fn random(length: usize) -> Result<Answer> {
    let source = fs::read_to_string("/sys/class/misc/hw_random/rng_current")?
        .trim()
        .to_string();
    let mut bytes = vec![0; length];
    File::open("/dev/hwrng")?
        .read_exact(&mut bytes)
        .context("cannot read /dev/hwrng")?;
    let mut values = bytes;
    values.sort_unstable();
    values.dedup();
    Ok(Answer::Random {
        source,
        bytes: length,
        distinct: values.len(),
    })
}
