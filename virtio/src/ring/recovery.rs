//! Taking a ring over from somebody who vanished: which chains were taken from the driver and never given back.
//!
//! The rings alone do not tell. They tell how many chains are owed: `avail.idx - used.idx`; which
//! ones only as far as entries go back, and a request that waits for a lock is older than that. (A
//! record kept by the one who serves, `VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD`, would tell, but no
//! back-end for file systems keeps one; and looking on costs a wake-up of this process for each
//! request.) What the driver's memory still has are the requests themselves, and those know: a
//! reply repeats the number of its request, so a request without it is [`ReplyState::Waiting`].
//! Descriptors of chains given back long ago stay in the table, and may refer to memory that has a
//! new owner, so nothing is believed alone:
//!
//! 1. Candidates are all heads, the latest of the available ring first. One whose request waits is
//!    owed, unless a later one has the same room for the reply: then its descriptors are stale. Two
//!    that have the same room, and of which none is in the available ring any more, are left alone.
//! 2. If more wait than are owed, or the driver adds some meanwhile, it is at work between writing
//!    a request and making it available: everything is looked at again a little later.
//! 3. If fewer wait than are owed, the others have their reply, and only the entry in the used ring
//!    is missing; or there is no room for one. Both are given back as they are, if they are among
//!    the latest of the available ring.
//! 4. What is owed and not found is counted, and stays unanswered.
//!
//! A driver that lies about any of this harms its own memory only: every access is within guest
//! RAM, and the work has a limit.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use husk_devices::memory::GuestMemoryMmap;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::used::{AVAIL_ENTRY, ENTRIES};
use super::{Chain, Reader, Ring, RingError, Writer};

/// How often to look before the best guess is taken.
const LOOKS: usize = 8;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);
/// Descriptors to read at most. A full ring of 1024 requests with 1 MiB each has a quarter of a million.
const DESCRIPTORS: u32 = 1 << 22;

/// What there is to see of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyState {
    /// It is one, and has no reply yet.
    Waiting,
    /// Its reply is there: so many bytes.
    Answered(u32),
    /// Not a request, or one that gets no reply.
    None,
}

/// What requests of a device look like.
pub trait Protocol: Send + Sync {
    /// What there is to see of a request, and of the bytes where its reply goes.
    fn reply_state(&self, request: &mut Reader<'_>, reply: &mut Reader<'_>) -> ReplyState;

    /// Answers a request with an error. Returns the number of bytes written: none if no answer is possible.
    fn refuse(&self, request: &mut Reader<'_>, reply: &mut Writer<'_>) -> u32;
}

/// How many of the chains that the former server owed were dealt with in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Answered with an error.
    pub refused: u16,
    /// Given back as they were.
    pub returned: u16,
    /// Chains that could not be found: the driver's requests stay unanswered until it resets the device.
    pub lost: u16,
}

/// The chains that are owed.
struct OwedChains {
    waiting: Vec<Chain>,
    others: Vec<(u16, u32)>,
    lost: u16,
}

/// All heads of a ring, each once.
struct Heads {
    /// Those in the available ring, the latest first.
    latest: Vec<u16>,
    /// The others: nobody knows when they were there.
    older: Vec<u16>,
}

impl Heads {
    /// With whether it is known when.
    fn all(&self) -> impl Iterator<Item = (u16, bool)> {
        let latest = self.latest.iter().map(|head| (*head, true));
        latest.chain(self.older.iter().map(|head| (*head, false)))
    }
}

/// A room for a reply, and who says that it is its own.
struct Claim {
    order: usize,
    dated: bool,
    /// None once another one says the same, and neither can be dated.
    chain: Option<Chain>,
}

impl Ring {
    /// Takes the ring over from somebody who served it and is gone, wherever that was: answers what
    /// was taken and not given back, and goes on behind it. To be followed by [`Ring::drain`],
    /// which also listens to the doorbell again.
    ///
    /// # Errors
    /// When the indices make no sense, or the rings cannot be accessed.
    pub fn recover(&mut self, protocol: &dyn Protocol) -> Result<Recovered, RingError> {
        let mem = self.mem.memory().into_inner();
        let access = |source| RingError::Access {
            queue: self.index,
            source,
        };
        let used = self.queue.used_idx(&*mem, Ordering::Acquire).map_err(access)?.0;
        self.queue.set_next_used(used);
        let (available, owed_chains) = self.search(&mem, used, protocol)?;
        self.queue.set_next_avail(available);
        let refused = owed_chains.waiting.iter().map(|chain| {
            let len = protocol.refuse(&mut chain.reader(), &mut chain.writer());
            (chain.head(), len)
        });
        let given: Vec<_> = refused.chain(owed_chains.others.iter().copied()).collect();
        self.complete(&mem, &given)?;
        // Also for what was given back before, and not announced any more.
        self.unannounced = 0;
        self.notify.signal();
        Ok(Recovered {
            refused: count(owed_chains.waiting.len()),
            returned: count(owed_chains.others.len()),
            lost: owed_chains.lost,
        })
    }

