//! What a serial port or a console can get wrong in itself.

use super::super::error::ConfigError;
use super::super::path;
use super::super::{ConsoleConfig, ConsoleMode, MAX_KEEP, MIN_LIMIT_BYTES};
use crate::log::Tag;

impl ConsoleConfig {
    pub(super) fn validate(&self, name: &'static str) -> Result<(), ConfigError> {
        let refuse = |field: &str, found: String, allowed: String| {
            Err(ConfigError::Unsupported {
                field: format!("{name}.{field}"),
                found,
                allowed,
            })
        };
        if let Some(limit) = self.limit.filter(|limit| *limit < MIN_LIMIT_BYTES) {
            return refuse(
                "limit",
                limit.to_string(),
                format!("allowed: {MIN_LIMIT_BYTES} bytes or more"),
            );
        }
        if let Some(keep) = self.keep.filter(|keep| *keep > MAX_KEEP) {
            return refuse("keep", keep.to_string(), format!("allowed: 0 to {MAX_KEEP} files"));
        }
        if let Some(found) = &self.identifier
            && let Err(allowed) = found.parse::<Tag>()
        {
            return refuse("identifier", format!("'{}'", found.escape_debug()), allowed.into());
        }
        if let Some(journal) = &self.journal {
            path::socket(&format!("{name}.journal"), journal)?;
        }
        let (file, journald) = (self.mode == ConsoleMode::File, self.mode == ConsoleMode::Journald);
        let idle = [
            (self.limit.is_some() && !file, "limit", "mode File"),
            (self.keep.is_some() && !file, "keep", "mode File"),
            (self.keep.is_some() && self.limit.is_none(), "keep", "limit"),
            (self.identifier.is_some() && !journald, "identifier", "mode Journald"),
            (self.journal.is_some() && !journald, "journal", "mode Journald"),
        ];
        if let Some((_, field, with)) = idle.into_iter().find(|(is_idle, ..)| *is_idle) {
            return Err(ConfigError::Idle {
                port: name,
                field,
                with,
            });
        }
        match (self.mode, &self.file) {
            (ConsoleMode::File, None) => Err(ConfigError::NoFile(name)),
            (ConsoleMode::File, Some(file)) => Ok(path::file(name, file)?),
            (ConsoleMode::Socket, _) => match &self.socket {
                Some(socket) => Ok(path::socket(&format!("{name}.socket"), socket)?),
                None => Err(ConfigError::NoConsoleSocket(name)),
            },
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "ports_test.rs"]
mod tests;
