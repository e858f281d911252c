// SPDX-License-Identifier: GPL-2.0

//! Synchronous calls of this node that wait for their reply.

use crate::config::NodeId;
use crate::conn::frame::Outcome;
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
    RBTreeNode, //
};
use kernel::sync::Arc;

/// The reply to a call, as it came in.
pub(crate) struct Reply {
    /// What became of the call.
    pub(crate) outcome: Outcome,
    /// What the handler returned.
    pub(crate) status: i32,
    /// How long the reply is, also where it was too long to be sent.
    pub(crate) needed: u32,
    /// The reply.
    pub(crate) bytes: KVVec<u8>,
}

#[pin_data]
struct Waiter {
    dst: NodeId,
    #[pin]
    answer: SpinLockBh<Option<Result<Reply>>>,
    #[pin]
    done: OneShot,
}

impl Waiter {
    fn complete(&self, answer: Result<Reply>) {
        *self.answer.lock() = Some(answer);
        self.done.fire();
    }
}

struct Table {
    next: u64,
    waiting: RBTree<u64, Arc<Waiter>>,
    /// How many they are.
    count: usize,
}

/// The calls of a node.
#[pin_data]
pub(crate) struct Calls {
    #[pin]
    table: SpinLockBh<Table>,
}

impl Calls {
    /// None yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            table <- new_spinlock_bh!(
                Table {
                    next: 1,
                    waiting: RBTree::new(),
                    count: 0,
                },
                "Calls::table"
            ),
        })
    }

    /// Enters a call, which can be completed from now on. Process context.
    pub(crate) fn begin(&self, dst: NodeId) -> Result<Pending<'_>> {
        let waiter = Arc::pin_init(
            pin_init!(Waiter {
                dst,
                answer <- new_spinlock_bh!(None, "Waiter::answer"),
                done <- OneShot::new(),
            }),
            GFP_KERNEL,
        )?;
        let reservation = kernel::rbtree::RBTreeNodeReservation::new(GFP_KERNEL)?;
        let mut table = self.table.lock();
        let id = table.next;
        table.next += 1;
        table
            .waiting
            .insert(reservation.into_node(id, waiter.clone()));
        table.count += 1;
        Ok(Pending {
            calls: self,
            id,
            waiter,
        })
    }

    fn remove(&self, id: u64) -> Option<RBTreeNode<u64, Arc<Waiter>>> {
        // What is removed is freed by the caller, without the lock.
        let mut table = self.table.lock();
        let node = table.waiting.remove_node(&id)?;
        table.count -= 1;
        Some(node)
    }

    /// A reply has come in from `source`. One that nobody waits for any more is dropped.
    pub(crate) fn complete(&self, source: NodeId, id: u64, reply: Reply) {
        let ours = match self.table.lock().waiting.get(&id) {
            Some(waiter) => waiter.dst == source,
            None => false,
        };
        if !ours {
            return;
        }
        if let Some(node) = self.remove(id) {
            node.to_key_value().1.complete(Ok(reply));
        }
    }

    /// The first call from this one on, and whether it is to `dst`.
    fn next_from(&self, from: u64, dst: Option<NodeId>) -> Option<(u64, bool)> {
        let table = self.table.lock();
        let cursor = table.waiting.cursor_lower_bound(&from)?;
        let (id, waiter) = cursor.current();
        Some((*id, dst.is_none_or(|dst| waiter.dst == dst)))
    }

    /// Completes all calls to `dst`, or all if `None`, with an error.
    pub(crate) fn fail(&self, dst: Option<NodeId>, error: Error) {
        let mut from = 0;
        while let Some((id, matches)) = self.next_from(from, dst) {
            from = id + 1;
            if !matches {
                continue;
            }
            if let Some(node) = self.remove(id) {
                node.to_key_value().1.complete(Err(error));
            }
        }
    }

    /// How many are waiting.
    pub(crate) fn waiting(&self) -> usize {
        self.table.lock().count
    }
}

/// A call that waits for its reply; no longer when this is dropped.
pub(crate) struct Pending<'a> {
    calls: &'a Calls,
    id: u64,
    waiter: Arc<Waiter>,
}

impl Pending<'_> {
    /// What its reply will name.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Waits for the reply.
    pub(crate) fn wait(self, timeout: Timeout) -> Result<Reply> {
        if let Err(e) = self.waiter.done.wait(timeout) {
            if self.calls.remove(self.id).is_some() {
                return Err(e);
            }
            // It is being completed at this moment.
            self.waiter.done.settle();
        }
        let answer = self.waiter.answer.lock().take();
        answer.unwrap_or(Err(EIO))
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        drop(self.calls.remove(self.id));
    }
}
