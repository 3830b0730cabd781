//! A session's connection, with two hands on it: its own task reads and answers what the protocol answers by itself,
//! and the driver sends orders. What the socket does not take at once waits here, within bounds.

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{Error, ErrorKind, Result};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What waits for one agent's socket, in bytes. One that falls so far behind is cut off; it comes back and catches
/// up. Too low: an order that tells of ten thousand members does not fit. Too high: many slow agents add up.
const UNSENT_BYTES_MAX: usize = 16 << 20;
/// A socket that is slow once does not keep its room for ever.
const UNSENT_BYTES_KEPT: usize = 4096;

/// The first byte of a WebSocket frame that is a whole text.
const TEXT: u8 = 0x81;

/// One connection; cheap to clone.
#[derive(Clone)]
pub(super) struct Line(Arc<Mutex<Wire>>);

struct Wire {
    stream: TokioIo<Upgraded>,
    unsent: VecDeque<u8>,
}

impl Line {
    pub(super) fn new(stream: TokioIo<Upgraded>) -> Self {
        Self(Arc::new(Mutex::new(Wire { stream, unsent: VecDeque::new() })))
    }

    /// Sends a text as one frame. Tells whether all of it has gone out; what has not waits for a flush.
    ///
    /// Errors: the connection is broken, or takes nothing.
    pub(super) fn send(&self, text: &[u8]) -> Result<bool> {
        let mut wire = self.wire();
        let is_first = wire.unsent.is_empty();
        wire.check_room(text.len())?;
        let len = text.len() as u64;
        match len {
            ..126 => wire.unsent.extend([TEXT, len as u8]),
            126..65_536 => wire.unsent.extend([TEXT, 126].iter().chain(&len.to_be_bytes()[6..])),
            65_536.. => wire.unsent.extend([TEXT, 127].iter().chain(&len.to_be_bytes())),
        }
        wire.unsent.extend(text);
        // Behind what waits already it goes out with that, and whoever flushes that is to be woken, not this.
        let flushed = is_first.then(|| wire.flush(&mut Context::from_waker(Waker::noop())));
        match flushed {
            Some(Poll::Ready(flushed)) => flushed.map(|()| true),
            Some(Poll::Pending) | None => Ok(false),
        }
    }

    /// Waits until the socket takes some of what waits. Tells whether nothing does any more.
    ///
    /// Errors: the connection is broken.
    pub(super) async fn give(&self) -> Result<bool> {
        poll_fn(|cx| {
            let mut wire = self.wire();
            let before = wire.unsent.len();
            match wire.flush(cx) {
                Poll::Ready(flushed) => Poll::Ready(flushed.map(|()| true)),
                Poll::Pending if wire.unsent.len() < before => Poll::Ready(Ok(false)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        // What panicked half-way is a connection, which is cut off then.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wire {
    fn check_room(&self, len: usize) -> Result<()> {
        if self.unsent.len() + len > UNSENT_BYTES_MAX {
            return Err(Error::new(ErrorKind::TimedOut, "too much waits for it"));
        }
        Ok(())
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while !self.unsent.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, self.unsent.as_slices().0))? {
                0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                count => drop(self.unsent.drain(..count)),
            }
        }
        self.unsent.shrink_to(UNSENT_BYTES_KEPT);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.wire().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let mut wire = self.wire();
        wire.check_room(bytes.len())?;
        wire.unsent.extend(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.wire().flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut wire = self.wire();
        ready!(wire.flush(cx))?;
        Pin::new(&mut wire.stream).poll_shutdown(cx)
    }
}
