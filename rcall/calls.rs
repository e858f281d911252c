// SPDX-License-Identifier: GPL-2.0

//! Synchronous calls of this node that wait for their reply.

use crate::config::NodeId;
use crate::conn::frame::{
    Outcome,
    Received, //
};
use crate::sys::lend::Desk;
use crate::sys::lock::{
    new_spinlock_bh,
    SpinLockBh, //
};
use crate::sys::wait::{
    OneShot,
    Timeout, //
};
use kernel::prelude::*;
use kernel::rbtree::{
    RBTree,
    RBTreeNodeReservation, //
};
use kernel::static_lock_class;
use kernel::sync::Arc;

/// What a reply says, apart from its bytes.
#[derive(Clone, Copy)]
pub(crate) struct Reply {
    /// What became of the call.
    pub(crate) outcome: Outcome,
    /// What the handler returned.
    pub(crate) status: i32,
    /// How long the reply is, also where it was too long to be sent.
    pub(crate) needed: u32,
}

/// How far a call has come.
enum State {
    /// Its reply is awaited.
    Waiting,
    /// It has come.
    Replied(Reply),
    /// It will not.
    Failed(Error),
}

struct Answer {
    state: State,
    /// How many bytes of the reply are in the caller's buffer.
    len: usize,
    /// Or all of them, which came in memory of their own.
    many: KVVec<u8>,
}

#[pin_data]
struct Waiter {
    /// The caller lends the buffer for its reply.
    #[pin]
    answer: Desk<Answer>,
    #[pin]
    done: OneShot,
}

impl Waiter {
    fn new() -> Result<Arc<Self>> {
        let answer = Answer {
            state: State::Waiting,
            len: 0,
            many: KVVec::new(),
        };
        Arc::pin_init(
            pin_init!(Self {
                answer <- Desk::new(answer, c"Waiter::answer", static_lock_class!()),
                done <- OneShot::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Makes it as good as new. Nobody else has a reference.
    fn rearm(&self) {
        let many = self.answer.with(|answer, _| {
            answer.state = State::Waiting;
            answer.len = 0;
            core::mem::replace(&mut answer.many, KVVec::new())
        });
        drop(many);
        self.done.rearm();
    }

    /// Ends the wait, unless it has ended, by `body`, which is given the buffer that there is and says
    /// what has come. Returns whether it has ended it; nothing if `body` failed. Any context.
    fn end(&self, body: impl FnOnce(&mut Answer, &mut [u8]) -> Option<State>) -> Option<bool> {
        self.answer.with(|answer, buf| {
            if !matches!(answer.state, State::Waiting) {
                return Some(false);
            }
            answer.state = body(answer, buf.unwrap_or(&mut []))?;
            Some(true)
        })
    }

    /// Ends the wait, unless it has ended. Any context.
    fn complete(&self, result: Result<Reply>, bytes: Received<'_>) {
        // What is not wanted any more is dropped without the lock.
        let mut bytes = Some(bytes);
        let ended = self.end(|answer, buf| {
            match bytes.take()? {
                Received::Few(bytes) => {
                    let (buf, bytes) = both(buf, bytes);
                    buf.copy_from_slice(bytes);
                    answer.len = bytes.len();
                }
                Received::Many(bytes) => answer.many = bytes,
            }
            Some(match result {
                Ok(reply) => State::Replied(reply),
                Err(e) => State::Failed(e),
            })
        });
        if ended == Some(true) {
            self.done.fire();
        }
    }

    /// Ends the wait, unless it has ended, with a reply of `len` bytes, which `copy` copies. Returns
    /// whether it has, and nothing if that failed. Any context.
    fn fill(
        &self,
        reply: Reply,
        len: usize,
        copy: impl FnOnce(&mut [u8]) -> Option<()>,
    ) -> Option<bool> {
        self.end(|answer, buf| {
            let n = len.min(buf.len());
            copy(&mut buf[..n])?;
            answer.len = n;
            Some(State::Replied(reply))
        })
    }

    /// Nobody waits any more. Returns what has come, or else `error`.
    fn take(&self, error: Error) -> Result<(Reply, usize, KVVec<u8>)> {
        self.answer.with(|answer, _| match answer.state {
            State::Waiting => {
                // What comes from now on comes too late.
                answer.state = State::Failed(error);
                Err(error)
            }
            State::Failed(e) => Err(e),
            State::Replied(reply) => {
                let many = core::mem::replace(&mut answer.many, KVVec::new());
                Ok((reply, answer.len, many))
            }
        })
    }
}

/// The start of either, as long as the shorter.
fn both<'a, 'b>(to: &'a mut [u8], from: &'b [u8]) -> (&'a mut [u8], &'b [u8]) {
    let n = to.len().min(from.len());
    (&mut to[..n], &from[..n])
}

/// A call that has got its reply, and whose caller has yet to be woken.
pub(crate) struct Answered(Option<Arc<Waiter>>);

impl Answered {
    /// Wakes him. Any context.
    pub(crate) fn wake(self) {
        if let Some(waiter) = self.0 {
            waiter.done.fire();
        }
    }
}

/// What a call waits in.
struct Entry {
    dst: NodeId,
    waiter: Arc<Waiter>,
}

/// Memory for one more call.
struct Spare {
    node: RBTreeNodeReservation<u64, Entry>,
    waiter: Arc<Waiter>,
}

impl Spare {
    fn new() -> Result<Self> {
        Ok(Self {
            node: RBTreeNodeReservation::new(GFP_KERNEL)?,
            waiter: Waiter::new()?,
        })
    }
}

struct Table {
    next: u64,
    waiting: RBTree<u64, Entry>,
    /// How many they are.
    count: usize,
    /// Memory of calls that are over, for the next. It has room for [`SPARES`].
    spares: KVec<Spare>,
}

/// For how many calls memory is kept.
const SPARES: usize = 64;

/// The calls of a node.
#[pin_data]
pub(crate) struct Calls {
    #[pin]
    table: SpinLockBh<Table>,
}

impl Calls {
    /// None yet.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            table <- new_spinlock_bh!(
                Table {
                    next: 1,
                    waiting: RBTree::new(),
                    count: 0,
                    spares: KVec::with_capacity(SPARES, GFP_KERNEL)?,
                },
                "Calls::table"
            ),
        }? Error)
    }

