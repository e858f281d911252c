// SPDX-License-Identifier: GPL-2.0

//! Connections: everything between the bytes of a [`transport`] and the frames that
//! [`crate::listener`] hands out.
//!
//! | file        | what it owns                                                         |
//! |-------------|----------------------------------------------------------------------|
//! | `transport` | what is needed of a network, as traits                               |
//! | `tcp`       | the network that there is                                            |
//! | `ao`        | the keys of those who may join: which, when, for what (pure)         |
//! | `ring`      | the sockets that have them                                           |
//! | `frame`     | the format of frames, and putting them together from bytes (pure)    |
//! | `hello`     | the handshake and every reason to refuse (pure)                      |
//! | `state`     | the state machine of one peer's connection, back-off (pure)          |
//! | `credit`    | how much may be sent (pure)                                          |
//! | `flow`      | who may send next, and who waits for credit or room                  |
//! | `peer`      | one other node: its state, its session, its counters                 |
//! | `session`   | what two incarnations have with each other, across connections       |
//! | `outbox`    | what a session sends, kept until it is acknowledged (pure)           |
//! | `inbox`     | what a session has received, and has to acknowledge (pure)           |
//! | `tx`        | who sends what waits, over which connection                          |
//! | `linger`    | sockets that are closed as soon as their last words have got there   |
//! | `buffers`   | memory of long payloads, kept for the next                           |
//! | this file   | [`Conn`]: one link and its receiving side                            |

pub(crate) mod ao;
pub(crate) mod buffers;
pub(crate) mod credit;
mod flow;
pub(crate) mod frame;
pub(crate) mod hello;
pub(crate) mod inbox;
mod linger;
pub(crate) mod outbox;
pub(crate) mod peer;
pub(crate) mod ring;
pub(crate) mod session;
pub(crate) mod state;
pub(crate) mod tcp;
pub(crate) mod transport;
pub(crate) mod tx;

use crate::listener::{
    quick,
    Queues, //
};
use crate::node::Node;
use crate::rcall::Incoming;
use crate::sendrecv::Message;
use crate::sys::claim::Claim;
use crate::sys::clock;
use crate::sys::clock::Millis;
use core::net::SocketAddr;
use frame::{
    Assembler,
    Bye,
    Space, //
};
use kernel::list::{
    impl_list_arc_safe,
    impl_list_item,
    AtomicTracker,
    ListLinks,
    TryNewListArc, //
};
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Full,
    Relaxed, //
};
use kernel::sync::{
    Arc,
    SetOnce, //
};
use peer::Peer;
use session::Session;
use transport::{
    Link,
    Notify,
    Within, //
};

/// Who reads so many bytes at one go keeps the link from those who would send for a while.
const MANY: usize = 16 << 10;

/// The most that are read at one go, so that this is not for long.
const MOST: usize = 256 << 10;

/// How far a connection has come. The listener that serves it moves it on.
pub(crate) enum Phase {
    /// This node is connecting to the peer.
    Dialing(Arc<Peer>),
    /// The greeting, which says this, was sent to the peer, and its answer is awaited.
    AwaitAnswer(Arc<Peer>, hello::Standing),
    /// It came in from somewhere, and its greeting is awaited.
    AwaitHello,
    /// It came in, and this is its greeting, not yet judged.
    Greeted(hello::Bytes),
    /// It came in, the peer was welcomed, and is to be heard once before anything is made of that.
    Welcomed(KBox<Welcomed>),
    /// It is established.
    Open(Arc<Peer>),
    /// It is over, and all that follows from that has been done.
    Closed,
}

/// A peer that was welcomed.
pub(crate) struct Welcomed {
    /// The peer.
    pub(crate) peer: Arc<Peer>,
    /// What it has said.
    pub(crate) greeting: hello::Greeting,
    /// What it was granted.
    pub(crate) granted: [u64; 2],
}

/// The receiving side.
pub(crate) struct Rx {
    /// How far the connection has come.
    pub(crate) phase: Phase,
    /// The node, while the connection is open: for the upcalls, which come from below.
    pub(crate) node: Option<Arc<Node>>,
    /// Another listener is to serve it from now on.
    pub(crate) moves_to: Option<u32>,
    /// When it is another connection's turn to be served.
    pub(crate) turn_ends: Millis,
    /// Bytes on their way to become frames.
    pub(crate) assembler: Assembler,
    /// What could not be handled for want of memory. Nothing is read past it.
    pub(crate) held: Option<Held>,
}

