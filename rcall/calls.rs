// SPDX-License-Identifier: GPL-2.0

//! Synchronous calls of this node that wait for their reply.

use crate::config::NodeId;
use crate::conn::frame::{
    Outcome,
    Received,
    FEW, //
};
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
    len: usize,
    /// The bytes of the reply, few of them in place.
    few: [u8; FEW],
    many: KVVec<u8>,
}

#[pin_data]
struct Waiter {
    #[pin]
    answer: SpinLockBh<Answer>,
    #[pin]
    done: OneShot,
}

impl Waiter {
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                answer <- new_spinlock_bh!(
                    Answer {
                        state: State::Waiting,
                        len: 0,
                        few: [0; FEW],
                        many: KVVec::new(),
                    },
                    "Waiter::answer"
                ),
                done <- OneShot::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Makes it as good as new. Nobody else has a reference.
    fn rearm(&self) {
        let mut answer = self.answer.lock();
        answer.state = State::Waiting;
        let many = core::mem::replace(&mut answer.many, KVVec::new());
        drop(answer);
        drop(many);
        self.done.rearm();
    }

    /// Ends the wait, unless it has ended. Any context.
    fn complete(&self, result: Result<Reply>, bytes: Received<'_>) {
        let mut answer = self.answer.lock();
        if !matches!(answer.state, State::Waiting) {
            return;
        }
        answer.state = match result {
            Ok(reply) => State::Replied(reply),
            Err(e) => State::Failed(e),
        };
        answer.len = bytes.len();
        match bytes {
            Received::Few(bytes) => answer.few[..bytes.len()].copy_from_slice(bytes),
            Received::Many(bytes) => answer.many = bytes,
        }
        drop(answer);
        self.done.fire();
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

    /// A reply has come in from `source`. One that nobody waits for any more is dropped. Any context.
    pub(crate) fn complete(&self, source: NodeId, id: u64, reply: Reply, bytes: Received<'_>) {
        let table = self.table.lock();
        let found = table.waiting.get(&id).filter(|entry| entry.dst == source);
        let waiter = found.map(|entry| entry.waiter.clone());
        drop(table);
        if let Some(waiter) = waiter {
            waiter.complete(Ok(reply), bytes);
        }
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

    /// Waits for the reply, and puts it in `buf`, cut off where that ends. Returns what it says, and how
    /// many bytes were put there.
    pub(crate) fn wait(self, timeout: Timeout, buf: &mut [u8]) -> Result<(Reply, usize)> {
        let waiter = self.waiter.as_ref().ok_or(EIO)?;
        let waited = waiter.done.wait(timeout);
        let mut answer = waiter.answer.lock();
        let reply = match answer.state {
            // What comes from now on comes too late.
            State::Waiting => {
                answer.state = State::Failed(EIO);
                drop(answer);
                return Err(waited.err().unwrap_or(EIO));
            }
            State::Failed(e) => return Err(e),
            State::Replied(reply) => reply,
        };
        let len = answer.len.min(buf.len());
        if let Some(few) = answer.few.get(..len).filter(|_| answer.many.is_empty()) {
            buf[..len].copy_from_slice(few);
        } else {
            let many = core::mem::replace(&mut answer.many, KVVec::new());
            drop(answer);
            buf[..len].copy_from_slice(&many[..len]);
        }
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
