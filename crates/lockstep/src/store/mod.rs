//! The store: a fenced journal.
