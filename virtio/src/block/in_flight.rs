//! The requests under way in one queue.

use super::job::Job;

/// A table of jobs. A job is known by its slot, which nothing that a driver writes can influence.
pub(super) struct InFlight {
    depth: usize,
    /// Grows with the most jobs that there ever were at a time.
    slots: Vec<Option<Job>>,
    free: Vec<usize>,
    /// What the host has begun, by slot: the cost of it.
    begun: Vec<usize>,
    /// The sum of that.
    cost: usize,
}

impl InFlight {
    /// A table that is full with `depth` jobs.
    pub fn new(depth: usize) -> Self {
        Self {
            depth,
            slots: Vec::new(),
            free: Vec::new(),
            begun: vec![0; depth],
            cost: 0,
        }
    }

    /// Jobs of a full table.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Whether another job may come in.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < self.depth
    }

    /// Takes a job in and names its slot. Ask [`InFlight::has_room`] first.
    pub fn insert(&mut self, job: Job) -> usize {
        let reused = self.free.pop();
        match reused.and_then(|slot| Some((slot, self.slots.get_mut(slot)?))) {
            Some((slot, place)) => {
                *place = Some(job);
                slot
            }
            None => {
                self.slots.push(Some(job));
                self.slots.len().saturating_sub(1)
            }
        }
    }

    /// The job in `slot`, if there is one.
    pub fn get_mut(&mut self, slot: usize) -> Option<&mut Job> {
        self.slots.get_mut(slot)?.as_mut()
    }

    /// Takes the job out of `slot`.
    pub fn remove(&mut self, slot: usize) -> Option<Job> {
        let job = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(job)
    }

    /// The host has begun an operation of the job in `slot` that costs so much.
    pub fn begin(&mut self, slot: usize, cost: usize) {
        if let Some(begun) = self.begun.get_mut(slot) {
            *begun = cost;
            self.cost = self.cost.saturating_add(cost);
        }
    }

    /// The host has ended the operation of the job in `slot`. Returns what it cost.
    pub fn end(&mut self, slot: usize) -> usize {
        let cost = self.begun.get_mut(slot).map(std::mem::take).unwrap_or_default();
        self.cost = self.cost.saturating_sub(cost);
        cost
    }

    /// What all operations cost that the host has begun.
    pub fn cost(&self) -> usize {
        self.cost
    }

    /// All jobs that are left.
    pub fn into_jobs(self) -> impl Iterator<Item = Job> {
        self.slots.into_iter().flatten()
    }
}
