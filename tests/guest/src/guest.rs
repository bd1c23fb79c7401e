//! A test guest: does the steps of its command line in order and answers each.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use husk_guest::{Answer, Step, step};

use crate::{agent, option, setup, steps, sys};

/// The console that the answers go to and `echo` reads from: a terminal, or `null` in a guest without one.
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
        if file.is_terminal() {
            sys::set_line(&file, sys::Line::Quiet).with_context(|| format!("cannot configure {path}"))?;
        }
        Ok(Self(file))
    }

    /// Begins with a line end and waits until all is sent: no kernel message on the same console
    /// can split an answer, and no power-off can cut it.
    fn say(&self, answer: &Answer) -> Result<()> {
        (&self.0)
            .write_all(format!("\n{}\n", answer.line()).as_bytes())
            .context("cannot write to the console")?;
        self.drain()
    }

    /// Waits until all is sent.
    fn drain(&self) -> Result<()> {
        if self.0.is_terminal() {
            sys::drain(&self.0).context("cannot drain the console")?;
        }
        Ok(())
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
        match step {
            Step::Echo => self.echo().map(|()| None),
            Step::Shell => self.shell().map(|()| None),
            Step::Window(changes) => self.window(*changes).map(|()| None),
            Step::Mark(byte) => self.mark(*byte).map(|()| None),
            Step::Agent => agent::serve().map(|()| None),
            Step::Idle | Step::PowerOff | Step::Reset | Step::Panic => {
                self.say(&Answer::Bye { to: step.to_string() })?;
                Err(steps::end(step))
            }
            _ => steps::perform(step).map(Some),
        }
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

    fn shell(&self) -> Result<()> {
        self.say(&Answer::Listening)?;
        for line in BufReader::new(&self.0).lines() {
            let line = line.context("cannot read from the console")?;
            if line == "end" {
                break;
            }
            self.say(&steps::shell(&line)?)?;
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
        self.drain()
    }
}