/// What was in a frame, charged for and not yet delivered.
pub(crate) struct Held {
    /// The number of the frame.
    pub(crate) seq: u64,
    /// What it is.
    pub(crate) what: Undelivered,
}

/// See [`Held`].
pub(crate) enum Undelivered {
    /// A message.
    Message(Message),
    /// A call.
    Call(Incoming),
}

impl Held {
    /// It will not be delivered: it comes again over another connection, and is charged for then.
    pub(crate) fn cancel(self) {
        match self.what {
            Undelivered::Message(message) => message.cancel(),
            Undelivered::Call(call) => call.cancel(),
        }
    }
}

/// One connection, from its first attempt to its end.
///
/// It is served by one listener thread at a time, its home. Whoever finds it broken calls
/// [`Conn::fail`]; what follows from that is done by the home, so that nothing of this connection is
/// delivered after its end has been announced.
#[pin_data]
pub(crate) struct Conn {
    link: KBox<dyn Link>,
    /// The other end.
    pub(crate) remote: SocketAddr,
    queues: Arc<Queues>,
    home: Atomic<u32>,
    /// The errno that ended it, or 0.
    failure: Atomic<i32>,
    /// When the other side was last heard of.
    heard: Atomic<u64>,
    /// Claimed by the listener while it serves the connection, and by an upcall for what can be seen to
    /// at once.
    pub(crate) rx: Claim<Rx>,
    /// When something was last sent.
    sent: Atomic<u64>,
    /// An upcall has left an acknowledgement to the listener that is due.
    owes: Atomic<bool>,
    /// See [`Conn::spoil`].
    spoilt: Atomic<bool>,
    /// An upcall waits for the rest of a frame.
    awaits: Atomic<bool>,
    /// The session that it belongs to. Refers back to it until it is detached.
    session: SetOnce<Arc<Session>>,
    #[pin]
    links: ListLinks,
    #[pin]
    tracker: AtomicTracker,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for Conn { tracked_by tracker: AtomicTracker; }
}
impl_list_item! {
    impl ListItem<0> for Conn { using ListLinks { self.links }; }
}

