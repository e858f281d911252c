// SPDX-License-Identifier: GPL-2.0

//! Remote calls (P8, P9).
//!
//! | file       | what it owns                                                       |
//! |------------|--------------------------------------------------------------------|
//! | `calls`    | calls of this node that wait for their reply                       |
//! | `handlers` | the functions that other nodes may call, and who is running them   |
//! | `pool`     | the threads that run long handlers                                 |
//! | this file  | making a call; running one, in the listener or by way of the pool  |
//!
//! ```text
//!  caller                               node that is called
//!  rcall ------ Call ---------------->  upcall:   softirq handler? runs it (listener::quick)
//!                                       listener: short handler?   runs it itself (figure 5)
//!                                                 long?            a thread runs it (figure 4)
//!  rcall_sync - CallSync(id) -------->  likewise, then
//!   sleeps  <-- Reply(id, status) ----  whoever ran it sends what it returned
//! ```

pub(crate) mod calls;
pub(crate) mod handlers;
pub(crate) mod pool;

pub(crate) use calls::Reply;

use crate::config::NodeId;
use crate::conn::credit::{
    call_cost,
    Lane, //
};
use crate::conn::frame::{
    Header,
    Outcome,
    FEW, //
};
use crate::conn::peer::Charge;
use crate::conn::session::Session;
use crate::conn::tx::{
    Blank,
    Payload,
    Store,
    Urgency,
    Via,
    SMALL_SHARE, //
};
use crate::node::Node;
use crate::sys::clock;
use crate::sys::wait::Timeout;
use handlers::{
    Call,
    Class,
    Running, //
};
use kernel::prelude::*;
use kernel::sync::Arc;

/// What the caller of a synchronous call wants back.
pub(crate) struct Wanted {
    /// The call, to name in the reply.
    pub(crate) id: u64,
    /// How long the reply may be.
    pub(crate) reply_max: u32,
    /// The reply's frame: once the handler has run, nothing may keep it from being sent.
    pub(crate) frame: Blank,
}

/// A call that has come in.
pub(crate) struct Incoming {
    session: Arc<Session>,
    func: u32,
    args: KVVec<u8>,
    wanted: Option<Wanted>,
    charge: Charge,
}

impl Incoming {
    /// From a frame, which has been charged for.
    pub(crate) fn new(
        session: Arc<Session>,
        func: u32,
        args: KVVec<u8>,
        wanted: Option<Wanted>,
        charge: Charge,
    ) -> Self {
        Self {
            session,
            func,
            args,
            wanted,
            charge,
        }
    }

    /// Length of its arguments.
    pub(crate) fn len(&self) -> usize {
        self.args.len()
    }

    /// It was not delivered, and will come in again.
    pub(crate) fn cancel(self) {
        self.charge.cancel();
    }

    fn reply_max(&self) -> usize {
        self.wanted.as_ref().map_or(0, |w| w.reply_max as usize)
    }

    /// Replies, if a reply is wanted; the call is over.
    #[inline(always)]
    fn reply(self, outcome: Outcome, status: i32, needed: usize, bytes: Payload<'_>, via: Via<'_>) {
        let Some(wanted) = self.wanted else {
            self.note_failure(outcome, status);
            return;
        };
        let len = bytes.len() as u32;
        let header = Header::Reply {
            id: wanted.id,
            outcome,
            status,
            needed: u32::try_from(needed).unwrap_or(u32::MAX),
            len,
        };
        let peer = self.charge.peer().clone();
        let frame = wanted.frame.fill(header, bytes, Some(self.charge), None);
        // If the session is over, so is the call.
        if self
            .session
            .transmit(frame, Urgency::Now, SMALL_SHARE, via)
            .is_ok()
        {
            peer.stats.tx_bytes.add(len.into());
        }
    }

    /// Nobody is told of an asynchronous call that fails, so it is counted, and logged each time that
    /// the count doubles.
    fn note_failure(&self, outcome: Outcome, status: i32) {
        if outcome == Outcome::Ran && status >= 0 {
            return;
        }
        let peer = self.charge.peer();
        peer.stats.failed_rcalls.inc();
        let count = peer.stats.failed_rcalls.get();
        if count.is_power_of_two() {
            pr_warn!(
                "asynchronous rcall {:#x} from node {} failed: {:?}, status {} ({} such failures)\n",
                self.func,
                peer.id,
                outcome,
                status,
                count
            );
        }
    }

    fn refuse(self, outcome: Outcome) {
        self.reply(outcome, 0, 0, Payload::Few(&[]), Via::Thread);
    }
}

