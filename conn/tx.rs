// SPDX-License-Identifier: GPL-2.0

//! The sending side of a connection: frames that wait, and who sends them.
//!
//! Whoever queues a frame sends it, and with it all that waits, unless somebody else is at it
//! already: then that one sends it too. So an uncontended frame leaves in the context of its
//! caller, and under contention frames are sent in batches. Nobody waits for room in the link: when
//! there is none, the rest is sent by the listener, which the link then calls.

use super::frame::{
    Header,
    HEADER_LEN, //
};
use super::peer::Charge;
use super::transport::{
    Link,
    MAX_BUFS, //
};
use crate::sys::clock;
use crate::sys::clock::Millis;
use kernel::list::{
    impl_list_arc_safe,
    impl_list_item,
    List,
    ListArc,
    ListLinks, //
};
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::{
    new_spinlock_irq,
    ArcBorrow,
    SpinLockIrq, //
};

/// A frame on its way out.
#[pin_data]
pub(crate) struct OutFrame {
    header: [u8; HEADER_LEN],
    payload: KVVec<u8>,
    /// What is released when the frame has been sent: for a reply, its call.
    _charge: Option<Charge>,
    #[pin]
    links: ListLinks,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for OutFrame { untracked; }
}
impl_list_item! {
    impl ListItem<0> for OutFrame { using ListLinks { self.links }; }
}

impl OutFrame {
    /// A frame to be sent.
    pub(crate) fn new(
        header: Header,
        payload: KVVec<u8>,
        charge: Option<Charge>,
    ) -> Result<ListArc<Self>> {
        ListArc::pin_init(
            try_pin_init!(Self {
                header: header.encode(),
                payload,
                _charge: charge,
                links <- ListLinks::new(),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// The length of its payload.
    pub(crate) fn payload_len(&self) -> usize {
        self.payload.len()
    }

    fn len(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }
}

/// What [`Tx::drain`] has come to.
pub(crate) enum Drained {
    /// All is sent, or the rest is somebody else's.
    Done,
    /// There is more to send, but this caller has done its share.
    Yield,
    /// The last frame has been sent, or cannot be: the link is this caller's to close.
    Ended,
}

struct Queue {
    control: List<OutFrame>,
    frames: List<OutFrame>,
    /// What the last sender could not send, the first frame from `offset` on.
    unsent: Batch,
    /// Somebody is sending.
    busy: bool,
    /// While somebody was sending, something happened that may let him go on.
    again: bool,
    /// No more frames are taken.
    ending: bool,
    /// None are sent any more.
    closed: bool,
}

/// Frames that were never sent.
type Rest = (List<OutFrame>, List<OutFrame>, Batch);

impl Queue {
    /// Takes all frames out, to be dropped without the lock: their charges want to be released.
    fn take(&mut self) -> Rest {
        (
            core::mem::replace(&mut self.control, List::new()),
            core::mem::replace(&mut self.frames, List::new()),
            core::mem::replace(&mut self.unsent, Batch::new()),
        )
    }
}

/// Frames that are being sent, the first of them from `offset` on.
struct Batch {
    frames: List<OutFrame>,
    count: usize,
    offset: usize,
}

impl Batch {
    /// Each frame is at most two buffers.
    const MAX: usize = MAX_BUFS / 2;

    const fn new() -> Self {
        Self {
            frames: List::new(),
            count: 0,
            offset: 0,
        }
    }

    /// Fills up from the queues, control frames first.
    fn fill(&mut self, queue: &mut Queue) {
        while self.count < Self::MAX {
            let next = queue.control.pop_front();
            let Some(frame) = next.or_else(|| queue.frames.pop_front()) else {
                return;
            };
            self.frames.push_back(frame);
            self.count += 1;
        }
    }

    fn send(&self, link: &dyn Link) -> Result<usize> {
        let mut frames: [Option<ArcBorrow<'_, OutFrame>>; Self::MAX] = [None; Self::MAX];
        for (slot, frame) in frames.iter_mut().zip(self.frames.iter()) {
            *slot = Some(frame);
        }
        let mut bufs: [&[u8]; MAX_BUFS] = [&[]; MAX_BUFS];
        let mut n = 0;
        let mut skip = self.offset;
        for frame in frames.iter().flatten() {
            for part in [&frame.header[..], &frame.payload[..]] {
                let skipped = skip.min(part.len());
                skip -= skipped;
                if skipped < part.len() && n < MAX_BUFS {
                    bufs[n] = &part[skipped..];
                    n += 1;
                }
            }
        }
        link.send(&bufs[..n])
    }

    /// `sent` bytes have gone; what they complete is dropped.
    fn advance(&mut self, sent: usize) {
        self.offset += sent;
        loop {
            let first = self.frames.iter().next().map(|f| f.len());
            match first {
                Some(len) if self.offset >= len => {
                    self.offset -= len;
                    self.count -= 1;
                    drop(self.frames.pop_front());
                }
                _ => return,
            }
        }
    }
}

/// The sending side of a connection.
#[pin_data]
pub(crate) struct Tx {
    #[pin]
    queue: SpinLockIrq<Queue>,
    sent_at: Atomic<u64>,
}

/// What somebody who sends a frame sends at most, others' frames too, before he leaves the rest to
/// the listener, bytes.
pub(crate) const SHARE: usize = 4 << 20;

/// The same for those who have more to do than that: the listener, which comes back to it when it has
/// served the other connections, and recovery.
pub(crate) const SMALL_SHARE: usize = 64 << 10;

impl Tx {
    /// An empty one.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            queue <- new_spinlock_irq!(
                Queue {
                    control: List::new(),
                    frames: List::new(),
                    unsent: Batch::new(),
                    busy: false,
                    again: false,
                    ending: false,
                    closed: false,
                },
                "Tx::queue"
            ),
            sent_at: Atomic::new(clock::now()),
        })
    }

    /// When something was last sent.
    pub(crate) fn last_sent(&self) -> Millis {
        self.sent_at.load(Relaxed)
    }

    /// Queues a frame behind all others.
    pub(crate) fn push(&self, frame: ListArc<OutFrame>) -> Result {
        let mut queue = self.queue.lock();
        if queue.ending {
            drop(queue);
            return Err(EHOSTDOWN);
        }
        queue.frames.push_back(frame);
        Ok(())
    }

    /// Queues a frame before all that are not control frames.
    pub(crate) fn push_control(&self, frame: ListArc<OutFrame>) -> Result {
        let mut queue = self.queue.lock();
        if queue.ending {
            drop(queue);
            return Err(EHOSTDOWN);
        }
        queue.control.push_back(frame);
        Ok(())
    }

    /// Queues a frame if no other waits.
    pub(crate) fn push_ping(&self, frame: ListArc<OutFrame>) {
        let mut queue = self.queue.lock();
        let idle = !queue.ending && !queue.busy && queue.unsent.count == 0;
        if idle && queue.control.is_empty() && queue.frames.is_empty() {
            queue.control.push_back(frame);
        } else {
            drop(queue);
            drop(frame);
        }
    }

    /// Takes no more frames, and drops those that wait.
    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock();
        queue.ending = true;
        queue.closed = true;
        let rest = queue.take();
        drop(queue);
        drop(rest);
    }

