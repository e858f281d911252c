// SPDX-License-Identifier: GPL-2.0

//! Sending and receiving messages (P5-P7).
//!
//! A receiver first looks into the receive queue; if a message that it asks for is there, it takes
//! it and goes on (P6, the paper's figure 2). If not, it enters itself into the receive-wait queue
//! and sleeps; the listener looks there when a message arrives, hands it over directly and wakes
//! the receiver (P7, figure 3). Both queues are a [`Matcher`]'s; this file adds the lock around it
//! and the sleeping.

mod arena;
pub(crate) mod matcher;

use crate::config::NodeId;
use crate::conn::credit::{
    message_cost,
    Lane, //
};
use crate::conn::frame::{
    Header,
    Received,
    FEW, //
};
use crate::conn::peer::{
    Charge,
    Counter,
    Peer, //
};
use crate::conn::session::Session;
use crate::conn::tx::{
    Blank,
    Urgency,
    Via, //
};
use crate::node::Node;
use crate::sys::clock;
use crate::sys::lock::{
    new_spinlock_bh,
    SpinLockBh, //
};
use crate::sys::wait::{
    OneShot,
    Timeout, //
};
use kernel::prelude::*;
#[cfg(KCCM_KUNIT)]
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::Arc;
use matcher::{
    Matcher,
    Need,
    Pattern,
    Room,
    Ticket, //
};

/// A message that has come in.
pub(crate) struct Message {
    tag: u32,
    bytes: Bytes,
    charge: Charge,
}

/// The bytes of a message.
enum Bytes {
    /// So many, at most [`FEW`]. They are beside it, in whatever place it is in.
    Few(usize),
    /// Any number.
    Many(KVVec<u8>),
}

impl Message {
    /// From a frame, which has been charged for. With it come its bytes, if they are few.
    pub(crate) fn new(tag: u32, payload: Received<'_>, charge: Charge) -> (Self, &[u8]) {
        let (bytes, few) = match payload {
            Received::Few(few) => (Bytes::Few(few.len()), few),
            Received::Many(bytes) => (Bytes::Many(bytes), &[][..]),
        };
        (Self { tag, bytes, charge }, few)
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        match &self.bytes {
            Bytes::Few(len) => *len,
            Bytes::Many(bytes) => bytes.len(),
        }
    }

    /// Whether its bytes are not in itself.
    pub(crate) fn is_few(&self) -> bool {
        matches!(self.bytes, Bytes::Few(_))
    }

    /// Copies its bytes, for which there is room, if they are few.
    fn copy_few(&self, few: &[u8; FEW], to: &mut [u8]) {
        if let Bytes::Few(len) = self.bytes {
            to[..len].copy_from_slice(&few[..len]);
        }
    }

    /// It was not delivered, and will come in again.
    pub(crate) fn cancel(self) {
        self.charge.cancel();
    }

    fn info(&self) -> Info {
        Info {
            source: self.charge.peer().id,
            tag: self.tag,
            len: self.len(),
        }
    }
}

/// What is known of a message before it is received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Info {
    /// Where it comes from.
    pub(crate) source: NodeId,
    /// Its tag.
    pub(crate) tag: u32,
    /// Its length in bytes.
    pub(crate) len: usize,
}

/// Set by a test: there is no memory to queue a message.
#[cfg(KCCM_KUNIT)]
pub(crate) static STARVED: Atomic<bool> = Atomic::new(false);

/// Memory to queue a message.
fn provide(memory: &mut Memory, need: Need) -> Result {
    #[cfg(KCCM_KUNIT)]
    if STARVED.load(Relaxed) {
        return Err(ENOMEM);
    }
    memory.fill(need)?;
    memory.stock();
    Ok(())
}

/// What somebody waits for.
#[derive(Clone, Copy)]
enum Wish {
    /// A message of at most so many bytes.
    Receive { capacity: usize },
    /// To know of one.
    Probe,
}

/// What somebody who waited gets.
enum Delivery {
    /// A message. If its bytes are few, they have been copied.
    Message(Message),
    /// A message was there; for a receiver, it was too long.
    Info(Info),
    Failed(Error),
}

