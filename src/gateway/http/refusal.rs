//! Why a request is refused, in the words of its response.

/// A status and a sentence for the caller: what is wrong with the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::gateway) struct Refusal {
    pub(in crate::gateway) status: u16,
    pub(in crate::gateway) detail: String,
}

impl Refusal {
    /// The detail is a sentence without its end.
    pub(in crate::gateway) fn new(status: u16, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }
}
