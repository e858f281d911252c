// SPDX-License-Identifier: GPL-2.0

//! The threads that run long handlers (P8): each call in a kernel thread of its own, of which there
//! are so many at most; calls beyond that queue.
//!
//! Threads are made when they are needed and kept for the next call, because making one takes longer
//! than most handlers. One idle thread is kept ahead of need. They are made by a thread that does
//! nothing else, the foreman: making a thread allocates memory as `GFP_KERNEL` does, whoever asks for
//! it, so neither the listener nor recovery may wait for that.

use super::handlers::Running;
use super::Incoming;
use crate::node::Node;
use crate::sys::clock;
use crate::sys::lock::{
    new_spinlock_bh,
    SpinLockBh, //
};
use crate::sys::thread;
use crate::sys::thread::Thread;
use kernel::list::{
    impl_list_arc_safe,
    impl_list_item,
    List,
    ListArc,
    ListLinks, //
};
use kernel::prelude::*;
use kernel::rbtree::{
    RBTree,
    RBTreeNodeReservation, //
};
use kernel::sync::{new_condvar, new_mutex, Arc, CondVar, Mutex};

/// A call that is to be run by a thread.
#[pin_data]
pub(crate) struct Job {
    /// Taken by the thread that runs it.
    #[pin]
    work: SpinLockBh<Option<(Incoming, Running)>>,
    #[pin]
    links: ListLinks,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for Job { untracked; }
}
impl_list_item! {
    impl ListItem<0> for Job { using ListLinks { self.links }; }
}

impl Job {
    /// A job; gives the call back when there is no memory for it.
    pub(crate) fn new(call: Incoming, running: Running) -> Result<ListArc<Self>, Incoming> {
        let empty = ListArc::pin_init(
            try_pin_init!(Self {
                work <- new_spinlock_bh!(None, "Job::work"),
                links <- ListLinks::new(),
            }? Error),
            GFP_KERNEL,
        );
        match empty {
            Ok(job) => {
                let job: ListArc<Self> = job;
                *job.work.lock() = Some((call, running));
                Ok(job)
            }
            Err(_) => Err(call),
        }
    }

    /// Tells the caller that its call will not be run.
    fn abandon(&self) {
        let work = self.work.lock().take();
        if let Some((call, _running)) = work {
            super::abandon(call);
        }
    }
}

struct Inner {
    jobs: List<Job>,
    /// How many jobs wait.
    waiting: u32,
    /// How many threads wait for a job.
    idle: u32,
    /// How many threads there are.
    threads: u32,
    /// The threads that have begun, to be recognised.
    members: RBTree<usize, ()>,
    stopping: bool,
}

/// How long to wait before trying again to make a thread, milliseconds.
const RETRY_MS: clock::Millis = 100;

/// The threads of a node.
#[pin_data]
pub(crate) struct Pool {
    max: u32,
    #[pin]
    inner: SpinLockBh<Inner>,
    #[pin]
    wake: CondVar,
    /// The foreman waits here.
    #[pin]
    want: CondVar,
    /// To be waited for in the end. Only the foreman adds to it.
    #[pin]
    crew: Mutex<KVec<Thread>>,
}

impl Pool {
    /// At most `max` threads.
    pub(crate) fn new(max: u32) -> impl PinInit<Self> {
        pin_init!(Self {
            max,
            inner <- new_spinlock_bh!(
                Inner {
                    jobs: List::new(),
                    waiting: 0,
                    idle: 0,
                    threads: 0,
                    members: RBTree::new(),
                    stopping: false,
                },
                "Pool::inner"
            ),
            wake <- new_condvar!("Pool::wake"),
            want <- new_condvar!("Pool::want"),
            crew <- new_mutex!(KVec::new(), "Pool::crew"),
        })
    }