/// Somebody who waits.
#[pin_data]
pub(crate) struct Waiter {
    wish: Wish,
    #[pin]
    delivery: SpinLockBh<Delivered>,
    #[pin]
    done: OneShot,
}

/// What a waiter gets.
struct Delivered {
    what: Option<Delivery>,
    /// The bytes of a message, if they are few.
    few: [u8; FEW],
}

impl Waiter {
    fn complete(&self, delivery: Delivery) {
        self.delivery.lock().what = Some(delivery);
        self.done.fire();
    }

    fn hand_over(&self, message: Message, few: &[u8]) {
        let mut delivered = self.delivery.lock();
        delivered.few[..few.len()].copy_from_slice(few);
        delivered.what = Some(Delivery::Message(message));
        drop(delivered);
        self.done.fire();
    }
}

/// What has been counted.
#[derive(Default)]
pub(crate) struct Stats {
    /// Messages that were queued, because nobody waited for them (figure 2).
    pub(crate) queued: Counter,
    /// Messages that were handed to somebody who slept (figure 3).
    pub(crate) handed_over: Counter,
}

type Queues = Matcher<Message, Arc<Waiter>>;
/// Memory for queueing messages.
pub(crate) type Memory = Room<Message, Arc<Waiter>>;

/// The receiving end of a node.
#[pin_data]
pub(crate) struct Endpoint {
    #[pin]
    queues: SpinLockBh<Queues>,
    /// What has been counted.
    pub(crate) stats: Stats,
}

