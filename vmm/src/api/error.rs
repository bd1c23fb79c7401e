//! What a client is told of a failure: a status and the chain of causes, outermost first.

use std::error::Error;
use std::fmt;

use husk_devices::causes;

/// The class of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request is wrong: its body, or a configuration that cannot be.
    BadRequest,
    /// 403: the socket does not serve this path (that of `--metrics` serves figures alone).
    Forbidden,
    /// No such path, VM or device.
    NotFound,
    /// The path has another method.
    Method,
    /// What is asked for is taken already.
    Conflict,
    /// It should have worked.
    Internal,
    /// It would have worked, but husk was told to end.
    Ending,
    /// Cloud Hypervisor has it, husk has not.
    NotImplemented,
}

impl Kind {
    /// The HTTP status code.
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Method => 405,
            Self::Conflict => 409,
            Self::Internal | Self::Ending => 500,
            Self::NotImplemented => 501,
        }
    }
}

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// Which status the client gets.
    pub kind: Kind,
    /// The body: what failed, then why, then why that, one line each. Never empty.
    pub chain: Vec<String>,
}

impl ApiError {
    /// A failure without a deeper cause.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self {
            kind,
            chain: vec![what.into()],
        }
    }

    /// `error` and all its sources.
    pub fn from_error(kind: Kind, error: &dyn Error) -> Self {
        let chain = causes(error);
        Self { kind, chain }
    }

    /// `what` failed because of this.
    #[must_use]
    pub fn context(mut self, what: impl Into<String>) -> Self {
        self.chain.insert(0, what.into());
        self
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain.join(": "))
    }
}

/// A failure of the machine.
impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        Self::from_error(Kind::Internal, error.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_chain_goes_from_what_failed_to_the_root_cause() {
        let error = std::fs::read("/nowhere").context("cannot open disk").unwrap_err();
        let error = ApiError::from(error).context("cannot boot");
        assert_eq!(error.kind.status(), 500);
        assert_eq!(
            error.chain,
            [
                "cannot boot",
                "cannot open disk",
                "No such file or directory (os error 2)"
            ]
        );
        assert_eq!(
            error.to_string(),
            "cannot boot: cannot open disk: No such file or directory (os error 2)"
        );
    }
}
