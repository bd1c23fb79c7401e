//! Who may run on a core of the host while a vCPU does: `core_scheduling`.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::CpusConfig;

/// Which threads of the host may be on the other hardware threads of a core while a vCPU is on one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum CoreScheduling {
    /// Other vCPUs of its VM, and nobody else
    #[default]
    Vm,
    /// Nobody
    Vcpu,
    /// Everybody
    Off,
}

impl CoreScheduling {
    /// Has `cpus` follow what their node says, unless they say more than what is usual.
    pub fn apply(self, cpus: &mut CpusConfig) {
        if cpus.core_scheduling == Self::default() {
            cpus.core_scheduling = self;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_who_shares_cores_where_a_client_asks_for_what_is_usual() {
        for node in CoreScheduling::value_variants() {
            for own in CoreScheduling::value_variants() {
                let mut cpus = CpusConfig::fixed(1);
                cpus.core_scheduling = *own;
                node.apply(&mut cpus);
                let expected = if *own == CoreScheduling::Vm { node } else { own };
                assert_eq!(cpus.core_scheduling, *expected, "{node:?} {own:?}");
            }
        }
    }
}
