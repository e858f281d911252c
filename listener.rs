// SPDX-License-Identifier: GPL-2.0

//! The listener: the thread at the centre of a node (P4).
//!
//! It always waits for something to come in, handles it by its kind, and waits again. A link's
//! upcall puts its connection on the listener's ready list and wakes it; the listener serves the
//! connections of that list in turn, each for a bounded number of bytes, so that no peer starves the
//! others and none is ever polled.
//!
//! ```text
//!   upcall (softirq)         ready list            listener thread
//!  ----------------->  [conn] [conn] [conn]  --->  serve(conn):
//!                        ^                           link up?  greeting?  ->  crate::conn::hello
//!                        |                           bytes -> frames      ->  crate::conn::frame
//!                        +--- more to read --------- frame -> by its kind:
//!                                                      Message  -> crate::sendrecv (P6, P7)
//!                                                      Call     -> crate::rcall (P8)
//!                                                      Reply    -> crate::rcall, wakes the caller
//!                                                      Credit   -> wakes senders
//! ```
//!
//! A node has one listener thread or several; then each peer belongs to one of them. One more serves what
//! peers have for bulk, so that nobody waits while it copies. It gets such a connection when it is open:
//! who comes, and who goes, is all one thread's business for each peer.

pub(crate) mod quick;

use crate::config::{
    Addr,
    NodeId, //
};
use crate::conn::credit::{
    call_cost,
    message_cost,
    Lane, //
};
use crate::conn::frame::{
    Bye,
    Header,
    Numbers,
    Received,
    Stop, //
};
use crate::conn::hello;
use crate::conn::hello::{
    Answer,
    Channel,
    Claimed,
    Greeting,
    Refusal,
    Reject,
    Standing, //
};
use crate::conn::inbox;
use crate::conn::inbox::Due;
use crate::conn::peer::Peer;
use crate::conn::session::Session;
use crate::conn::state::Role;
use crate::conn::transport::Notify;
use crate::conn::tx::Blank;
use crate::conn::{
    Conn,
    Held,
    Phase,
    Rx,
    Undelivered,
    Welcomed, //
};
use crate::node::Node;
use crate::rcall;
use crate::rcall::{
    Incoming,
    Wanted, //
};
use crate::sendrecv::{
    Memory,
    Message, //
};
use crate::sys::clock;
use crate::sys::clock::Millis;
use crate::sys::lock::{
    new_spinlock_bh,
    SpinLockBh, //
};
use crate::sys::log;
use crate::sys::thread;
use kernel::list::{
    List,
    ListArc, //
};
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::{new_condvar, Arc, CondVar};

/// What one connection may have read before it is the next one's turn, bytes.
const TURN: usize = 256 << 10;

/// What one connection may take before it is the next one's turn, milliseconds. It can take longer by
/// one short handler.
const TURN_MS: Millis = 2;

/// How many frames may be handled without a look at the clock, if none of them runs a handler.
const UNCLOCKED: u32 = 32;

/// How many connections are accepted before others are served.
const ACCEPTS: u32 = 32;

/// How long to wait before trying again what failed for want of memory, milliseconds.
const MEMORY_PAUSE: Millis = 10;

struct Ready {
    conns: List<Conn>,
    /// A connection has come in on the port.
    accept: bool,
    /// Connections that wait for memory are to be tried again.
    retry: bool,
    stop: bool,
    /// The listener has ended.
    ended: bool,
}

/// The ready list of one listener thread.
#[pin_data]
struct Queue {
    #[pin]
    ready: SpinLockBh<Ready>,
    #[pin]
    wake: CondVar,
    /// The thread, to be recognised.
    task: Atomic<usize>,
}