impl Endpoint {
    /// One with nothing in it.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            queues <- new_spinlock_bh!(Matcher::new(), "Endpoint::queues"),
            stats: Stats::default(),
        })
    }

    /// How many messages and how many receivers wait.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let queues = self.queues.lock();
        (queues.messages(), queues.waiters())
    }

    /// A message of a session has come in: hands it to who waits for it, or queues it; or drops it, if the
    /// session is over, and returns `false`. Gives it back when there is no memory to do so. `few`: its
    /// bytes, if they are not in itself. What `memory` has left serves for the next. Process context.
    pub(crate) fn deliver(
        &self,
        session: &Session,
        message: Message,
        few: &[u8],
        memory: &mut Memory,
    ) -> Result<bool, Message> {
        let info = message.info();
        let Info { source, tag, len } = info;
        let mut message = message;
        // Somebody who is to be told of it, and then to find it: not before there is memory for that.
        let mut told: Option<Arc<Waiter>> = None;
        loop {
            let mut queues = self.queues.lock();
            // Another listener may have ended it, and be about to throw away what is here.
            if session.is_over() {
                drop(queues);
                if let Some(waiter) = told {
                    // It was there when he was found.
                    waiter.complete(Delivery::Info(info));
                }
                return Ok(false);
            }
            let mut lacking = None;
            while let Some(waiter) = told.take().or_else(|| queues.pop_waiter(source, tag)) {
                match waiter.wish {
                    Wish::Receive { capacity } if len <= capacity => {
                        drop(queues);
                        self.stats.handed_over.inc();
                        waiter.hand_over(message, few);
                        return Ok(true);
                    }
                    // It stays for somebody with more room, or who receives.
                    Wish::Receive { .. } | Wish::Probe => {
                        let need = queues.need_of_message(source, tag, memory);
                        if !need.is_none() {
                            told = Some(waiter);
                            lacking = Some(need);
                            break;
                        }
                        waiter.complete(Delivery::Info(info));
                    }
                }
            }
            let need = match lacking {
                Some(need) => need,
                None => match queues.push_message(source, tag, message, memory) {
                    Ok(handle) => {
                        if let Some(place) = queues.few(handle).filter(|_| !few.is_empty()) {
                            place[..few.len()].copy_from_slice(few);
                        }
                        drop(queues);
                        self.stats.queued.inc();
                        return Ok(true);
                    }
                    Err(full) => {
                        message = full.item;
                        full.need
                    }
                },
            };
            drop(queues);
            if provide(memory, need).is_err() {
                if let Some(waiter) = told {
                    waiter.complete(Delivery::Info(info));
                }
                return Err(message);
            }
        }
    }

    /// Completes all who wait for messages of exactly this source.
    pub(crate) fn fail_source(&self, source: NodeId, error: Error) {
        loop {
            let waiter = self.queues.lock().pop_waiter_of_source(source);
            match waiter {
                Some(waiter) => waiter.complete(Delivery::Failed(error)),
                None => return,
            }
        }
    }

    /// Completes all who wait, and drops all messages.
    pub(crate) fn close(&self) {
        loop {
            let waiter = self.queues.lock().pop_any_waiter();
            match waiter {
                Some(waiter) => waiter.complete(Delivery::Failed(ESHUTDOWN)),
                None => break,
            }
        }
        loop {
            let message = self.queues.lock().pop_any_message();
            if message.is_none() {
                return;
            }
        }
    }

    /// Drops all messages from a peer: they are of a session that another has taken the place of.
    pub(crate) fn purge(&self, source: NodeId) {
        let pattern = Pattern {
            source: Some(source),
            tag: None,
        };
        loop {
            let message = {
                let mut queues = self.queues.lock();
                let handle = queues.first(pattern).map(|first| first.handle);
                handle.and_then(|handle| queues.take(handle))
            };
            if message.is_none() {
                return;
            }
        }
    }

    /// Takes the first message that matches, if one is there and fits; or tells of it. If its bytes are
    /// few, copies them to `to`, which has the room of which the wish speaks.
    fn take(&self, pattern: Pattern, wish: Wish, to: &mut [u8]) -> Option<Delivery> {
        let mut queues = self.queues.lock();
        let delivery = Self::take_locked(&mut queues, pattern, wish, to);
        let surplus = queues.has_surplus();
        drop(queues);
        if surplus {
            self.shed();
        }
        delivery
    }

    /// Frees memory that the queues no longer need.
    fn shed(&self) {
        while self.queues.lock().has_surplus() {
            let mut surplus = Memory::new();
            self.queues.lock().shed(&mut surplus);
        }
    }

    fn take_locked(
        queues: &mut Queues,
        pattern: Pattern,
        wish: Wish,
        to: &mut [u8],
    ) -> Option<Delivery> {
        let first = queues.first(pattern)?;
        let info = Info {
            source: first.source,
            tag: first.tag,
            len: first.message.len(),
        };
        let handle = first.handle;
        match wish {
            Wish::Receive { capacity } if info.len <= capacity => {
                first.message.copy_few(first.few, to);
                queues
                    .take(handle)
                    .map(|(_, _, message)| Delivery::Message(message))
            }
            Wish::Receive { .. } | Wish::Probe => Some(Delivery::Info(info)),
        }
    }

    /// Takes the first message that matches, or enters a waiter.
    fn take_or_post(
        &self,
        pattern: Pattern,
        waiter: &Arc<Waiter>,
        to: &mut [u8],
    ) -> Result<Posted> {
        let mut memory = Memory::new();
        loop {
            let mut queues = self.queues.lock();
            if let Some(delivery) = Self::take_locked(&mut queues, pattern, waiter.wish, to) {
                return Ok(Posted::Delivered(delivery));
            }
            match queues.post_waiter(pattern, waiter.clone(), &mut memory) {
                Ok(ticket) => return Ok(Posted::Waiting(ticket)),
                Err(full) => {
                    drop(queues);
                    drop(full.item);
                    memory.fill(full.need)?;
                }
            }
        }
    }

    /// Takes a message, or waits for one. `may_come`: whether one can come at all, asked once the waiter
    /// can be found by whoever makes that untrue.
    fn take_or_wait(
        &self,
        pattern: Pattern,
        wish: Wish,
        to: &mut [u8],
        timeout: Timeout,
        may_come: impl FnOnce() -> Result,
    ) -> Result<Delivery> {
        // Who finds one needs no memory to wait with.
        if let Some(delivery) = self.take(pattern, wish, to) {
            return Ok(delivery);
        }
        let delivery = self.wait(pattern, wish, to, timeout, may_come);
        self.shed();
        delivery
    }

    fn wait(
        &self,
        pattern: Pattern,
        wish: Wish,
        to: &mut [u8],
        timeout: Timeout,
        may_come: impl FnOnce() -> Result,
    ) -> Result<Delivery> {
        let waiter = Arc::pin_init(
            pin_init!(Waiter {
                wish,
                delivery <- new_spinlock_bh!(
                    Delivered {
                        what: None,
                        few: [0; FEW],
                    },
                    "Waiter::delivery"
                ),
                done <- OneShot::new(),
            }),
            GFP_KERNEL,
        )?;
        let ticket = match self.take_or_post(pattern, &waiter, to)? {
            Posted::Delivered(delivery) => return Ok(delivery),
            Posted::Waiting(ticket) => ticket,
        };
        let waited = may_come().and_then(|()| waiter.done.wait(timeout));
        if let Err(e) = waited {
            // If it cannot be cancelled, it has been completed in the meantime.
            let cancelled = self.queues.lock().cancel(ticket);
            if cancelled.is_some() {
                return Err(e);
            }
            // Whoever popped it completes it at once.
            waiter.done.settle();
        }
        let mut delivered = waiter.delivery.lock();
        let what = delivered.what.take();
        if let Some(Delivery::Message(message)) = &what {
            message.copy_few(&delivered.few, to);
        }
        what.ok_or(EIO)
    }
}