impl Conn {
    /// A connection over `link`, to be served by the listener `home`. Nothing happens to it before
    /// [`Conn::start`].
    pub(crate) fn new(
        link: KBox<dyn Link>,
        remote: SocketAddr,
        queues: Arc<Queues>,
        home: u32,
        phase: Phase,
    ) -> Result<Arc<Self>> {
        let rx = Rx {
            phase,
            node: None,
            moves_to: None,
            turn_ends: 0,
            assembler: Assembler::new()?,
            held: None,
        };
        Arc::pin_init(
            pin_init!(Self {
                link,
                remote,
                queues,
                home: Atomic::new(home),
                failure: Atomic::new(0),
                heard: Atomic::new(clock::now()),
                rx: Claim::new(rx),
                sent: Atomic::new(clock::now()),
                owes: Atomic::new(false),
                spoilt: Atomic::new(false),
                awaits: Atomic::new(false),
                session: SetOnce::new(),
                links <- ListLinks::new(),
                tracker <- AtomicTracker::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Lets the link call for service, and has it served once.
    pub(crate) fn start(self: &Arc<Self>) -> Result {
        self.link
            .attach(KBox::new(Caller(self.clone()), GFP_KERNEL)?)?;
        self.schedule();
        Ok(())
    }

    /// Has it served by its home. Any context.
    pub(crate) fn schedule(self: &Arc<Self>) {
        self.queues.schedule(self.home(), self.clone());
    }

    /// The listener that serves it.
    pub(crate) fn home(&self) -> u32 {
        self.home.load(Relaxed)
    }

    /// Gives it another home. Only by the present one.
    pub(crate) fn set_home(&self, home: u32) {
        self.home.store(home, Relaxed);
    }

    /// [`Link::status`].
    pub(crate) fn status(&self) -> Result {
        self.link.status()
    }

    /// [`Link::recv`]. Process context.
    pub(crate) fn recv(&self, space: Space<'_>) -> Result<usize> {
        let (to, most) = (space.to, space.most.min(MOST));
        let session = self.session().filter(|_| most >= MANY);
        match session {
            Some(session) => session.read_many(|| self.link.recv(to, most)),
            None => self.link.recv(to, most),
        }
    }

    /// [`Link::pending`].
    pub(crate) fn pending(&self) -> bool {
        self.link.pending()
    }

    /// The other side was heard of just now.
    pub(crate) fn hear(&self) {
        self.heard.store(clock::now(), Relaxed);
    }

    /// When the other side was last heard of.
    pub(crate) fn last_heard(&self) -> Millis {
        self.heard.load(Relaxed)
    }

    /// Something was sent just now.
    pub(crate) fn note_sent(&self) {
        self.sent.store(clock::now(), Relaxed);
    }

    /// When something was last sent.
    pub(crate) fn last_sent(&self) -> Millis {
        self.sent.load(Relaxed)
    }

    /// What ended it, if it has ended.
    pub(crate) fn failure(&self) -> Option<Error> {
        match self.failure.load(Relaxed) {
            0 => None,
            errno => Some(Error::from_errno(errno)),
        }
    }

    /// Sends the bytes of a greeting. They are few, so a new link has room for them.
    pub(crate) fn greet(&self, bytes: &hello::Bytes) -> Result {
        match self.link.send(&[bytes], false)? {
            n if n == bytes.len() => Ok(()),
            _ => Err(EIO),
        }
    }

    /// [`Link::key`].
    pub(crate) fn key(&self) -> Option<u8> {
        self.link.key()
    }

    /// Whether something has come in that the listener has not got to yet.
    pub(crate) fn unread(&self) -> bool {
        self.link.unread()
    }

    /// Sends what waits for room, if it is the connection of a session. Process context.
    pub(crate) fn flush(&self) {
        if let Some(session) = self.session.as_ref() {
            session.flush();
        }
    }

    /// An acknowledgement is due, which a thread has to send.
    pub(crate) fn owe(&self) {
        self.owes.store(true, Relaxed);
    }

    /// Whether one is due.
    pub(crate) fn owes(&self) -> bool {
        self.owes.load(Relaxed)
    }

    /// Whether one is due; from now on none is.
    pub(crate) fn take_owes(&self) -> bool {
        self.owes() && self.owes.xchg(false, Relaxed)
    }

    /// An upcall has lost its place in the stream, which is of no more use.
    pub(crate) fn spoil(&self) {
        self.spoilt.store(true, Relaxed);
    }

    /// Whether that has happened.
    pub(crate) fn is_spoilt(&self) -> bool {
        self.spoilt.load(Relaxed)
    }

    /// An upcall waits, or not any more, for the rest of a frame, and has left there what came of it.
    pub(crate) fn set_awaits(&self, awaits: bool) {
        self.awaits.store(awaits, Relaxed);
    }

    /// Whether one does.
    pub(crate) fn awaits(&self) -> bool {
        self.awaits.load(Relaxed)
    }

    /// The session that it belongs to, once its handshake is over.
    pub(crate) fn session(&self) -> Option<&Arc<Session>> {
        self.session.as_ref()
    }

    /// It belongs to this session from now on.
    pub(crate) fn join(&self, session: &Arc<Session>) {
        self.session.populate(session.clone());
    }

    /// What is below, for whoever sends.
    pub(crate) fn link(&self) -> &dyn Link {
        &*self.link
    }

    /// Closes what is below. `graceful`: what has been sent still gets there, in time. Process context.
    pub(crate) fn close_link(&self, graceful: bool) {
        self.link.close(graceful);
    }

    /// Ends the connection, for the first reason that is given. `bye`: what to tell the other side.
    /// Process context.
    pub(crate) fn fail(self: &Arc<Self>, error: Error, bye: Option<Bye>) {
        if self.failure.cmpxchg(0, error.to_errno(), Full).is_err() {
            return;
        }
        match (self.session(), bye) {
            (Some(session), Some(why)) => session.end_connection(self, why),
            (session, _) => {
                if let Some(session) = session {
                    session.detach(self);
                }
                self.link.close(bye.is_some());
            }
        }
        self.schedule();
    }

    /// Ends a connection that no peer is known of. Process context.
    pub(crate) fn hang_up(self: &Arc<Self>, error: Error) {
        if self.failure.cmpxchg(0, error.to_errno(), Full).is_ok() {
            self.link.close(true);
            self.schedule();
        }
    }
}

/// Tells a connection's listener that its link wants service. The link holds it, and through it the
/// connection, until the connection is ended and closes the link.
struct Caller(Arc<Conn>);

impl Notify for Caller {
    fn notify(&self) {
        self.0.hear();
        self.0.schedule();
    }

    fn arrived(&self, link: &dyn Within) {
        self.0.hear();
        if !quick::serve(&self.0, link) {
            self.0.schedule();
        }
    }
}