impl Queue {
    fn new() -> Result<Pin<KBox<Self>>> {
        KBox::pin_init(
            pin_init!(Self {
                ready <- new_spinlock_bh!(
                    Ready {
                        conns: List::new(),
                        accept: false,
                        retry: false,
                        stop: false,
                        ended: false,
                    },
                    "Queue::ready"
                ),
                wake <- new_condvar!("Queue::wake"),
                task: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    fn tell(&self, what: impl FnOnce(&mut Ready)) {
        what(&mut self.ready.lock());
        self.wake.notify_one();
    }

    /// Puts a connection on the list; gives it back when nobody will serve it.
    fn push(&self, entry: ListArc<Conn>) -> Result<(), ListArc<Conn>> {
        let mut ready = self.ready.lock();
        if ready.ended {
            return Err(entry);
        }
        ready.conns.push_back(entry);
        drop(ready);
        self.wake.notify_one();
        Ok(())
    }
}

/// The ready lists of a node's listeners. The last is for bulk.
pub(crate) struct Queues(KVec<Pin<KBox<Queue>>>);

impl Queues {
    /// For so many listeners, and one for bulk.
    pub(crate) fn new(listeners: u32) -> Result<Arc<Self>> {
        let mut queues = KVec::new();
        for _ in 0..=listeners {
            queues.push(Queue::new()?, GFP_KERNEL)?;
        }
        Ok(Arc::new(Self(queues), GFP_KERNEL)?)
    }

    /// How many listeners there are.
    pub(crate) fn count(&self) -> u32 {
        self.0.len() as u32
    }

    /// The one for bulk.
    pub(crate) fn bulk(&self) -> u32 {
        self.count() - 1
    }

    /// The listener that a peer belongs to.
    pub(crate) fn home(&self, peer: NodeId) -> u32 {
        u32::from(peer).checked_rem(self.bulk()).unwrap_or(0)
    }

    /// Has a connection served. Any context.
    pub(crate) fn schedule(&self, listener: u32, conn: Arc<Conn>) {
        // Fails if it is on the list already, which will do.
        if let Ok(entry) = ListArc::try_from_arc(conn) {
            drop(self.0[listener as usize].push(entry));
        }
    }

    /// Has connections accepted. Any context.
    pub(crate) fn accept(&self) {
        self.0[0].tell(|ready| ready.accept = true);
    }

    /// Lets the listeners end once they have nothing to do.
    pub(crate) fn stop(&self) {
        for queue in &self.0 {
            queue.tell(|ready| ready.stop = true);
        }
    }

    /// Whether the calling thread is one of the listeners.
    pub(crate) fn is_listener(&self) -> bool {
        let current = thread::current_id();
        self.0.iter().any(|q| q.task.load(Relaxed) == current)
    }
}

/// Tells the first listener that the port has connections to accept.
pub(crate) struct PortCaller(pub(crate) Arc<Queues>);

impl Notify for PortCaller {
    fn notify(&self) {
        self.0.accept();
    }
}

/// What a listener is woken for.
enum Wake {
    Accept,
    Serve(Arc<Conn>),
    Retry,
    Stop,
}

/// The listener thread number `index` of a node.
pub(crate) fn run(node: &Arc<Node>, index: u32) {
    let queue = &node.queues.0[index as usize];
    queue.task.store(thread::current_id(), Relaxed);
    let mut listener = Listener {
        node,
        index,
        memory: Memory::new(),
        starved: List::new(),
        accept_later: false,
        just_accepted: false,
    };
    loop {
        match listener.wait(queue) {
            Wake::Accept => listener.accept(),
            Wake::Serve(conn) => listener.serve(conn),
            Wake::Retry => {
                if core::mem::take(&mut listener.accept_later) {
                    listener.accept();
                }
                listener.serve_starved();
            }
            Wake::Stop => break,
        }
    }
    queue.task.store(0, Relaxed);
}

/// Ends the connections that are left when the listeners have ended: one that came in while the node
/// was being stopped.
pub(crate) fn sweep(node: &Arc<Node>) {
    for peer in node.channels() {
        if let Some(conn) = peer.conn() {
            conn.fail(ESHUTDOWN, Some(Bye::Stopping));
            node.lost(peer, &conn, ESHUTDOWN, None);
            let mut rx = conn.rx.claim();
            rx.phase = Phase::Closed;
            let node = rx.node.take();
            drop(rx);
            drop(node);
            // An upcall that was sending has left the end to others, and none begins any more.
            conn.flush();
        }
        // One that has begun in the meantime.
        if peer.end_session(ESHUTDOWN) {
            node.fail_waiters(peer, ESHUTDOWN);
        }
    }
    node.hang_up_pending();
}

/// Whether there is more to do for a connection.
enum Served {
    /// Not before the link calls.
    Idle,
    /// Its turn is over.
    More,
    /// There was no memory.
    Starved,
}

struct Listener<'a> {
    node: &'a Arc<Node>,
    index: u32,
    /// Memory to queue messages with.
    memory: Memory,
    /// Connections that wait for memory.
    starved: List<Conn>,
    /// Accepting did not work, and is to be tried again.
    accept_later: bool,
    /// What was done last, so that connections that come in do not hold up those that are there.
    just_accepted: bool,
}

impl Listener<'_> {
    fn wait(&mut self, queue: &Queue) -> Wake {
        let mut ready = queue.ready.lock();
        loop {
            if ready.accept && (!self.just_accepted || ready.conns.is_empty()) {
                ready.accept = false;
                self.just_accepted = true;
                return Wake::Accept;
            }
            self.just_accepted = false;
            if let Some(entry) = ready.conns.pop_front() {
                drop(ready);
                // From here on it can be put on the list again.
                return Wake::Serve(entry.into_arc());
            }
            if core::mem::take(&mut ready.retry) {
                return Wake::Retry;
            }
            let patient = self.starved.is_empty() && !self.accept_later;
            if ready.stop && patient {
                ready.ended = true;
                return Wake::Stop;
            }
            if patient {
                // Signals do not reach kernel threads.
                let _ = queue.wake.wait_interruptible(&mut ready);
            } else {
                let pause = clock::jiffies(MEMORY_PAUSE);
                let _ = queue.wake.wait_interruptible_timeout(&mut ready, pause);
                ready.retry = true;
            }
        }
    }

    // ---- Connections that come in.

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            match self.node.accept() {
                Ok(Some(conn)) => {
                    if let Err(e) = conn.start() {
                        conn.hang_up(e);
                    }
                }
                Ok(None) => return,
                Err(e) => {
                    if log::allowed() {
                        pr_warn!(
                            "node {}: a connection could not be accepted: {:?}, trying again\n",
                            self.node.id(),
                            e
                        );
                    }
                    self.accept_later = !self.node.is_stopping();
                    return;
                }
            }
        }
        self.node.queues.accept();
    }

