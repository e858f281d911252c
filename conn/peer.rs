// SPDX-License-Identifier: GPL-2.0

//! One other node of the cluster: where the connection to it stands, and what may be sent to it.
//!
//! A *session* is the time in which a connection to the peer is established. The peer itself is
//! there for as long as this node.

use super::credit::{
    Lane,
    Receiver,
    Sender, //
};
use super::frame::{
    Bounds,
    Header, //
};
use super::hello::{
    Greeting,
    Refusal, //
};
use super::state::{
    Action,
    Backoff,
    Event,
    Machine,
    Role,
    State, //
};
use super::Conn;
use crate::config::{
    Limits,
    Member,
    NodeId, //
};
use crate::sys::clock;
use crate::sys::clock::Millis;
use crate::sys::wait::{
    OneShot,
    Timeout, //
};
use core::net::SocketAddr;
use kernel::list::{
    impl_list_arc_safe,
    impl_list_item,
    AtomicTracker,
    List,
    ListArc,
    ListLinks,
    TryNewListArc, //
};
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::{
    new_spinlock_irq,
    Arc,
    SpinLockIrq, //
};

/// Counts, each since the node was made.
pub(crate) struct Counter(Atomic<u64>);

impl Default for Counter {
    fn default() -> Self {
        Self(Atomic::new(0))
    }
}

impl Counter {
    /// Counts one more.
    pub(crate) fn inc(&self) {
        self.add(1);
    }

    /// Counts `n` more.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The count.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What has been counted of a peer. Bytes are those of messages, arguments and replies.
#[derive(Default)]
pub(crate) struct Stats {
    /// Messages sent to it.
    pub(crate) tx_messages: Counter,
    /// Messages received from it.
    pub(crate) rx_messages: Counter,
    /// Remote calls made to it.
    pub(crate) tx_rcalls: Counter,
    /// Remote calls received from it.
    pub(crate) rx_rcalls: Counter,
    /// Bytes sent to it.
    pub(crate) tx_bytes: Counter,
    /// Bytes received from it.
    pub(crate) rx_bytes: Counter,
    /// Asynchronous calls of it that did not run, or failed.
    pub(crate) failed_rcalls: Counter,
    /// Sessions after the first.
    pub(crate) reconnects: Counter,
    /// Attempts to connect.
    pub(crate) attempts: Counter,
}

/// Somebody who waits for credit.
#[pin_data]
struct Waiter {
    lane: Lane,
    cost: u64,
    /// Set, under the peer's lock, when it was let through.
    admitted: Atomic<bool>,
    #[pin]
    done: OneShot,
    #[pin]
    links: ListLinks,
    #[pin]
    tracker: AtomicTracker,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for Waiter { tracked_by tracker: AtomicTracker; }
}
impl_list_item! {
    impl ListItem<0> for Waiter { using ListLinks { self.links }; }
}

/// What there is while a connection is established.
struct Session {
    conn: Arc<Conn>,
    peer: Greeting,
    send: [Sender; 2],
    /// First come, first served, for each lane; so that a long message is not starved by short ones.
    waiters: [List<Waiter>; 2],
}

impl Session {
    /// Lets through those whose turn it is.
    fn admit_waiters(&mut self, lane: Lane) {
        let (send, waiters) = (
            &mut self.send[lane as usize],
            &mut self.waiters[lane as usize],
        );
        loop {
            let fits = match waiters.iter().next() {
                Some(first) => send.take(first.cost),
                None => return,
            };
            if !fits {
                return;
            }
            if let Some(waiter) = waiters.pop_front() {
                waiter.admitted.store(true, Relaxed);
                waiter.done.fire();
            }
        }
    }
}

struct Inner {
    machine: Machine,
    /// The present attempt, or the connection of the session.
    conn: Option<Arc<Conn>>,
    session: Option<Session>,
    /// Which session it is, from 1; also when it is over.
    epoch: u64,
    /// The session that subscribers may be told of, and the peer's incarnation in it; 0 for none.
    announced: (u64, u64),
    /// The peer's last known incarnation, or 0.
    incarnation: u64,
    recv: [Receiver; 2],
    last_error: Option<Error>,
    last_refusal: Option<Refusal>,
    /// The next attempt is to be made as soon as the present connection has ended.
    hurry: bool,
}

/// A peer.
#[pin_data]
pub(crate) struct Peer {
    /// Its id.
    pub(crate) id: NodeId,
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    /// Who connects.
    pub(crate) role: Role,
    /// The longest frames that this node accepts.
    own: Bounds,
    /// What has been counted.
    pub(crate) stats: Stats,
    /// Why it was refused when it last tried to connect, 0 if it was not; for the log only.
    refused_for: Atomic<i32>,
    #[pin]
    inner: SpinLockIrq<Inner>,
}

/// A session that has ended: what its users are to be told.
pub(crate) struct Ended {
    /// The incarnation of the peer it was with.
    pub(crate) incarnation: u64,
}

/// What sysfs and events want to know of a peer at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Snapshot {
    /// Where the connection stands.
    pub(crate) state: State,
    /// The session, 0 when there is none.
    #[cfg(KCCM_KUNIT)]
    pub(crate) epoch: u64,
    /// The last known incarnation, or 0.
    pub(crate) incarnation: u64,
    /// What the last failure was.
    pub(crate) last_error: Option<Error>,
    /// If the last failure was a refusal, why.
    pub(crate) last_refusal: Option<Refusal>,
    /// What is kept of it here, bytes.
    pub(crate) queued: u64,
    /// When the next attempt is made.
    pub(crate) next_attempt: Option<Millis>,
}

