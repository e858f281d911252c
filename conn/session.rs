// SPDX-License-Identifier: GPL-2.0

//! A session: what two incarnations have with each other, over however many connections.
//!
//! `Documentation/protocol.md` says what it promises, `Documentation/model` proves it.
//!
//! | part       | what it does                                                        |
//! |------------|---------------------------------------------------------------------|
//! | [`Outbox`] | numbers frames, and keeps them until they are acknowledged          |
//! | [`Tx`]     | sends them, over the connection that there is                       |
//! | [`Inbox`]  | judges the numbers of what comes in, and when to acknowledge        |
//!
//! [`Outbox`]: super::outbox::Outbox

use super::credit::Lane;
use super::frame::{
    Bounds,
    Bye,
    Header,
    Numbers, //
};
use super::hello::{
    Identity,
    Standing, //
};
use super::inbox::{
    Due,
    Inbox,
    Verdict, //
};
use super::outbox::Violation;
use super::tx;
use super::tx::{
    Drained,
    OutFrame,
    Payload,
    Store,
    Tx,
    Urgency,
    Via, //
};
use super::Conn;
use crate::sys::clock;
use crate::sys::clock::Millis;
use crate::sys::wait::{
    Timeout,
    WaitQueue, //
};
use kernel::list::ListArc;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Acquire,
    Atomic,
    Full,
    Relaxed, //
};
use kernel::sync::{
    static_lock_class,
    Arc, //
};

/// A session.
#[pin_data]
pub(crate) struct Session {
    /// Which of this node's sessions with that peer it is, from 1.
    pub(crate) number: u64,
    /// The peer, as it said when the session began.
    pub(crate) peer: Identity,
    /// The longest frames that both sides accept.
    pub(crate) bounds: Bounds,
    #[pin]
    tx: Tx,
    inbox: Inbox,
    /// Why it is over, an errno, or 0.
    over: Atomic<i32>,
    /// Another incarnation of the peer has taken its place.
    superseded: Atomic<bool>,
    /// Notified of acknowledgements, while there are any who wait for some, and of the end.
    #[pin]
    acknowledged: WaitQueue,
    waiting: Atomic<u32>,
}

