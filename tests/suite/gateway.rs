//! What the gateway does beyond the promises: the HTTP table, its edges and its hazards.
