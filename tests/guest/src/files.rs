//! The suites for file systems, as a guest's shell starts them: `/init files WORD…`.
//!
//! | words                                | what it does, and prints                                                     |
//! |--------------------------------------|-------------------------------------------------------------------------------|
//! | `rules DIR EVERY NAME…`              | every EVERYth case of the [rules], and those whose names begin with a NAME; a [`Line`](rules::Line) of JSON for each |
//! | `strain FILE SEED STEPS PART PARTS`  | [work](file_stress) on a part of a file; a [`Part`](file_stress::Part) as JSON |
//! | `hold FILE BYTES SIGN`               | maps a file, makes `SIGN`, waits until that is gone, and reads the last byte   |
//! | `lock FILE SIGN`                     | waits for a lock of the file (flock(2)), makes `SIGN`, and has the lock until that is gone |
//! | `crowd DIR MOST`                     | makes up to MOST files and keeps them open, until one is refused, and writes to all; how many, and the error number |
//! | `stress DIR SEED STEPS NUMBER`       | [work](tree_stress) in a tree; [`Done`](tree_stress::Done) as JSON |

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use husk_guest::file_stress::Worker;
use husk_guest::kernel::Mapping;
use husk_guest::rules::Choice;
use husk_guest::{file_stress, rules, tree_stress};

/// Carries out `words`; what there is to print.
///
/// # Errors
///
/// They make no sense, or the file system does not do as it should.
pub fn perform(words: &[String]) -> Result<String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(match words[..] {
        ["rules", root, every, ref also @ ..] => {
            let choice = Choice {
                every: every.parse()?,
                also: also.iter().map(|&name| name.into()).collect(),
            };
            let lines = rules::run(root.as_ref(), &choice)?;
            let lines: Result<Vec<_>, _> = lines.iter().map(serde_json::to_string).collect();
            lines?.join("\n")
        }
        ["strain", path, seed, steps, part, parts] => {
            let worker = Worker {
                seed: seed.parse()?,
                steps: steps.parse()?,
                part: part.parse()?,
                parts: parts.parse()?,
            };
            serde_json::to_string(&file_stress::work(path.as_ref(), worker)?)?
        }
        ["stress", root, seed, steps, number] => {
            let done = tree_stress::work(root.as_ref(), seed.parse()?, steps.parse()?, number.parse()?)?;
            serde_json::to_string(&done)?
        }
        ["hold", path, bytes, sign] => hold(path, bytes.parse()?, sign.as_ref())?.to_string(),
        ["lock", path, sign] => lock(path, sign.as_ref())?,
        ["crowd", root, most] => crowd(root.as_ref(), most.parse()?)?,
        _ => bail!("cannot do {words:?}"),
    })
}

fn hold(path: &str, bytes: usize, sign: &Path) -> Result<u8> {
    let file = File::options().read(true).write(true).open(path)?;
    let mapping = Mapping::new(&file, bytes, true)?;
    let mut byte = [0];
    mapping.read(0, &mut byte);
    wait_at(sign)?;
    mapping.read(bytes.saturating_sub(1), &mut byte);
    Ok(byte[0])
}

fn lock(path: &str, sign: &Path) -> Result<String> {
    let file = File::options().read(true).write(true).open(path)?;
    file.lock()?;
    wait_at(sign)?;
    Ok(String::new())
}

/// What is open goes on being served when nothing more can be opened.
fn crowd(root: &Path, most: usize) -> Result<String> {
    let mut files = Vec::new();
    let refused = loop {
        let name = files.len().to_string();
        match File::create_new(root.join(&name)) {
            Ok(_) if files.len() == most => bail!("{most} files are open, and one more"),
            Ok(file) => files.push((file, name)),
            Err(error) => break error.raw_os_error().unwrap_or_default(),
        }
    };
    for (file, name) in &mut files {
        file.write_all(name.as_bytes())?;
    }
    Ok(format!("{} {refused}", files.len()))
}

/// Makes a file, and waits until it is gone.
fn wait_at(sign: &Path) -> Result<()> {
    fs::write(sign, "")?;
    while sign.exists() {
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
