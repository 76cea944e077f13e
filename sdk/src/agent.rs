//! The whole agent in one type.
