//! Which lines are logged, and how that changes while husk runs.

use log::{Level, LevelFilter, STATIC_MAX_LEVEL};

use super::TARGET;
use super::line::{self, Entry, LEVELS};
use super::logger::LOGGER;

/// Which lines are logged: those of this level, and graver ones.
pub fn current_level() -> &'static str {
    line::level_name(log::max_level() as usize)
}

/// From now on lines of `level` are logged, and graver ones. Any thread may call this.
///
/// # Errors
/// It is none of the names: `error`, `warn`, `info`, `debug`, `trace`.
pub fn set_level(level: &str) -> Result<(), UnknownLevel> {
    let found = LevelFilter::iter().skip(1).zip(LEVELS).find(|(_, name)| *name == level);
    let (filter, _) = found.ok_or_else(|| UnknownLevel { found: level.into() })?;
    log::set_max_level(filter);
    Ok(())
}

/// From now on one level more is logged, or one less, between errors alone and all that this
/// program was built to say. The log says so whatever the level is.
pub fn shift_level(more: bool) {
    log::set_max_level(next_level(log::max_level(), more));
    LOGGER.say(&Entry {
        level: Level::Info,
        target: TARGET,
        place: Some((file!(), line!())),
        message: format_args!("log level: {}", current_level()),
        remark: "",
    });
}

fn next_level(now: LevelFilter, more: bool) -> LevelFilter {
    let mut levels = LevelFilter::iter().skip(1).filter(|level| *level <= STATIC_MAX_LEVEL);
    let next = match more {
        true => levels.find(|level| *level > now),
        false => levels.take_while(|level| *level < now).last(),
    };
    next.unwrap_or(now)
}

/// A level that there is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("level: '{}' is none, allowed: {}", .found.escape_debug(), LEVELS.join(", "))]
pub struct UnknownLevel {
    found: String,
}

pub(super) fn level(verbosity: u8) -> LevelFilter {
    match verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_goes_one_level_up_or_down_and_not_beyond() {
        use LevelFilter::{Debug, Error, Info, Warn};
        for (now, more, less) in [(Error, Warn, Error), (Warn, Info, Error), (Info, Debug, Warn)] {
            assert_eq!((next_level(now, true), next_level(now, false)), (more, less), "{now}");
        }
        assert_eq!(next_level(STATIC_MAX_LEVEL, true), STATIC_MAX_LEVEL);
    }

    #[test]
    fn each_v_shows_more() {
        assert_eq!(
            [0, 1, 2, 9].map(level),
            [
                LevelFilter::Warn,
                LevelFilter::Info,
                LevelFilter::Debug,
                LevelFilter::Trace
            ]
        );
    }
}
