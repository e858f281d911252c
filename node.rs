// SPDX-License-Identifier: GPL-2.0

//! A node: one member of a cluster, with everything that belongs to it.
//!
//! A kernel usually has one, which the module makes from its parameters, but a node is an ordinary
//! object: the tests join several in one kernel to a cluster.

use crate::config::{
    Addr,
    Config,
    Limits,
    Member,
    NodeId, //
};
use crate::conn::buffers::Buffers;
use crate::conn::frame::{
    Bounds,
    Bye, //
};
use crate::conn::hello::{
    Channel,
    Greeting,
    Identity,
    Refusal, //
};
use crate::conn::peer::{
    Lost,
    Peer, //
};
use crate::conn::session::Session;
use crate::conn::state::{
    Event,
    Role,
    State, //
};
use crate::conn::transport::{
    Link,
    Port,
    Transport, //
};
use crate::conn::{
    tx,
    Conn,
    Phase, //
};
use crate::events;
use crate::events::Events;
use crate::listener;
use crate::listener::{
    PortCaller,
    Queues, //
};
use crate::rcall::calls::Calls;
use crate::rcall::handlers::{
    Handler,
    Handlers, //
};
use crate::rcall::pool;
use crate::rcall::pool::Pool;
use crate::recovery;
use crate::recovery::Recovery;
use crate::sendrecv::Endpoint;
use crate::sys::clock;
use crate::sys::clock::Millis;
use crate::sys::context::in_softirq;
use crate::sys::log;
use crate::sys::noio;
use crate::sys::thread::Thread;
use crate::sys::wait::{
    Timeout,
    WaitQueue, //
};
use core::net::{
    IpAddr,
    SocketAddr, //
};
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::{
    new_mutex,
    static_lock_class,
    Arc,
    Mutex, //
};

/// Connections that have come in and not yet greeted: at most so many from elsewhere than the peers'
/// addresses, and so many for each peer at the address that they come from. Nobody takes a peer's
/// place but what runs on the peer's own machine. A peer whose address is of the other family comes
/// from one that is not known here, and has its place among the strangers.
const MAX_STRANGERS: usize = 64;
const MAX_PER_PEER: usize = 8;

/// How many connections that come to nothing are accepted in a row.
const ACCEPTS: usize = 32;

/// A connection that has come in and not yet greeted.
struct Pending {
    conn: Arc<Conn>,
    /// The peer that was welcomed, and has to be heard yet, and on which channel.
    peer: Option<(NodeId, Channel)>,
    until: Millis,
}

/// A node. Made by [`Running::start_on`].
#[pin_data]
pub(crate) struct Node {
    config: Config,
    /// What it says of itself.
    pub(crate) identity: Identity,
    peers: KVec<Arc<Peer>>,
    /// The network that it is on.
    pub(crate) transport: KBox<dyn Transport>,
    /// The listeners' ready lists.
    pub(crate) queues: Arc<Queues>,
    /// Messages that have come in, and who waits for some.
    #[pin]
    pub(crate) endpoint: Endpoint,
    /// Memory of payloads.
    #[pin]
    pub(crate) buffers: Buffers,
    /// Calls that wait for their reply.
    #[pin]
    pub(crate) calls: Calls,
    /// What other nodes may call.
    #[pin]
    pub(crate) handlers: Handlers,
    /// The threads for long handlers.
    #[pin]
    pub(crate) pool: Pool,
    /// Who wants to know of peers that come and go.
    #[pin]
    pub(crate) events: Events,
    /// What keeps it connected.
    #[pin]
    pub(crate) recovery: Recovery,
    #[pin]
    port: Mutex<Option<KBox<dyn Port>>>,
    #[pin]
    pending: Mutex<KVec<Pending>>,
    /// Notified when a peer comes or goes.
    #[pin]
    ups: WaitQueue,
    /// The administrator takes both channels of a peer down, or up, at once.
    #[pin]
    administration: Mutex<()>,
    stopping: Atomic<bool>,
}