/// Serves a call that has come in. Called by the listener; gives the call back if there is no memory
/// to serve it now. `delivered` is called as soon as nothing can keep it from being served.
pub(crate) fn serve(
    node: &Arc<Node>,
    call: Incoming,
    delivered: impl FnOnce(),
) -> Result<(), Incoming> {
    let running = match node.handlers.begin(call.func, call.args.len()) {
        Ok(running) => running,
        Err(outcome) => {
            delivered();
            call.refuse(outcome);
            return Ok(());
        }
    };
    match running.class() {
        Class::Short => {
            delivered();
            run(call, running, Some(node));
            Ok(())
        }
        Class::Softirq => {
            // It came in when its connection was taken up otherwise.
            delivered();
            run(call, running, Some(node));
            Ok(())
        }
        Class::Long => match pool::Job::new(call, running) {
            Ok(job) => {
                delivered();
                node.pool.submit(job);
                Ok(())
            }
            Err(call) => Err(call),
        },
    }
}

/// Room for a reply.
pub(crate) enum Room {
    /// Few bytes, at hand.
    Few(usize),
    /// Any number.
    Many(Store),
}

impl Room {
    /// For so many bytes.
    pub(crate) fn new(len: usize, session: &Session, via: Via<'_>) -> Result<Self> {
        Ok(if len <= FEW {
            Room::Few(len)
        } else {
            Room::Many(session.room(len, via)?)
        })
    }
}

/// Runs a handler, and replies. `watch`: the node that wants to know if it takes too long. Process
/// context.
pub(crate) fn run(mut call: Incoming, running: Running, watch: Option<&Node>) {
    let args = core::mem::replace(&mut call.args, KVVec::new());
    match Room::new(call.reply_max(), &call.session, Via::Thread) {
        Ok(room) => run_in(call, &args, running, room, watch, Via::Thread),
        Err(_) => call.refuse(Outcome::NoMemory),
    }
    if let Some(node) = watch {
        node.recycle(args);
    }
}

/// Runs a handler on some arguments with `room` for its reply, and replies by `via`.
#[inline]
pub(crate) fn run_in(
    call: Incoming,
    args: &[u8],
    running: Running,
    room: Room,
    watch: Option<&Node>,
    via: Via<'_>,
) {
    if call.session.is_superseded() {
        // It is of an incarnation of the peer that another has taken the place of.
        return;
    }
    let mut few = [0; FEW];
    let mut many = None;
    let reply = match room {
        Room::Few(len) => &mut few[..len],
        Room::Many(store) => many.insert(store).as_mut_slice(),
    };
    let room = reply.len();
    let mut view = Call {
        source: call.charge.peer().id,
        func: call.func,
        args,
        reply: call.wanted.as_ref().map(|_| reply),
        reply_len: 0,
    };
    let before = watch.map(|_| clock::stopwatch());
    let status = running.run(&mut view);
    if let (Some(node), Some(before)) = (watch, before) {
        let micros = before.elapsed().as_micros_ceil().unsigned_abs();
        if running.took(node.id(), micros, node.limits().short_warn_us) {
            node.handlers.slow.inc();
        }
    }
    // Whoever has the reply may take it that the handler does not run any more, and its module can go.
    drop(running);
    let needed = view.reply_len;
    let (outcome, bytes) = if call.wanted.is_some() && needed > room {
        (Outcome::ReplyTooLong, Payload::Few(&[]))
    } else if let Some(mut store) = many {
        store.truncate(needed);
        (Outcome::Ran, Payload::Many(store))
    } else {
        (Outcome::Ran, Payload::Few(&few[..needed.min(room)]))
    };
    call.reply(outcome, status, needed, bytes, via);
}

/// Drops a call that will not be run, because the node is stopping.
pub(crate) fn abandon(call: Incoming) {
    call.refuse(Outcome::Stopping);
}

/// Why a synchronous call did not succeed.
pub(crate) struct Failure {
    /// The error.
    pub(crate) error: Error,
    /// What the handler returned, if it ran.
    pub(crate) status: i32,
    /// The length of a reply that was too long.
    pub(crate) needed: Option<usize>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            error,
            status: 0,
            needed: None,
        }
    }
}

/// What a synchronous call has brought.
pub(crate) struct Success {
    /// What the handler returned.
    pub(crate) status: i32,
    /// Length of the reply.
    pub(crate) len: usize,
}

