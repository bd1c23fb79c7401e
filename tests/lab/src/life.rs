//! The life of one guest, told as it happens: the part of `cargo lab demo` that runs where guests run.

use std::cell::Cell;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use husk_guest::answer::Report;
use husk_guest::{Answer, Step, step};

/// How long the guest may be silent.
const PATIENCE: Duration = Duration::from_secs(120);

/// What to boot.
#[derive(clap::Args)]
pub struct LifeArgs {
    /// The husk program.
    #[arg(long)]
    husk: PathBuf,
    /// The guest's kernel.
    #[arg(long)]
    kernel: PathBuf,
    /// The guest's initramfs, with the lab's init.
    #[arg(long)]
    initramfs: PathBuf,
    /// Where to leave the boot trace.
    #[arg(long)]
    trace: PathBuf,
}

const CPUS: u32 = 2;
const MEMORY_MIB: u64 = 512;

/// Boots a guest, shows its life, and checks that it really lived.
///
/// # Errors
///
/// It did not come up, was not what was asked for, or did not power off.
pub fn run(arguments: &LifeArgs) -> Result<()> {
    let steps = step::join(&[Step::Report, Step::Echo, Step::PowerOff]);
    let mut husk = Command::new(&arguments.husk);
    husk.arg("run")
        .arg("--kernel")
        .arg(&arguments.kernel)
        .arg("--initramfs")
        .arg(&arguments.initramfs);
    husk.args([
        "--cpus",
        &CPUS.to_string(),
        "--memory",
        &format!("{MEMORY_MIB}M"),
        "--serial",
        "stdio",
        "-v",
    ]);
    husk.arg("--cmdline")
        .arg(format!("console=ttyS0 loglevel=7 husk.do={steps}"));
    husk.arg("--boot-trace").arg(&arguments.trace);
    let mut life = Life::begin(husk)?;
    let result = life.tell();
    if result.is_err() {
        let _ = life.husk.kill();
        let _ = life.husk.wait();
        print!("{}", life.bill());
    }
    result
}

struct Life {
    husk: Child,
    start: Instant,
    /// When something was last said.
    said: Cell<Instant>,
    serial: Receiver<String>,
    errors: Option<thread::JoinHandle<String>>,
}