    // ---- One connection.

    /// Has connections served that wait for memory.
    fn serve_starved(&mut self) {
        while let Some(conn) = self.starved.pop_front() {
            conn.into_arc().schedule();
        }
    }

    fn serve(&mut self, conn: Arc<Conn>) {
        if conn.home() != self.index {
            conn.schedule();
            return;
        }
        let (served, moves_to) = {
            let mut rx = conn.rx.claim();
            rx.turn_ends = clock::now() + TURN_MS;
            let served = match conn.failure() {
                None => self.advance(&conn, &mut rx),
                Some(_) => Ok(Served::Idle),
            };
            let served = served.unwrap_or_else(|e| {
                conn.fail(e, None);
                Served::Idle
            });
            if let Some(error) = conn.failure() {
                let was_linked = !matches!(rx.phase, Phase::Dialing(_));
                self.close(&conn, &mut rx, error);
                drop(rx);
                // What an upcall has left to be done: perhaps to close the link.
                conn.flush();
                if was_linked {
                    // What is below may have something to do now.
                    self.node.recovery.by(clock::now());
                }
                return;
            }
            if let Phase::Open(peer) = &rx.phase {
                self.settle(peer, &conn);
            }
            (served, rx.moves_to.take())
        };
        // There may be room to send again.
        conn.flush();
        if let Some(home) = moves_to {
            conn.set_home(home);
        }
        match served {
            Served::Idle => {}
            Served::More => conn.schedule(),
            Served::Starved => {
                if let Ok(entry) = ListArc::try_from_arc(conn) {
                    self.starved.push_back(entry);
                }
            }
        }
    }

    /// Does what an upcall may have left to be done.
    fn settle(&self, peer: &Arc<Peer>, conn: &Arc<Conn>) {
        peer.grant_owed();
        if let Some(session) = conn.session().filter(|_| conn.take_owes()) {
            session.acknowledge_now();
        }
    }

    /// A connection has failed: what follows from that, once.
    fn close(&self, conn: &Arc<Conn>, rx: &mut Rx, error: Error) {
        rx.node = None;
        if let Some(held) = rx.held.take() {
            held.cancel();
        }
        match core::mem::replace(&mut rx.phase, Phase::Closed) {
            Phase::Dialing(peer) | Phase::AwaitAnswer(peer, _) | Phase::Open(peer) => {
                self.node.lost(&peer, conn, error, None);
            }
            // It was welcomed, and did not come back to that.
            Phase::Welcomed(_) => drop(self.node.drop_pending(conn)),
            Phase::AwaitHello | Phase::Greeted(_) => {
                // If it was this node that ended it, that has been logged.
                if self.node.drop_pending(conn) && log::allowed() {
                    pr_warn!(
                        "node {}: {} ended without a greeting\n",
                        self.node.id(),
                        Addr(conn.remote)
                    );
                }
            }
            Phase::Closed => {}
        }
    }