impl Node {
    /// Makes an asynchronous call. See `kccm_rcall()`.
    pub(crate) fn rcall(&self, dst: NodeId, func: u32, args: &[u8], timeout: Timeout) -> Result {
        let (len, session) = self.check_args(dst, args.len(), 0)?;
        let urgency = Urgency::Soon;
        let call = Outgoing::new(session, Header::Call { func, len }, args, urgency)?;
        self.place_call(dst, call_cost(len, 0), call, urgency, timeout)
    }

    /// Makes a synchronous call. See `kccm_rcall_sync()`.
    pub(crate) fn rcall_sync(
        &self,
        dst: NodeId,
        func: u32,
        args: &[u8],
        reply: &mut [u8],
        timeout: Timeout,
    ) -> Result<Success, Failure> {
        if timeout == Timeout::NoWait {
            return Err(EINVAL.into());
        }
        if self.queues.is_listener() {
            return Err(EDEADLK.into());
        }
        let started = clock::now();
        let (len, session) = self.check_args(dst, args.len(), reply.len())?;
        let reply_max = reply.len() as u32;
        let call = self.calls.begin(dst)?;
        let header = Header::CallSync {
            id: call.id(),
            func,
            reply_max,
            len,
        };
        let outgoing = Outgoing::new(session, header, args, Urgency::Now)?;
        let cost = call_cost(len, reply_max);
        let place = || {
            self.place_call(dst, cost, outgoing, Urgency::Now, timeout)?;
            Ok(timeout.left(started))
        };
        let (answer, len) = call.make(reply, place, |bytes| self.recycle(bytes))?;
        judge(answer, len)
    }

    /// Checks what a call would need to be carried. Returns the length of its arguments, and the
    /// session to make it in.
    fn check_args(&self, dst: NodeId, args: usize, reply: usize) -> Result<(u32, Arc<Session>)> {
        let session = self.peer(dst).ok_or(EINVAL)?.sendable()?;
        let max = session.bounds.rcall as usize;
        if args > max || reply > max {
            return Err(EMSGSIZE);
        }
        Ok((args as u32, session))
    }

    #[inline(always)]
    fn place_call(
        &self,
        dst: NodeId,
        cost: u64,
        call: Outgoing<'_>,
        urgency: Urgency,
        timeout: Timeout,
    ) -> Result {
        let peer = self.peer(dst).ok_or(EINVAL)?;
        let bytes = call.args.len() as u64;
        let is_listener = self.queues.is_listener();
        let kept = peer.admit(&call.session, Lane::Calls, cost, timeout, !is_listener)?;
        let ask = kept.asks();
        let frame = call.frame.fill(call.header, call.args, None, Some(kept));
        call.session
            .transmit(frame, urgency, Self::share(is_listener), Via::Thread)?;
        if ask {
            call.session.ask();
        }
        peer.stats.tx_rcalls.inc();
        peer.stats.tx_bytes.add(bytes);
        Ok(())
    }
}

/// A call to be placed, with all the memory that it needs.
struct Outgoing<'a> {
    session: Arc<Session>,
    header: Header,
    args: Payload<'a>,
    frame: Blank,
}

impl<'a> Outgoing<'a> {
    #[inline(always)]
    fn new(
        session: Arc<Session>,
        header: Header,
        args: &'a [u8],
        urgency: Urgency,
    ) -> Result<Self> {
        Ok(Self {
            args: session.payload(args, urgency)?,
            session,
            header,
            frame: Blank::new(GFP_KERNEL)?,
        })
    }
}

/// Tells the caller of a synchronous call what its reply, of which he has got `len` bytes, means.
fn judge(answer: Reply, len: usize) -> Result<Success, Failure> {
    let error = match answer.outcome {
        Outcome::Ran if answer.status < 0 => EREMOTEIO,
        Outcome::Ran => {
            // The other side knows how much room there is; if it does not keep to that, it is cut off.
            return Ok(Success {
                status: answer.status,
                len,
            });
        }
        Outcome::NoHandler => EOPNOTSUPP,
        Outcome::ArgsTooLong => E2BIG,
        Outcome::ReplyTooLong => EMSGSIZE,
        Outcome::NoMemory => ENOMEM,
        Outcome::Stopping => ESHUTDOWN,
    };
    // A handler that failed may have said more about it.
    Err(Failure {
        error,
        status: answer.status,
        needed: match answer.outcome {
            Outcome::Ran => Some(len),
            Outcome::ReplyTooLong => Some(answer.needed as usize),
            _ => None,
        },
    })
}
