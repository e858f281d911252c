// SPDX-License-Identifier: GPL-2.0

//! Recovery: the thread that keeps a node fully connected (P10, P11).
//!
//! It does whatever is a matter of time:
//!
//! - it begins an attempt to connect to each peer whose turn has come, all at once at the start;
//! - it gives up attempts that take too long, and connections that do not greet;
//! - it sends a sign of life where nothing else was sent, and finds the peers from which none has
//!   come for `dead_ms`: the first of the paper's three steps. A connection with an error is found
//!   by the listener, at once;
//! - it takes peers for dead that have not been heard of for so long, over whichever connection;
//! - it sends acknowledgements that nothing else has carried along;
//! - it sees keys through that are changed.
//!
//! Who knows when there will be something to do says so, for a peer ([`Node::look_by`]) or for the node
//! ([`Recovery::by`]); the thread then looks at the peers that it is due to look at ([`Reminder`]).
//!
//! The second step, removing the broken connection, is [`Conn::fail`] and [`Node::lost`]; it puts the
//! peer's state machine back to where the third begins: connecting again, in its direction, for as
//! long as it takes. The session goes on over the new connection.

use crate::conn::frame::Bye;
use crate::conn::hello::Channel;
use crate::conn::peer::Peer;
use crate::conn::state::{
    Action,
    State, //
};
use crate::conn::{
    Conn,
    Phase, //
};
use crate::node::Node;
use crate::sys::clock;
use crate::sys::clock::Millis;
use crate::sys::lock::{
    new_spinlock_bh,
    SpinLockBh, //
};
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Full,
    Relaxed, //
};
use kernel::sync::{
    new_condvar,
    Arc,
    CondVar, //
};

/// Signs of life in the time that it takes to be declared dead. Three of them can be lost or late.
const SIGNS: Millis = 4;

/// Signs of life go at about so many moments in the time between two, the same for all peers of the same
/// patience: then a node with many gives those of many at once, whenever they have connected. They are
/// early for that.
const MOMENTS: Millis = 4;

/// The longest sleep. Nothing depends on it.
const LONGEST: Millis = 10_000;

/// When the thread is to look at a peer, at the latest.
pub(crate) struct Reminder(Atomic<u64>);

impl Reminder {
    /// At once.
    pub(crate) fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// When that is.
    fn time(&self) -> Millis {
        self.0.load(Relaxed)
    }

    /// Makes it `time`, unless it is earlier. Returns whether it was not. Any context.
    ///
    /// There is to be something to see then, under a lock that who looks takes, before this is called.
    pub(crate) fn by(&self, time: Millis) -> bool {
        let mut due = self.time();
        while time < due {
            match self.0.cmpxchg(due, time, Full) {
                Ok(_) => return true,
                Err(other) => due = other,
            }
        }
        false
    }

    /// The thread looks now: not again, unless it is told so from now on.
    fn clear(&self) {
        self.0.xchg(Millis::MAX, Full);
    }
}

struct Flags {
    /// There is something to do then.
    due: Millis,
    stop: bool,
}

/// How the thread is told that there is something to do.
#[pin_data]
pub(crate) struct Recovery {
    #[pin]
    flags: SpinLockBh<Flags>,
    #[pin]
    wake: CondVar,
}

impl Recovery {
    /// With nothing to do.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            flags <- new_spinlock_bh!(
                Flags {
                    due: Millis::MAX,
                    stop: false,
                },
                "Recovery::flags"
            ),
            wake <- new_condvar!("Recovery::wake"),
        })
    }

    /// Lets it end.
    pub(crate) fn stop(&self) {
        self.flags.lock().stop = true;
        self.wake.notify_one();
    }

    /// Has it look for something to do then, or before. Any context.
    pub(crate) fn by(&self, time: Millis) {
        let mut flags = self.flags.lock();
        if time < flags.due {
            flags.due = time;
            drop(flags);
            self.wake.notify_one();
        }
    }

    /// Sleeps until `deadline`, or until there is something to do. Returns when that was due; `None`
    /// if it is to end.
    fn sleep(&self, deadline: Millis) -> Option<Millis> {
        let mut flags = self.flags.lock();
        flags.due = flags.due.min(deadline);
        while !flags.stop {
            let now = clock::now();
            if flags.due <= now {
                break;
            }
            // Signals do not reach kernel threads.
            let pause = clock::jiffies(flags.due - now);
            let _ = self.wake.wait_interruptible_timeout(&mut flags, pause);
        }
        let due = core::mem::replace(&mut flags.due, Millis::MAX);
        (!flags.stop).then_some(due)
    }
}