    /// Moves a connection on as far as it goes now.
    fn advance(&mut self, conn: &Arc<Conn>, rx: &mut Rx) -> Result<Served> {
        if let Phase::Dialing(peer) = &rx.phase {
            match conn.status() {
                Ok(()) => {}
                Err(e) if e == EINPROGRESS => return Ok(Served::Idle),
                Err(e) => return Err(e),
            }
            let peer = peer.clone();
            let standing = peer.linked(conn).ok_or(ECANCELED)?;
            let channel = peer.channel;
            conn.greet(&hello::hello(
                &self.node.identity,
                peer.id,
                channel,
                standing,
            ))?;
            rx.phase = Phase::AwaitAnswer(peer, standing);
        }
        if conn.is_spoilt() {
            return Err(EIO);
        }
        let mut read = 0;
        loop {
            match self.take(conn, rx)? {
                Taken::Wanting => {}
                Taken::Starved => return Ok(Served::Starved),
                Taken::TurnOver => return Ok(Served::More),
            }
            if conn.failure().is_some() {
                return Ok(Served::Idle);
            }
            if read >= TURN {
                return Ok(Served::More);
            }
            if read > 0 && !conn.pending() {
                // Cheaper than to be told so.
                return Ok(Served::Idle);
            }
            if read > 0 && clock::now() >= rx.turn_ends {
                return Ok(Served::More);
            }
            match conn.recv(rx.assembler.space()) {
                Ok(0) => return Err(ECONNRESET),
                Ok(n) => read += n,
                Err(e) if e == EAGAIN => return Ok(Served::Idle),
                Err(e) => return Err(e),
            }
        }
    }

    /// Handles what is complete of what has been read.
    fn take(&mut self, conn: &Arc<Conn>, rx: &mut Rx) -> Result<Taken> {
        loop {
            match &rx.phase {
                Phase::AwaitHello => {
                    let Some(bytes) = rx.assembler.take_exact() else {
                        return Ok(Taken::Wanting);
                    };
                    rx.phase = Phase::Greeted(bytes);
                    // What a peer's connections do is done by one thread.
                    let home = self.node.queues.home(hello::claimed_id(&bytes));
                    if home != self.index {
                        rx.moves_to = Some(home);
                        return Ok(Taken::TurnOver);
                    }
                }
                Phase::Greeted(bytes) => {
                    let bytes = *bytes;
                    rx.phase = Phase::Welcomed(self.greeted(conn, &bytes)?);
                }
                Phase::Welcomed(welcomed) => {
                    let peer = welcomed.peer.clone();
                    // A header is enough: nothing is kept of whoever has not been heard.
                    match rx.assembler.header(self.node.identity.bounds) {
                        Ok(Some(_)) if self.end_older(&peer) => {
                            return Ok(match peer.channel {
                                Channel::Main => Taken::TurnOver,
                                // Another listener ends it, of which this one hears nothing.
                                Channel::Bulk => Taken::Starved,
                            });
                        }
                        Ok(Some(_)) => self.begin(conn, rx, &peer)?,
                        Ok(None) => return Ok(Taken::Wanting),
                        Err(what) => {
                            if log::allowed() {
                                pr_warn!(
                                    "node {}: {} was welcomed as node {} and sent a malformed frame ({:?}): closed\n",
                                    self.node.id(),
                                    Addr(conn.remote),
                                    peer.id,
                                    what
                                );
                            }
                            return Err(EPROTO);
                        }
                    }
                }
                Phase::AwaitAnswer(peer, standing) => {
                    let (peer, standing) = (peer.clone(), *standing);
                    let Some(bytes) = rx.assembler.take_exact() else {
                        return Ok(Taken::Wanting);
                    };
                    self.answered(conn, rx, &peer, &standing, &bytes)?;
                }
                Phase::Open(_) if rx.moves_to.is_some() => return Ok(Taken::TurnOver),
                Phase::Open(peer) => {
                    let peer = peer.clone();
                    return self.frames(conn, rx, &peer);
                }
                Phase::Dialing(_) | Phase::Closed => return Ok(Taken::Wanting),
            }
        }
    }

    // ---- The handshake.

