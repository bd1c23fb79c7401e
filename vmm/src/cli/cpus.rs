//! The value of `--cpus`.

use clap::ValueEnum;

use super::pairs::{PairsError, parse_pairs_after};
use crate::config::{CoreScheduling, CpusConfig};

/// Every key, in the order in which help and errors list them.
const KEYS: [&str; 3] = ["boot", "max", "core_scheduling"];
const ALLOWED: &str = "a whole number from 1 up to what KVM offers";

/// Why a text describes no vCPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpusArgError {
    /// Neither a number nor a list of pairs.
    #[error("allowed: {ALLOWED}")]
    Alone,
    /// Not a list of known pairs.
    #[error(transparent)]
    Pairs(#[from] PairsError),
    /// Not a number.
    #[error("{key} is '{found}', allowed: {ALLOWED}")]
    Number {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
    },
    /// Nobody who could share a core.
    #[error("core_scheduling is '{0}', allowed: vm, vcpu, off")]
    Cores(String),
}

/// Reads `N`, or `boot=N,max=N,core_scheduling=WHO`, of which `boot=` may be left out.
pub fn parse_cpus(text: &str) -> Result<CpusConfig, CpusArgError> {
    if !text.contains(['=', ',']) {
        return Ok(CpusConfig::fixed(text.parse().map_err(|_| CpusArgError::Alone)?));
    }
    let (mut boot, mut max, mut cores) = (1, None, CoreScheduling::default());
    for (key, found) in parse_pairs_after("boot", text, &KEYS)? {
        if key == "core_scheduling" {
            cores = CoreScheduling::from_str(&found, false).map_err(|_| CpusArgError::Cores(found))?;
            continue;
        }
        let number = found.parse().map_err(|_| CpusArgError::Number { key, found })?;
        match key {
            "boot" => boot = number,
            _ => max = Some(number),
        }
    }
    let mut cpus = CpusConfig::fixed(boot);
    cpus.max_vcpus = max.unwrap_or(boot);
    cpus.core_scheduling = cores;
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_alone_is_for_good() {
        assert_eq!(parse_cpus("4"), Ok(CpusConfig::fixed(4)));
        assert_eq!(parse_cpus("boot=4"), Ok(CpusConfig::fixed(4)));
    }

    #[test]
    fn more_may_come() {
        let cpus = parse_cpus("boot=2,max=16").unwrap();
        assert_eq!((cpus.boot_vcpus, cpus.max_vcpus), (2, 16));
        assert_eq!(parse_cpus("2,max=16").unwrap(), cpus);
        let cpus = parse_cpus("max=3").unwrap();
        assert_eq!((cpus.boot_vcpus, cpus.max_vcpus), (1, 3));
    }

    #[test]
    fn cores_are_shared_as_is_said() {
        let shared = |text| parse_cpus(text).unwrap().core_scheduling;
        assert_eq!(shared("2"), CoreScheduling::Vm);
        assert_eq!(shared("core_scheduling=vm"), CoreScheduling::Vm);
        assert_eq!(shared("boot=2,core_scheduling=vcpu"), CoreScheduling::Vcpu);
        assert_eq!(shared("boot=2,core_scheduling=off"), CoreScheduling::Off);
    }

    #[test]
    fn errors_name_the_key() {
        let message = |text| parse_cpus(text).unwrap_err().to_string();
        assert_eq!(message("many"), "allowed: a whole number from 1 up to what KVM offers");
        assert_eq!(
            message("boot=-1"),
            "boot is '-1', allowed: a whole number from 1 up to what KVM offers"
        );
        assert!(message("bot=1").starts_with("unknown key 'bot', allowed: boot, max, core_scheduling"));
        assert_eq!(
            message("core_scheduling=Core"),
            "core_scheduling is 'Core', allowed: vm, vcpu, off"
        );
    }
}
