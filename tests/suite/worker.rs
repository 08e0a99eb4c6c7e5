//! What a worker does beyond the promises.