    /// Looks until there is no doubt, or often enough. Returns where the available ring ended.
    fn search(
        &self,
        mem: &Arc<GuestMemoryMmap>,
        used: u16,
        protocol: &dyn Protocol,
    ) -> Result<(u16, OwedChains), RingError> {
        let mut budget = DESCRIPTORS;
        let mut looks = 0usize;
        let mut available = self.available(mem, used)?;
        loop {
            looks = looks.saturating_add(1);
            let owed = usize::from(available.wrapping_sub(used));
            let heads = self.heads(mem, available);
            let mut waiting = self.waiting(mem, &heads, protocol, &mut budget);
            let now = self.available(mem, used)?;
            if now == available && waiting.len() <= owed || looks == LOOKS {
                waiting.truncate(owed);
                let owed_chains = self.owed_chains(mem, &heads.latest, waiting, owed, protocol, &mut budget);
                return Ok((available, owed_chains));
            }
            available = now;
            thread::sleep(PAUSE);
        }
    }

    /// Where the available ring ends.
    fn available(&self, mem: &GuestMemoryMmap, used: u16) -> Result<u16, RingError> {
        let (queue, size) = (self.index, self.queue.size());
        let found = self.queue.avail_idx(mem, Ordering::Acquire);
        let found = found.map_err(|source| RingError::Access { queue, source })?.0;
        if found.wrapping_sub(used) > size {
            return Err(RingError::AvailIndex {
                queue,
                found,
                next: used,
                size,
            });
        }
        Ok(found)
    }

    /// All heads, as far as they can be dated.
    fn heads(&self, mem: &GuestMemoryMmap, available: u16) -> Heads {
        let size = self.queue.size();
        let mut known = vec![false; usize::from(size)];
        let mut is_new = |head: &u16| {
            let seen = known.get_mut(usize::from(*head));
            seen.is_some_and(|seen| !std::mem::replace(seen, true))
        };
        let latest = (1..=size).filter_map(|back| {
            let slot = available.wrapping_sub(back).checked_rem(size)?;
            let offset = u64::from(slot).checked_mul(AVAIL_ENTRY)?.checked_add(ENTRIES)?;
            let at = self.queue.avail_ring().checked_add(offset)?;
            mem.load(GuestAddress(at), Ordering::Relaxed).ok().map(u16::from_le)
        });
        Heads {
            latest: latest.filter(&mut is_new).collect(),
            older: (0..size).filter(&mut is_new).collect(),
        }
    }

    /// The rooms that wait for a reply, and whose they are.
    fn waiting(
        &self,
        mem: &Arc<GuestMemoryMmap>,
        heads: &Heads,
        protocol: &dyn Protocol,
        budget: &mut u32,
    ) -> Vec<Claim> {
        let queue = self.queue.state();
        let mut rooms: HashMap<Option<u64>, Claim> = HashMap::new();
        for (head, dated) in heads.all() {
            let Some(chain) = Chain::at(mem, &queue, head, budget) else {
                continue;
            };
            if protocol.reply_state(&mut chain.reader(), &mut chain.written()) != ReplyState::Waiting {
                continue;
            }
            let order = rooms.len();
            let room = chain.room().map(|room| room.0);
            match rooms.entry(room) {
                Entry::Vacant(free) => drop(free.insert(Claim {
                    order,
                    dated,
                    chain: Some(chain),
                })),
                Entry::Occupied(taken) if taken.get().dated => {}
                // Which of the two is older is not known any more.
                Entry::Occupied(mut taken) => taken.get_mut().chain = None,
            }
        }
        let mut claims: Vec<Claim> = rooms.into_values().collect();
        claims.sort_by_key(|claim| claim.order);
        claims
    }

    /// `waiting`, and as many others of the `latest` chains as are owed in addition.
    fn owed_chains(
        &self,
        mem: &Arc<GuestMemoryMmap>,
        latest: &[u16],
        waiting: Vec<Claim>,
        owed: usize,
        protocol: &dyn Protocol,
        budget: &mut u32,
    ) -> OwedChains {
        let missing = owed.saturating_sub(waiting.len());
        let claimed = waiting.len();
        let waiting: Vec<Chain> = waiting.into_iter().filter_map(|claim| claim.chain).collect();
        let doubtful = claimed.saturating_sub(waiting.len());
        let found: HashSet<u16> = waiting.iter().map(Chain::head).collect();
        let others = latest.iter().take(owed).filter(|head| !found.contains(head));
        let others = others.filter_map(|head| {
            let chain = Chain::at(mem, &self.queue.state(), *head, budget)?;
            match protocol.reply_state(&mut chain.reader(), &mut chain.written()) {
                ReplyState::Answered(len) => Some((*head, len)),
                ReplyState::None if chain.room().is_none() => Some((*head, 0)),
                ReplyState::None | ReplyState::Waiting => None,
            }
        });
        let others: Vec<_> = others.take(missing).collect();
        OwedChains {
            lost: count(missing.saturating_sub(others.len()).saturating_add(doubtful)),
            waiting,
            others,
        }
    }
}

/// A number of chains: at most a ring's size.
fn count(chains: usize) -> u16 {
    u16::try_from(chains).unwrap_or(u16::MAX)
}

#[cfg(test)]
#[path = "recovery_test.rs"]
mod tests;
