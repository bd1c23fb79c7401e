//! What a server counts.

use husk_devices::metrics::Counter;

/// Since the server was made. Any number of threads add to them.
#[derive(Default)]
pub(super) struct Counters {
    /// Requests of all kinds.
    pub requests: Counter,
    /// Those that were refused, by the file system or the share.
    pub errors: Counter,
    /// Those that broke the protocol.
    pub malformed_requests: Counter,
    /// Those whose reply did not fit into the room for it; contents that were cut to it count as well.
    pub short_replies: Counter,
    /// Those of an unknown kind.
    pub unknown_requests: Counter,
    /// Sessions that began.
    pub sessions: Counter,
    /// Look-ups of names.
    pub lookups: Counter,
    /// Names of directories that no guest takes, left out of a list.
    pub unlisted_names: Counter,
    pub reads: Counter,
    pub read_bytes: Counter,
    pub writes: Counter,
    pub write_bytes: Counter,
    /// Requests that the guest gave up.
    pub interrupts: Counter,
}

impl Counters {
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        [
            ("requests", &self.requests),
            ("errors", &self.errors),
            ("malformed_requests", &self.malformed_requests),
            ("short_replies", &self.short_replies),
            ("unknown_requests", &self.unknown_requests),
            ("sessions", &self.sessions),
            ("lookups", &self.lookups),
            ("unlisted_names", &self.unlisted_names),
            ("reads", &self.reads),
            ("read_bytes", &self.read_bytes),
            ("writes", &self.writes),
            ("write_bytes", &self.write_bytes),
            ("interrupts", &self.interrupts),
        ]
        .into_iter()
        .map(|(name, counter)| (name, counter.get()))
        .collect()
    }
}
