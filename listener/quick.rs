// SPDX-License-Identifier: GPL-2.0

//! What is seen to in the upcall itself, without waking the listener: the shortest way there is.
//!
//! A link that lets that be done ([`Within`]) tells of what has come in while whoever brought it still
//! has hold of it, as a rule in softirq context. Replies are handed to their callers then and there,
//! so that one thread is woken for a call's way back, not two; and calls of handlers that are made for
//! it ([`Class::Softirq`]) are run, and replied to, without any thread. What takes the listener is left
//! to it, and all that comes behind:
//!
//! - what only a thread can do: messages, other calls, good-byes, what is wrong, closing, granting;
//! - a frame that is not there whole, or for which there is no memory at this moment; but the rest of one
//!   that is not too long, and is for here, is waited for;
//! - everything, while the listener is at this connection itself: what it has begun it goes on with.
//!
//! So frames of a connection are handled in their order, by one at a time: whoever has claimed
//! [`Conn::rx`].
//!
//! Nothing here sleeps. Locks: those of [`crate`] that are spin locks, one after the other, under the
//! socket's.
//!
//! [`Class::Softirq`]: crate::rcall::handlers::Class::Softirq

use crate::conn::credit::{
    call_cost,
    Lane, //
};
use crate::conn::frame;
use crate::conn::frame::{
    Header,
    FEW,
    HEADER_LEN, //
};
use crate::conn::hello::Channel;
use crate::conn::inbox;
use crate::conn::inbox::Due;
use crate::conn::peer::Peer;
use crate::conn::transport::Within;
use crate::conn::tx::{
    Blank,
    Via, //
};
use crate::conn::{
    Conn,
    Phase, //
};
use crate::node::Node;
use crate::rcall;
use crate::rcall::handlers::Running;
use crate::rcall::{
    Incoming,
    Room,
    Wanted, //
};
use crate::sys::clock;
use kernel::prelude::*;
#[cfg(KCCM_KUNIT)]
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::Arc;

/// How many frames are handled in one upcall, so that it ends.
const FRAMES: u32 = 64;

/// And how many bytes, but for those of the last one.
const BYTES: usize = 128 << 10;

/// The longest payload that is waited for and copied in an upcall, bytes.
const PAYLOAD_MAX: usize = 64 << 10;

/// How many frames may be acknowledged by one, which are all let go of there.
const ACKNOWLEDGED: u64 = 256;

/// Something has come in on the link of `conn`, which is in its upcall. Returns whether all of that has
/// been seen to; the rest is for the listener.
pub(crate) fn serve(conn: &Arc<Conn>, link: &dyn Within) -> bool {
    if cfg!(CONFIG_PREEMPT_RT) {
        // An upcall can be preempted there, and the listener would wait for it spinning.
        return false;
    }
    let Some(rx) = conn.rx.try_claim() else {
        return false;
    };
    let begun = rx.held.is_some() || !rx.assembler.is_empty();
    if begun || conn.failure().is_some() || conn.is_spoilt() {
        return false;
    }
    let (Phase::Open(peer), Some(node)) = (&rx.phase, &rx.node) else {
        return false;
    };
    let upcall = Upcall {
        conn,
        link,
        peer,
        node,
    };
    if conn.awaits() {
        conn.set_awaits(false);
    }
    let mut bytes = 0;
    for _ in 0..FRAMES {
        match upcall.next() {
            Step::Handled(n) if bytes + n > BYTES => return false,
            Step::Handled(n) => bytes += n,
            Step::Empty => return !link.ended() && !peer.owes() && !conn.owes(),
            Step::Leave => return false,
        }
    }
    false
}

/// What is allocated for a call.
#[derive(Clone, Copy)]
pub(crate) enum Memory {
    /// Its reply's frame.
    Frame,
    /// Room for what that is to carry.
    Reply,
    /// The arguments.
    Arguments,
}

/// Set by a test: the bits of those of which there is none in upcalls.
#[cfg(KCCM_KUNIT)]
pub(crate) static SCARCE: Atomic<u32> = Atomic::new(0);

impl Memory {
    /// What was allocated, if it was.
    fn had<T>(self, made: Result<T>) -> Option<T> {
        #[cfg(KCCM_KUNIT)]
        if SCARCE.load(Relaxed) & (1 << self as u32) != 0 {
            return None;
        }
        made.ok()
    }
}

/// What came of looking at the next frame.
enum Step {
    /// It has been handled; so many bytes came with it.
    Handled(usize),
    /// There is none.
    Empty,
    /// It is for the listener.
    Leave,
}

struct Upcall<'a> {
    conn: &'a Arc<Conn>,
    link: &'a dyn Within,
    peer: &'a Arc<Peer>,
    node: &'a Arc<Node>,
}

