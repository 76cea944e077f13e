//! The agent's wallet.
