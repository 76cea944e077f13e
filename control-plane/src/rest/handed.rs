//! A body that tells whether it was handed to the network: an answer that can be given once must know.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// A body, and what hears of it: `true` once its bytes were taken by the connection, `false` when it was dropped with
/// them.
pub struct Handed<F: FnOnce(bool)> {
    bytes: Option<Bytes>,
    told: Option<F>,
}

impl<F: FnOnce(bool)> Handed<F> {
    /// A body that is one piece.
    pub fn new(bytes: Bytes, told: F) -> Self {
        Self { bytes: Some(bytes), told: Some(told) }
    }
}

impl<F: FnOnce(bool) + Unpin> Body for Handed<F> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

impl<F: FnOnce(bool)> Drop for Handed<F> {
    fn drop(&mut self) {
        if let Some(told) = self.told.take() {
            told(self.bytes.is_none());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn it_tells_once_whether_its_bytes_were_taken() {
        for taken in [true, false] {
            let told = Cell::new(None);
            let mut body = Handed::new(Bytes::from_static(b"x"), |sent| told.set(Some(sent)));
            if taken {
                let mut context = Context::from_waker(std::task::Waker::noop());
                let frame = Pin::new(&mut body).poll_frame(&mut context);
                assert!(matches!(frame, Poll::Ready(Some(Ok(_)))));
                assert!(body.is_end_stream());
            }
            assert_eq!(told.get(), None);
            drop(body);
            assert_eq!(told.get(), Some(taken));
        }
    }
}
