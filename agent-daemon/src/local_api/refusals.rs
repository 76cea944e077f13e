//! hyper refuses what is no request with a bare status; here that goes out as a problem like every other error.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::StatusCode;
use otonix_sdk::error::ErrorCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use super::problem::Refusal;

/// A connection whose bare refusals are replaced.
#[derive(Debug)]
pub(super) struct Refusals {
    stream: UnixStream,
    /// What is left to be written of a replacement.
    instead: Option<Vec<u8>>,
}

impl Refusals {
    pub(super) const fn new(stream: UnixStream) -> Self {
        Self { stream, instead: None }
    }
}

/// The status of an answer without a body. None of the routes gives one, and no body of theirs holds bare line ends.
fn bare_refusal(bytes: &[u8]) -> Option<StatusCode> {
    let head = bytes.strip_prefix(b"HTTP/1.1 ").or_else(|| bytes.strip_prefix(b"HTTP/1.0 "))?;
    let text = std::str::from_utf8(head).ok()?.to_ascii_lowercase();
    let is_bare = text.ends_with("\r\n\r\n") && text.contains("\r\ncontent-length: 0\r\n");
    let status = StatusCode::from_bytes(head.get(..3)?).ok()?;
    (is_bare && status.is_client_error()).then_some(status)
}

fn problem(status: StatusCode) -> Vec<u8> {
    let (code, detail) = match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            (ErrorCode::PayloadTooLarge, "the request's head is too large")
        }
        StatusCode::URI_TOO_LONG => (ErrorCode::PayloadTooLarge, "the request's address is too long"),
        _ => (ErrorCode::BadRequest, "this is no HTTP/1.1 request"),
    };
    let body = Refusal::new(status, code, detail).body();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

impl AsyncWrite for Refusals {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, instead } = &mut *self;
        if instead.is_none() {
            *instead = bare_refusal(bytes).map(problem);
        }
        let Some(left) = instead else { return Pin::new(stream).poll_write(cx, bytes) };
        while !left.is_empty() {
            match ready!(Pin::new(&mut *stream).poll_write(cx, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => drop(left.drain(..written)),
            }
        }
        *instead = None;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Refusals {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}
