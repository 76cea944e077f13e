//! Bodies: the request's, watched to its end, and the answer's, which ends the request when it ends.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;

use super::io::Track;

/// What is read of a body that nobody wanted.
const UNREAD_BYTES: u64 = 64 * 1024;
/// How long an answer waits for such a body.
const UNREAD_TIME: Duration = Duration::from_millis(50);

/// Why a request's body could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It is, or says that it is, larger than allowed.
    #[error("body is too large")]
    TooLarge,
    /// It did not arrive in time.
    #[error("body did not arrive in time")]
    TooSlow,
    /// The client went away or sent something malformed.
    #[error("body ended before its end")]
    Broken,
}

/// Reads a body whole, within a size and a time. Memory grows with what has arrived, not with what is announced.
///
/// # Errors
/// [`BodyError`]; an announced length beyond `max_bytes` is refused without reading.
pub async fn collect<B>(body: B, max_bytes: usize, time: Duration) -> Result<Bytes, BodyError>
where
    B: Body<Data = Bytes>,
{
    if body.size_hint().lower() > max_bytes as u64 {
        return Err(BodyError::TooLarge);
    }
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    tokio::time::timeout(time, read(body, max_bytes)).await.unwrap_or(Err(BodyError::TooSlow))
}

async fn read<B: Body<Data = Bytes>>(body: B, max_bytes: usize) -> Result<Bytes, BodyError> {
    let mut body = std::pin::pin!(body);
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
        if first.len() + all.len() + data.len() > max_bytes {
            return Err(BodyError::TooLarge);
        }
        if all.is_empty() && first.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// A request's body as it comes from the network.
#[derive(Debug)]
pub struct Incoming {
    /// `None` only while it is dropped.
    inner: Option<hyper::body::Incoming>,
    /// Set while an HTTP/1 body has not been read to its end: its connection cannot rest before.
    open: Option<Arc<Track>>,
}

impl Incoming {
    pub(crate) fn new(inner: hyper::body::Incoming, open: Option<Arc<Track>>) -> Self {
        Self { inner: Some(inner), open }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let (Some(track), Some(inner)) = (&self.open, self.inner.take()) {
            track.leave_unread(inner);
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *inner).poll_frame(cx));
        if (frame.is_none() || inner.is_end_stream())
            && let Some(track) = self.open.take()
        {
            track.body_read();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

/// Reads what a handler left of a body, if it is small and there: the connection can go on only behind it.
pub(crate) async fn finish_unread(track: &Track) {
    let Some(mut body) = track.unread() else { return };
    let mut left = UNREAD_BYTES;
    if body.size_hint().lower() > left {
        return;
    }
    let read = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return };
            left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
            if left == 0 {
                return;
            }
        }
        track.body_read();
    };
    // Too late is as good as too large: the connection ends after the answer.
    let _ = tokio::time::timeout(UNREAD_TIME, read).await;
}

/// Marks a request as answered when it is dropped.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Arc<Track>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// An answer's body on its way to hyper.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) inner: axum::body::Body,
    pub(crate) _running: Running,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::pending;

    use http_body_util::{Empty, Full, StreamBody};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn chunks(texts: &'static [&'static str]) -> impl Body<Data = Bytes, Error = Infallible> {
        let frames = texts.iter().map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes()))));
        StreamBody::new(futures_util::stream::iter(frames))
    }

    #[tokio::test]
    async fn chunks_become_one_body_up_to_the_bound() {
        assert_eq!(collect(Empty::new(), 0, LONG).await, Ok(Bytes::new()));
        assert_eq!(collect(chunks(&["one"]), 3, LONG).await, Ok(Bytes::from_static(b"one")));
        assert_eq!(
            collect(chunks(&["one", "", "two", "3"]), 7, LONG).await,
            Ok(Bytes::from_static(b"onetwo3"))
        );
        assert_eq!(collect(chunks(&["one", "two", "3"]), 6, LONG).await, Err(BodyError::TooLarge));
    }

    #[tokio::test]
    async fn an_announced_length_is_refused_unread() {
        assert_eq!(collect(Full::new(Bytes::from_static(b"four")), 3, LONG).await, Err(BodyError::TooLarge));
    }

    #[tokio::test]
    async fn a_body_that_stops_is_too_slow() {
        let stuck =
            StreamBody::new(futures_util::stream::once(pending::<Result<Frame<Bytes>, Infallible>>()));
        assert_eq!(collect(stuck, 10, Duration::from_millis(20)).await, Err(BodyError::TooSlow));
    }

    #[tokio::test]
    async fn a_body_that_breaks_is_broken() {
        let frames = [Ok(Frame::data(Bytes::from_static(b"a"))), Err(std::io::Error::other("gone"))];
        let broken = StreamBody::new(futures_util::stream::iter(frames));
        assert_eq!(collect(broken, 10, LONG).await, Err(BodyError::Broken));
    }
}
