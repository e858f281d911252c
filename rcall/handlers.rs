// SPDX-License-Identifier: GPL-2.0

//! The functions that other nodes may call.

use crate::config::NodeId;
use crate::conn::frame::Outcome;
use crate::conn::peer::Counter;
use crate::sys::context::NoSoftirq;
use crate::sys::lock::{
    new_spinlock_bh,
    SpinLockBh, //
};
use crate::sys::owner::{
    Owner,
    Pinned, //
};
use crate::sys::wait::WaitQueue;
use kernel::prelude::*;
use kernel::rbtree::{
    RBTree,
    RBTreeNodeReservation, //
};
use kernel::sync::atomic::{
    Acquire,
    Atomic,
    Relaxed,
    Release, //
};
use kernel::sync::{static_lock_class, Arc};

/// How a handler is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// By the listener itself.
    Short,
    /// In a thread of its own.
    Long,
    /// Where the call comes in, as a rule in softirq context, by whoever brings it.
    Softirq,
}

/// A call, as its handler sees it.
pub(crate) struct Call<'a> {
    /// The calling node.
    pub(crate) source: NodeId,
    /// The number that was called.
    pub(crate) func: u32,
    /// The arguments.
    pub(crate) args: &'a [u8],
    /// Where the reply goes, with zeros or what the caller's node has been sent before; `None` for an
    /// asynchronous call.
    pub(crate) reply: Option<&'a mut [u8]>,
    /// How long the handler made the reply, or would have.
    pub(crate) reply_len: usize,
}

/// A function that can be called.
pub(crate) trait Serve: Send + Sync {
    /// Runs it; returns the call's status.
    fn serve(&self, call: &mut Call<'_>) -> i32;
}

impl<F: Fn(&mut Call<'_>) -> i32 + Send + Sync> Serve for F {
    fn serve(&self, call: &mut Call<'_>) -> i32 {
        self(call)
    }
}

/// A handler.
pub(crate) struct Handler {
    /// The number it is called by.
    pub(crate) func: u32,
    /// How it is run.
    pub(crate) class: Class,
    /// For the log.
    pub(crate) name: kernel::str::CString,
    /// The longest arguments it takes.
    pub(crate) max_args: usize,
    /// The module that its code is in.
    pub(crate) owner: Owner,
    /// The function.
    pub(crate) function: KBox<dyn Serve>,
}

/// A handler in the table.
struct Registered {
    handler: Handler,
    /// Calls that run, or wait for a thread.
    active: Atomic<usize>,
    /// A call took longer than it should, and somebody was warned of that.
    warned: Atomic<bool>,
}

struct Table {
    by_func: RBTree<u32, Arc<Registered>>,
    /// How many they are.
    count: usize,
}

/// The handlers of a node.
#[pin_data]
pub(crate) struct Handlers {
    #[pin]
    table: SpinLockBh<Table>,
    /// Those who unregister a handler wait for it to be idle.
    idle: Arc<WaitQueue>,
    /// How many of them are for softirqs.
    softirq: Atomic<usize>,
    /// Times that a short handler took longer than it should.
    pub(crate) slow: Counter,
}

impl Handlers {
    /// None yet.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            table <- new_spinlock_bh!(
                Table {
                    by_func: RBTree::new(),
                    count: 0,
                },
                "Handlers::table"
            ),
            idle: Arc::pin_init(
                WaitQueue::new(c"Handlers::idle", static_lock_class!()),
                GFP_KERNEL,
            )?,
            softirq: Atomic::new(0),
            slow: Counter::default(),
        }? Error)
    }

    /// Enters a handler. `EEXIST` if its number is taken.
    pub(crate) fn register(&self, handler: Handler) -> Result {
        let func = handler.func;
        let softirq = handler.class == Class::Softirq;
        let registered = Arc::new(
            Registered {
                handler,
                active: Atomic::new(0),
                warned: Atomic::new(false),
            },
            GFP_KERNEL,
        )?;
        let reservation = RBTreeNodeReservation::new(GFP_KERNEL)?;
        let mut table = self.table.lock();
        if table.by_func.get(&func).is_some() {
            drop(table);
            return Err(EEXIST);
        }
        table
            .by_func
            .insert(reservation.into_node(func, registered));
        table.count += 1;
        self.softirq.fetch_add(softirq.into(), Relaxed);
        Ok(())
    }

    /// Takes a handler out, and waits until it does not run and no call for it is queued.
    ///
    /// Not from a handler.
    pub(crate) fn unregister(&self, func: u32) -> Result {
        let mut table = self.table.lock();
        let node = table.by_func.remove_node(&func).ok_or(ENOENT)?;
        table.count -= 1;
        drop(table);
        let (_, registered) = node.to_key_value();
        let softirq = registered.handler.class == Class::Softirq;
        self.softirq.fetch_sub(softirq.into(), Relaxed);
        // Also one who was killed must not go on while the handler runs.
        self.idle
            .wait_unkillable(|| registered.active.load(Acquire) == 0);
        Ok(())
    }

    /// Begins a call: from now on the handler stays, and so does its module, until what is returned
    /// is dropped. Any context.
    pub(crate) fn begin(&self, func: u32, args: usize) -> Result<Running, Outcome> {
        let table = self.table.lock();
        let registered = table.by_func.get(&func).ok_or(Outcome::NoHandler)?;
        if args > registered.handler.max_args {
            return Err(Outcome::ArgsTooLong);
        }
        let pinned = registered.handler.owner.pin().ok_or(Outcome::NoHandler)?;
        registered.active.fetch_add(1, Relaxed);
        Ok(Running {
            registered: registered.clone(),
            idle: self.idle.clone(),
            pinned: Some(pinned),
        })
    }

    /// [`Handlers::begin`], if it is one for softirqs.
    pub(crate) fn begin_softirq(&self, func: u32, args: usize) -> Option<Running> {
        if self.softirq.load(Relaxed) == 0 {
            return None;
        }
        let running = self.begin(func, args).ok()?;
        (running.class() == Class::Softirq).then_some(running)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.table.lock().count
    }
}

