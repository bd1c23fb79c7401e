//! Replays what is in `seeds/`: what the targets' own functions made, and inputs that once found something.
//!
//! `HUSK_BLESS=1 cargo test -p husk-fuzz` writes the former anew.

#![allow(clippy::unwrap_used, reason = "the seeds are in the checkout")]

use std::fs;
use std::path::PathBuf;

use husk_fuzz::{TARGETS, Target, find};

/// What the name of an input that found something begins with.
const FOUND: &str = "found-";

fn folder(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(target.name)
}

fn files(target: &Target) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder(target))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (
                entry.file_name().into_string().unwrap(),
                fs::read(entry.path()).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

#[test]
fn seed_files_are_what_the_targets_make() {
    for target in TARGETS {
        let mut made: Vec<_> = (target.seeds)()
            .into_iter()
            .map(|(name, seed)| (name.to_owned(), seed))
            .collect();
        made.sort();
        if std::env::var_os("HUSK_BLESS").is_some() {
            fs::create_dir_all(folder(target)).unwrap();
            for (name, seed) in &made {
                fs::write(folder(target).join(name), seed).unwrap();
            }
        }
        let mut there = files(target);
        there.retain(|(name, _)| !name.starts_with(FOUND));
        assert!(there == made, "{}: HUSK_BLESS=1 cargo test -p husk-fuzz", target.name);
    }
}

#[test]
fn every_folder_of_seeds_has_its_target() {
    for entry in fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("seeds")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(find(&name).is_some(), "no target is called {name}");
    }
}

#[test]
fn every_target_takes_its_seeds_and_all_that_begins_like_them() {
    for target in TARGETS {
        for (name, seed) in files(target) {
            println!("{} {name}", target.name);
            (target.run)(&seed);
            for cut in (0..seed.len()).step_by(seed.len().div_ceil(40).max(1)) {
                (target.run)(&seed[..cut]);
            }
        }
    }
}
