// SPDX-License-Identifier: GPL-2.0

//! What a connection needs of the network below (P3).
//!
//! Everything above sees these traits and never a socket, so that another network can be put below:
//! whatever carries a reliable, ordered stream of bytes between two nodes. See [`super::tcp`] for
//! the one there is.

use super::ao::Ids;
use super::frame::HEADER_LEN;
use crate::config::KeyName;
use crate::sys::clock::Millis;
use crate::sys::pages::Part;
use crate::sys::sock::Dropped;
use core::net::SocketAddr;
use kernel::prelude::*;

/// What a link or a port tells its owner. The calls may come in softirq context: they must not sleep
/// and must not call back.
pub(crate) trait Notify: Send + Sync {
    /// Something has happened: look.
    fn notify(&self);

    /// Something has come in, on a link that lets that be seen to at once.
    fn arrived(&self, _link: &dyn Within) {
        self.notify();
    }
}

/// A link while it tells that something has come in: what may be done with it at this moment, without
/// sleeping, by whoever is told. Only few networks have that.
pub(crate) trait Within {
    /// The header of what comes next, which stays there, and how many bytes there are with it. `None`
    /// if it is not there, or not in one piece.
    fn peek(&self) -> Option<([u8; HEADER_LEN], usize)>;

    /// Whether nothing has come in.
    fn is_empty(&self) -> bool;

    /// Copies the bytes behind the first `skip` to `to`. As many are there, and stay there.
    fn copy(&self, skip: usize, to: &mut [u8]) -> Result;

    /// The same for `len` bytes, to the end of `to`, which has room for them.
    fn copy_many(&self, skip: usize, len: usize, to: &mut KVec<u8>) -> Result;

    /// Whether so many bytes, with those that are there, come in before any is taken, if the other side
    /// sends them; it is let go on with that. Not for sure: whoever waits for them is to look again after
    /// some time.
    fn awaits(&self, len: usize) -> bool;

    /// Takes so many bytes, which are there, and throws them away. On an error the stream is of no more
    /// use.
    fn pass(&self, len: usize) -> Result;

    /// [`Link::send`].
    fn send(&self, bufs: &[&[u8]], more: bool) -> Result<usize>;

    /// [`Link::splice`].
    fn splice(&self, parts: &[Part<'_>], more: bool) -> Result<usize> {
        copy(parts, |bufs| self.send(bufs, more))
    }

    /// Whether the stream has ended, as far as can be told from here.
    fn ended(&self) -> bool;
}

/// One connection: a stream of bytes each way. No operation waits for the network; where one cannot
/// go on it returns `EAGAIN`, and a notification follows when it can. Process context.
pub(crate) trait Link: Send + Sync {
    /// Begins to notify. What happened before is not told: look once afterwards. An error if the link
    /// has been closed.
    fn attach(&self, notify: KBox<dyn Notify>) -> Result;

    /// Whether the link is connected: `EINPROGRESS` while it is not yet, another error when that
    /// failed.
    fn status(&self) -> Result;

    /// Sends as much of `bufs`, one after the other, as there is room for; returns how much. `more`:
    /// what follows at once may go with the end of this.
    fn send(&self, bufs: &[&[u8]], more: bool) -> Result<usize>;

    /// The same for bytes in pages that are not written to any more, which need not be copied.
    fn splice(&self, parts: &[Part<'_>], more: bool) -> Result<usize> {
        copy(parts, |bufs| self.send(bufs, more))
    }

    /// Receives at most `most` bytes to the end of `to`, which has memory for them; returns how many, 0
    /// at the end of the stream.
    fn recv(&self, to: &mut KVVec<u8>, most: usize) -> Result<usize>;

    /// Whether something has come in that was not received yet.
    fn unread(&self) -> bool;

    /// Whether `recv` may find something: bytes, the end of the stream or an error. If not, a
    /// notification follows when it may.
    fn pending(&self) -> bool {
        true
    }

    /// Lets go of memory that is not needed while little is sent.
    fn trim(&self) {}

    /// Makes room for so many bytes, the last that are sent over it.
    fn make_room(&self, _len: usize) {}

    /// The number of the key that is signed with, if the network has keys.
    fn key(&self) -> Option<u8> {
        None
    }

    /// Ends notifications and the stream in both directions; what was sent is still delivered if
    /// `graceful`, unless that takes too long, and otherwise discarded at both ends. May be called more
    /// than once.
    fn close(&self, graceful: bool);
}

/// Where connections come in. Process context.
pub(crate) trait Port: Send + Sync {
    /// Takes one that has come in, and where from; `EAGAIN` when there is none now.
    fn accept(&self) -> Result<(KBox<dyn Link>, SocketAddr)>;

    /// Lets no more come in. No notification comes afterwards.
    fn close(&self);
}

/// A network.
pub(crate) trait Transport: Send + Sync {
    /// Opens a port at a local address. Each connection that comes in is notified of.
    fn listen(&self, addr: &SocketAddr, notify: KBox<dyn Notify>) -> Result<KBox<dyn Port>>;

    /// Begins to connect to `to`, from the local IP address of `from` if both are of one family.
    fn connect(&self, from: &SocketAddr, to: &SocketAddr) -> Result<KBox<dyn Link>>;

    /// What keeps others out, if anything does.
    fn guard(&self) -> Option<&dyn Guard> {
        None
    }

    /// Does what is to be done from time to time, and after a link was closed. Returns when to call it
    /// again.
    fn tend(&self) -> Millis {
        Millis::MAX
    }

    /// Waits, for a bounded time, until what was sent over links that were closed has got there.
    fn settle(&self) {}
}

/// What keeps others out of a network that has keys.
pub(crate) trait Guard: Send + Sync {
    /// Looks for the keys again, as the calling process finds them, and begins to use them. Those
    /// that are connected stay so. On an error all is as before; what is wrong has been logged.
    fn rekey(&self) -> Result;

    /// What the keys are called.
    fn name(&self) -> KeyName;

    /// Their numbers.
    fn numbers(&self) -> Ids;

    /// What was not let in at the port.
    fn dropped(&self) -> Dropped;

    /// What is known of why the last attempt to connect there got no answer.
    fn remark(&self, to: &SocketAddr) -> Option<&'static str>;

    /// The numbers of all keys that any socket has.
    #[cfg(KCCM_KUNIT)]
    fn held(&self) -> Ids;
}

/// Sends parts of pages as any other bytes.
fn copy(parts: &[Part<'_>], send: impl FnOnce(&[&[u8]]) -> Result<usize>) -> Result<usize> {
    let mut bufs: [&[u8]; MAX_BUFS] = [&[]; MAX_BUFS];
    let mut n = 0;
    for (buf, part) in bufs.iter_mut().zip(parts) {
        *buf = part.bytes();
        n += 1;
    }
    send(&bufs[..n])
}

/// How many buffers one [`Link::send`] takes.
pub(crate) const MAX_BUFS: usize = crate::sys::sock::MAX_BUFS;