/// A handler that is running or about to.
pub(crate) struct Running {
    registered: Arc<Registered>,
    idle: Arc<WaitQueue>,
    /// Until it has been dropped in `drop()`.
    pinned: Option<Pinned>,
}

impl Running {
    /// How it is to be run.
    pub(crate) fn class(&self) -> Class {
        self.registered.handler.class
    }

    /// Runs it. The context that its class is for; one for softirqs may be run in process context, too.
    pub(crate) fn run(&self, call: &mut Call<'_>) -> i32 {
        let handler = &self.registered.handler;
        // Such a one must never notice the difference.
        let _alike = (handler.class == Class::Softirq).then(NoSoftirq::enter);
        handler.function.serve(call)
    }

    /// Whether this is the first time that this is asked of the handler, by whichever listener.
    pub(crate) fn warn_now(&self) -> bool {
        !self.registered.warned.xchg(true, Relaxed)
    }

    /// A short one has taken so long. Returns whether that was too long.
    pub(crate) fn took(&self, node: NodeId, micros: u64, limit: u32) -> bool {
        if micros <= u64::from(limit) {
            return false;
        }
        if self.warn_now() {
            let handler = &self.registered.handler;
            let kind = match handler.class {
                Class::Softirq => "softirq",
                Class::Short | Class::Long => "short",
            };
            pr_warn!(
                "node {}: {} handler {:#x} \"{}\" took {} us, more than {}; while it runs, no message is handled. It should be long\n",
                node,
                kind,
                handler.func,
                &*handler.name,
                micros,
                limit
            );
        }
        true
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // While whoever unregisters the handler still waits: then the module can be gone.
        drop(self.pinned.take());
        if self.registered.active.fetch_sub(1, Release) == 1 {
            self.idle.notify_all();
        }
    }
}
