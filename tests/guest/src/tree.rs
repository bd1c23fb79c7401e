//! Trees of files that one side plants and both sides survey: equal surveys mean equal trees.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::pattern::{self, Checksum};

/// Longest planted file. Most source files of a kernel are longer; their number is what costs.
const LONGEST: u64 = 512;
/// One in so many files is a symbolic link to the one before.
const SYMLINK: u64 = 50;
/// One in so many is a second name of the one before.
const HARD_LINK: u64 = 70;
/// One in so many may be executed.
const SCRIPT: u64 = 20;

/// What a tree holds.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// Files, folders and links below the root.
    pub entries: u64,
    /// Sizes of the files, added up.
    pub bytes: u64,
    /// Of every entry's path, kind, mode, number of names, size, and what it holds.
    pub checksum: u64,
}

/// How a tree is planted.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Of the contents.
    pub seed: u64,
    /// Files and links.
    pub files: u64,
    /// Files in a folder; folders are two deep.
    pub per_folder: u64,
    /// No file holds anything.
    pub empty: bool,
}

/// How closely a tree is looked at.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Depth {
    /// The names, and which of them are folders: as much as reading folders tells.
    Names,
    /// Modes, sizes and links too.
    #[default]
    Metadata,
    /// And what is in the files.
    Contents,
}

/// Plants files, symbolic and hard links below `root`.
///
/// # Errors
///
/// What the file system says.
pub fn plant(root: &Path, plan: &Plan) -> io::Result<()> {
    let per_folder = plan.per_folder.max(1);
    for first in (0..plan.files).step_by(usize::try_from(per_folder).unwrap_or(usize::MAX)) {
        let number = first / per_folder;
        let folder = root.join(format!("part{}", number / 10)).join(format!("unit{number}"));
        fs::create_dir_all(&folder)?;
        for number in first..plan.files.min(first + per_folder) {
            plant_one(&folder, number, plan)?;
        }
    }
    Ok(())
}

fn plant_one(folder: &Path, number: u64, plan: &Plan) -> io::Result<()> {
    let (path, before) = (
        folder.join(format!("file{number}.c")),
        format!("file{}.c", number.saturating_sub(1)),
    );
    let has_neighbour = !number.is_multiple_of(plan.per_folder.max(1));
    if has_neighbour && number.is_multiple_of(SYMLINK) {
        return symlink(before, path);
    }
    if has_neighbour && number.is_multiple_of(HARD_LINK) {
        return fs::hard_link(folder.join(before), path);
    }
    let mut file = File::create(&path)?;
    if !plan.empty {
        pattern::write(
            &mut file,
            plan.seed.wrapping_add(number),
            number.wrapping_mul(37) % LONGEST,
        )?;
        file.flush()?;
    }
    if number.is_multiple_of(SCRIPT) {
        file.set_permissions(Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Surveys everything below `root`. Times and owners do not count.
///
/// # Errors
///
/// What the file system says.
pub fn survey(root: &Path, depth: Depth) -> io::Result<Survey> {
    let mut surveyor = Surveyor {
        depth,
        ..Surveyor::default()
    };
    surveyor.folder(root, Path::new(""))?;
    surveyor.survey.checksum = surveyor.checksum.value();
    Ok(surveyor.survey)
}

#[derive(Default)]
struct Surveyor {
    depth: Depth,
    survey: Survey,
    checksum: Checksum,
}

impl Surveyor {
    /// Takes in the content of `root/below` in the order of its names.
    fn folder(&mut self, root: &Path, below: &Path) -> io::Result<()> {
        let entries = fs::read_dir(root.join(below))?.map(|entry| {
            let entry = entry?;
            Ok((entry.file_name(), entry.file_type()?.is_dir()))
        });
        let mut names: Vec<_> = entries.collect::<io::Result<_>>()?;
        names.sort_unstable();
        for (name, is_folder) in names {
            let path = below.join(name);
            self.survey.entries += 1;
            self.checksum.update(path.as_os_str().as_bytes());
            self.checksum.update(&[u8::from(is_folder)]);
            if self.depth >= Depth::Metadata {
                self.entry(root, &path)?;
            }
            if is_folder {
                self.folder(root, &path)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, root: &Path, path: &Path) -> io::Result<()> {
        let data = root.join(path).symlink_metadata()?;
        self.checksum.update(&data.mode().to_le_bytes());
        if data.is_symlink() {
            self.checksum
                .update(root.join(path).read_link()?.as_os_str().as_bytes());
        }
        // A folder's size and number of names are its file system's own affair.
        if data.is_file() {
            self.survey.bytes += data.len();
            self.checksum.update(&data.nlink().to_le_bytes());
            self.checksum.update(&data.len().to_le_bytes());
            if self.depth == Depth::Contents {
                let (_, sum) = pattern::read(&mut File::open(root.join(path))?)?;
                self.checksum.update(&sum.to_le_bytes());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan {
        seed: 1,
        files: 300,
        per_folder: 30,
        empty: false,
    };

    #[test]
    fn two_plantings_are_surveyed_alike_and_every_change_is_noticed() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        plant(one.path(), &PLAN).unwrap();
        plant(two.path(), &PLAN).unwrap();
        let first = survey(one.path(), Depth::Contents).unwrap();
        // 300 files, ten units, one part.
        assert_eq!(
            (first, first.entries),
            (survey(two.path(), Depth::Contents).unwrap(), 311)
        );
        let unit = two.path().join("part0/unit0");
        assert!(unit.join("file1.c").symlink_metadata().unwrap().is_file());
        let changes: [&dyn Fn(&Path); 5] = [
            &|unit| fs::write(unit.join("file3.c"), pattern::bytes(9, 111)).unwrap(),
            &|unit| fs::rename(unit.join("file4.c"), unit.join("file4.d")).unwrap(),
            &|unit| fs::set_permissions(unit.join("file5.c"), Permissions::from_mode(0o600)).unwrap(),
            &|unit| fs::hard_link(unit.join("file6.c"), unit.join("more.c")).unwrap(),
            &|unit| fs::remove_file(unit.join("file7.c")).unwrap(),
        ];
        let mut last = first;
        for change in changes {
            change(&unit);
            let now = survey(two.path(), Depth::Contents).unwrap();
            assert_ne!(now.checksum, last.checksum);
            last = now;
        }
    }

    #[test]
    fn links_and_modes_are_planted() {
        let root = tempfile::tempdir().unwrap();
        plant(root.path(), &PLAN).unwrap();
        let unit = |number: u64, file: u64| root.path().join(format!("part0/unit{number}/file{file}.c"));
        assert_eq!(unit(1, 50).read_link().unwrap(), Path::new("file49.c"));
        assert_eq!(unit(2, 70).metadata().unwrap().nlink(), 2);
        assert_eq!(unit(1, 40).metadata().unwrap().mode() & 0o777, 0o755);
        let empty = tempfile::tempdir().unwrap();
        plant(empty.path(), &Plan { empty: true, ..PLAN }).unwrap();
        assert_eq!(survey(empty.path(), Depth::Contents).unwrap().bytes, 0);
    }
}
