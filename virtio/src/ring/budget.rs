//! How much a ring gives its thread before the thread looks at its other work: a driver that never
//! pauses must not keep it.
//!
//! Every look that finds something costs, whatever becomes of the chain: one that leads nowhere,
//! one that is put back, one that a second look behind enabled kicks has found. Only the doorbell
//! pays for more. So a handler that loops as long as there is work ends all the same, however many
//! rings it loops over, and is called again after whatever else waits.

/// What is left of a ring's turn.
#[derive(Debug)]
pub(super) struct Budget {
    whole: u16,
    left: u16,
    spent: bool,
}

/// What came of asking for one more look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It is paid for.
    Allowed,
    /// The turn is over as of now: whoever asked sees to it that another one comes.
    Over,
    /// The turn was over before.
    Spent,
}

impl Budget {
    /// Turns of as many looks as the ring has entries.
    pub fn new(size: u16) -> Self {
        Self {
            whole: size,
            left: size,
            spent: false,
        }
    }

    /// Pays for one look.
    pub fn pay(&mut self) -> Look {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Look::Allowed
            }
            None if std::mem::replace(&mut self.spent, true) => Look::Spent,
            None => Look::Over,
        }
    }

    /// Whether a look was refused, and so another turn is on its way.
    pub fn is_spent(&self) -> bool {
        self.spent
    }

    /// Begins another turn.
    pub fn refill(&mut self) {
        *self = Self::new(self.whole);
    }
}