    /// A greeting has come in on a connection from wherever: is it a peer's?
    fn greeted(&self, conn: &Arc<Conn>, bytes: &hello::Bytes) -> Result<KBox<Welcomed>> {
        let node = self.node;
        let mut peer = None;
        let lately = clock::now().saturating_sub(node.limits().dead_ms.into());
        let judged = hello::check_hello(bytes, &node.identity, conn.remote.ip(), |greeting| {
            let main = node.peer(greeting.peer.id)?;
            let found = match greeting.channel {
                Channel::Main => main,
                Channel::Bulk => main.bulk()?,
            };
            let claimed = Claimed {
                known: main.is_up() && main.has_session_with(greeting.peer.incarnation),
                ip: found.addr.ip(),
                admin_down: found.snapshot().state == crate::conn::state::State::Down,
                alive: found.alive_since(lately),
                resumable: found.resumable(greeting, node.identity.incarnation),
            };
            peer = Some(found.clone());
            Some(claimed)
        });
        if judged.is_err() {
            node.drop_pending(conn);
        }
        match (judged, peer) {
            (Ok(greeting), Some(peer)) => self.welcome(conn, peer, greeting),
            (Ok(_), None) => Err(EPROTO),
            (Err(Reject::Garbage), _) => {
                if log::allowed() {
                    pr_warn!(
                        "node {}: {} is not KCCM: closed\n",
                        node.id(),
                        Addr(conn.remote)
                    );
                }
                Err(EPROTO)
            }
            (Err(Reject::Refuse { reason, from }), claimed) => {
                let old = claimed.and_then(|peer| peer.line());
                if let (Refusal::Duplicate, Some((old, _))) = (reason, old) {
                    // If that peer has restarted, its kernel will deny all knowledge of the old
                    // connection, and the next attempt gets through.
                    if let Some(session) = old.session() {
                        session.ping();
                    }
                }
                self.refuse(conn, reason, from)
            }
        }
    }

    /// `from`: who it claims to be, if that could be read.
    fn refuse<T>(&self, conn: &Arc<Conn>, reason: Refusal, from: Option<NodeId>) -> Result<T> {
        // Who takes the place of a peer that is connected is a stranger; any other is taken for the peer.
        let claimed = match from {
            Some(id) => self.node.peer(id),
            None => self.node.peer_at(conn.remote.ip()),
        };
        let absent = claimed.filter(|peer| !peer.is_up());
        // That happens where one channel is faster than the other.
        let odd = reason != Refusal::Early;
        let news = odd && absent.is_none_or(|peer| peer.judged(Some(reason)));
        let at_home = absent.is_some_and(|peer| peer.addr.ip() == conn.remote.ip());
        if news && (at_home && log::allowed_of_peer() || !at_home && log::allowed()) {
            let (me, remote) = (self.node.id(), Addr(conn.remote));
            match from {
                Some(id) => pr_warn!(
                    "node {me}: refused a connection from {remote} as node {id}: {reason}\n"
                ),
                None => pr_warn!("node {me}: refused a connection from {remote}: {reason}\n"),
            }
        }
        // The reason is all that it will be told, so let it get there.
        conn.greet(&hello::refuse(&self.node.identity, reason))?;
        conn.hang_up(reason.errno());
        Err(reason.errno())
    }

    /// Welcomes a peer. What follows from that is done when it has been heard: this greeting may have
    /// been under way for long, and its sender be no more.
    fn welcome(
        &self,
        conn: &Arc<Conn>,
        peer: Arc<Peer>,
        greeting: Greeting,
    ) -> Result<KBox<Welcomed>> {
        if self.node.is_stopping() {
            self.node.drop_pending(conn);
            return self.refuse(conn, Refusal::Stopping, Some(peer.id));
        }
        let standing = peer.accepting(&greeting);
        let welcome = hello::welcome(&self.node.identity, &greeting.peer, standing);
        let welcomed = Welcomed {
            peer,
            greeting,
            granted: standing.granted,
        };
        let welcomed = KBox::new(welcomed, GFP_KERNEL)?;
        conn.greet(&welcome)?;
        self.node.welcome_pending(conn, &welcomed.peer);
        Ok(welcomed)
    }

    /// A peer that connects again has found its old connection broken: ends it. Returns whether there
    /// is one. Then it is to be served first: what has come in and could not be handled is let go of
    /// before it comes again.
    fn end_older(&mut self, peer: &Peer) -> bool {
        let Some(old) = peer.established() else {
            return false;
        };
        old.fail(ECONNRESET, Some(Bye::Replaced));
        self.serve_starved();
        old.schedule();
        true
    }

