// SPDX-License-Identifier: GPL-2.0

//! Telling other modules of peers that come and go.
//!
//! What a subscriber has been told of each peer is compared with how it is; the difference is what
//! it is told next. So there is no queue that could overflow: changes that come faster than a
//! subscriber takes them are merged, and a peer that was lost and is back is "down" and then "up".

use crate::config::{
    NodeId,
    MAX_NODES, //
};
use crate::node::Node;
use crate::sys::thread;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::{
    new_condvar,
    new_mutex,
    new_spinlock,
    Arc,
    CondVar,
    Mutex,
    SpinLock, //
};

/// What has happened to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// It is taken for dead, has said that it goes, or was restarted.
    Down,
    /// It is connected, and was not up before.
    Up,
}

/// Somebody who wants to know.
pub(crate) trait Subscriber: Send + Sync {
    /// Something has happened to a peer of that incarnation. May sleep.
    fn event(&self, node: NodeId, event: Event, incarnation: u64);
}

impl<F: Fn(NodeId, Event, u64) + Send + Sync> Subscriber for F {
    fn event(&self, node: NodeId, event: Event, incarnation: u64) {
        self(node, event, incarnation);
    }
}

/// What a subscriber believes of a peer.
#[derive(Clone, Copy, Default)]
struct Belief {
    /// The session it knows of, 0 for none.
    epoch: u64,
    incarnation: u64,
}

struct Subscription {
    handle: i32,
    subscriber: KBox<dyn Subscriber>,
    beliefs: KVec<Belief>,
}

struct Flags {
    changed: bool,
    /// How many subscribers there are: without any the thread is left alone.
    subscribers: usize,
    stop: bool,
}

/// The subscribers of a node.
#[pin_data]
pub(crate) struct Events {
    #[pin]
    flags: SpinLock<Flags>,
    #[pin]
    wake: CondVar,
    /// Held while subscribers are told.
    #[pin]
    subscriptions: Mutex<KVec<Subscription>>,
    next: Atomic<i32>,
    /// The thread, to be recognised.
    task: Atomic<usize>,
}

impl Events {
    /// Nobody yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            flags <- new_spinlock!(
                Flags {
                    changed: false,
                    subscribers: 0,
                    stop: false,
                },
                "Events::flags"
            ),
            wake <- new_condvar!("Events::wake"),
            subscriptions <- new_mutex!(KVec::new(), "Events::subscriptions"),
            next: Atomic::new(1),
            task: Atomic::new(0),
        })
    }

    /// A peer has come or gone.
    pub(crate) fn changed(&self) {
        let mut flags = self.flags.lock();
        if flags.subscribers > 0 {
            flags.changed = true;
            drop(flags);
            self.wake.notify_one();
        }
    }

    /// Lets the thread end.
    pub(crate) fn stop(&self) {
        self.flags.lock().stop = true;
        self.wake.notify_one();
    }

    /// Enters a subscriber; returns its handle.
    fn subscribe(&self, subscriber: KBox<dyn Subscriber>) -> Result<i32> {
        let beliefs = KVec::from_elem(Belief::default(), MAX_NODES, GFP_KERNEL)?;
        let handle = self.next.fetch_add(1, Relaxed);
        let subscription = Subscription {
            handle,
            subscriber,
            beliefs,
        };
        let mut subscriptions = self.subscriptions.lock();
        subscriptions.push(subscription, GFP_KERNEL)?;
        self.flags.lock().subscribers = subscriptions.len();
        drop(subscriptions);
        self.changed();
        Ok(handle)
    }

    /// Takes a subscriber out: it is not being told anything when this returns.
    fn unsubscribe(&self, handle: i32) -> Result {
        let mut subscriptions = self.subscriptions.lock();
        let index = subscriptions
            .iter()
            .position(|s| s.handle == handle)
            .ok_or(ENOENT)?;
        let removed = subscriptions.remove(index);
        self.flags.lock().subscribers = subscriptions.len();
        drop(subscriptions);
        drop(removed);
        Ok(())
    }

    fn wait(&self) -> bool {
        let mut flags = self.flags.lock();
        while !flags.changed && !flags.stop {
            // Signals do not reach kernel threads.
            let _ = self.wake.wait_interruptible(&mut flags);
        }
        flags.changed = false;
        !flags.stop
    }

    fn tell(&self, node: &Node) {
        let mut subscriptions = self.subscriptions.lock();
        for subscription in subscriptions.iter_mut() {
            for peer in node.peers() {
                let (epoch, incarnation) = peer.announced();
                let belief = &mut subscription.beliefs[usize::from(peer.id)];
                if belief.epoch == epoch {
                    continue;
                }
                let now = Belief { epoch, incarnation };
                let before = core::mem::replace(belief, now);
                let subscriber = &subscription.subscriber;
                if before.epoch != 0 {
                    subscriber.event(peer.id, Event::Down, before.incarnation);
                }
                if now.epoch != 0 {
                    subscriber.event(peer.id, Event::Up, now.incarnation);
                }
            }
        }
    }
}

impl Node {
    /// Enters a subscriber; returns its handle. See `kccm_subscribe()`.
    pub(crate) fn subscribe(&self, subscriber: KBox<dyn Subscriber>) -> Result<i32> {
        self.may_wait_for_subscribers()?;
        self.events.subscribe(subscriber)
    }

    /// Takes a subscriber out. See `kccm_unsubscribe()`.
    pub(crate) fn unsubscribe(&self, handle: i32) -> Result {
        self.may_wait_for_subscribers()?;
        self.events.unsubscribe(handle)
    }

    /// A subscriber that is being told would wait for itself; and one that waits for a reply would
    /// wait for the listener.
    fn may_wait_for_subscribers(&self) -> Result {
        if self.events.task.load(Relaxed) == thread::current_id() || self.queues.is_listener() {
            return Err(EDEADLK);
        }
        Ok(())
    }
}

/// The thread that tells subscribers.
pub(crate) fn run(node: &Arc<Node>) {
    let events = &node.events;
    events.task.store(thread::current_id(), Relaxed);
    while events.wait() {
        events.tell(node);
    }
    events.task.store(0, Relaxed);
}
