//! Resizes of a running pod as the shims ask for them, each followed until both sides say the same.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use husk_guest::resources::Resources;
use serde_json::Value;

use crate::agent::Agent;
use crate::info::VmInfo;
use crate::pod::{PATIENCE, Pod};

/// How often both sides are looked at: as often as Kata's agent looks.
const PACE: Duration = Duration::from_millis(50);

/// What a guest may keep of the memory that it is to let go: blocks that it uses for what cannot be moved.
pub const KEPT_BYTES: u64 = 128 << 20;

/// A pod's size at its boot, which later ones are compared with.
#[derive(Clone, Debug)]
pub struct Resizing {
    guest: Resources,
    host_bytes: u64,
}

/// What a pod is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Processors, all of them online.
    Vcpus(u32),
    /// Bytes of memory in all.
    Memory(u64),
}

/// How a resize went.
#[derive(Clone, Debug)]
pub struct Resized {
    /// How long the answer to `vm.resize` took.
    pub answered: Duration,
    /// How long it took from the request until both sides had the size.
    pub agreed: Duration,
    /// What the guest has.
    pub guest: Resources,
}

impl Resizing {
    /// Notes what the pod has.
    ///
    /// # Errors
    ///
    /// Either side does not say.
    pub fn begin(pod: &mut Pod, agent: &mut Agent) -> Result<Self> {
        Ok(Self::of(agent.resources()?, &pod.info()?))
    }

    /// Of a VM that guest and host say this of.
    pub fn of(guest: Resources, host: &VmInfo) -> Self {
        Self {
            guest,
            host_bytes: host.memory_actual_size,
        }
    }

    /// The memory that the pod had.
    pub fn boot_bytes(&self) -> u64 {
        self.host_bytes
    }

    /// Bytes of memory that the guest has more than at its boot.
    pub fn gained(&self, guest: &Resources) -> u64 {
        guest.memory_kib.saturating_sub(self.guest.memory_kib) * 1024
    }

    /// Sends `vm.resize` and waits until guest and host have what was asked for, bringing online
    /// what comes as Kata's agent does.
    ///
    /// # Errors
    ///
    /// It is refused, or the sides do not come to agree.
    pub fn resize(&self, pod: &mut Pod, agent: &mut Agent, size: Size) -> Result<Resized> {
        let start = Instant::now();
        let body = body(pod, size);
        pod.put("vm.resize", Some(&body))?.done()?;
        let answered = start.elapsed();
        loop {
            let cpus = match size {
                Size::Vcpus(vcpus) => usize::try_from(vcpus)?,
                Size::Memory(_) => 0,
            };
            // Kata's agent gives up after 5 seconds, which an emulated host may take; what there is
            // then says whether it was too soon.
            let brought = agent.bring_online(cpus);
            let guest = brought.or_else(|_| agent.resources())?;
            let agreed = start.elapsed();
            let Some(why) = self.difference(pod, &guest, size)? else {
                return Ok(Resized {
                    answered,
                    agreed,
                    guest,
                });
            };
            ensure!(agreed < PATIENCE, "{size:?} does not come about: {why}");
            thread::sleep(PACE);
        }
    }

    /// Waits until both sides have `vcpus` vCPUs and the same memory, whatever that is: a guest
    /// that is to let go of memory may be at it.
    ///
    /// # Errors
    ///
    /// They do not come to agree.
    pub fn check(&self, pod: &mut Pod, agent: &mut Agent, vcpus: u32) -> Result<()> {
        self.check_size(|| Ok((pod.info()?, agent.resources()?)), vcpus, None)
    }

    /// As [`Resizing::check`], of `bytes` of memory if they are given, by what `look` finds on the
    /// host and in the guest.
    ///
    /// # Errors
    ///
    /// They do not come to agree, or `look` fails.
    pub fn check_size(
        &self,
        mut look: impl FnMut() -> Result<(VmInfo, Resources)>,
        vcpus: u32,
        bytes: Option<u64>,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            let (info, guest) = look()?;
            let host = info.memory_actual_size;
            let differ = vcpus_differ(vcpus, info.config.cpus.boot_vcpus, &guest);
            let Some(why) = differ.or_else(|| self.memory_differs(bytes.unwrap_or(host), host, &guest)) else {
                return Ok(());
            };
            ensure!(start.elapsed() < PATIENCE, "{why}");
            thread::sleep(PACE);
        }
    }

    /// How guest or host differ from `size`; `None` if they do not.
    fn difference(&self, pod: &mut Pod, guest: &Resources, size: Size) -> Result<Option<String>> {
        let info = pod.info()?;
        Ok(match size {
            Size::Vcpus(wanted) => vcpus_differ(wanted, info.config.cpus.boot_vcpus, guest),
            Size::Memory(wanted) => self.memory_differs(wanted, info.memory_actual_size, guest),
        })
    }

    fn memory_differs(&self, wanted: u64, host: u64, guest: &Resources) -> Option<String> {
        let wanted = wanted.max(self.host_bytes);
        let gained = self.gained(guest);
        let agree = host.checked_sub(self.host_bytes) == Some(gained) && guest.blocks_in("offline") == 0;
        let is_enough = host >= wanted && host - wanted <= KEPT_BYTES;
        let why = || format!("the host says {host} bytes, the guest has {gained} more than at its boot");
        (!agree || !is_enough).then(why)
    }
}

fn vcpus_differ(wanted: u32, host: u32, guest: &Resources) -> Option<String> {
    let all = usize::try_from(wanted).ok();
    let agree = host == wanted && Some(guest.online_cpus()) == all && Some(guest.present_cpus()) == all;
    let Resources { present, online, .. } = guest;
    (!agree).then(|| format!("the host says {host}, in the guest {present} are present and {online} online"))
}

fn body(pod: &Pod, size: Size) -> Value {
    match size {
        Size::Vcpus(vcpus) => pod.shape().resize_vcpus(vcpus),
        Size::Memory(bytes) => pod.shape().resize_memory(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn guest(present: &str, online: &str, mib: u64) -> Resources {
        Resources {
            present: present.into(),
            online: online.into(),
            memory_kib: (mib * 1024).saturating_sub(30_000),
            ..Resources::default()
        }
    }

    #[test]
    fn vcpus_agree_when_host_and_guest_have_the_same_and_none_is_offline() {
        assert_eq!(vcpus_differ(4, 4, &guest("0-3", "0-3", 0)), None);
        for (host, present, online) in [
            (3, "0-3", "0-3"),
            (4, "0-3", "0-2"),
            (4, "0-4", "0-3"),
            (4, "0-2", "0-2"),
        ] {
            assert!(
                vcpus_differ(4, host, &guest(present, online, 0)).is_some(),
                "{host} {present} {online}"
            );
        }
    }

    #[test]
    fn memory_agrees_to_the_byte_and_a_guest_may_keep_a_little() {
        let resizing = Resizing {
            guest: guest("0", "0", 256),
            host_bytes: 256 * MIB,
        };
        let differs = |wanted, host, mib| resizing.memory_differs(wanted * MIB, host * MIB, &guest("0", "0", mib));
        for (wanted, host, mib) in [(768, 768, 768), (256, 260, 260), (1, 256, 256)] {
            assert_eq!(differs(wanted, host, mib), None, "{wanted} {host} {mib}");
        }
        for (wanted, host, mib) in [(768, 640, 640), (768, 768, 640), (256, 512, 512), (256, 260, 256)] {
            assert!(differs(wanted, host, mib).is_some(), "{wanted} {host} {mib}");
        }
    }
}