    /// A peer that was welcomed has been heard: the connection is that of its session, which goes on
    /// or begins.
    fn begin(&self, conn: &Arc<Conn>, rx: &mut Rx, peer: &Arc<Peer>) -> Result {
        let Phase::Welcomed(welcomed) = &rx.phase else {
            return Err(EPROTO);
        };
        let (greeting, granted) = (welcomed.greeting, welcomed.granted);
        if !self.node.drop_pending(conn) || self.node.is_stopping() {
            return Err(ECANCELED);
        }
        let resumable = peer.resumable(&greeting, self.node.identity.incarnation);
        let session = match resumable {
            // It has begun over another connection in the meantime.
            Some(false) => return Err(ECONNRESET),
            _ => self.session(peer, &greeting, resumable)?,
        };
        self.node.drop_welcomed(peer);
        if !peer.accepted(conn, &greeting, &session, granted) {
            return Err(ECANCELED);
        }
        peer.judged(None);
        self.open(rx, peer);
        self.node
            .established(peer, conn, &greeting, &session, granted)?;
        if resumable == Some(true) {
            // What the welcome has acknowledged is news to who waits for that when a frame says so.
            session.ping();
        }
        Ok(())
    }

    /// The handshake is over.
    fn open(&self, rx: &mut Rx, peer: &Arc<Peer>) {
        rx.phase = Phase::Open(peer.clone());
        rx.node = Some(self.node.clone());
        if peer.channel == Channel::Bulk {
            rx.moves_to = Some(self.node.queues.bulk());
        }
    }

    /// The session with the peer that has greeted, if that is `resumable`, or a new one. What it had
    /// before is over then, and what that has left behind is thrown away.
    fn session(
        &self,
        peer: &Peer,
        greeting: &Greeting,
        resumable: Option<bool>,
    ) -> Result<Arc<Session>> {
        if peer.channel == Channel::Bulk {
            let main = self.node.peer(peer.id).ok_or(EINVAL)?;
            // Only beside that of the main channel, whose listener is this one, too, and if that is not down.
            if !main.is_up() || !main.has_session_with(greeting.peer.incarnation) {
                return Err(ECANCELED);
            }
        }
        if resumable == Some(true) {
            return peer.session().ok_or(ECANCELED);
        }
        let session = peer.new_session(greeting)?;
        match peer.channel {
            Channel::Main => {
                self.node.restarted(peer);
                self.node.bury(peer);
            }
            Channel::Bulk => drop(peer.end_session(ENETRESET)),
        }
        Ok(session)
    }

    /// The peer that this node has connected to, and has told where it stands, has answered.
    fn answered(
        &self,
        conn: &Arc<Conn>,
        rx: &mut Rx,
        peer: &Arc<Peer>,
        standing: &Standing,
        bytes: &hello::Bytes,
    ) -> Result {
        let refusal = match hello::check_answer(bytes, &self.node.identity, peer.id) {
            Ok(Answer::Welcome(greeting)) => {
                // It names this incarnation of this node, so all that counts is its own.
                let going_on = peer.resumable(&greeting, self.node.identity.incarnation);
                let session = self.session(peer, &greeting, going_on)?;
                if !peer.welcomed(conn, &greeting, &session) {
                    return Err(ECANCELED);
                }
                self.open(rx, peer);
                let granted = standing.granted_to(greeting.peer.incarnation);
                self.node
                    .established(peer, conn, &greeting, &session, granted)?;
                // Who was welcomed has to be heard before it is believed.
                session.ping();
                return Ok(());
            }
            Ok(Answer::Refused(Refusal::Early)) if peer.channel == Channel::Bulk => Refusal::Early,
            Ok(Answer::Refused(refusal)) => {
                self.node.refused(peer, refusal, true);
                refusal
            }
            Err(refusal) => {
                self.node.refused(peer, refusal, false);
                refusal
            }
        };
        rx.phase = Phase::Closed;
        conn.fail(refusal.errno(), None);
        self.node.lost(peer, conn, refusal.errno(), Some(refusal));
        Ok(())
    }

    // ---- Frames.