    /// Queues a job. Any context that may drop a job, which is process context.
    pub(crate) fn submit(&self, job: ListArc<Job>) {
        let mut inner = self.inner.lock();
        if inner.stopping {
            drop(inner);
            job.abandon();
            return;
        }
        inner.jobs.push_back(job);
        inner.waiting += 1;
        let wanting = self.wanting(&inner);
        drop(inner);
        self.wake.notify_one();
        if wanting {
            self.want.notify_one();
        }
    }

    /// Whether there should be another thread: one more than there are jobs waiting.
    fn wanting(&self, inner: &Inner) -> bool {
        !inner.stopping && inner.threads < self.max && inner.idle <= inner.waiting
    }

    /// What the foreman does: makes threads as they are needed.
    fn supervise(&self, node: &Arc<Node>) {
        let mut inner = self.inner.lock();
        while !inner.stopping {
            if !self.wanting(&inner) {
                // Signals do not reach kernel threads.
                let _ = self.want.wait_interruptible(&mut inner);
                continue;
            }
            // It will wait for a job as soon as it runs.
            inner.threads += 1;
            inner.idle += 1;
            let number = inner.threads;
            drop(inner);
            let hired = self.hire_one(node, number);
            inner = self.inner.lock();
            if let Err(e) = hired {
                inner.threads -= 1;
                inner.idle -= 1;
                pr_warn!(
                    "node {}: no thread for a long handler: {:?}, trying again\n",
                    node.id(),
                    e
                );
                let pause = clock::jiffies(RETRY_MS);
                let _ = self.want.wait_interruptible_timeout(&mut inner, pause);
            }
        }
    }

    fn hire_one(&self, node: &Arc<Node>, number: u32) -> Result {
        // Nothing may fail once there is a thread, and none is made under a lock.
        let badge = RBTreeNodeReservation::new(GFP_KERNEL)?;
        self.crew.lock().reserve(1, GFP_KERNEL)?;
        let pool = node.clone();
        let thread = Thread::spawn(fmt!("kccm{}/long{}", node.id(), number), move || {
            pool.pool.work(badge);
        })?;
        self.crew.lock().push(thread, GFP_KERNEL)?;
        Ok(())
    }

    /// What a thread does.
    fn work(&self, badge: RBTreeNodeReservation<usize, ()>) {
        let me = thread::current_id();
        let mut inner = self.inner.lock();
        inner.members.insert(badge.into_node(me, ()));
        loop {
            if let Some(job) = inner.jobs.pop_front() {
                inner.waiting -= 1;
                inner.idle -= 1;
                drop(inner);
                let work = job.work.lock().take();
                if let Some((call, running)) = work {
                    super::run(call, running, None);
                }
                drop(job);
                inner = self.inner.lock();
                inner.idle += 1;
            } else if inner.stopping {
                break;
            } else {
                // Signals do not reach kernel threads.
                let _ = self.wake.wait_interruptible(&mut inner);
            }
        }
        let badge = inner.members.remove_node(&me);
        drop(inner);
        drop(badge);
    }

    /// Whether the calling thread is one of the pool. Process context.
    pub(crate) fn is_member(&self) -> bool {
        let me = thread::current_id();
        self.inner.lock().members.get(&me).is_some()
    }

    /// How many jobs wait and how many threads there are.
    pub(crate) fn counts(&self) -> (u32, u32) {
        let inner = self.inner.lock();
        (inner.waiting, inner.threads)
    }

    /// Runs no more jobs, and tells the callers of those that wait. Those that run go on.
    pub(crate) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.stopping = true;
        inner.waiting = 0;
        let mut jobs = core::mem::replace(&mut inner.jobs, List::new());
        drop(inner);
        while let Some(job) = jobs.pop_front() {
            job.abandon();
        }
        self.wake.notify_all();
        self.want.notify_all();
    }

    /// Waits for the threads to end, after [`Pool::close`].
    pub(crate) fn join(&self) {
        let crew = core::mem::take(&mut *self.crew.lock());
        drop(crew);
    }
}

/// The foreman thread of a node.
pub(crate) fn run(node: &Arc<Node>) {
    node.pool.supervise(node);
}