impl Node {
    fn new(config: Config, transport: KBox<dyn Transport>) -> Result<Arc<Self>> {
        let limits = config.limits;
        let identity = Identity {
            id: config.me.id,
            cluster: config.cluster,
            // New at every load, and never 0.
            incarnation: clock::random().max(1),
            dead_ms: limits.dead_ms,
            bounds: Bounds {
                message: limits.max_message,
                rcall: limits.max_rcall,
            },
            windows: [limits.queue_bytes, limits.rcall_bytes],
        };
        let mut peers = KVec::with_capacity(config.members.len(), GFP_KERNEL)?;
        for member in config.members.iter().filter(|m| m.id != config.me.id) {
            peers.push(Peer::new(&identity, member, &limits)?, GFP_KERNEL)?;
        }
        let queues = Queues::new(limits.listeners)?;
        Arc::try_pin_init(
            try_pin_init!(Self {
                config,
                identity,
                peers,
                transport,
                queues,
                endpoint <- Endpoint::new(),
                buffers <- Buffers::new(),
                calls <- Calls::new(),
                handlers <- Handlers::new(),
                pool <- Pool::new(limits.max_long_handlers),
                events <- Events::new(),
                recovery <- Recovery::new(),
                port <- new_mutex!(None, "Node::port"),
                pending <- new_mutex!(KVec::new(), "Node::pending"),
                ups <- WaitQueue::new(c"Node::ups", static_lock_class!()),
                administration <- new_mutex!((), "Node::administration"),
                stopping: Atomic::new(false),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Its id.
    pub(crate) fn id(&self) -> NodeId {
        self.identity.id
    }

    /// Its entry among the members.
    pub(crate) fn me(&self) -> &Member {
        &self.config.me
    }

    /// All nodes of the cluster.
    pub(crate) fn members(&self) -> &[Member] {
        &self.config.members
    }

    /// Its bounds.
    pub(crate) fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// All other nodes, by ascending id.
    pub(crate) fn peers(&self) -> &[Arc<Peer>] {
        &self.peers
    }

    /// All other nodes, on each channel.
    pub(crate) fn channels(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.peers
            .iter()
            .flat_map(|peer| [Some(peer), peer.bulk()].into_iter().flatten())
    }

    /// Another node.
    pub(crate) fn peer(&self, id: NodeId) -> Option<&Arc<Peer>> {
        let index = self.peers.binary_search_by_key(&id, |p| p.id).ok()?;
        self.peers.get(index)
    }

    /// The node that has an address to itself, if there is one.
    pub(crate) fn peer_at(&self, ip: IpAddr) -> Option<&Arc<Peer>> {
        let mut there = self.peers.iter().filter(|peer| peer.addr.ip() == ip);
        there.next().filter(|_| there.next().is_none())
    }

    /// Whether it is being stopped.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// Has the recovery thread look at a peer then, or before. Any context. See [`recovery::Reminder::by`].
    pub(crate) fn look_by(&self, peer: &Peer, time: Millis) {
        if peer.reminder.by(time) {
            self.recovery.by(time);
        }
    }

    /// Memory of a payload is not needed any more. Process context.
    pub(crate) fn recycle(&self, bytes: KVVec<u8>) {
        if let Some(due) = self.buffers.put(bytes) {
            self.recovery.by(due);
        }
    }

    // ---- Connections that come in.

    /// Takes a connection that has come in on the port; `None` when there is no more.
    pub(crate) fn accept(&self) -> Result<Option<Arc<Conn>>> {
        let port = self.port.lock();
        let Some(port) = &*port else {
            return Ok(None);
        };
        for _ in 0..ACCEPTS {
            match port.accept() {
                Ok((link, remote)) => {
                    if let Some(conn) = self.admit_pending(link, remote)? {
                        return Ok(Some(conn));
                    }
                }
                Err(e) if e == EAGAIN => return Ok(None),
                // It has gone again already.
                Err(e) if e == ENOTCONN || e == ECONNABORTED => {}
                Err(e) => return Err(e),
            }
        }
        // Others want to be served, too.
        self.queues.accept();
        Ok(None)
    }

    /// Whether there is room for one more connection from `remote` that has yet to greet.
    fn has_place(&self, pending: &[Pending], remote: IpAddr) -> bool {
        let peers_at = |ip| self.peers.iter().filter(|p| p.addr.ip() == ip).count();
        let from = |p: &&Pending| p.conn.remote.ip();
        match peers_at(remote) {
            0 => pending.iter().filter(|p| peers_at(from(p)) == 0).count() < MAX_STRANGERS,
            n => pending.iter().filter(|p| from(p) == remote).count() < n * MAX_PER_PEER,
        }
    }

    /// Enters a connection among those that have yet to greet; `None` if there are too many.
    fn admit_pending(&self, link: KBox<dyn Link>, remote: SocketAddr) -> Result<Option<Arc<Conn>>> {
        let mut pending = self.pending.lock();
        if !self.has_place(&pending, remote.ip()) {
            drop(pending);
            link.close(false);
            if log::allowed() {
                pr_warn!(
                    "node {}: too many connections without a greeting, one from {} closed\n",
                    self.id(),
                    Addr(remote)
                );
            }
            return Ok(None);
        }
        pending.reserve(1, GFP_KERNEL)?;
        let conn = Conn::new(link, remote, self.queues.clone(), 0, Phase::AwaitHello)?;
        let until = clock::now() + Millis::from(self.limits().handshake_ms);
        let entry = Pending {
            conn: conn.clone(),
            peer: None,
            until,
        };
        pending.push(entry, GFP_KERNEL)?;
        drop(pending);
        self.recovery.by(until);
        Ok(Some(conn))
    }

    /// A connection has greeted, or has ended. Returns whether it was among those that had not.
    pub(crate) fn drop_pending(&self, conn: &Arc<Conn>) -> bool {
        let mut pending = self.pending.lock();
        let index = pending.iter().position(|p| Arc::ptr_eq(&p.conn, conn));
        let removed = index.and_then(|i| pending.remove(i).ok());
        drop(pending);
        removed.is_some()
    }

    /// A peer was welcomed on a connection, which is still to be heard.
    pub(crate) fn welcome_pending(&self, conn: &Arc<Conn>, peer: &Peer) {
        let mut pending = self.pending.lock();
        if let Some(entry) = pending.iter_mut().find(|p| Arc::ptr_eq(&p.conn, conn)) {
            entry.peer = Some((peer.id, peer.channel));
        }
    }

    /// A peer has been heard on one connection: the others to which it was welcomed are out of date.
    pub(crate) fn drop_welcomed(&self, peer: &Peer) {
        let welcomed = Some((peer.id, peer.channel));
        loop {
            let mut pending = self.pending.lock();
            let index = pending.iter().position(|p| p.peer == welcomed);
            let removed = index.and_then(|i| pending.remove(i).ok());
            drop(pending);
            match removed {
                Some(entry) => entry.conn.hang_up(ECONNRESET),
                None => return,
            }
        }
    }

    /// Ends all connections that have not greeted.
    pub(crate) fn hang_up_pending(&self) {
        let pending = core::mem::take(&mut *self.pending.lock());
        for entry in &pending {
            entry.conn.hang_up(ESHUTDOWN);
        }
    }

    /// Ends connections that have not greeted in time. Returns when to look again.
    pub(crate) fn expire_pending(&self) -> Millis {
        let now = clock::now();
        loop {
            let pending = self.pending.lock();
            let next = pending.iter().min_by_key(|p| p.until);
            let Some((conn, until, peer)) = next.map(|p| (p.conn.clone(), p.until, p.peer)) else {
                return Millis::MAX;
            };
            drop(pending);
            if until > now {
                return until;
            }
            if !self.drop_pending(&conn) {
                // It has greeted just in time.
                continue;
            }
            // A peer that was welcomed and then not heard will try again.
            if peer.is_none() && log::allowed() {
                pr_warn!(
                    "node {}: {} did not greet within {} ms: closed\n",
                    self.id(),
                    Addr(conn.remote),
                    self.limits().handshake_ms
                );
            }
            conn.hang_up(ETIMEDOUT);
        }
    }

    // ---- Peers that come and go.

    /// A connection to a peer has been established, in this session. `granted`: what this node's greeting
    /// has granted to it.
    pub(crate) fn established(
        &self,
        peer: &Arc<Peer>,
        conn: &Arc<Conn>,
        greeting: &Greeting,
        session: &Arc<Session>,
        granted: [u64; 2],
    ) -> Result {
        conn.join(session);
        pr_info!(
            "node {}: connected to node {}{} at {} (incarnation {:016x})\n",
            self.id(),
            peer.id,
            peer.channel,
            Addr(conn.remote),
            greeting.peer.incarnation
        );
        // A peer that had a session with another incarnation of this node has received nothing of this.
        let there = &greeting.standing;
        let received = if there.with == self.identity.incarnation {
            there.received
        } else {
            0
        };
        session.attach(conn, received).map_err(|_| EPROTO)?;
        if conn.failure().is_some() {
            session.detach(conn);
        }
        peer.regrant(granted);
        match peer.bulk() {
            Some(bulk) => {
                self.changed(peer);
                if bulk.is_wanted() {
                    self.seek(peer, bulk);
                }
            }
            // Somebody may wait to send over it.
            None => self.ups.notify_all(),
        }
        let interval =
            recovery::interval(self.limits().dead_ms.into(), session.peer.dead_ms.into());
        self.look_by(peer, recovery::next_sign(clock::now(), interval));
        Ok(())
    }

    /// A connection to a peer has ended. Its session goes on, and unless the peer has said that it
    /// goes, or has been silent for too long, nobody needs to know.
    pub(crate) fn lost(
        &self,
        peer: &Peer,
        conn: &Arc<Conn>,
        error: Error,
        refusal: Option<Refusal>,
    ) {
        let lost = peer.lost(conn, error, refusal);
        if let Lost::Connection(incarnation) = lost {
            pr_info!(
                "node {}: lost node {}{} (incarnation {:016x}): {:?}\n",
                self.id(),
                peer.id,
                peer.channel,
                incarnation,
                error
            );
        }
        if peer.channel == Channel::Bulk {
            self.lost_bulk(peer, conn);
            return;
        }
        let gone = match lost {
            Lost::Stale => false,
            Lost::Attempt => {
                // Nobody listens there any more.
                error == ECONNREFUSED
                    // Its good-bye may have been lost.
                    || matches!(refusal, Some(Refusal::AdminDown | Refusal::Stopping))
            }
            Lost::Connection(_) => {
                error == ESHUTDOWN
                    || refusal == Some(Refusal::AdminDown)
                    // By the administrator here, perhaps when it had failed already.
                    || peer.snapshot().state == State::Down
            }
        };
        let dies = if gone {
            self.declare_down(peer);
            None
        } else {
            let dies = self.check_down(peer);
            peer.let_queue();
            dies
        };
        for time in [peer.deadline(), dies].into_iter().flatten() {
            self.look_by(peer, time);
        }
    }

    /// What a peer had for bulk has ended. Whether the peer is down, the main channel says, and has
    /// perhaps said so.
    fn lost_bulk(&self, bulk: &Peer, conn: &Conn) {
        bulk.let_queue();
        if let (Some(session), Some(main)) = (conn.session(), self.peer(bulk.id)) {
            let ended = !main.has_session_with(session.peer.incarnation)
                && bulk.end_session_if(EHOSTDOWN, |active| Arc::ptr_eq(active, session));
            if ended || !main.is_up() {
                // Nothing more comes in of what had been sent before.
                self.fail_receivers(bulk, EHOSTDOWN);
            }
        }
        self.look_by(bulk, clock::now());
    }

    /// Takes a peer for dead if it has been silent for too long. Returns when to look again.
    pub(crate) fn check_down(&self, peer: &Peer) -> Option<Millis> {
        let dies = peer.dies_at()?;
        if clock::now() < dies {
            return Some(dies);
        }
        self.declare_down(peer);
        None
    }

    fn declare_down(&self, peer: &Peer) {
        if let Some(incarnation) = peer.declare_down() {
            pr_info!(
                "node {}: node {} (incarnation {:016x}) is down\n",
                self.id(),
                peer.id,
                incarnation
            );
            if let Some(bulk) = peer.bulk() {
                if let Some(conn) = bulk.conn() {
                    conn.fail(EHOSTDOWN, Some(Bye::Reconnect));
                }
                bulk.turn_away();
            }
            self.fail_waiters(peer, EHOSTDOWN);
        }
    }

    /// A peer has come back without its session: another incarnation, as a rule.
    pub(crate) fn restarted(&self, peer: &Peer) {
        let mut ended = peer.end_session(ENETRESET);
        if let Some(bulk) = peer.bulk() {
            if let Some(conn) = bulk.conn() {
                conn.fail(ECONNRESET, Some(Bye::Replaced));
            }
            // It may have been read to its end, after the main channel's.
            ended |= bulk.end_session(ENETRESET);
        }
        if ended {
            self.fail_waiters(peer, ENETRESET);
        }
    }

    /// Another session with a peer is about to begin: throws away what the last has left behind.
    pub(crate) fn bury(&self, peer: &Peer) {
        let mut any = false;
        for channel in peer.channels() {
            any |= channel.supersede();
        }
        if any {
            self.endpoint.purge(peer.id);
        }
    }

    /// A peer has said that it stops: its incarnation is over.
    pub(crate) fn stopped(&self, peer: &Peer) {
        let ended = peer.end_session(EHOSTDOWN);
        if let Some(bulk) = peer.bulk() {
            bulk.turn_away();
            if bulk.line().is_none() {
                bulk.end_session(EHOSTDOWN);
            } else if ended {
                // What has come in for bulk before that is still to be read: `lost_bulk()`.
                self.fail_callers(peer, EHOSTDOWN);
                return;
            }
        }
        if ended {
            self.fail_waiters(peer, EHOSTDOWN);
        }
    }

    /// Tells whoever waits for a peer that it has gone, unless this node is going itself.
    pub(crate) fn fail_waiters(&self, peer: &Peer, error: Error) {
        self.fail_receivers(peer, error);
        self.fail_callers(peer, error);
    }

    /// Tells those who wait for its messages.
    fn fail_receivers(&self, peer: &Peer, error: Error) {
        let told = if self.is_stopping() { ESHUTDOWN } else { error };
        self.endpoint.fail_source(peer.id, told);
    }

    /// Tells all others, and subscribers.
    fn fail_callers(&self, peer: &Peer, error: Error) {
        let told = if self.is_stopping() { ESHUTDOWN } else { error };
        self.calls.fail(Some(peer.id), told);
        self.changed(peer);
    }

    /// A peer has come up or gone down, and all that follows from that has been done; but who waits for its
    /// messages may have some to come yet, for bulk: see [`Node::stopped`].
    fn changed(&self, peer: &Peer) {
        peer.announce();
        self.ups.notify_all();
        self.events.changed();
    }

    /// What a thread may send at one go.
    pub(crate) fn share(is_listener: bool) -> usize {
        if is_listener {
            tx::SMALL_SHARE
        } else {
            tx::SHARE
        }
    }

    /// A peer, or what is at its address, will not talk to this node, or this node not to it.
    ///
    /// The attempt is made again and again, so only a new reason is logged.
    pub(crate) fn refused(&self, peer: &Peer, refusal: Refusal, by_peer: bool) {
        if peer.snapshot().last_refusal == Some(refusal) {
            return;
        }
        pr_warn!(
            "node {}: {} node {}{} at {}: {}\n",
            self.id(),
            if by_peer { "refused by" } else { "refused" },
            peer.id,
            peer.channel,
            Addr(peer.addr),
            refusal
        );
    }

    /// Waits until a peer, or all if `None`, are connected. See `kccm_wait_up()`.
    pub(crate) fn wait_up(&self, id: Option<NodeId>, timeout: Timeout) -> Result {
        let peer = match id {
            Some(id) if id == self.id() => return Ok(()),
            Some(id) => Some(self.peer(id).ok_or(EINVAL)?),
            None => None,
        };
        let up = || match peer {
            Some(peer) => peer.is_up(),
            None => self.peers.iter().all(|p| p.is_up()),
        };
        if up() {
            return Ok(());
        }
        if timeout != Timeout::NoWait && self.queues.is_listener() {
            return Err(EDEADLK);
        }
        self.ups.wait_until(timeout, || {
            if up() {
                Some(Ok(()))
            } else if self.is_stopping() {
                Some(Err(ESHUTDOWN))
            } else {
                None
            }
        })?
    }

    // ---- The channel for bulk.

    /// Has the channel for bulk to a peer opened, and kept open. Process context.
    pub(crate) fn open_bulk(&self, peer: &Arc<Peer>) {
        if let Some(bulk) = peer.bulk().filter(|bulk| bulk.want()) {
            self.seek(peer, bulk);
        }
    }

    /// Has a channel that is wanted opened: connects, or asks the other side to, which is done again
    /// whenever the main channel is connected.
    fn seek(&self, peer: &Peer, bulk: &Peer) {
        match peer.role {
            Role::Connect => {
                let administration = self.administration.lock();
                if peer.snapshot().state != State::Down {
                    bulk.admin(Event::AdminUp);
                }
                drop(administration);
                let is_there = bulk.established().is_some_and(|c| c.failure().is_none());
                if !is_there {
                    bulk.hurry();
                }
                self.look_by(bulk, clock::now());
            }
            Role::Listen => {
                if let Some((conn, _)) = peer.line() {
                    if let Some(session) = conn.session() {
                        session.ask_for_bulk(&conn);
                    }
                }
            }
        }
    }

    /// The session on the channel for bulk to a peer, which is opened if nobody has used it before.
    /// Process context; waits as `timeout` says.
    pub(crate) fn bulk_session(&self, peer: &Arc<Peer>, timeout: Timeout) -> Result<Arc<Session>> {
        let bulk = peer.bulk().ok_or(EINVAL)?;
        if let Ok(session) = bulk.sendable() {
            return Ok(session);
        }
        let main = peer.sendable()?;
        self.open_bulk(peer);
        if timeout == Timeout::NoWait {
            return Err(EAGAIN);
        }
        if self.queues.is_listener() {
            return Err(EDEADLK);
        }
        self.ups.wait_until(timeout, || {
            if self.is_stopping() {
                Some(Err(ESHUTDOWN))
            } else if main.is_over() {
                Some(Err(main.why_over()))
            } else if !peer.is_up() {
                Some(Err(EHOSTDOWN))
            } else {
                bulk.session().map(Ok)
            }
        })?
    }

    // ---- The administrator.

    /// Takes a peer down, or up again.
    pub(crate) fn set_admin_down(&self, peer: &Peer, down: bool) {
        let event = if down {
            Event::AdminDown
        } else {
            Event::AdminUp
        };
        pr_info!(
            "node {}: node {} is taken {} by the administrator\n",
            self.id(),
            peer.id,
            if down { "down" } else { "up" }
        );
        let administration = self.administration.lock();
        let mut conns = [None, None];
        for (conn, channel) in conns.iter_mut().zip(peer.channels()) {
            // Nobody connects for bulk before that is wanted.
            let idle = channel.channel == Channel::Bulk && !channel.is_wanted();
            if down || !idle || channel.role == Role::Listen {
                *conn = channel.admin(event);
            }
        }
        drop(administration);
        for conn in conns.into_iter().flatten() {
            conn.fail(ESHUTDOWN, Some(Bye::AdminDown));
        }
        if down && peer.line().is_none() {
            self.declare_down(peer);
        }
        self.look_by(peer, clock::now());
    }

    /// Ends the connection to a peer; it is made again after a pause, or `at_once`.
    pub(crate) fn disconnect(&self, peer: &Peer, at_once: bool) {
        for channel in peer.channels() {
            let conn = if at_once {
                channel.hurry()
            } else {
                channel.conn()
            };
            if let Some(conn) = conn {
                conn.fail(ECONNABORTED, Some(Bye::Reconnect));
            }
            self.look_by(channel, clock::now());
        }
    }

    // ---- Handlers.

    /// Registers a handler. See `kccm_register_handler()`.
    pub(crate) fn register(&self, handler: Handler) -> Result {
        if handler.max_args > self.limits().max_rcall as usize {
            return Err(EINVAL);
        }
        self.handlers.register(handler)
    }

    /// Takes a handler back. See `kccm_unregister_handler()`.
    pub(crate) fn unregister(&self, func: u32) -> Result {
        if in_softirq() || self.queues.is_listener() || self.pool.is_member() {
            return Err(EDEADLK);
        }
        self.handlers.unregister(func)
    }
}

/// A node and its threads. Dropping it stops the node: peers are told, whoever waits is told, and
/// when that is done no thread and no connection of it is left.
pub(crate) struct Running {
    node: Arc<Node>,
    listeners: KVec<Thread>,
    recovery: Option<Thread>,
    events: Option<Thread>,
    foreman: Option<Thread>,
}

impl Running {
    /// Makes a node and starts it, over that network. Process context.
    pub(crate) fn start_on(config: Config, transport: KBox<dyn Transport>) -> Result<Self> {
        let node = Node::new(config, transport)?;
        // From here on `drop()` takes back whatever has been done.
        let mut running = Self {
            node: node.clone(),
            listeners: KVec::with_capacity(node.queues.count() as usize, GFP_KERNEL)?,
            recovery: None,
            events: None,
            foreman: None,
        };
        let id = node.id();
        for index in 0..node.queues.count() {
            let arg = node.clone();
            let run = move || listener::run(&arg, index);
            let thread = if index == node.queues.bulk() {
                Thread::spawn(fmt!("kccm{id}/bulk"), run)?
            } else {
                Thread::spawn(fmt!("kccm{id}/listen{index}"), run)?
            };
            running.listeners.push(thread, GFP_KERNEL)?;
        }
        let arg = node.clone();
        running.events = Some(Thread::spawn(fmt!("kccm{id}/events"), move || {
            events::run(&arg)
        })?);
        let arg = node.clone();
        running.foreman = Some(Thread::spawn(fmt!("kccm{id}/foreman"), move || {
            pool::run(&arg)
        })?);
        let addr = node.me().addr;
        let notify = KBox::new(PortCaller(node.queues.clone()), GFP_KERNEL)?;
        let port = node.transport.listen(&addr, notify).inspect_err(|e| {
            pr_err!(
                "node {}: cannot listen at {}: {:?}; is that address this machine's, and the port free?\n",
                id,
                Addr(addr),
                e
            );
        })?;
        *node.port.lock() = Some(port);
        node.queues.accept();
        let arg = node.clone();
        running.recovery = Some(Thread::spawn(fmt!("kccm{id}/recovery"), move || {
            recovery::run(&arg)
        })?);
        Ok(running)
    }

    /// The node.
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _noio = noio::Scope::enter();
        let node = &self.node;
        // 1. Nothing new: no waits, no attempts, no connections.
        node.stopping.store(true, Relaxed);
        node.recovery.stop();
        self.recovery = None;
        let port = node.port.lock().take();
        if let Some(port) = port {
            port.close();
        }
        // 2. Callers whose calls wait for a thread are told now, while they can be.
        node.pool.close();
        // 3. Every connection ends, the peers being told; the listeners see to what follows from
        //    that and end when nothing is left to do.
        for peer in node.channels() {
            if let Some(conn) = peer.conn() {
                conn.fail(ESHUTDOWN, Some(Bye::Stopping));
            }
            if peer.end_session(ESHUTDOWN) {
                node.fail_waiters(peer, ESHUTDOWN);
            }
        }
        node.hang_up_pending();
        node.queues.stop();
        self.listeners.clear();
        listener::sweep(node);
        // 4. Whoever still waits, for anything: handlers that still run, too. They can end now.
        node.calls.fail(None, ESHUTDOWN);
        node.endpoint.close();
        node.ups.notify_all();
        self.foreman = None;
        node.pool.join();
        // What is left of sessions refers to its peer.
        for peer in node.channels() {
            peer.supersede();
        }
        node.events.stop();
        self.events = None;
        node.transport.settle();
    }
}
