//! Refusals of requests: the status and the sentence for the caller.

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::gateway) struct Refusal {
    pub(in crate::gateway) status: u16,
    pub(in crate::gateway) detail: String,
}

impl Refusal {
    /// `detail`: a sentence without its final period.
    pub(in crate::gateway) fn new(status: u16, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }
}