/// What came of [`Endpoint::take_or_post`].
enum Posted {
    Delivered(Delivery),
    Waiting(Ticket),
}

// ---- What a node offers.

impl Node {
    /// Sends a message. See `kccm_send()`.
    pub(crate) fn send(&self, dst: NodeId, tag: u32, buf: &[u8], timeout: Timeout) -> Result {
        let peer = self.peer(dst).ok_or(EINVAL)?;
        let session = peer.sendable()?;
        self.post(peer, &session, tag, buf, Urgency::Soon, timeout)?;
        Ok(())
    }

    /// Sends a message and waits until it is delivered. See `kccm_send_sync()`.
    pub(crate) fn send_sync(&self, dst: NodeId, tag: u32, buf: &[u8], timeout: Timeout) -> Result {
        if timeout == Timeout::NoWait {
            return Err(EINVAL);
        }
        if self.queues.is_listener() {
            return Err(EDEADLK);
        }
        let started = clock::now();
        let peer = self.peer(dst).ok_or(EINVAL)?;
        let session = peer.sendable()?;
        let seq = self.post(peer, &session, tag, buf, Urgency::Now, timeout)?;
        session.confirm(seq, timeout.left(started), || !peer.is_up())
    }

    /// Sends a message over the channel for bulk. See `kccm_send_bulk()`.
    pub(crate) fn send_bulk(&self, dst: NodeId, tag: u32, buf: &[u8], timeout: Timeout) -> Result {
        let started = clock::now();
        let peer = self.peer(dst).ok_or(EINVAL)?;
        let bulk = peer.bulk().ok_or(EINVAL)?;
        if bulk.sendable().is_err() && buf.len() > peer.sendable()?.bounds.message as usize {
            // That is so on either channel, and need not be waited for.
            return Err(EMSGSIZE);
        }
        let session = self.bulk_session(peer, timeout)?;
        let left = timeout.left(started);
        self.post(bulk, &session, tag, buf, Urgency::Soon, left)?;
        Ok(())
    }

    /// Returns the number of the message in the session.
    fn post(
        &self,
        peer: &Arc<Peer>,
        session: &Arc<Session>,
        tag: u32,
        buf: &[u8],
        urgency: Urgency,
        timeout: Timeout,
    ) -> Result<u64> {
        let len = u32::try_from(buf.len())
            .ok()
            .filter(|&len| len <= session.bounds.message)
            .ok_or(EMSGSIZE)?;
        let bytes = session.payload(buf, urgency)?;
        let frame = Blank::new(GFP_KERNEL)?;
        let cost = message_cost(len);
        let is_listener = self.queues.is_listener();
        let kept = peer.admit(session, Lane::Messages, cost, timeout, !is_listener)?;
        let ask = kept.asks();
        let frame = frame.fill(Header::Message { tag, len }, bytes, None, Some(kept));
        let seq = session.transmit(frame, urgency, Self::share(is_listener), Via::Thread)?;
        if ask {
            session.ask();
        }
        peer.stats.tx_messages.inc();
        peer.stats.tx_bytes.add(len.into());
        Ok(seq)
    }

