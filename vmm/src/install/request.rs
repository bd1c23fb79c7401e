//! What is asked for, and what an installation keeps of that: an upgrade is asked for without options.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use super::{Engine, InstallError, Options, Overhead, plain_class};

/// Where Kata puts itself.
const KATA: &str = "/opt/kata";
/// The handler's name, unless there is another one.
const CLASS: &str = "kata-husk";

/// What is to be installed. What is `None` is as it was installed below the same prefix before, or
/// as it is for the first time.
#[derive(Clone, Debug)]
pub struct Request {
    /// As [`Options::root`].
    pub root: PathBuf,
    /// As [`Options::prefix`].
    pub prefix: PathBuf,
    /// As [`Options::program`].
    pub program: PathBuf,
    /// As [`Options::features`].
    pub features: String,
    /// As [`Options::kata`]; for the first time `/opt/kata`.
    pub kata: Option<PathBuf>,
    /// As [`Options::engine`]; for the first time the only one that there is.
    pub engine: Option<Engine>,
    /// As [`Options::class`]; for the first time `kata-husk`.
    pub class: Option<String>,
    /// As [`Options::file_server`]; for the first time `false`.
    pub file_server: Option<bool>,
    /// As [`Options::overhead`]; for the first time `None`, Kata's figures.
    pub overhead: Option<Option<Overhead>>,
}

/// What an installation was told, and keeps until it is told something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Choices {
    pub kata: PathBuf,
    pub engine: Engine,
    pub file_server: bool,
    pub overhead: Option<Overhead>,
}

impl Request {
    /// That of which nothing is said but where.
    pub fn again(root: &Path, prefix: &Path, program: &Path, features: String) -> Self {
        Self {
            root: root.to_owned(),
            prefix: prefix.to_owned(),
            program: program.to_owned(),
            features,
            kata: None,
            engine: None,
            class: None,
            file_server: None,
            overhead: None,
        }
    }

    /// All of it, with what is installed in place of what is not said.
    ///
    /// # Errors
    ///
    /// What is installed cannot be read.
    pub fn settle(self) -> Result<Options, InstallError> {
        let before = Manifest::read(&self.root, &self.prefix)?;
        let class_is_given = self.class.is_some();
        let kept_class = before.as_ref().map(|before| before.class.clone());
        // A manifest of the first form does not say it; its files do.
        let server = self.prefix.join("libexec/husk/virtiofsd");
        let has_server = before
            .as_ref()
            .is_some_and(|before| before.options.is_none() && before.items.contains_key(&server));
        let kept = before.and_then(|before| before.options);
        let kept = kept.as_ref();
        let class = self.class.or(kept_class).unwrap_or_else(|| CLASS.into());
        Ok(Options {
            class: plain_class(&class)?.into(),
            class_is_given,
            kata: self
                .kata
                .or_else(|| kept.map(|kept| kept.kata.clone()))
                .unwrap_or_else(|| KATA.into()),
            engine: self.engine.or_else(|| kept.map(|kept| kept.engine)),
            file_server: self
                .file_server
                .or_else(|| kept.map(|kept| kept.file_server))
                .unwrap_or(has_server),
            overhead: self
                .overhead
                .unwrap_or_else(|| kept.and_then(|kept| kept.overhead.clone())),
            root: self.root,
            prefix: self.prefix,
            program: self.program,
            features: self.features,
        })
    }
}

impl Choices {
    /// What is told of what has changed since `before`.
    pub fn changes(&self, before: &Self) -> Vec<String> {
        let engine = |engine| match engine {
            Engine::Containerd => "containerd",
            Engine::Crio => "CRI-O",
        };
        let overhead = |choices: &Self| match &choices.overhead {
            Some(overhead) => format!("{} MiB ({})", overhead.memory_mib, overhead.method),
            None => "Kata's".into(),
        };
        let rows = [
            (
                "--kata",
                before.kata.display().to_string(),
                self.kata.display().to_string(),
            ),
            ("--engine", engine(before.engine).into(), engine(self.engine).into()),
            (
                "--file-server",
                before.file_server.to_string(),
                self.file_server.to_string(),
            ),
            ("--overhead", overhead(before), overhead(self)),
        ];
        let changed = rows.into_iter().filter(|(_, before, now)| before != now);
        changed
            .map(|(option, before, now)| format!("{option} is {now} from now on; it was {before}"))
            .collect()
    }
}
