// SPDX-License-Identifier: GPL-2.0

//! Connections: everything between the bytes of a [`transport`] and the frames that
//! [`crate::listener`] hands out.
//!
//! | file        | what it owns                                                         |
//! |-------------|----------------------------------------------------------------------|
//! | `transport` | what is needed of a network, as traits                               |
//! | `tcp`       | the network that there is                                            |
//! | `frame`     | the format of frames, and putting them together from bytes (pure)    |
//! | `hello`     | the handshake and every reason to refuse (pure)                      |
//! | `state`     | the state machine of one peer's connection, back-off (pure)          |
//! | `credit`    | how much may be sent (pure)                                          |
//! | `peer`      | one other node: its state, its session, its counters                 |
//! | `tx`        | what waits to be sent                                                |
//! | this file   | [`Conn`]: one link, with its receiving and sending side              |

pub(crate) mod credit;
pub(crate) mod frame;
pub(crate) mod hello;
pub(crate) mod peer;
pub(crate) mod state;
pub(crate) mod tcp;
pub(crate) mod transport;
pub(crate) mod tx;

use crate::listener::Queues;
use crate::rcall::Incoming;
use crate::sendrecv::Message;
use crate::sys::clock;
use crate::sys::clock::Millis;
use core::net::SocketAddr;
use frame::{
    Assembler,
    Bye,
    Header, //
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
    new_mutex,
    Arc,
    Mutex, //
};
use peer::Peer;
use transport::{
    Link,
    Notify, //
};
use tx::{
    OutFrame,
    Tx, //
};

/// How far a connection has come. The listener that serves it moves it on.
pub(crate) enum Phase {
    /// This node is connecting to the peer.
    Dialing(Arc<Peer>),
    /// The greeting was sent to the peer, its answer is awaited.
    AwaitAnswer(Arc<Peer>),
    /// It came in from somewhere, and its greeting is awaited.
    AwaitHello,
    /// It came in, and this is its greeting, not yet judged.
    Greeted(hello::Bytes),
    /// It is established.
    Open(Arc<Peer>),
    /// It is over, and all that follows from that has been done.
    Closed,
}

/// The receiving side.
pub(crate) struct Rx {
    /// How far the connection has come.
    pub(crate) phase: Phase,
    /// When it is another connection's turn to be served.
    pub(crate) turn_ends: Millis,
    /// Bytes on their way to become frames.
    pub(crate) assembler: Assembler,
    /// What could not be handled for want of memory. Nothing is read past it.
    pub(crate) held: Option<Held>,
}

/// What was in a frame, charged for and not yet handed on.
pub(crate) enum Held {
    /// A message.
    Message(Message),
    /// A call.
    Call(Incoming),
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
    /// Held by the listener while it serves the connection.
    #[pin]
    pub(crate) rx: Mutex<Rx>,
    #[pin]
    tx: Tx,
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
                rx <- new_mutex!(rx, "Conn::rx"),
                tx <- Tx::new(),
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

    /// [`Link::recv`], taking note that the other side is alive.
    pub(crate) fn recv(&self, buf: &mut [u8]) -> Result<usize> {
        let n = self.link.recv(buf)?;
        self.hear();
        Ok(n)
    }

    /// The other side was heard of just now.
    pub(crate) fn hear(&self) {
        self.heard.store(clock::now(), Relaxed);
    }

    /// When the other side was last heard of.
    pub(crate) fn last_heard(&self) -> Millis {
        self.heard.load(Relaxed)
    }

    /// When something was last sent.
    pub(crate) fn last_sent(&self) -> Millis {
        self.tx.last_sent()
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
        match self.link.send(&[bytes])? {
            n if n == bytes.len() => Ok(()),
            _ => Err(EIO),
        }
    }

    /// Whether something has come in that the listener has not got to yet.
    pub(crate) fn unread(&self) -> bool {
        self.link.unread()
    }

    /// Sends a sign of life, unless other frames wait, which are as good. Process context.
    pub(crate) fn ping(self: &Arc<Self>) {
        // If there is no memory for it, the next one may do.
        if let Ok(frame) = OutFrame::new(Header::Ping, KVVec::new(), None) {
            self.tx.push_ping(frame);
            self.flush();
        }
    }

    /// Queues a frame and sends as much as there is room for. Process context.
    ///
    /// Frames go out in the order of these calls. `EHOSTDOWN` when the connection has ended.
    pub(crate) fn transmit(self: &Arc<Self>, frame: kernel::list::ListArc<OutFrame>) -> Result {
        self.tx.push(frame)?;
        if self.queues.is_listener() {
            self.flush();
        } else {
            self.send_share(tx::SHARE);
        }
        Ok(())
    }

    /// Sends a control frame, before any others that wait. Process context.
    pub(crate) fn control(self: &Arc<Self>, header: Header) -> Result {
        let frame = OutFrame::new(header, KVVec::new(), None)?;
        self.tx.push_control(frame)?;
        self.flush();
        Ok(())
    }

    /// Sends some of what waits, and has the listener send the rest. Process context.
    pub(crate) fn flush(self: &Arc<Self>) {
        self.send_share(tx::SMALL_SHARE);
    }

    fn send_share(self: &Arc<Self>, share: usize) {
        match self.tx.drain(&*self.link, share) {
            Ok(tx::Drained::Done) => {}
            Ok(tx::Drained::Yield) => self.schedule(),
            Ok(tx::Drained::Ended) => self.link.close(true),
            // What came in before that, perhaps a `Bye`, says more than the error, which the
            // listener will find behind it.
            Err(_) if self.unread() => self.schedule(),
            Err(e) => self.fail(e, None),
        }
    }

    /// Ends the connection, for the first reason that is given. `bye`: what to tell the other side.
    /// Process context.
    pub(crate) fn fail(self: &Arc<Self>, error: Error, bye: Option<Bye>) {
        if self.failure.cmpxchg(0, error.to_errno(), Full).is_err() {
            return;
        }
        // If there is no memory for it, the end of the stream says enough.
        let last = bye.and_then(|bye| OutFrame::new(Header::Bye(bye), KVVec::new(), None).ok());
        match last {
            Some(last) => {
                if self.tx.end(&*self.link, last) {
                    self.link.close(true);
                }
            }
            None => {
                self.tx.close();
                self.link.close(bye.is_some());
            }
        }
        self.schedule();
    }

    /// Ends a connection that no peer is known of. Process context.
    pub(crate) fn hang_up(self: &Arc<Self>, error: Error) {
        if self.failure.cmpxchg(0, error.to_errno(), Full).is_ok() {
            self.tx.close();
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
}
