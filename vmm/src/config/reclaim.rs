//! What a node wants to have back of the memory of its pods, though nobody asks for less: `--reclaim`.

use super::{BalloonConfig, VmConfig};

/// The policy for every VM of a process that has none of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reclaim {
    /// Memory comes back when somebody asks for less.
    #[default]
    Off,
    /// The guest reports what is free.
    Report,
    /// What an idle guest does not use goes into the balloon.
    Idle {
        /// Seconds for which a guest has had too much until that counts.
        seconds: u64,
        /// Bytes that it keeps free.
        keep: Option<u64>,
    },
}

impl Reclaim {
    /// Has `config` follow the policy, by a balloon that is made for it if there is none. One whose
    /// balloon says what to reclaim stays as it is, and so does one of huge pages, which balloons
    /// do not give back.
    pub fn apply(self, config: &mut VmConfig) {
        let says = |balloon: &BalloonConfig| balloon.free_page_reporting || balloon.reclaim_idle.is_some();
        if self == Self::Off || config.memory.hugepages || config.balloon.as_ref().is_some_and(says) {
            return;
        }
        let balloon = config.balloon.get_or_insert_default();
        match self {
            Self::Off => {}
            Self::Report => balloon.free_page_reporting = true,
            Self::Idle { seconds, keep } => {
                balloon.deflate_on_oom = true;
                balloon.reclaim_idle = Some(seconds);
                balloon.reclaim_keep = keep;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Reclaim = Reclaim::Idle {
        seconds: 60,
        keep: Some(1 << 20),
    };

    fn applied(policy: Reclaim, mut config: VmConfig) -> Option<BalloonConfig> {
        policy.apply(&mut config);
        config.balloon
    }

    #[test]
    fn a_vm_without_a_balloon_gets_one() {
        assert_eq!(applied(Reclaim::Off, VmConfig::default()), None);
        let reports = applied(Reclaim::Report, VmConfig::default()).unwrap();
        assert!(reports.free_page_reporting && !reports.deflate_on_oom && reports.size == 0);
        let idle = applied(IDLE, VmConfig::default()).unwrap();
        assert!(idle.deflate_on_oom && !idle.free_page_reporting);
        assert_eq!((idle.reclaim_idle, idle.reclaim_keep), (Some(60), Some(1 << 20)));
    }

    #[test]
    fn what_a_vm_says_itself_counts() {
        let own = |balloon: BalloonConfig| VmConfig {
            balloon: Some(balloon),
            ..VmConfig::default()
        };
        let sized = BalloonConfig {
            size: 4096,
            ..BalloonConfig::default()
        };
        assert_eq!(applied(IDLE, own(sized)).unwrap().reclaim_idle, Some(60));
        let reports = BalloonConfig {
            free_page_reporting: true,
            ..BalloonConfig::default()
        };
        assert_eq!(applied(IDLE, own(reports.clone())), Some(reports));
        let mut huge = VmConfig::default();
        huge.memory.hugepages = true;
        assert_eq!(applied(IDLE, huge), None);
    }
}
