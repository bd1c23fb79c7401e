//! An error with its causes, in words.

use std::error::Error;

/// What `error` says, then what its cause says, and so on. What only repeats its cause
/// (`#[error(transparent)]`) is not said twice.
pub fn causes(error: &dyn Error) -> Vec<String> {
    let mut words: Vec<String> = std::iter::successors(Some(error), |&error| error.source())
        .map(ToString::to_string)
        .collect();
    words.dedup();
    words
}

/// `error` and its causes on one line, joined by `: `, for a log line or an API answer.
pub fn error_chain(error: &dyn Error) -> String {
    causes(error).join(": ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Fault {
        #[error("cannot open the disk")]
        Open(#[source] io::Error),
        #[error(transparent)]
        Again(Box<Fault>),
    }

    #[test]
    fn every_cause_is_said_once() {
        let deepest = io::Error::from_raw_os_error(libc::ENOENT);
        let error = Fault::Again(Box::new(Fault::Again(Box::new(Fault::Open(deepest)))));
        assert_eq!(
            causes(&error),
            ["cannot open the disk", "No such file or directory (os error 2)"]
        );
        assert_eq!(
            error_chain(&error),
            "cannot open the disk: No such file or directory (os error 2)"
        );
    }
}