    fn frames(&mut self, conn: &Arc<Conn>, rx: &mut Rx, peer: &Arc<Peer>) -> Result<Taken> {
        let mut unclocked = 0;
        loop {
            if conn.failure().is_some() {
                return Ok(Taken::Wanting);
            }
            let session = conn.session().ok_or(EPROTO)?;
            let bounds = self.node.identity.bounds;
            let mut calls = true;
            let fate = if let Some(held) = rx.held.take() {
                self.pass_on(peer, session, held)
            } else if let Some((header, numbers, few)) = rx.assembler.peek(bounds) {
                calls = header.is_call();
                let len = few.len();
                let fate = self.handle(conn, peer, header, numbers, Received::Few(few))?;
                if let Fate::Starved = fate {
                    return Ok(Taken::Starved);
                }
                rx.assembler.pass(len);
                fate
            } else {
                match rx.assembler.next(bounds, |len| self.node.buffers.get(len)) {
                    Ok(Some(frame)) => {
                        calls = frame.header.is_call();
                        let payload = Received::Many(frame.payload);
                        self.handle(conn, peer, frame.header, frame.numbers, payload)?
                    }
                    Ok(None) => return Ok(Taken::Wanting),
                    Err(Stop::NoMemory) => return Ok(Taken::Starved),
                    Err(Stop::Malformed(what)) => {
                        if log::allowed_of_peer() {
                            pr_warn!(
                                "node {}: node {}{} sent a malformed frame ({:?}): disconnected\n",
                                self.node.id(),
                                peer.id,
                                peer.channel,
                                what
                            );
                        }
                        conn.fail(EPROTO, Some(Bye::Protocol));
                        return Ok(Taken::Wanting);
                    }
                }
            };
            if let Fate::Held(held) = fate {
                rx.held = Some(held);
                return Ok(Taken::Starved);
            }
            unclocked += 1;
            if calls || unclocked >= UNCLOCKED {
                unclocked = 0;
                if clock::now() >= rx.turn_ends {
                    return Ok(Taken::TurnOver);
                }
            }
        }
    }

