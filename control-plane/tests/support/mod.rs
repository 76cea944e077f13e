//! What the black-box tests stand on: a database server of their own, the real control plane as a process,
//! and plain clients for its REST and gRPC sides. Nothing here knows the server's code.

pub mod calls;
pub mod database;
pub mod http;
pub mod link;
pub mod poll;
#[path = "../../../tests/port.rs"]
pub mod port;
pub mod server;

pub use calls::{Agent, Key};
pub use database::Store;
pub use http::{Answer, Call};
pub use server::Server;

/// Makes each named `async fn(Store)` a test on SQLite and one on PostgreSQL: `…::sqlite::name`, `…::postgres::name`.
macro_rules! on_each_store {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::support::Store::Sqlite).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::support::Store::Postgres).await;
            })*
        }
    };
}
pub(crate) use on_each_store;
