// SPDX-License-Identifier: GPL-2.0

//! One other node of the cluster, or rather one channel to it: where the connection stands, and what may be
//! sent.
//!
//! A peer is there for as long as this node. It has a [`Session`] from the first handshake with one
//! of its incarnations to that one's end, and during that one connection after the other.
//!
//! All of that is there once more for bulk, from the moment that somebody asks for it, as a [`Peer`] of
//! its own that the first one has ([`Channel`]). It begins a session only beside one of the first with the
//! same incarnation, and is up when that is.

use super::credit::{
    Lane,
    Receiver, //
};
use super::flow::{
    tell,
    Flow,
    Keep,
    Kind,
    Waiter, //
};
use super::frame::Bounds;
use super::hello::{
    Channel,
    Greeting,
    Identity,
    Refusal,
    Standing, //
};
use super::session::Session;
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
use crate::recovery::Reminder;
use crate::sys::clock;
use crate::sys::clock::Millis;
use crate::sys::context::in_softirq;
use crate::sys::lock::{
    new_spinlock_bh,
    SpinLockBh, //
};
use crate::sys::wait::Timeout;
use core::net::SocketAddr;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Full,
    Relaxed, //
};
use kernel::sync::Arc;

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
    /// Connections after the first.
    pub(crate) reconnects: Counter,
    /// Attempts to connect.
    pub(crate) attempts: Counter,
}

/// A connection that is established, and its session.
type Line = (Arc<Conn>, Arc<Session>);

/// A session that is not over, and what is sent in it.
struct Active {
    session: Arc<Session>,
    flow: Flow,
}

struct Inner {
    machine: Machine,
    /// The present attempt, or the connection that is established.
    conn: Option<Arc<Conn>>,
    /// Whether that is established.
    connected: bool,
    /// The session, connected or not.
    active: Option<Active>,
    /// The last session, when it is over.
    past: Option<Arc<Session>>,
    /// Sessions so far, and connections.
    sessions: u64,
    epoch: u64,
    /// Nothing has been heard of it for too long, or it has said that it goes.
    down: bool,
    /// When it was last heard of, while there is no connection.
    heard: Millis,
    /// How often it has come up, and whether subscribers may be told of the last time, and the
    /// peer's incarnation then; 0 for none.
    ups: u64,
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
    /// Which of its connections this is about.
    pub(crate) channel: Channel,
    /// If it is the main one, the other.
    bulk: Option<Arc<Peer>>,
    /// Somebody has asked for it, if it is that for bulk.
    wanted: Atomic<bool>,
    /// The longest frames that this node accepts.
    own: Bounds,
    /// This node's incarnation.
    me: u64,
    keep: Keep,
    /// How long a silence is taken for death.
    dead_ms: Millis,
    /// What has been counted.
    pub(crate) stats: Stats,
    /// Why it was refused when it last tried to connect, 0 if it was not; for the log only.
    refused_for: Atomic<i32>,
    /// When the recovery thread is to look at it.
    pub(crate) reminder: Reminder,
    /// There is more to grant, which a thread has to do.
    owed: Atomic<bool>,
    /// Whether it is not down: the same as in `inner`, for those who cannot take its lock, and for both
    /// channels.
    up: Arc<Atomic<bool>>,
    #[pin]
    inner: SpinLockBh<Inner>,
}

/// What the end of a connection means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lost {
    /// It was not the present one.
    Stale,
    /// It was an attempt.
    Attempt,
    /// It was established, with this incarnation. The session goes on.
    Connection(u64),
}