    /// Handles a frame by its kind.
    fn handle(
        &mut self,
        conn: &Arc<Conn>,
        peer: &Arc<Peer>,
        header: Header,
        numbers: Numbers,
        payload: Received<'_>,
    ) -> Result<Fate> {
        let session = conn.session().ok_or(EPROTO)?;
        let seq = numbers.seq;
        let judged = session.receive(numbers);
        if !self.sensible(peer, conn, judged, "a frame out of sequence")? {
            return Ok(Fate::Done);
        }
        let fits = match peer.channel {
            Channel::Bulk if header.is_sequenced() && !header.is_message() => Err(EPROTO),
            _ => Ok(()),
        };
        self.sensible(peer, conn, fits, "a call for bulk")?;
        let charge = |lane, cost| {
            let charged = peer.charge(lane, cost);
            self.sensible(peer, conn, charged, "more than was granted")
        };
        let came = |len: u32| peer.stats.rx_bytes.add(len.into());
        match header {
            Header::Message { tag, len } => {
                let charge = charge(Lane::Messages, message_cost(len))?;
                let (message, few) = Message::new(tag, payload, charge);
                let Err(message) = self.deliver(peer, session, seq, message, few) else {
                    came(len);
                    return Ok(Fate::Done);
                };
                if message.is_few() {
                    message.cancel();
                    return Ok(Fate::Starved);
                }
                came(len);
                let what = Undelivered::Message(message);
                return Ok(Fate::Held(Held { seq, what }));
            }
            Header::Call { func, len } => {
                let Ok(args) = payload.into_many() else {
                    return Ok(Fate::Starved);
                };
                let charge = charge(Lane::Calls, call_cost(len, 0))?;
                came(len);
                let call = Incoming::new(session.clone(), func, args, None, charge);
                let what = Undelivered::Call(call);
                return Ok(self.pass_on(peer, session, Held { seq, what }));
            }
            Header::CallSync {
                id,
                func,
                reply_max,
                len,
            } => {
                let Ok(args) = payload.into_many() else {
                    return Ok(Fate::Starved);
                };
                let blank = Blank::new(GFP_KERNEL)?;
                let charge = charge(Lane::Calls, call_cost(len, reply_max))?;
                came(len);
                let wanted = Some(Wanted {
                    id,
                    reply_max,
                    frame: blank,
                });
                let call = Incoming::new(session.clone(), func, args, wanted, charge);
                let what = Undelivered::Call(call);
                return Ok(self.pass_on(peer, session, Held { seq, what }));
            }
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
                came(len);
                self.delivered(peer, session, seq, len as usize);
                self.node.calls.complete(peer.id, id, reply, payload);
            }
            Header::Credit { lane, limit } => {
                let granted = peer.granted(lane, limit);
                self.sensible(peer, conn, granted, "a grant that cannot be")?;
            }
            Header::Ping { answer: true } => session.ping(),
            Header::Ping { answer: false } => {}
            Header::Open => {
                // Only of who connects can that be asked, and only on the main channel.
                let bulk = peer.bulk().filter(|_| peer.role == Role::Connect);
                let asked = bulk.map(|_| ()).ok_or(EPROTO);
                self.sensible(peer, conn, asked, "a request that cannot be")?;
                self.node.open_bulk(peer);
            }
            Header::Bye(why) => {
                // The main channel says that, too.
                let again = peer.channel == Channel::Bulk && why != Bye::Protocol;
                if !again && log::allowed_of_peer() {
                    let channel = peer.channel;
                    pr_info!(
                        "node {}: node {}{channel} {}\n",
                        self.node.id(),
                        peer.id,
                        why.text()
                    );
                }
                return Err(match why {
                    Bye::Protocol => EPROTO,
                    Bye::Stopping | Bye::AdminDown if peer.channel == Channel::Bulk => ECONNRESET,
                    Bye::Stopping => {
                        self.node.stopped(peer);
                        ESHUTDOWN
                    }
                    Bye::AdminDown => {
                        let reason = Refusal::AdminDown;
                        conn.fail(reason.errno(), None);
                        self.node.lost(peer, conn, reason.errno(), Some(reason));
                        reason.errno()
                    }
                    Bye::Reconnect | Bye::Replaced => ECONNRESET,
                });
            }
        }
        Ok(Fate::Done)
    }

    /// Says so if a frame breaks the rules, and ends the connection. `what` it is then.
    fn sensible<T>(
        &self,
        peer: &Peer,
        conn: &Arc<Conn>,
        judged: Result<T>,
        what: &str,
    ) -> Result<T> {
        if judged.is_err() {
            // Another listener may have ended it meanwhile, and its session.
            if conn.failure().is_none() && log::allowed_of_peer() {
                pr_warn!(
                    "node {}: node {}{} sent {what}: disconnected\n",
                    self.node.id(),
                    peer.id,
                    peer.channel
                );
            }
            conn.fail(EPROTO, Some(Bye::Protocol));
        }
        judged
    }

    /// Hands a message to whom it is for; gives it back if there is no memory to. `few`: its bytes, if
    /// they are not in itself.
    fn deliver(
        &mut self,
        peer: &Peer,
        session: &Session,
        seq: u64,
        message: Message,
        few: &[u8],
    ) -> Result<(), Message> {
        let len = message.len();
        let endpoint = &self.node.endpoint;
        if endpoint.deliver(session, message, few, &mut self.memory)? {
            peer.stats.rx_messages.inc();
        }
        self.delivered(peer, session, seq, len);
        Ok(())
    }

    /// Hands a message or a call to whom it is for.
    fn pass_on(&mut self, peer: &Peer, session: &Session, held: Held) -> Fate {
        let seq = held.seq;
        let undelivered = match held.what {
            Undelivered::Message(message) => match self.deliver(peer, session, seq, message, &[]) {
                Ok(()) => return Fate::Done,
                Err(message) => Undelivered::Message(message),
            },
            Undelivered::Call(call) => {
                let len = call.len();
                let delivered = || {
                    peer.stats.rx_rcalls.inc();
                    self.delivered(peer, session, seq, len);
                };
                match rcall::serve(self.node, call, delivered) {
                    Ok(()) => return Fate::Done,
                    Err(call) => Undelivered::Call(call),
                }
            }
        };
        Fate::Held(Held {
            seq,
            what: undelivered,
        })
    }

    fn delivered(&self, peer: &Peer, session: &Session, seq: u64, len: usize) {
        match session.delivered(seq, len) {
            Due::Now => session.ping(),
            Due::Later => self.node.look_by(peer, clock::now() + inbox::DELAY),
            Due::Pending => {}
        }
    }
}

/// What became of a frame.
enum Fate {
    /// It has been handled.
    Done,
    /// There is no memory for it now. It has been taken, and this is what is left to be done.
    Held(Held),
    /// The same, but nothing has been done: it is to stay where it is.
    Starved,
}

/// What came of handling what has been read.
enum Taken {
    /// All that is complete has been handled.
    Wanting,
    /// There was no memory for the next.
    Starved,
    /// It goes on at the next turn, perhaps another listener's.
    TurnOver,
}