impl Session {
    /// The `number`th session of a node that accepts frames within `own`.
    pub(crate) fn new(number: u64, peer: Identity, own: Bounds) -> Result<Arc<Self>> {
        let bounds = Bounds {
            message: peer.bounds.message.min(own.message),
            rcall: peer.bounds.rcall.min(own.rcall),
        };
        Arc::pin_init(
            pin_init!(Self {
                number,
                peer,
                bounds,
                tx <- Tx::new(),
                inbox: Inbox::new(),
                over: Atomic::new(0),
                superseded: Atomic::new(false),
                acknowledged <- WaitQueue::new(c"Session::acknowledged", static_lock_class!()),
                waiting: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    // ---- Sending.

    /// [`Tx::payload`].
    #[inline]
    pub(crate) fn payload<'a>(&self, bytes: &'a [u8], urgency: Urgency) -> Result<Payload<'a>> {
        self.tx.payload(bytes, urgency)
    }

    /// [`Tx::room`].
    pub(crate) fn room(&self, len: usize, via: Via<'_>) -> Result<Store> {
        self.tx.room(len, via)
    }

    /// [`Tx::trim`].
    pub(crate) fn trim(&self) {
        self.tx.trim();
    }

    /// Queues a frame and sends as much as there is room for, or leaves it to be sent soon. Returns its
    /// number. Process context, or as `via` says.
    ///
    /// Frames are delivered in the order of these calls. If the session is over, says why.
    pub(crate) fn transmit(
        &self,
        frame: ListArc<OutFrame>,
        urgency: Urgency,
        share: usize,
        via: Via<'_>,
    ) -> Result<u64> {
        match self.tx.transmit(frame, &self.inbox, urgency, share, via) {
            Ok((seq, drained)) => {
                self.see_to(drained);
                Ok(seq)
            }
            Err(frame) => {
                drop(frame);
                Err(self.why_over())
            }
        }
    }

    /// Grants credit over this connection, before any other frame that waits. Process context.
    pub(crate) fn grant(&self, conn: &Arc<Conn>, lane: Lane, limit: u64) -> Result {
        let frame = OutFrame::control(Header::Credit { lane, limit })?;
        self.tx.push_credit(conn, lane, frame);
        self.flush();
        Ok(())
    }

    /// Sends some of what waits, and has the listener send the rest. Process context.
    pub(crate) fn flush(&self) {
        self.see_to(self.tx.drain(&self.inbox, tx::SMALL_SHARE));
    }

    /// Does what follows from what has been sent.
    fn see_to(&self, drained: Drained) {
        match drained {
            Drained::Done => {}
            Drained::Yield(conn) => conn.schedule(),
            // What came in before that, perhaps a `Bye`, says more than the error, which the
            // listener will find behind it.
            Drained::Failed(conn, e) if e == EPIPE || e == ECONNRESET || conn.unread() => {
                conn.schedule()
            }
            Drained::Failed(conn, e) => conn.fail(e, None),
        }
    }

    /// Asks the peer over this connection to open the channel for bulk. Process context.
    pub(crate) fn ask_for_bulk(&self, conn: &Arc<Conn>) {
        match OutFrame::control(Header::Open) {
            Ok(frame) => {
                self.tx.push_control(conn, frame);
                self.flush();
            }
            // Whoever waits would wait for ever; it is asked for anew over a new connection.
            Err(e) => conn.fail(e, None),
        }
    }

    /// Sends a sign of life and an acknowledgement, unless other frames wait, which are as good.
    /// Process context.
    pub(crate) fn ping(&self) {
        // If there is no memory for it, the next one may do.
        if let Ok(frame) = OutFrame::control(Header::Ping { answer: false }) {
            self.tx.push_ping(frame);
            self.flush();
        }
    }

    // ---- Receiving. By one listener at a time.

    /// Reads many bytes, and then sends what was left to the reader meanwhile. Process context.
    pub(crate) fn read_many<T>(&self, read: impl FnOnce() -> T) -> T {
        self.tx.set_reading(true);
        let result = read();
        if self.tx.set_reading(false) {
            // As much as may have been read.
            self.see_to(self.tx.drain(&self.inbox, super::MOST));
        }
        result
    }

    /// A frame has come in. Judges its numbers, and takes note of what it acknowledges. Returns
    /// whether it is to be handled. `EPROTO` if it makes no sense.
    pub(crate) fn receive(&self, numbers: Numbers) -> Result<bool> {
        if self.tx.acknowledge(numbers.ack).map_err(|_| EPROTO)? && self.waiting.load(Relaxed) > 0 {
            self.acknowledged.notify_all();
        }
        if numbers.seq == 0 {
            return Ok(true);
        }
        match self.inbox.judge(numbers.seq) {
            Verdict::Next => Ok(true),
            Verdict::Duplicate => Ok(false),
            Verdict::Gap => Err(EPROTO),
        }
    }

    /// Whether a frame with these numbers is the next one, or has none, and acknowledges no more than so
    /// many others. Any context.
    pub(crate) fn is_easy(&self, numbers: Numbers, most: u64) -> bool {
        let next = numbers.seq == 0 || self.inbox.judge(numbers.seq) == Verdict::Next;
        next && self.tx.would_forget(numbers.ack) <= most
    }

    /// The frame of this number has been delivered. Returns when that is to be acknowledged: now, by
    /// [`Session::ping`], or later, which is for recovery to see to. Any context.
    pub(crate) fn delivered(&self, seq: u64, len: usize) -> Due {
        self.inbox.deliver(seq, len as u64, clock::now)
    }

    /// Acknowledges at once what is owed, if the other side has not been told meanwhile.
    pub(crate) fn acknowledge_now(&self) {
        if self.inbox.owes() {
            self.ping();
        }
    }

    /// Acknowledges what is due by itself. Returns when to ask again. Process context.
    pub(crate) fn acknowledge_late(&self, now: Millis) -> Option<Millis> {
        match self.inbox.is_due(now) {
            Ok(true) => self.ping(),
            Ok(false) => {}
            Err(due) => return Some(due),
        }
        None
    }

    // ---- Connections.

    /// Where it stands, but for what is granted.
    pub(crate) fn standing(&self, granted: [u64; 2]) -> Standing {
        Standing {
            with: self.peer.incarnation,
            received: self.inbox.received(),
            granted,
        }
    }

    /// Whether it goes on with a peer that has received so much.
    pub(crate) fn can_resume(&self, received: u64) -> bool {
        !self.is_over() && self.tx.can_resume(received)
    }

    /// From now on frames go over this connection, from what the peer has received on.
    pub(crate) fn attach(&self, conn: &Arc<Conn>, received: u64) -> Result<(), Violation> {
        self.tx.attach(conn, received)
    }

    /// This connection has failed.
    pub(crate) fn detach(&self, conn: &Arc<Conn>) {
        self.tx.detach(conn);
    }

    /// Says good-bye over this connection and closes it, as soon as whoever is sending has done so.
    pub(crate) fn end_connection(&self, conn: &Arc<Conn>, why: Bye) {
        match OutFrame::control(Header::Bye(why)) {
            Ok(last) => self.tx.end(&self.inbox, conn, last),
            // The end of the stream says enough.
            Err(_) => {
                self.tx.detach(conn);
                conn.close_link(true);
            }
        }
    }

    // ---- The end.

    /// Nothing is sent or delivered in it any more, for this reason.
    pub(crate) fn close(&self, error: Error) {
        if self.over.cmpxchg(0, error.to_errno(), Full).is_ok() {
            self.tx.close();
            self.acknowledged.notify_all();
        }
    }

    /// Another incarnation of the peer has taken its place: what it has left behind is of no use.
    pub(crate) fn supersede(&self) {
        self.superseded.store(true, Relaxed);
    }

    /// Whether another incarnation of the peer has taken its place.
    pub(crate) fn is_superseded(&self) -> bool {
        self.superseded.load(Relaxed)
    }

    /// Whether it is over.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Acquire) != 0
    }

    /// Why it is over.
    pub(crate) fn why_over(&self) -> Error {
        match self.over.load(Acquire) {
            0 => EHOSTDOWN,
            errno => Error::from_errno(errno),
        }
    }

    // ---- Confirmation.

    /// Waits until the frame with this number is acknowledged, or `is_down`. Process context.
    pub(crate) fn confirm(&self, seq: u64, timeout: Timeout, is_down: impl Fn() -> bool) -> Result {
        self.ask();
        self.waiting.fetch_add(1, Full);
        let result = self.acknowledged.wait_until(timeout, || {
            if self.tx.acked() >= seq {
                Some(Ok(()))
            } else if self.is_over() {
                Some(Err(self.why_over()))
            } else if is_down() {
                Some(Err(EHOSTDOWN))
            } else {
                None
            }
        });
        self.waiting.fetch_sub(1, Full);
        result?
    }

    /// Has the peer acknowledge what it has at once. Without memory for it, it will do so later.
    /// Process context.
    pub(crate) fn ask(&self) {
        if let Ok(frame) = OutFrame::control(Header::Ping { answer: true }) {
            self.tx.push_question(frame);
            self.flush();
        }
    }

    /// The peer is down or up.
    pub(crate) fn changed(&self) {
        self.acknowledged.notify_all();
    }
}