/// What sysfs and events want to know of a peer at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Snapshot {
    /// Where the connection stands.
    pub(crate) state: State,
    /// The connection, counted from 1; 0 when there is none.
    #[cfg(KCCM_KUNIT)]
    pub(crate) epoch: u64,
    /// The session, 0 when there is none.
    pub(crate) session: u64,
    /// What is kept until it is acknowledged: bytes, frames.
    pub(crate) kept: [u64; 2],
    /// What of long messages waits to be sent, bytes.
    #[cfg(KCCM_KUNIT)]
    pub(crate) unsent: u64,
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
    pub(crate) fn new(me: &Identity, member: &Member, limits: &Limits) -> Result<Arc<Self>> {
        let up = Arc::new(Atomic::new(false), GFP_KERNEL)?;
        let bulk = Self::on(Channel::Bulk, me, member, limits, up.clone(), None)?;
        Self::on(Channel::Main, me, member, limits, up, Some(bulk))
    }

    fn on(
        channel: Channel,
        me: &Identity,
        member: &Member,
        limits: &Limits,
        up: Arc<Atomic<bool>>,
        bulk: Option<Arc<Self>>,
    ) -> Result<Arc<Self>> {
        let role = Role::of(me.id, member.id);
        let backoff = Backoff::new(limits.backoff_min_ms.into(), limits.backoff_max_ms.into());
        let mut machine = Machine::new(role, backoff, limits.handshake_ms.into(), clock::now());
        if channel == Channel::Bulk && role == Role::Connect {
            // Until it is wanted.
            machine.step(Event::AdminDown, clock::now(), 0);
        }
        let inner = Inner {
            machine,
            conn: None,
            connected: false,
            active: None,
            past: None,
            sessions: 0,
            epoch: 0,
            down: true,
            heard: 0,
            ups: 0,
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
                channel,
                bulk,
                wanted: Atomic::new(false),
                own: Bounds {
                    message: limits.max_message,
                    rcall: limits.max_rcall,
                },
                me: me.incarnation,
                keep: Keep {
                    all: [limits.kept_bytes, limits.kept_frames.into()],
                    unsent: limits.unsent_bytes,
                },
                dead_ms: limits.dead_ms.into(),
                stats: Stats::default(),
                refused_for: Atomic::new(0),
                reminder: Reminder::new(),
                owed: Atomic::new(false),
                up,
                inner <- new_spinlock_bh!(inner, "Peer::inner"),
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
            epoch: if inner.connected { inner.epoch } else { 0 },
            session: inner.active.as_ref().map_or(0, |a| a.session.number),
            #[cfg(KCCM_KUNIT)]
            unsent: inner.active.as_ref().map_or(0, |a| a.flow.unsent()),
            kept: inner.active.as_ref().map_or([0, 0], |a| a.flow.kept()),
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

    /// Whether it is up: connected, or not long enough without a connection to be taken for dead.
    /// Any context.
    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    /// The connection that is established, in a session that is not over, and how long a silence the peer
    /// takes for death.
    pub(crate) fn line(&self) -> Option<(Arc<Conn>, Millis)> {
        let inner = self.inner.lock();
        let conn = inner.conn.clone().filter(|_| inner.connected)?;
        let active = inner.active.as_ref()?;
        Some((conn, active.session.peer.dead_ms.into()))
    }

    /// The connection that is established, also in a session that is over: then it has yet to be closed.
    pub(crate) fn established(&self) -> Option<Arc<Conn>> {
        let inner = self.inner.lock();
        inner.conn.clone().filter(|_| inner.connected)
    }

    /// The session, connected or not.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        let inner = self.inner.lock();
        inner.active.as_ref().map(|a| a.session.clone())
    }

    /// The session to send in. `EHOSTDOWN` while the peer is down.
    pub(crate) fn sendable(&self) -> Result<Arc<Session>> {
        let inner = self.inner.lock();
        match &inner.active {
            Some(active) if self.is_up() => Ok(active.session.clone()),
            _ => Err(EHOSTDOWN),
        }
    }

    /// Both channels, or this one.
    pub(crate) fn channels(&self) -> impl Iterator<Item = &Self> {
        [Some(self), self.bulk.as_deref()].into_iter().flatten()
    }

    // ---- The channel for bulk.

    /// That channel. `None` if this is it.
    pub(crate) fn bulk(&self) -> Option<&Arc<Self>> {
        self.bulk.as_ref()
    }

    /// Somebody asks for this channel. Returns whether that is news.
    pub(crate) fn want(&self) -> bool {
        !self.is_wanted() && !self.wanted.xchg(true, Full)
    }

    /// Whether somebody has.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Relaxed)
    }

    /// Whether something that it has sent may still come in: also of one that has said that it stops, and
    /// has sent for bulk before.
    pub(crate) fn may_be_heard(&self) -> bool {
        self.is_up() || self.bulk().is_some_and(|bulk| bulk.line().is_some())
    }

    /// Whether there is a session with that incarnation.
    pub(crate) fn has_session_with(&self, incarnation: u64) -> bool {
        let session = self.session();
        session.is_some_and(|s| s.peer.incarnation == incarnation)
    }

    /// The peer, to which this is the channel for bulk, is down. Who waited for room is told.
    pub(crate) fn turn_away(&self) {
        let waiters = self
            .inner
            .lock()
            .active
            .as_mut()
            .map(|a| a.flow.turn_away());
        if let Some(waiters) = waiters {
            tell(waiters);
        }
    }

    // ---- The state machine.

    /// When the next [`Peer::tick`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        self.inner.lock().machine.deadline()
    }

    /// Time has passed. Returns what to do, and the connection to do it to.
    pub(crate) fn tick(&self) -> (Action, Option<Arc<Conn>>) {
        let mut inner = self.inner.lock();
        if inner.connected {
            // Nothing is due; or it was taken down and up again, and the listener has yet to see to
            // what follows from the first.
            return (Action::None, None);
        }
        let now = clock::now();
        if inner.machine.deadline().is_none_or(|due| now < due) {
            return (Action::None, None);
        }
        let action = inner.machine.step(Event::Tick, now, clock::random());
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

    /// The attempt has got through to the other side. Returns where this node stands, if the attempt
    /// is still wanted.
    pub(crate) fn linked(&self, conn: &Arc<Conn>) -> Option<Standing> {
        let mut inner = self.inner.lock();
        if !inner.is_current(conn) {
            return None;
        }
        match inner.machine.step(Event::Linked, clock::now(), 0) {
            Action::Greet => Some(inner.standing()),
            _ => None,
        }
    }

    /// The incarnation that is connected, if it was heard of since `since`.
    pub(crate) fn alive_since(&self, since: Millis) -> Option<u64> {
        let inner = self.inner.lock();
        let conn = inner.conn.as_ref().filter(|_| inner.connected)?;
        let active = inner.active.as_ref()?;
        (conn.failure().is_none() && conn.last_heard() >= since)
            .then_some(active.session.peer.incarnation)
    }

    /// Whether a session with this incarnation, if there is one, goes on with a peer that says this of
    /// itself.
    ///
    /// `me`: this node's incarnation. To the node that connects the welcome alone says that; the
    /// other has begun the session only when it was heard in it, so who does not know of it said so
    /// before that.
    pub(crate) fn resumable(&self, greeting: &Greeting, me: u64) -> Option<bool> {
        let session = self.session()?;
        if session.peer.incarnation != greeting.peer.incarnation {
            return None;
        }
        let there = &greeting.standing;
        Some(there.with == me && session.can_resume(there.received))
    }

    /// Where this node stands for a peer that has greeted, if it has accepted that.
    pub(crate) fn accepting(&self, greeting: &Greeting) -> Standing {
        let inner = self.inner.lock();
        match &inner.active {
            Some(active) if active.session.peer.incarnation == greeting.peer.incarnation => {
                let granted = [0, 1].map(|i: usize| inner.recv[i].granted());
                active.session.standing(granted)
            }
            _ => Standing {
                granted: [0, 1].map(|i: usize| inner.recv[i].prospect()),
                ..Standing::default()
            },
        }
    }

    /// Memory for the session that a good greeting begins.
    pub(crate) fn new_session(&self, greeting: &Greeting) -> Result<Arc<Session>> {
        let number = self.inner.lock().sessions + 1;
        Session::new(number, greeting.peer, self.own)
    }

    /// The peer has been heard on a connection to which it was welcomed, which makes it that of
    /// `session`. Returns whether it does. `told`: what the welcome has granted.
    ///
    /// An earlier connection has been ended by then, and an earlier session.
    pub(crate) fn accepted(
        &self,
        conn: &Arc<Conn>,
        greeting: &Greeting,
        session: &Arc<Session>,
        told: [u64; 2],
    ) -> bool {
        let mut inner = self.inner.lock();
        if inner.connected {
            return false;
        }
        match inner.machine.step(Event::Accepted, clock::now(), 0) {
            Action::Established => {
                let old = inner.conn.replace(conn.clone());
                if inner.active.is_none() {
                    for (recv, told) in inner.recv.iter_mut().zip(told) {
                        recv.restart();
                        recv.promise(told);
                    }
                }
                self.establish(&mut inner, greeting, session);
                drop(inner);
                // Perhaps the last reference, which must not go under the lock.
                drop(old);
                true
            }
            _ => false,
        }
    }

    /// The peer has welcomed this node to `session`. Returns whether that makes a connection.
    pub(crate) fn welcomed(
        &self,
        conn: &Arc<Conn>,
        greeting: &Greeting,
        session: &Arc<Session>,
    ) -> bool {
        let mut inner = self.inner.lock();
        if !inner.is_current(conn) {
            return false;
        }
        match inner.machine.step(Event::Welcomed, clock::now(), 0) {
            Action::Established => {
                self.establish(&mut inner, greeting, session);
                true
            }
            _ => false,
        }
    }

    fn establish(&self, inner: &mut Inner, greeting: &Greeting, session: &Arc<Session>) {
        let granted = greeting.standing.granted_to(self.me);
        match &mut inner.active {
            Some(Active { flow, .. }) => {
                flow.set_connected(true);
                for (lane, limit) in Lane::ALL.into_iter().zip(granted) {
                    // One that makes no sense grants nothing.
                    let _ = flow.grant(lane, limit);
                }
            }
            None => {
                inner.active = Some(Active {
                    session: session.clone(),
                    flow: Flow::new(session.peer.windows, granted, self.keep),
                });
                inner.sessions = session.number;
            }
        }
        inner.connected = true;
        inner.epoch += 1;
        if self.channel == Channel::Main {
            self.up.store(true, Relaxed);
        }
        if core::mem::take(&mut inner.down) {
            inner.ups += 1;
        }
        inner.incarnation = greeting.peer.incarnation;
        inner.last_error = None;
        inner.last_refusal = None;
        if inner.epoch > 1 {
            self.stats.reconnects.inc();
        }
    }

    /// All that follows from its coming up or going down has been done.
    pub(crate) fn announce(&self) {
        let mut inner = self.inner.lock();
        inner.announced = if inner.down {
            (0, 0)
        } else {
            (inner.ups, inner.incarnation)
        };
    }

    /// The time that it came up which subscribers may be told of, and its incarnation then; 0 for
    /// none.
    pub(crate) fn announced(&self) -> (u64, u64) {
        self.inner.lock().announced
    }

    /// The connection has ended, established or not.
    pub(crate) fn lost(&self, conn: &Arc<Conn>, error: Error, refusal: Option<Refusal>) -> Lost {
        let mut inner = self.inner.lock();
        if !inner.is_current(conn) {
            return Lost::Stale;
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
        let was_connected = core::mem::take(&mut inner.connected);
        if was_connected {
            inner.heard = conn.last_heard();
        }
        let incarnation = inner.incarnation;
        drop(inner);
        drop(attempt);
        if was_connected {
            Lost::Connection(incarnation)
        } else {
            Lost::Attempt
        }
    }

    /// It is not connected, and not down for that: nothing can wait for what is queued, which may be all
    /// that can be kept.
    pub(crate) fn let_queue(&self) {
        let mut inner = self.inner.lock();
        if inner.connected || inner.down {
            return;
        }
        if let Some(active) = inner.active.as_mut() {
            active.flow.set_connected(false);
        }
    }

    /// When it is to be taken for dead, if it is not connected and has not been already.
    pub(crate) fn dies_at(&self) -> Option<Millis> {
        let inner = self.inner.lock();
        (!inner.connected && !inner.down).then(|| inner.heard + self.dead_ms)
    }

    /// If it is down, and not connected any more, when it was last heard of.
    pub(crate) fn down_last_heard(&self) -> Option<Millis> {
        let inner = self.inner.lock();
        (!inner.connected && inner.down).then_some(inner.heard)
    }

    /// Takes it for dead, unless it has connected again. Returns its incarnation if that is news; who
    /// waited for room has been told.
    pub(crate) fn declare_down(&self) -> Option<u64> {
        let mut inner = self.inner.lock();
        if inner.connected || inner.down {
            return None;
        }
        inner.down = true;
        self.up.store(false, Relaxed);
        let incarnation = inner.incarnation;
        let active = inner.active.as_mut();
        let told = active.map(|a| (a.flow.turn_away(), a.session.clone()));
        drop(inner);
        if let Some((waiters, session)) = told {
            tell(waiters);
            session.changed();
        }
        Some(incarnation)
    }

    /// Its session, if there is one, is over for this reason; with it all that is kept, and who waited
    /// for room has been told. Returns whether there was one.
    pub(crate) fn end_session(&self, error: Error) -> bool {
        self.end_session_if(error, |_| true)
    }

    /// The same, if it is that one.
    pub(crate) fn end_session_if(
        &self,
        error: Error,
        is_that: impl FnOnce(&Arc<Session>) -> bool,
    ) -> bool {
        let mut inner = self.inner.lock();
        let active = inner.active.take_if(|active| is_that(&active.session));
        let Some(Active { session, mut flow }) = active else {
            return false;
        };
        inner.recv.iter_mut().for_each(Receiver::carry);
        inner.down = true;
        if self.channel == Channel::Main {
            self.up.store(false, Relaxed);
        }
        let past = inner.past.replace(session.clone());
        drop(inner);
        drop(past);
        session.close(error);
        tell(flow.turn_away());
        true
    }

    /// What the session before the present one has left behind is of no use any more. Returns whether
    /// there was one.
    pub(crate) fn supersede(&self) -> bool {
        let past = self.inner.lock().past.take();
        if let Some(past) = &past {
            past.supersede();
        }
        past.is_some()
    }

    /// It could not be heard of for a while, through no fault of its own.
    pub(crate) fn excuse(&self, now: Millis) {
        let mut inner = self.inner.lock();
        inner.heard = now;
        let line = inner.line();
        drop(inner);
        if let Some((conn, _)) = line {
            conn.hear();
        }
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

    // ---- Sending: credit and room.

    /// Obtains the right to send one frame of this cost in the session. Process context; waits as
    /// `timeout` says.
    ///
    /// `may_wait`: `false` in a thread that must not wait, which then gets `EDEADLK`. `EHOSTDOWN` when
    /// the peer is down; when the session is over, why.
    pub(crate) fn admit(
        self: &Arc<Self>,
        session: &Arc<Session>,
        lane: Lane,
        cost: u64,
        timeout: Timeout,
        may_wait: bool,
    ) -> Result<Kept> {
        let kind = Kind::of(lane, cost);
        let kept = |ask| Kept {
            peer: self.clone(),
            session: session.number,
            cost,
            frames: 1,
            unsent: Atomic::new(kind == Kind::Long),
            ask,
        };
        if let Some(ask) = self.try_admit(session, kind, cost, may_wait)? {
            return Ok(kept(ask));
        }
        if timeout == Timeout::NoWait {
            return Err(EAGAIN);
        }
        if !may_wait {
            return Err(EDEADLK);
        }
        let waiter = Waiter::new(kind, cost)?;
        self.inner
            .lock()
            .flow_of(session, self.is_up())?
            .queue(&waiter);
        let waited = waiter.done.wait(timeout);
        self.admitted(&waiter, session, waited).map(kept)
    }

    /// Returns, if there is room, whether to ask what the other side has.
    fn try_admit(
        &self,
        session: &Arc<Session>,
        kind: Kind,
        cost: u64,
        may_wait: bool,
    ) -> Result<Option<bool>> {
        let mut inner = self.inner.lock();
        let flow = inner.flow_of(session, self.is_up())?;
        let taken = flow.take_at_once(kind, cost, may_wait);
        Ok(taken.then(|| flow.take_ask()))
    }

    /// A wait for room is over: with it, without it, or with the session. Returns whether to ask what
    /// the other side has.
    fn admitted(
        &self,
        waiter: &Arc<Waiter>,
        session: &Arc<Session>,
        waited: Result,
    ) -> Result<bool> {
        let mut inner = self.inner.lock();
        if waiter.is_admitted() {
            let active = inner.active.as_mut();
            return Ok(active.is_some_and(|a| a.flow.take_ask()));
        }
        let flow = inner.flow_of(session, self.is_up())?;
        let found = flow.leave(waiter);
        drop(inner);
        drop(found);
        waited?;
        // It was turned away, and the peer has come back since.
        Err(EHOSTDOWN)
    }

    /// The peer has granted more credit. `EPROTO` if it cannot mean that.
    pub(crate) fn granted(&self, lane: Lane, limit: u64) -> Result {
        let mut inner = self.inner.lock();
        let Some(active) = inner.active.as_mut() else {
            return Ok(());
        };
        active.flow.grant(lane, limit).map_err(|_| EPROTO)
    }

    /// Something sent is not kept any more.
    fn forget(&self, kept: &Kept) {
        if let Some(flow) = self.inner.lock().flow_numbered(kept.session) {
            flow.forget(kept.cost, kept.frames);
        }
    }

    /// Something long does not wait to be sent any more.
    fn taken(&self, kept: &Kept) {
        if let Some(flow) = self.inner.lock().flow_numbered(kept.session) {
            flow.taken(kept.cost);
        }
    }

    // ---- Receiving: credit.

    /// A frame of this cost has come in; what it costs is released by dropping the charge. `EPROTO`
    /// if there was no credit for it.
    pub(crate) fn charge(self: &Arc<Self>, lane: Lane, cost: u64) -> Result<Charge> {
        let upcall = in_softirq();
        let mut inner = self.inner.lock();
        let recv = &mut inner.recv[lane as usize];
        recv.receive(cost).map_err(|_| EPROTO)?;
        // What was released earlier may be all that the sender can go on with.
        let grant = self.grant_now(&mut inner, lane, upcall);
        let charge = Charge {
            peer: self.clone(),
            lane,
            cost,
            session: inner.sessions,
            cancelled: false,
        };
        drop(inner);
        if let Some((line, limit)) = grant {
            self.grant(line, lane, limit);
        }
        Ok(charge)
    }

    fn release(&self, charge: &Charge) {
        let upcall = in_softirq();
        let grant = {
            let mut inner = self.inner.lock();
            let carried = inner.active.is_none() || inner.sessions != charge.session;
            let recv = &mut inner.recv[charge.lane as usize];
            if charge.cancelled && !carried {
                recv.cancel(charge.cost);
            } else {
                recv.release(charge.cost, carried);
            }
            self.grant_now(&mut inner, charge.lane, upcall)
        };
        if let Some((line, limit)) = grant {
            self.grant(line, charge.lane, limit);
        }
    }

    /// Tells the peer of more credit.
    fn grant(&self, line: Line, lane: Lane, limit: u64) {
        let (conn, session) = line;
        if let Err(e) = session.grant(&conn, lane, limit) {
            // The peer would wait for ever; a new connection tells it anew.
            conn.fail(e, None);
        }
    }

    /// What to grant, and over which line, where that can be told now; in an `upcall` a thread has to.
    fn grant_now(&self, inner: &mut Inner, lane: Lane, upcall: bool) -> Option<(Line, u64)> {
        if upcall {
            if inner.recv[lane as usize].is_worth_granting() {
                self.owed.store(true, Relaxed);
            }
            return None;
        }
        inner.worth_granting(lane)
    }

    /// Whether there is more to grant, which a thread has to do: [`Peer::grant_owed`]. Any context.
    pub(crate) fn owes(&self) -> bool {
        self.owed.load(Relaxed)
    }

    /// Grants what could not be granted where that was found. Process context.
    pub(crate) fn grant_owed(&self) {
        if !self.owes() || !self.owed.xchg(false, Full) {
            return;
        }
        for lane in Lane::ALL {
            let grant = self.inner.lock().worth_granting(lane);
            if let Some((line, limit)) = grant {
                self.grant(line, lane, limit);
            }
        }
    }

    /// Tells the peer of all that is granted, as far as the greeting, which has `told` it of so much, has
    /// not: what was told between the two may have been lost with an earlier connection.
    pub(crate) fn regrant(&self, told: [u64; 2]) {
        for (lane, told) in Lane::ALL.into_iter().zip(told) {
            let mut inner = self.inner.lock();
            let line = inner.line();
            let limit = inner.recv[lane as usize].total();
            drop(inner);
            if let Some(line) = line.filter(|_| limit != told) {
                self.grant(line, lane, limit);
            }
        }
    }
}

impl Inner {
    fn is_current(&self, conn: &Arc<Conn>) -> bool {
        self.conn.as_ref().is_some_and(|c| Arc::ptr_eq(c, conn))
    }

    /// The connection that is established, and the session.
    fn line(&self) -> Option<Line> {
        let conn = self.conn.as_ref().filter(|_| self.connected)?;
        let active = self.active.as_ref()?;
        Some((conn.clone(), active.session.clone()))
    }

    /// What to grant, and over which line, when it is worth telling. Without a connection nobody could
    /// be told; the next greeting will tell.
    fn worth_granting(&mut self, lane: Lane) -> Option<(Line, u64)> {
        if !self.connected || self.active.is_none() {
            return None;
        }
        let limit = self.recv[lane as usize].worth_granting()?;
        Some((self.line()?, limit))
    }

    /// What is sent in the session of this number, if that is still the present one.
    fn flow_numbered(&mut self, session: u64) -> Option<&mut Flow> {
        let active = self.active.as_mut()?;
        (active.session.number == session).then_some(&mut active.flow)
    }

    /// What is sent in this session, if that is still the present one and its peer is not down.
    fn flow_of(&mut self, session: &Arc<Session>, up: bool) -> Result<&mut Flow> {
        match &mut self.active {
            Some(active) if Arc::ptr_eq(&active.session, session) => {
                if !up {
                    return Err(EHOSTDOWN);
                }
                Ok(&mut active.flow)
            }
            _ => Err(session.why_over()),
        }
    }

    /// Where this node stands in the session, or would in a new one.
    fn standing(&mut self) -> Standing {
        match &self.active {
            Some(active) => active
                .session
                .standing([0, 1].map(|i: usize| self.recv[i].total())),
            None => Standing {
                granted: [0, 1].map(|i: usize| self.recv[i].restart()),
                ..Standing::default()
            },
        }
    }
}

/// What something that came in costs for as long as it is kept. Dropped without locks: it may tell the
/// peer that there is room again. In an upcall, that is left to the listener.
pub(crate) struct Charge {
    peer: Arc<Peer>,
    lane: Lane,
    cost: u64,
    session: u64,
    cancelled: bool,
}

impl Charge {
    /// The peer it came from.
    pub(crate) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// It was not delivered, and will come in again.
    pub(crate) fn cancel(mut self) {
        self.cancelled = true;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.peer.release(self);
    }
}

/// The room of what was sent, for as long as it is kept until it is acknowledged. Dropped without
/// locks.
pub(crate) struct Kept {
    peer: Arc<Peer>,
    session: u64,
    cost: u64,
    frames: u64,
    /// It is long, and no connection has taken it yet.
    unsent: Atomic<bool>,
    ask: bool,
}

impl Kept {
    /// Whether the other side is to be asked what it has, once the frame has been sent.
    pub(crate) fn asks(&self) -> bool {
        self.ask
    }

    /// A connection has taken the frame, which may be sent again. Without locks.
    #[inline]
    pub(crate) fn taken(&self) {
        if self.unsent.load(Relaxed) && self.unsent.xchg(false, Relaxed) {
            self.peer.taken(self);
        }
    }

    /// Takes over the room of another frame of the same session.
    pub(crate) fn join(&mut self, mut other: Self) {
        self.taken();
        other.taken();
        if self.session == other.session && Arc::ptr_eq(&self.peer, &other.peer) {
            self.cost += core::mem::take(&mut other.cost);
            self.frames += core::mem::take(&mut other.frames);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.taken();
        if self.frames > 0 {
            self.peer.forget(self);
        }
    }
}
