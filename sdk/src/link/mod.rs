//! The durable session with the server.