    /// Enters a call, which can be completed from now on. Process context.
    pub(crate) fn begin(&self, dst: NodeId) -> Result<Pending<'_>> {
        let mut table = self.table.lock();
        let spare = match table.spares.pop() {
            Some(spare) => spare,
            None => {
                drop(table);
                let spare = Spare::new()?;
                table = self.table.lock();
                spare
            }
        };
        let id = table.next;
        table.next += 1;
        let waiter = spare.waiter;
        let entry = Entry {
            dst,
            waiter: waiter.clone(),
        };
        table.waiting.insert(spare.node.into_node(id, entry));
        table.count += 1;
        Ok(Pending {
            calls: self,
            id,
            waiter: Some(waiter),
        })
    }

    /// Who waits for the reply to a call to `source`.
    fn find(&self, source: NodeId, id: u64) -> Option<Arc<Waiter>> {
        let table = self.table.lock();
        let found = table.waiting.get(&id).filter(|entry| entry.dst == source);
        found.map(|entry| entry.waiter.clone())
    }

    /// A reply has come in from `source`. One that nobody waits for any more is dropped. Any context.
    pub(crate) fn complete(&self, source: NodeId, id: u64, reply: Reply, bytes: Received<'_>) {
        if let Some(waiter) = self.find(source, id) {
            waiter.complete(Ok(reply), bytes);
        }
    }

    /// The same for one of `len` bytes, whose first ones `copy` copies straight to where the caller wants
    /// them; it must not sleep. Nothing has been done if it fails. Any context.
    pub(crate) fn complete_with(
        &self,
        source: NodeId,
        id: u64,
        reply: Reply,
        len: usize,
        copy: impl FnOnce(&mut [u8]) -> Option<()>,
    ) -> Option<Answered> {
        let waiter = self.find(source, id);
        let waits = match &waiter {
            Some(waiter) => waiter.fill(reply, len, copy)?,
            None => false,
        };
        Some(Answered(waiter.filter(|_| waits)))
    }

    /// The first call from this one on, if it is to `dst` who waits for it.
    fn next_from(&self, from: u64, dst: Option<NodeId>) -> Option<(u64, Option<Arc<Waiter>>)> {
        let table = self.table.lock();
        let cursor = table.waiting.cursor_lower_bound(&from)?;
        let (id, entry) = cursor.current();
        let matches = dst.is_none_or(|dst| entry.dst == dst);
        Some((*id, matches.then(|| entry.waiter.clone())))
    }

    /// Completes all calls to `dst`, or all if `None`, with an error.
    pub(crate) fn fail(&self, dst: Option<NodeId>, error: Error) {
        let mut from = 0;
        while let Some((id, waiter)) = self.next_from(from, dst) {
            from = id + 1;
            if let Some(waiter) = waiter {
                waiter.complete(Err(error), Received::Few(&[]));
            }
        }
    }

    /// How many have not ended.
    pub(crate) fn waiting(&self) -> usize {
        self.table.lock().count
    }

    /// A call is over.
    fn end(&self, id: u64, waiter: Arc<Waiter>) {
        let mut table = self.table.lock();
        let node = table.waiting.remove_node(&id);
        table.count -= usize::from(node.is_some());
        drop(table);
        // Who is completing it at this moment has a reference: then it is not used again.
        let (Some(node), Some(waiter)) = (node.map(|node| node.into_reservation()), unique(waiter))
        else {
            return;
        };
        waiter.rearm();
        let spare = Spare { node, waiter };
        let mut table = self.table.lock();
        let left = if table.spares.len() < SPARES {
            table.spares.push_within_capacity(spare).err()
        } else {
            None
        };
        drop(table);
        drop(left);
    }
}

/// The waiter, if nobody else has a reference.
fn unique(waiter: Arc<Waiter>) -> Option<Arc<Waiter>> {
    Arc::into_unique_or_drop(waiter).map(Arc::from)
}

/// A call that waits for its reply; no longer when this is dropped.
pub(crate) struct Pending<'a> {
    calls: &'a Calls,
    id: u64,
    /// Until it is dropped.
    waiter: Option<Arc<Waiter>>,
}

impl Pending<'_> {
    /// What its reply will name.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Makes the call, by `place`, which returns how long to wait; and waits for the reply, and has it put
    /// in `buf`, cut off where that ends. Returns what it says, and how many bytes were put there. Memory
    /// that the reply came in goes to `used`.
    #[inline(always)]
    pub(crate) fn make(
        self,
        buf: &mut [u8],
        place: impl FnOnce() -> Result<Timeout>,
        used: impl FnOnce(KVVec<u8>),
    ) -> Result<(Reply, usize)> {
        let waiter = self.waiter.as_ref().ok_or(EIO)?;
        let (reply, len, many) = waiter.answer.lend(buf, || {
            let waited = waiter.done.wait(place()?);
            waiter.take(waited.err().unwrap_or(EIO))
        })?;
        if many.is_empty() {
            return Ok((reply, len));
        }
        let (buf, bytes) = both(buf, &many);
        buf.copy_from_slice(bytes);
        let len = bytes.len();
        used(many);
        Ok((reply, len))
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            self.calls.end(self.id, waiter);
        }
    }
}