/// The recovery thread of a node.
pub(crate) fn run(node: &Arc<Node>) {
    let mut deadline = clock::now();
    while let Some(due) = node.recovery.sleep(deadline) {
        let now = clock::now();
        // If this thread could not run, perhaps because the machine stood still, then neither could
        // the listener hear anybody: that is not the peers' silence.
        let late = now.saturating_sub(due) > Millis::from(node.limits().dead_ms) / 2;
        deadline = now + LONGEST;
        for peer in node.channels() {
            if late {
                peer.excuse(now);
            } else if peer.reminder.time() > now {
                deadline = deadline.min(peer.reminder.time());
                continue;
            }
            peer.reminder.clear();
            let times = match peer.line() {
                Some((conn, peer_dead_ms)) => {
                    let owed = conn.session().and_then(|s| s.acknowledge_late(now));
                    let next = beat(node, peer, &conn, peer_dead_ms);
                    [Some(next), owed, end_if_gone(node, peer, &conn)]
                }
                None => {
                    let due = tend(node, peer);
                    let owed = peer.session().and_then(|s| s.acknowledge_late(now));
                    // Whether the node is down, the main channel says.
                    let dies = match peer.channel {
                        Channel::Main => node.check_down(peer),
                        Channel::Bulk => None,
                    };
                    [due, owed, dies]
                }
            };
            if let Some(time) = times.into_iter().flatten().min() {
                peer.reminder.by(time);
                deadline = deadline.min(time);
            }
        }
        deadline = deadline.min(node.expire_pending());
        deadline = deadline.min(node.transport.tend());
        deadline = deadline.min(node.buffers.tend(now));
    }
}

/// Does what the peer's state machine wants done. Returns when to look again.
///
/// For bulk, this node does not connect while the main channel is not connected: it goes on when that
/// is, [`Node::established`].
fn tend(node: &Arc<Node>, peer: &Arc<Peer>) -> Option<Millis> {
    let paused = matches!(peer.snapshot().state, State::Backoff { .. });
    if paused && peer.channel == Channel::Bulk && node.peer(peer.id)?.line().is_none() {
        return None;
    }
    let (action, conn) = peer.tick();
    match action {
        Action::Dial => {
            if let Err(e) = dial(node, peer) {
                peer.dial_failed(e);
            }
        }
        Action::Expire => {
            if let Some(conn) = conn {
                conn.fail(ETIMEDOUT, None);
            }
        }
        _ => {}
    }
    peer.deadline()
}

/// Begins an attempt to connect. The listener takes it from here.
fn dial(node: &Arc<Node>, peer: &Arc<Peer>) -> Result {
    let link = node.transport.connect(&node.me().addr, &peer.addr)?;
    let home = node.queues.home(peer.id);
    let phase = Phase::Dialing(peer.clone());
    let conn = Conn::new(link, peer.addr, node.queues.clone(), home, phase)?;
    if !peer.dialing(&conn) {
        conn.fail(ECANCELED, None);
    } else if let Err(e) = conn.start() {
        conn.fail(e, None);
    }
    Ok(())
}

/// The time between two signs of life, for ends that take so long a silence for death.
pub(crate) fn interval(dead_ms: Millis, peer_dead_ms: Millis) -> Millis {
    (dead_ms.min(peer_dead_ms) / SIGNS).max(1)
}

/// When the sign of life after that of `last` is due.
pub(crate) fn next_sign(last: Millis, interval: Millis) -> Millis {
    let step = (interval / MOMENTS).max(1);
    (last + interval) / step * step
}