    /// Receives a message. See `kccm_recv()`.
    ///
    /// With `EMSGSIZE` comes what is known of the message that was too long.
    pub(crate) fn recv(
        &self,
        source: Option<NodeId>,
        tag: Option<u32>,
        buf: &mut [u8],
        timeout: Timeout,
    ) -> Result<Info, (Error, Option<Info>)> {
        let wish = Wish::Receive {
            capacity: buf.len(),
        };
        match self.obtain(source, tag, wish, buf, timeout) {
            Ok(Delivery::Message(message)) => {
                let info = message.info();
                if let Bytes::Many(bytes) = message.bytes {
                    if let Some(to) = buf.get_mut(..bytes.len()) {
                        to.copy_from_slice(&bytes);
                    }
                    self.recycle(bytes);
                }
                Ok(info)
            }
            Ok(Delivery::Info(info)) => Err((EMSGSIZE, Some(info))),
            Ok(Delivery::Failed(e)) | Err(e) => Err((e, None)),
        }
    }

    /// Receives a message of any length, in the memory that it has come in. See `kccm_recv_alloc()`.
    pub(crate) fn recv_alloc(
        &self,
        source: Option<NodeId>,
        tag: Option<u32>,
        timeout: Timeout,
    ) -> Result<(Info, KVVec<u8>)> {
        // A message that has been taken must not be lost for want of memory.
        let mut copy = KVVec::with_capacity(FEW, GFP_KERNEL)?;
        let mut few = [0; FEW];
        let wish = Wish::Receive {
            capacity: usize::MAX,
        };
        match self.obtain(source, tag, wish, &mut few, timeout)? {
            Delivery::Message(message) => {
                let info = message.info();
                let bytes = match message.bytes {
                    Bytes::Many(bytes) => bytes,
                    Bytes::Few(len) => {
                        copy.extend_from_slice(&few[..len], GFP_KERNEL)?;
                        copy
                    }
                };
                Ok((info, bytes))
            }
            Delivery::Failed(e) => Err(e),
            // There is no message that is too long.
            Delivery::Info(_) => Err(EIO),
        }
    }

    /// Tells of a message. See `kccm_probe()`.
    pub(crate) fn probe(
        &self,
        source: Option<NodeId>,
        tag: Option<u32>,
        timeout: Timeout,
    ) -> Result<Info> {
        match self.obtain(source, tag, Wish::Probe, &mut [], timeout)? {
            Delivery::Message(message) => Ok(message.info()),
            Delivery::Info(info) => Ok(info),
            Delivery::Failed(e) => Err(e),
        }
    }

    fn obtain(
        &self,
        source: Option<NodeId>,
        tag: Option<u32>,
        wish: Wish,
        to: &mut [u8],
        timeout: Timeout,
    ) -> Result<Delivery> {
        let peer = match source {
            Some(id) => Some(self.peer(id).ok_or(EINVAL)?),
            None => None,
        };
        let pattern = Pattern { source, tag };
        let may_come = || match peer {
            _ if self.is_stopping() => Err(ESHUTDOWN),
            Some(peer) if !peer.may_be_heard() => Err(EHOSTDOWN),
            _ => Ok(()),
        };
        if timeout == Timeout::NoWait || self.queues.is_listener() {
            // Asked first: when nothing can come any more, all that has is there to be found.
            let may_come = may_come();
            return match self.endpoint.take(pattern, wish, to) {
                Some(delivery) => Ok(delivery),
                None => {
                    may_come?;
                    Err(if timeout == Timeout::NoWait {
                        EAGAIN
                    } else {
                        EDEADLK
                    })
                }
            };
        }
        self.endpoint
            .take_or_wait(pattern, wish, to, timeout, may_come)
    }
}