    /// Takes no more frames, and drops those that nobody has begun to send. `last` is sent behind the
    /// others. Returns whether it has been, or cannot be; if not, somebody else is sending, who is
    /// told [`Drained::Ended`] when that is done.
    pub(crate) fn end(&self, link: &dyn Link, last: ListArc<OutFrame>) -> bool {
        let mut queue = self.queue.lock();
        queue.ending = true;
        let (control, frames, unsent) = queue.take();
        queue.unsent = unsent;
        queue.control.push_back(last);
        drop(queue);
        drop((control, frames));
        matches!(self.drain(link, SMALL_SHARE), Ok(Drained::Ended))
    }

    /// Sends what waits, as far as there is room, until `share` is exceeded. Process context.
    pub(crate) fn drain(&self, link: &dyn Link, share: usize) -> Result<Drained> {
        let mut queue = self.queue.lock();
        if queue.busy {
            queue.again = true;
            return Ok(Drained::Done);
        }
        if queue.closed {
            return Ok(Drained::Done);
        }
        queue.busy = true;
        let mut batch = core::mem::replace(&mut queue.unsent, Batch::new());
        let mut total = 0;
        let result = loop {
            queue.again = false;
            if queue.closed {
                break Ok(Drained::Done);
            }
            batch.fill(&mut queue);
            if batch.count == 0 {
                break Ok(Drained::Done);
            }
            if total >= share && !queue.ending {
                break Ok(Drained::Yield);
            }
            drop(queue);
            let sent = batch.send(link);
            if let Ok(n) = sent {
                total += n;
                self.sent_at.store(clock::now(), Relaxed);
                batch.advance(n);
            }
            queue = self.queue.lock();
            match sent {
                Ok(_) => {}
                Err(e) if e == EAGAIN && queue.again => {}
                Err(e) if e == EAGAIN => break Ok(Drained::Done),
                Err(e) => break Err(e),
            }
        };
        queue.busy = false;
        if !queue.ending {
            queue.unsent = batch;
            return result;
        }
        // The connection has been ended meanwhile, and not by whoever sends.
        let was_closed = core::mem::replace(&mut queue.closed, true);
        let rest = queue.take();
        drop(queue);
        drop((batch, rest));
        Ok(if was_closed {
            Drained::Done
        } else {
            Drained::Ended
        })
    }
}