impl Peer {
    /// A peer of the node `me`, to be connected at once.
    pub(crate) fn new(me: NodeId, member: &Member, limits: &Limits) -> Result<Arc<Self>> {
        let role = Role::of(me, member.id);
        let backoff = Backoff::new(limits.backoff_min_ms.into(), limits.backoff_max_ms.into());
        let machine = Machine::new(role, backoff, limits.handshake_ms.into(), clock::now());
        let inner = Inner {
            machine,
            conn: None,
            session: None,
            epoch: 0,
            announced: (0, 0),
            incarnation: 0,
            recv: [
                Receiver::new(limits.queue_bytes),
                Receiver::new(limits.rcall_bytes),
            ],
            last_error: None,
            last_refusal: None,
            hurry: false,
        };
        Arc::pin_init(
            pin_init!(Self {
                id: member.id,
                addr: member.addr,
                role,
                own: Bounds {
                    message: limits.max_message,
                    rcall: limits.max_rcall,
                },
                stats: Stats::default(),
                refused_for: Atomic::new(0),
                inner <- new_spinlock_irq!(inner, "Peer::inner"),
            }),
            GFP_KERNEL,
        )
    }

    /// Everything at one moment. Any context.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let inner = self.inner.lock();
        let state = inner.machine.state();
        Snapshot {
            state,
            #[cfg(KCCM_KUNIT)]
            epoch: inner.session.as_ref().map_or(0, |_| inner.epoch),
            incarnation: inner.incarnation,
            last_error: inner.last_error,
            last_refusal: inner.last_refusal,
            queued: inner.recv.iter().map(Receiver::queued).sum(),
            next_attempt: match state {
                State::Backoff { until } => Some(until),
                _ => None,
            },
        }
    }

    /// It has tried to connect and was refused for this reason, or was not. Returns whether that is
    /// news: it will try again and again.
    pub(crate) fn judged(&self, refusal: Option<Refusal>) -> bool {
        let now = refusal.map_or(0, |refusal| refusal as i32);
        self.refused_for.xchg(now, Relaxed) != now
    }

    /// Whether it is connected. Any context.
    pub(crate) fn is_up(&self) -> bool {
        self.inner.lock().session.is_some()
    }

    /// The connection of the session, and how long a silence the peer takes for death.
    pub(crate) fn session(&self) -> Option<(Arc<Conn>, Millis)> {
        let inner = self.inner.lock();
        let session = inner.session.as_ref()?;
        Some((session.conn.clone(), session.peer.peer.dead_ms.into()))
    }

    /// The longest frames that both sides accept, and the session that this holds for; `None` while
    /// not connected.
    pub(crate) fn bounds(&self) -> Option<(Bounds, u64)> {
        let inner = self.inner.lock();
        let theirs = inner.session.as_ref()?.peer.peer.bounds;
        let bounds = Bounds {
            message: theirs.message.min(self.own.message),
            rcall: theirs.rcall.min(self.own.rcall),
        };
        Some((bounds, inner.epoch))
    }

    // ---- The state machine.

    /// When the next [`Peer::tick`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        self.inner.lock().machine.deadline()
    }

    /// Time has passed. Returns what to do, and the connection to do it to.
    pub(crate) fn tick(&self) -> (Action, Option<Arc<Conn>>) {
        let mut inner = self.inner.lock();
        if inner.session.is_some() {
            // Nothing is due; or it was taken down and up again, and the listener has yet to see to
            // what follows from the first.
            return (Action::None, None);
        }
        let action = inner
            .machine
            .step(Event::Tick, clock::now(), clock::random());
        if action == Action::Expire {
            inner.last_error = Some(ETIMEDOUT);
            inner.last_refusal = None;
        }
        (action, inner.conn.clone())
    }

    /// An attempt to connect begins. Returns whether it is still wanted.
    pub(crate) fn dialing(&self, conn: &Arc<Conn>) -> bool {
        self.stats.attempts.inc();
        let mut inner = self.inner.lock();
        if !matches!(inner.machine.state(), State::Connecting { .. }) {
            return false;
        }
        let old = inner.conn.replace(conn.clone());
        drop(inner);
        if let Some(old) = old {
            // An attempt that has been given up, and has yet to be seen to by the listener.
            old.fail(ECANCELED, None);
        }
        true
    }

    /// The attempt has got through to the other side. Returns what the greeting needs, if the
    /// attempt is still wanted: the peer's last incarnation and what is granted to it.
    pub(crate) fn linked(&self, conn: &Arc<Conn>) -> Option<(u64, [u64; 2])> {
        let mut inner = self.inner.lock();
        if !inner.is_current(conn) {
            return None;
        }
        match inner.machine.step(Event::Linked, clock::now(), 0) {
            Action::Greet => Some((inner.incarnation, inner.restart())),
            _ => None,
        }
    }

    /// The incarnation of the session, if there is one and its peer was heard of since `since`.
    pub(crate) fn alive_since(&self, since: Millis) -> Option<u64> {
        let inner = self.inner.lock();
        let session = inner.session.as_ref()?;
        (session.conn.failure().is_none() && session.conn.last_heard() >= since)
            .then_some(session.peer.peer.incarnation)
    }

    /// A good greeting has come in on a connection from the peer. Returns what is granted to it, if
    /// it is to be accepted.
    ///
    /// An earlier session has been ended by then.
    pub(crate) fn accepting(&self) -> Option<[u64; 2]> {
        let mut inner = self.inner.lock();
        let wanted = inner.session.is_none() && inner.machine.state() == State::Listening;
        wanted.then(|| inner.restart())
    }

    /// The peer has been welcomed, so that from now on frames may follow. Returns whether that makes
    /// a session.
    pub(crate) fn accepted(&self, conn: &Arc<Conn>, greeting: &Greeting) -> bool {
        let mut inner = self.inner.lock();
        if inner.session.is_some() {
            return false;
        }
        match inner.machine.step(Event::Accepted, clock::now(), 0) {
            Action::Established => {
                let old = inner.conn.replace(conn.clone());
                self.establish(&mut inner, conn, greeting);
                drop(inner);
                // Perhaps the last reference, which must not go under the lock.
                drop(old);
                true
            }
            _ => false,
        }
    }

    /// The peer has answered well. Returns whether that makes a session.
    pub(crate) fn welcomed(&self, conn: &Arc<Conn>, greeting: &Greeting) -> bool {
        let mut inner = self.inner.lock();
        if !inner.is_current(conn) {
            return false;
        }
        match inner.machine.step(Event::Welcomed, clock::now(), 0) {
            Action::Established => {
                self.establish(&mut inner, conn, greeting);
                true
            }
            _ => false,
        }
    }

    fn establish(&self, inner: &mut Inner, conn: &Arc<Conn>, greeting: &Greeting) {
        let windows = greeting.peer.windows;
        inner.session = Some(Session {
            conn: conn.clone(),
            peer: *greeting,
            send: [0, 1].map(|i: usize| Sender::new(windows[i], greeting.granted[i])),
            waiters: [List::new(), List::new()],
        });
        inner.epoch += 1;
        inner.incarnation = greeting.peer.incarnation;
        inner.last_error = None;
        inner.last_refusal = None;
        if inner.epoch > 1 {
            self.stats.reconnects.inc();
        }
    }

    /// All that follows from the beginning or the end of a session has been done.
    pub(crate) fn announce(&self) {
        let mut inner = self.inner.lock();
        inner.announced = match &inner.session {
            Some(session) => (inner.epoch, session.peer.peer.incarnation),
            None => (0, 0),
        };
    }

    /// The session that subscribers may be told of, and the peer's incarnation in it; 0 for none.
    pub(crate) fn announced(&self) -> (u64, u64) {
        self.inner.lock().announced
    }

    /// The connection has ended. If that ends a session, returns it, and all who waited for credit
    /// in it have been told.
    pub(crate) fn lost(
        &self,
        conn: &Arc<Conn>,
        error: Error,
        refusal: Option<Refusal>,
    ) -> Option<Ended> {
        let mut inner = self.inner.lock();
        if !inner.is_current(conn) {
            return None;
        }
        let attempt = inner.conn.take();
        inner
            .machine
            .step(Event::Lost, clock::now(), clock::random());
        if core::mem::take(&mut inner.hurry) {
            inner.machine.step(Event::Hurry, clock::now(), 0);
        }
        inner.last_error = Some(error);
        inner.last_refusal = refusal;
        let session = inner.session.take();
        if session.is_some() {
            inner.recv.iter_mut().for_each(Receiver::carry);
        }
        drop(inner);
        drop(attempt);
        let mut session = session?;
        for lane in Lane::ALL {
            while let Some(waiter) = session.waiters[lane as usize].pop_front() {
                waiter.done.fire();
            }
        }
        Some(Ended {
            incarnation: session.peer.peer.incarnation,
        })
    }

    /// An attempt to connect could not even begin.
    pub(crate) fn dial_failed(&self, error: Error) {
        let mut inner = self.inner.lock();
        inner
            .machine
            .step(Event::Lost, clock::now(), clock::random());
        inner.last_error = Some(error);
        inner.last_refusal = None;
    }

    /// The administrator has spoken. Returns the connection that is to be ended, if there is one.
    pub(crate) fn admin(&self, event: Event) -> Option<Arc<Conn>> {
        let mut inner = self.inner.lock();
        match inner.machine.step(event, clock::now(), clock::random()) {
            Action::Gone | Action::Abandon => inner.conn.clone(),
            _ => None,
        }
    }

    /// The next attempt is wanted now, or as soon as the present connection has ended, which is
    /// returned.
    pub(crate) fn hurry(&self) -> Option<Arc<Conn>> {
        let mut inner = self.inner.lock();
        inner.hurry = inner.conn.is_some();
        if !inner.hurry {
            inner.machine.step(Event::Hurry, clock::now(), 0);
        }
        inner.conn.clone()
    }

    /// The present attempt or connection.
    pub(crate) fn conn(&self) -> Option<Arc<Conn>> {
        self.inner.lock().conn.clone()
    }

    // ---- Sending: credit.

    /// Obtains the right to send one frame of this cost, on the connection that is returned. Process
    /// context; waits as `timeout` says.
    ///
    /// `epoch`: the session that it is meant for; what does not get into that gets `EHOSTDOWN`.
    /// `may_wait`: `false` in a thread that must not wait, which then gets `EDEADLK`.
    pub(crate) fn admit(
        &self,
        epoch: u64,
        lane: Lane,
        cost: u64,
        timeout: Timeout,
        may_wait: bool,
    ) -> Result<Arc<Conn>> {
        if let Some(conn) = self.try_admit(epoch, lane, cost)? {
            return Ok(conn);
        }
        if timeout == Timeout::NoWait {
            return Err(EAGAIN);
        }
        if !may_wait {
            return Err(EDEADLK);
        }
        let waiter = Arc::pin_init(
            pin_init!(Waiter {
                lane,
                cost,
                admitted: Atomic::new(false),
                done <- OneShot::new(),
                links <- ListLinks::new(),
                tracker <- AtomicTracker::new(),
            }),
            GFP_KERNEL,
        )?;
        {
            let mut inner = self.inner.lock();
            let session = inner.session_of(epoch)?;
            if let Ok(entry) = ListArc::try_from_arc(waiter.clone()) {
                session.waiters[lane as usize].push_back(entry);
            }
            session.admit_waiters(lane);
        }
        let waited = waiter.done.wait(timeout);
        self.admitted(&waiter, epoch, waited)
    }

    fn try_admit(&self, epoch: u64, lane: Lane, cost: u64) -> Result<Option<Arc<Conn>>> {
        let mut inner = self.inner.lock();
        let session = inner.session_of(epoch)?;
        let lane = lane as usize;
        if session.waiters[lane].is_empty() && session.send[lane].take(cost) {
            return Ok(Some(session.conn.clone()));
        }
        Ok(None)
    }

    /// A wait for credit is over: with it, without it, or with the session.
    fn admitted(&self, waiter: &Arc<Waiter>, epoch: u64, waited: Result) -> Result<Arc<Conn>> {
        let mut inner = self.inner.lock();
        let session = inner.session_of(epoch)?;
        if waiter.admitted.load(Relaxed) {
            return Ok(session.conn.clone());
        }
        // Not admitted: it is still in the list, and those behind it may fit where it did not.
        let waiters = &mut session.waiters[waiter.lane as usize];
        let mut cursor = waiters.cursor_front();
        let mut found = None;
        while let Some(next) = cursor.peek_next() {
            if core::ptr::eq(&*next.arc(), &**waiter) {
                found = Some(next.remove());
                break;
            }
            if !cursor.move_next() {
                break;
            }
        }
        session.admit_waiters(waiter.lane);
        drop(inner);
        drop(found);
        waited?;
        Err(EHOSTDOWN)
    }

    /// The peer has granted more credit. `EPROTO` if it cannot mean that.
    pub(crate) fn granted(&self, lane: Lane, limit: u64) -> Result {
        let mut inner = self.inner.lock();
        let Some(session) = inner.session.as_mut() else {
            return Ok(());
        };
        if session.send[lane as usize]
            .grant(limit)
            .map_err(|_| EPROTO)?
        {
            session.admit_waiters(lane);
        }
        Ok(())
    }

    // ---- Receiving: credit.

    /// A frame of this cost has come in; what it costs is released by dropping the charge. `EPROTO`
    /// if there was no credit for it.
    pub(crate) fn charge(self: &Arc<Self>, lane: Lane, cost: u64) -> Result<Charge> {
        let mut inner = self.inner.lock();
        let recv = &mut inner.recv[lane as usize];
        recv.receive(cost).map_err(|_| EPROTO)?;
        // What was released earlier may be all that the sender can go on with.
        let limit = recv.worth_granting();
        let charge = Charge {
            peer: self.clone(),
            lane,
            cost,
            epoch: inner.epoch,
        };
        let conn = inner.session.as_ref().map(|s| s.conn.clone());
        drop(inner);
        if let (Some(conn), Some(limit)) = (conn, limit) {
            self.grant(&conn, lane, limit);
        }
        Ok(charge)
    }

    fn release(&self, charge: &Charge) {
        let limit = {
            let mut inner = self.inner.lock();
            let conn = inner.session.as_ref().map(|s| s.conn.clone());
            let carried = conn.is_none() || inner.epoch != charge.epoch;
            let recv = &mut inner.recv[charge.lane as usize];
            recv.release(charge.cost, carried);
            // Without a session nobody could be told.
            conn.and_then(|conn| Some((conn, recv.worth_granting()?)))
        };
        if let Some((conn, limit)) = limit {
            self.grant(&conn, charge.lane, limit);
        }
    }

    /// Tells the peer of more credit.
    fn grant(&self, conn: &Arc<Conn>, lane: Lane, limit: u64) {
        if let Err(e) = conn.control(Header::Credit { lane, limit }) {
            // The peer would wait for ever; a new connection tells it anew.
            conn.fail(e, None);
        }
    }

    /// Grants what has been released between the greeting and the session.
    pub(crate) fn regrant(&self, conn: &Arc<Conn>) {
        for lane in Lane::ALL {
            let limit = self.inner.lock().recv[lane as usize].regrant();
            if let Some(limit) = limit {
                self.grant(conn, lane, limit);
            }
        }
    }
}

impl Inner {
    fn is_current(&self, conn: &Arc<Conn>) -> bool {
        self.conn.as_ref().is_some_and(|c| Arc::ptr_eq(c, conn))
    }

    /// The session, if it is still this one.
    fn session_of(&mut self, epoch: u64) -> Result<&mut Session> {
        match &mut self.session {
            Some(session) if self.epoch == epoch => Ok(session),
            _ => Err(EHOSTDOWN),
        }
    }

    fn restart(&mut self) -> [u64; 2] {
        [0, 1].map(|i: usize| self.recv[i].restart())
    }
}

/// What something that came in costs for as long as it is kept. Dropped in process context, without
/// locks: it may tell the peer that there is room again.
pub(crate) struct Charge {
    peer: Arc<Peer>,
    lane: Lane,
    cost: u64,
    epoch: u64,
}

impl Charge {
    /// The peer it came from.
    pub(crate) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.peer.release(self);
    }
}