impl Life {
    fn begin(mut husk: Command) -> Result<Self> {
        let start = Instant::now();
        let mut husk = husk
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start husk")?;
        let (lines, serial) = mpsc::channel();
        let output = husk.stdout.take().context("no pipe from husk")?;
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let _ = lines.send(String::from_utf8_lossy(&line).trim_end().to_string());
            }
        });
        let mut errors = husk.stderr.take().context("no pipe from husk")?;
        let errors = thread::spawn(move || {
            let mut text = Vec::new();
            let _ = errors.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let life = Self {
            husk,
            start,
            said: Cell::new(start),
            serial,
            errors: Some(errors),
        };
        life.say("husk starts");
        Ok(life)
    }

    fn say(&self, what: &str) {
        self.said.set(Instant::now());
        println!("{:>8.3} s  {what}", self.start.elapsed().as_secs_f64());
    }

    fn tell(&mut self) -> Result<()> {
        let first = self.next()?;
        let short: String = words(&first).chars().take(60).collect();
        self.say(&format!("first words: {short}"));
        let report = self.report(first)?;
        self.say(&format!("init runs: Linux {} {}", report.kernel, report.build));
        let online = report.online.as_str();
        self.say(&format!(
            "CPUs online: {online}; memory: {} MiB; clock: {}",
            report.memory_kib / 1024,
            report.clock
        ));
        ensure!(
            online == format!("0-{}", CPUS - 1),
            "asked for {CPUS} CPUs, the guest has {online} online"
        );
        let plausible = MEMORY_MIB * 1024 * 3 / 4..=MEMORY_MIB * 1024;
        ensure!(
            plausible.contains(&report.memory_kib),
            "asked for {MEMORY_MIB} MiB, the guest has {} KiB",
            report.memory_kib
        );
        while self.answer()? != Answer::Listening {}
        let private = private_kib(self.husk.id());
        self.type_line("hello")?;
        ensure!(
            self.answer()? == Answer::Echo { line: "hello".into() },
            "the guest did not repeat what was typed"
        );
        self.say("typed hello on the serial console, and the guest repeated it");
        self.type_line("end")?;
        ensure!(
            matches!(self.answer()?, Answer::Bye { .. }),
            "the guest did not say good-bye"
        );
        self.say("the guest powers off");
        let status = self.wait()?;
        self.say(&format!("husk has ended: {status}"));
        ensure!(status.success(), "husk did not end with a clean power-off");
        println!("\nthe VMM's own bill:\n{}", self.bill().trim_end());
        match private {
            Ok(kib) => println!("private memory beside guest RAM: {kib} KiB"),
            Err(error) => bail!("cannot read husk's memory use: {error:#}"),
        }
        Ok(())
    }

    fn next(&self) -> Result<String> {
        match self.serial.recv_timeout(PATIENCE) {
            Ok(line) if line.trim().is_empty() => self.next(),
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("the guest was silent for {} s", PATIENCE.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("husk ended before the guest was done"),
        }
    }

    /// Reads on to the report, passing on a few milestones of the kernel's.
    fn report(&self, first: String) -> Result<Report> {
        let milestones = [
            "Hypervisor detected",
            "smp: Brought up",
            "ACPI: Interpreter enabled",
            "Run /init",
        ];
        let mut line = first;
        loop {
            match Answer::parse(&line) {
                Some(Ok(Answer::Report(report))) => return Ok(report),
                Some(answer) => bail!("the guest answered {answer:?}"),
                None if milestones.iter().any(|milestone| line.contains(milestone)) => self.say(words(&line)),
                // Nobody should have to wonder whether it hangs.
                None if self.said.get().elapsed() > Duration::from_secs(1) => {
                    self.say(&format!("kernel: {}", words(&line)))
                }
                None => {}
            }
            line = self.next()?;
        }
    }

    fn answer(&self) -> Result<Answer> {
        loop {
            if let Some(answer) = Answer::parse(&self.next()?) {
                return answer.context("a torn answer");
            }
        }
    }

    fn type_line(&mut self, line: &str) -> Result<()> {
        let input = self.husk.stdin.as_mut().context("no pipe to husk")?;
        writeln!(input, "{line}")
            .and_then(|()| input.flush())
            .context("husk does not read its input")
    }

    fn wait(&mut self) -> Result<std::process::ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.husk.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        bail!(
            "husk did not end within {} s of the guest's power-off",
            PATIENCE.as_secs()
        )
    }

    /// What husk wrote to standard error: with `-v`, the table of its boot trace.
    fn bill(&mut self) -> String {
        self.errors
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default()
    }
}

/// A kernel message without its time stamp.
fn words(line: &str) -> &str {
    line.split_once("] ").map_or(line, |(_, words)| words)
}

/// Private memory of a process in KiB, guest RAM excluded.
fn private_kib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    ensure!(
        text.lines().any(is_guest_ram),
        "no mapping is the guest's {MEMORY_MIB} MiB"
    );
    Ok(private_sum(&text))
}

/// Whether a line of smaps begins the mapping of guest RAM: by its name, or, as kernels without `CONFIG_ANON_VMA_NAME` show
/// none, by its size.
fn is_guest_ram(line: &str) -> bool {
    let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
    let Some((start, end)) = range else { return false };
    let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16)) else {
        return false;
    };
    line.contains("guest-ram") || end.saturating_sub(start) >= MEMORY_MIB << 20
}

fn private_sum(smaps: &str) -> u64 {
    let mut guest = false;
    let mut sum = 0;
    for line in smaps.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "Private_Clean:" | "Private_Dirty:" if !guest => {
                sum += value.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
            }
            key if !key.ends_with(':') => guest = is_guest_ram(line),
            _ => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_not_on_the_bill_with_or_without_a_name() {
        let ram = [
            "7f00-7f10 rw-p 00000000 00:00 0          [anon:guest-ram]",
            "7f0000000000-7f0020000000 rw-p 00000000 00:00 0 ",
        ];
        for ram in ram {
            let smaps = format!(
                "{ram}\nPrivate_Clean: 0 kB\nPrivate_Dirty: 500000 kB\n\
                 7f20-7f30 rw-p 00000000 00:00 0   [heap]\nPrivate_Clean: 8 kB\nPrivate_Dirty: 100 kB\nVmFlags: rd\n"
            );
            assert!(is_guest_ram(smaps.lines().next().unwrap()));
            assert_eq!(private_sum(&smaps), 108);
        }
    }

    #[test]
    fn kernel_messages_lose_their_time_stamp() {
        assert_eq!(
            words("[    0.123456] Hypervisor detected: KVM"),
            "Hypervisor detected: KVM"
        );
        assert_eq!(words("plain"), "plain");
    }
}
