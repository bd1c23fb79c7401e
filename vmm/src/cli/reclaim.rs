//! The value of `--reclaim`.

use super::pairs::{PairsError, parse_pairs};
use super::size::{BadSize, memory_size};
use crate::config::{BalloonConfig, Reclaim};

/// Why a text describes no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReclaimArgError {
    /// None of the words.
    #[error("'{0}' is none of: off, report, idle=SECONDS[,keep=SIZE]")]
    Word(String),
    /// Not a list of known pairs.
    #[error(transparent)]
    Pairs(#[from] PairsError),
    /// The value of a key that is a size does not parse.
    #[error(transparent)]
    Size(#[from] BadSize),
    /// No time.
    #[error("idle is '{0}', allowed: 1 to {max} seconds", max = BalloonConfig::RECLAIM_IDLE_MAX)]
    Idle(String),
    /// A size for nothing.
    #[error("keep is given, idle is not: say idle=SECONDS as well")]
    NoIdle,
}

/// Reads `off`, `report`, or `idle=SECONDS,keep=SIZE`.
pub fn parse_reclaim(text: &str) -> Result<Reclaim, ReclaimArgError> {
    match text {
        "off" => return Ok(Reclaim::Off),
        "report" => return Ok(Reclaim::Report),
        _ if !text.contains('=') => return Err(ReclaimArgError::Word(text.into())),
        _ => {}
    }
    let (mut idle, mut keep) = (None, None);
    for (key, found) in parse_pairs(text, &["idle", "keep"])? {
        match key {
            "idle" => {
                let seconds = found.parse().ok();
                let allowed = seconds.filter(|seconds| (1..=BalloonConfig::RECLAIM_IDLE_MAX).contains(seconds));
                idle = Some(allowed.ok_or(ReclaimArgError::Idle(found))?);
            }
            _ => keep = Some(memory_size(key, found)?),
        }
    }
    let seconds = idle.ok_or(ReclaimArgError::NoIdle)?;
    Ok(Reclaim::Idle { seconds, keep })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_has_its_words() {
        assert_eq!(parse_reclaim("off"), Ok(Reclaim::Off));
        assert_eq!(parse_reclaim("report"), Ok(Reclaim::Report));
        let idle = |keep| Ok(Reclaim::Idle { seconds: 60, keep });
        assert_eq!(parse_reclaim("idle=60"), idle(None));
        assert_eq!(parse_reclaim("keep=128M,idle=60"), idle(Some(128 << 20)));
    }

    #[test]
    fn errors_say_what_is_allowed() {
        let message = |text: &str| parse_reclaim(text).unwrap_err().to_string();
        assert_eq!(message("on"), "'on' is none of: off, report, idle=SECONDS[,keep=SIZE]");
        for idle in ["0", "86401", "-1", "1m", ""] {
            let text = format!("idle={idle}");
            let said = message(&text);
            assert!(
                said.starts_with(&format!("idle is '{idle}', allowed: 1 to 86400")),
                "{said}"
            );
        }
        assert_eq!(
            message("keep=1G"),
            "keep is given, idle is not: say idle=SECONDS as well"
        );
        assert!(message("idle=1,keep=much").starts_with("keep is 'much': "));
        assert!(message("rest=1").starts_with("unknown key 'rest', allowed: idle, keep"));
    }
}
