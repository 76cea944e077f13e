//! Which model to use.