impl Upcall<'_> {
    fn next(&self) -> Step {
        let Some((bytes, there)) = self.link.peek() else {
            return if self.link.is_empty() {
                Step::Empty
            } else {
                Step::Leave
            };
        };
        // What is wrong with it, the listener says.
        let Ok((header, numbers)) = frame::parse(&bytes, self.node.identity.bounds) else {
            return Step::Leave;
        };
        if header.payload_len() as usize > PAYLOAD_MAX {
            return Step::Leave;
        }
        if header.is_sequenced() && self.peer.channel == Channel::Bulk {
            return Step::Leave;
        }
        let whole = there >= HEADER_LEN + header.payload_len() as usize;
        // Before anything is allocated for it.
        let easy = self
            .conn
            .session()
            .is_some_and(|session| session.is_easy(numbers, ACKNOWLEDGED));
        if !easy {
            return Step::Leave;
        }
        if !whole {
            return self.awaits(header);
        }
        if !self.is_next(numbers) {
            return Step::Leave;
        }
        match self.handle(header, numbers) {
            Some(()) => Step::Handled(header.payload_len() as usize),
            None => Step::Leave,
        }
    }

    /// What to do with a frame that is not there whole: one that is handled here when it will be, is
    /// waited for.
    fn awaits(&self, header: Header) -> Step {
        let len = header.payload_len() as usize;
        let is_ours = match header {
            Header::Reply { .. } => true,
            Header::Call { func, .. } | Header::CallSync { func, .. } => {
                self.node.handlers.begin_softirq(func, len).is_some()
            }
            _ => false,
        };
        if is_ours && self.link.awaits(HEADER_LEN + len) {
            self.conn.set_awaits(true);
            Step::Empty
        } else {
            Step::Leave
        }
    }

    /// Takes note of what a frame acknowledges. Returns whether it is the next one; what makes no sense, or
    /// came before, is the listener's to see to, which finds the same.
    fn is_next(&self, numbers: frame::Numbers) -> bool {
        let session = self.conn.session();
        session.is_some_and(|session| matches!(session.receive(numbers), Ok(true)))
    }

    /// Handles the next frame, which is there whole; `None` if it is for the listener.
    fn handle(&self, header: Header, numbers: frame::Numbers) -> Option<()> {
        // All that can fail comes before anything is done: what is left is still there then.
        match header {
            Header::Reply {
                id,
                outcome,
                status,
                needed,
                len,
            } => {
                let reply = rcall::Reply {
                    outcome,
                    status,
                    needed,
                };
                let len = len as usize;
                let copy = |to: &mut [u8]| self.link.copy(HEADER_LEN, to).ok();
                let calls = &self.node.calls;
                let answered = calls.complete_with(self.peer.id, id, reply, len, copy)?;
                let passed = self.pass(len);
                if passed.is_some() {
                    self.delivered(numbers.seq, len);
                }
                answered.wake();
                passed?;
            }
            Header::Call { func, len } => {
                let running = self.node.handlers.begin_softirq(func, len as usize)?;
                self.call(running, numbers, func, len, 0, None)?;
            }
            Header::CallSync {
                id,
                func,
                reply_max,
                len,
            } => {
                let running = self.node.handlers.begin_softirq(func, len as usize)?;
                let wanted = Wanted {
                    id,
                    reply_max,
                    frame: Memory::Frame.had(Blank::new(self.via().flags()))?,
                };
                self.call(running, numbers, func, len, reply_max, Some(wanted))?;
            }
            Header::Credit { lane, limit } => {
                // Later grants say all that this one does, so it can be handed over twice.
                self.peer.granted(lane, limit).ok()?;
                self.pass(0)?;
            }
            Header::Ping { answer: false } => self.pass(0)?,
            Header::Ping { answer: true }
            | Header::Message { .. }
            | Header::Bye(_)
            | Header::Open => return None,
        }
        Some(())
    }

    /// A call of a handler for softirqs.
    fn call(
        &self,
        running: Running,
        numbers: frame::Numbers,
        func: u32,
        len: u32,
        reply_max: u32,
        wanted: Option<Wanted>,
    ) -> Option<()> {
        let session = self.conn.session()?.clone();
        let room = Memory::Reply.had(Room::new(reply_max as usize, &session, self.via()))?;
        let len = len as usize;
        let mut few = [0; FEW];
        let mut many = if len > FEW {
            // Of virtual memory none is to be had here.
            let memory = KVec::with_capacity(len, self.via().flags());
            Memory::Arguments.had(memory.map_err(Error::from))?
        } else {
            KVec::new()
        };
        let cost = call_cost(len as u32, reply_max);
        let charge = self.peer.charge(Lane::Calls, cost).ok()?;
        let copied = if len <= FEW {
            self.link.copy(HEADER_LEN, &mut few[..len])
        } else {
            self.link.copy_many(HEADER_LEN, len, &mut many)
        };
        if copied.is_err() {
            charge.cancel();
            return None;
        }
        let args = if len <= FEW { &few[..len] } else { &many[..] };
        self.peer.stats.rx_rcalls.inc();
        let call = Incoming::new(session, func, KVVec::new(), wanted, charge);
        self.delivered(numbers.seq, len);
        rcall::run_in(call, args, running, room, Some(self.node), self.via());
        // Only now: TCP acknowledges what has been taken, unless the reply has done so.
        self.pass(len)
    }

    fn via(&self) -> Via<'_> {
        Via::Upcall(self.conn, self.link)
    }

    /// Takes the next frame, with a payload of `len` bytes, which is not needed any more.
    fn pass(&self, len: usize) -> Option<()> {
        if self.link.pass(HEADER_LEN + len).is_err() {
            self.conn.spoil();
            return None;
        }
        self.peer.stats.rx_bytes.add(len as u64);
        Some(())
    }

    fn delivered(&self, seq: u64, len: usize) {
        let Some(session) = self.conn.session() else {
            return;
        };
        match session.delivered(seq, len) {
            Due::Now => self.conn.owe(),
            Due::Later => self.node.look_by(self.peer, clock::now() + inbox::DELAY),
            Due::Pending => {}
        }
    }
}
