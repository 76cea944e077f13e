//! The network front on real sockets: protocols, limits, slow and broken clients, the end.
//! Limits are short here, so that the tests are; nothing is mocked.

#[path = "net/bodies.rs"]
mod bodies;
#[path = "net/ends.rs"]
mod ends;
#[path = "net/heads.rs"]
mod heads;
#[path = "net/http2.rs"]
mod http2;
#[path = "net/requests.rs"]
mod requests;
#[path = "net/site.rs"]
mod site;
#[path = "net/tls.rs"]
mod tls;