/// Sees to it that both ends of a connection hear of each other. Returns when to look again.
fn beat(node: &Node, peer: &Peer, conn: &Arc<Conn>, peer_dead_ms: Millis) -> Millis {
    let now = clock::now();
    let dead_ms = Millis::from(node.limits().dead_ms);
    let interval = interval(dead_ms, peer_dead_ms);
    if conn.awaits() {
        // There may be no room for what an upcall waits for.
        conn.set_awaits(false);
        conn.schedule();
    } else if now > conn.last_heard() + interval && conn.unread() {
        // It is the listener here that does not get round to it, not the peer that is silent.
        conn.hear();
    }
    let heard = conn.last_heard();
    let dies = heard + dead_ms;
    if now >= dies {
        if conn.failure().is_none() {
            pr_warn!(
                "node {}: node {}{} has been silent for {} ms: disconnected\n",
                node.id(),
                peer.id,
                peer.channel,
                now.saturating_sub(heard)
            );
        }
        conn.fail(ETIMEDOUT, None);
        return now + LONGEST;
    }
    let mut due = next_sign(conn.last_sent(), interval);
    if now >= due {
        if let Some(session) = conn.session() {
            session.ping();
        }
        // Nothing else has been sent for a while.
        conn.link().trim();
        if let Some(session) = conn.session() {
            session.trim();
        }
        due = next_sign(now, interval);
    }
    due.min(dies)
}

/// Ends a connection for bulk whose peer has been down for `dead_ms`: what had come in before has been read.
/// Returns when to look again.
fn end_if_gone(node: &Node, peer: &Peer, conn: &Arc<Conn>) -> Option<Millis> {
    if peer.channel == Channel::Main {
        return None;
    }
    let gone = node.peer(peer.id)?.down_last_heard()?;
    let ends = gone + Millis::from(node.limits().dead_ms);
    if clock::now() < ends {
        return Some(ends);
    }
    conn.fail(EHOSTDOWN, Some(Bye::Reconnect));
    None
}

#[cfg(KCCM_KUNIT)]
#[kernel::prelude::kunit_tests(kccm_wakeups)]
mod tests {
    use super::*;

    /// A time that does not come while a test runs.
    const NEVER: Millis = 1_000_000;

    fn recovery() -> Result<Pin<KBox<Recovery>>> {
        KBox::pin_init(Recovery::new(), GFP_KERNEL)
    }

    #[test]
    fn sleeps_until_the_first_that_is_due() -> Result {
        let recovery = recovery()?;
        let now = clock::now();
        for after in [60, 20, 40] {
            recovery.by(now + after);
        }
        assert_eq!(recovery.sleep(now + NEVER), Some(now + 20));
        assert!((now + 20..now + NEVER).contains(&clock::now()));
        // That was all: what is due later, whoever looked has seen.
        let now = clock::now();
        assert_eq!(recovery.sleep(now + 20), Some(now + 20));
        assert!(clock::now() >= now + 20);
        Ok(())
    }

    #[test]
    fn is_stopped_before_anything_is_due() -> Result {
        let recovery = recovery()?;
        let due = clock::now() + NEVER;
        recovery.by(due);
        recovery.stop();
        assert_eq!(recovery.sleep(due), None);
        assert!(clock::now() < due);
        Ok(())
    }

    #[test]
    fn reminder_is_for_the_first_of_the_times() {
        let reminder = Reminder::new();
        assert_eq!(reminder.time(), 0);
        assert!(!reminder.by(20));
        reminder.clear();
        for (time, sooner) in [
            (20, true),
            (30, false),
            (20, false),
            (10, true),
            (15, false),
        ] {
            assert_eq!(reminder.by(time), sooner);
        }
        assert_eq!(reminder.time(), 10);
        reminder.clear();
        assert!(reminder.by(30));
        assert_eq!(reminder.time(), 30);
    }

    #[test]
    fn signs_of_life_are_for_who_is_less_patient() {
        assert_eq!(interval(3000, 1000), 1000 / SIGNS);
        assert_eq!(interval(1000, 3000), 1000 / SIGNS);
        assert_eq!(interval(1, 1), 1);
    }

    /// Early by less than a quarter, and for all who were last given one within that at the same time.
    #[test]
    fn signs_of_life_go_together() {
        for interval in [1, 2, 3, 4, 7, 100, 750] {
            let step = (interval / MOMENTS).max(1);
            for last in 1000..1000 + 2 * interval {
                let next = next_sign(last, interval);
                assert!(next > last);
                assert!((last + interval - step + 1..=last + interval).contains(&next));
                assert_eq!(next % step, 0);
            }
        }
    }
}
