// SPDX-License-Identifier: GPL-2.0

//! KCCM for Rust modules: the functions of `kccm.h`, safe to call.
//!
//! A module takes this file in as it is; it needs nothing else of KCCM but the symbols, which
//! `KBUILD_EXTRA_SYMBOLS` names when it is built and `kccm.ko` has when it is loaded:
//!
//! ```ignore
//! #[path = "../include/kccm.rs"]
//! mod kccm;
//!
//! // Whoever calls 42 on this node is told the node's id.
//! let registration = kccm::Registration::new(module, 42, kccm::Class::Short, c"id", 0, |call| {
//!     call.reply(&kccm::node_id()?.to_le_bytes());
//!     Ok(0)
//! })?;
//!
//! // To node 1, with tag 7. From any node, tag 7, whatever its length.
//! kccm::send(1, 7, b"hello", kccm::Timeout::Forever)?;
//! let (info, message) = kccm::recv_vec(kccm::Source::Any, 7, kccm::Timeout::Forever)?;
//!
//! // Call 42 on node 1.
//! let mut id = [0; 4];
//! kccm::rcall_sync(1, 42, b"", &mut id, kccm::Timeout::Millis(1000))?;
//! ```
//!
//! # Contexts
//!
//! Unless a function says otherwise it may sleep: it is called from process context, without spin
//! locks held. What it allocates inside KCCM it allocates as by `GFP_NOIO`, so code that writes pages
//! back may call it; what is allocated on this side is said with each function. A short handler
//! ([`Class::Short`]) must not wait: what would have to returns `EDEADLK` there.
//!
//! # Errors
//!
//! Every function can fail with `ENODEV` (KCCM is not running) and `ENOMEM`, those that wait also
//! with `EINTR` (the task was killed); further errors are listed with each.

// Every user needs another part of this.
#![allow(dead_code)]

use core::ptr;
use core::slice;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::time::{
    Delta,
    Instant,
    Monotonic, //
};

/// `kccm.h`, by hand, so that nobody needs bindgen to use KCCM. `samples/kccm_header_check.rs` does
/// not compile where this differs from the header.
pub(crate) mod raw {
    #![allow(missing_docs)]
    #![allow(non_camel_case_types)]

    use kernel::ffi::{
        c_char,
        c_int,
        c_long,
        c_uint,
        c_void, //
    };

    pub(crate) const KCCM_MAX_NODES: u32 = 256;
    pub(crate) const KCCM_ANY_NODE: i32 = -1;
    pub(crate) const KCCM_ANY_TAG: i32 = -1;
    pub(crate) const KCCM_FOREVER: i32 = -1;
    pub(crate) const KCCM_NOWAIT: u32 = 0;

    #[repr(C)]
    #[derive(Default, Copy, Clone)]
    pub(crate) struct kccm_msg_info {
        pub(crate) source: u32,
        pub(crate) tag: u32,
        pub(crate) len: u64,
    }

    pub(crate) type kccm_class = c_uint;
    pub(crate) const KCCM_SHORT: kccm_class = 0;
    pub(crate) const KCCM_LONG: kccm_class = 1;
    pub(crate) const KCCM_SOFTIRQ: kccm_class = 2;

    #[repr(C)]
    pub(crate) struct kccm_call {
        pub(crate) source: u32,
        pub(crate) func: u32,
        pub(crate) args: *const c_void,
        pub(crate) args_len: usize,
        pub(crate) reply: *mut c_void,
        pub(crate) reply_max: usize,
        pub(crate) reply_len: usize,
    }

    #[repr(C)]
    pub(crate) struct kccm_handler {
        pub(crate) func: u32,
        pub(crate) class: kccm_class,
        pub(crate) name: *const c_char,
        pub(crate) max_args: usize,
        pub(crate) fn_: Option<unsafe extern "C" fn(*mut kccm_call, *mut c_void) -> c_int>,
        pub(crate) ctx: *mut c_void,
        /// A `struct module`.
        pub(crate) owner: *mut c_void,
    }

    pub(crate) type kccm_event = c_uint;
    pub(crate) const KCCM_NODE_DOWN: kccm_event = 0;
    pub(crate) const KCCM_NODE_UP: kccm_event = 1;

    #[repr(C)]
    pub(crate) struct kccm_subscriber {
        pub(crate) event: Option<unsafe extern "C" fn(*mut c_void, u32, kccm_event, u64)>,
        pub(crate) ctx: *mut c_void,
    }

    extern "C" {
        pub(crate) fn kccm_send(
            dst: c_int,
            tag: u32,
            buf: *const c_void,
            len: usize,
            timeout_ms: c_long,
        ) -> c_int;
        pub(crate) fn kccm_send_sync(
            dst: c_int,
            tag: u32,
            buf: *const c_void,
            len: usize,
            timeout_ms: c_long,
        ) -> c_int;
        pub(crate) fn kccm_send_bulk(
            dst: c_int,
            tag: u32,
            buf: *const c_void,
            len: usize,
            timeout_ms: c_long,
        ) -> c_int;
        pub(crate) fn kccm_recv(
            src: c_int,
            tag: i64,
            buf: *mut c_void,
            len: usize,
            info: *mut kccm_msg_info,
            timeout_ms: c_long,
        ) -> c_int;
        pub(crate) fn kccm_recv_alloc(
            src: c_int,
            tag: i64,
            buf: *mut *mut c_void,
            info: *mut kccm_msg_info,
            timeout_ms: c_long,
        ) -> c_int;
        pub(crate) fn kccm_probe(
            src: c_int,
            tag: i64,
            info: *mut kccm_msg_info,
            timeout_ms: c_long,
        ) -> c_int;
        pub(crate) fn kccm_register_handler(handler: *const kccm_handler) -> c_int;
        pub(crate) fn kccm_unregister_handler(func: u32) -> c_int;
        pub(crate) fn kccm_rcall(
            dst: c_int,
            func: u32,
            args: *const c_void,
            args_len: usize,
            timeout_ms: c_long,
        ) -> c_int;
        pub(crate) fn kccm_rcall_sync(
            dst: c_int,
            func: u32,
            args: *const c_void,
            args_len: usize,
            reply: *mut c_void,
            reply_len: *mut usize,
            status: *mut c_int,
            timeout_ms: c_long,
        ) -> c_int;
        pub(crate) fn kccm_node_id() -> c_int;
        pub(crate) fn kccm_incarnation() -> u64;
        pub(crate) fn kccm_members(ids: *mut u32, max: c_uint) -> c_int;
        pub(crate) fn kccm_is_up(node: c_int) -> bool;
        pub(crate) fn kccm_wait_up(node: c_int, timeout_ms: c_long) -> c_int;
        pub(crate) fn kccm_subscribe(subscriber: *const kccm_subscriber) -> c_int;
        pub(crate) fn kccm_unsubscribe(handle: c_int) -> c_int;
    }
}

/// Node ids are 0 .. `MAX_NODES - 1`.
pub(crate) const MAX_NODES: u32 = raw::KCCM_MAX_NODES;

// ---- What to wait for, and how long.

/// How long to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Timeout {
    /// Not at all: what would have to wait returns `EAGAIN`.
    NoWait,
    /// So many milliseconds, then `ETIMEDOUT`; 0 is [`Timeout::NoWait`].
    Millis(u32),
    /// As long as it takes.
    Forever,
}

impl Timeout {
    fn to_ms(self) -> c_long {
        match self {
            Timeout::NoWait => raw::KCCM_NOWAIT as c_long,
            Timeout::Millis(ms) => c_long::try_from(ms).unwrap_or(c_long::MAX),
            Timeout::Forever => raw::KCCM_FOREVER as c_long,
        }
    }

    /// What is left of it after a wait that began then.
    fn left(self, since: Instant<Monotonic>) -> Self {
        match self {
            Timeout::Millis(ms) => {
                let left = Delta::from_millis(ms.into()) - since.elapsed();
                Timeout::Millis(u32::try_from(left.as_millis_ceil()).unwrap_or(0))
            }
            other => other,
        }
    }
}

/// Where a message must come from to be received. A node's id is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// From this node.
    Node(u32),
    /// From whichever node.
    Any,
}

impl From<u32> for Source {
    fn from(node: u32) -> Self {
        Source::Node(node)
    }
}

impl Source {
    fn to_raw(self) -> Result<c_int> {
        match self {
            Source::Node(node) => node_to_raw(node),
            Source::Any => Ok(raw::KCCM_ANY_NODE),
        }
    }
}

/// Which tag a message must have to be received. Every `u32` is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tag {
    /// This one.
    Exact(u32),
    /// Whichever.
    Any,
}

impl From<u32> for Tag {
    fn from(tag: u32) -> Self {
        Tag::Exact(tag)
    }
}

impl Tag {
    fn to_raw(self) -> i64 {
        match self {
            Tag::Exact(tag) => tag.into(),
            Tag::Any => raw::KCCM_ANY_TAG.into(),
        }
    }
}

/// An id as C has it; one that is negative there is nobody's.
fn node_to_raw(node: u32) -> Result<c_int> {
    c_int::try_from(node).map_err(|_| EINVAL)
}

// ---- Messages.

/// What is known of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Info {
    /// The node that sent it.
    pub(crate) source: u32,
    /// The tag it was sent with.
    pub(crate) tag: u32,
    /// Its length, bytes.
    pub(crate) len: usize,
}

impl From<raw::kccm_msg_info> for Info {
    fn from(info: raw::kccm_msg_info) -> Self {
        Info {
            source: info.source,
            tag: info.tag,
            len: info.len as usize,
        }
    }
}

/// Why nothing was received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RecvError {
    /// The message is longer than the buffer. It stays first in its queue.
    TooLong(Info),
    /// Something else.
    Other(Error),
}

impl From<Error> for RecvError {
    fn from(error: Error) -> Self {
        RecvError::Other(error)
    }
}

impl From<RecvError> for Error {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::TooLong(_) => EMSGSIZE,
            RecvError::Other(error) => error,
        }
    }
}

/// Sends a message by one of the functions for that, which keep no pointer to it.
fn send_by(
    send: unsafe extern "C" fn(c_int, u32, *const c_void, usize, c_long) -> c_int,
    dst: u32,
    tag: u32,
    message: &[u8],
    timeout: Timeout,
) -> Result {
    let dst = node_to_raw(dst)?;
    // SAFETY: `message` is valid for reads of its length for the duration of the call, and `send` is
    // one of `kccm.h`, which asks for no more.
    to_result(unsafe {
        send(
            dst,
            tag,
            message.as_ptr().cast(),
            message.len(),
            timeout.to_ms(),
        )
    })
}

/// Sends a message to the node `dst`, for it to receive by `tag`.
///
/// Waits while `dst` has no room for it, or has yet to acknowledge too much, and with 16 KiB or more
/// while too much has yet to be sent. Returns once the message is accepted: it is delivered exactly
/// once, in the order in which messages were sent to `dst`, over however many connections, unless one of the two nodes ends before that.
///
/// # Errors
///
/// `EAGAIN` or `ETIMEDOUT`: no room (in time). `EMSGSIZE`: longer than one of the two nodes accepts.
/// `EHOSTDOWN`: `dst` is down, or went down while waiting. `ENETRESET`: it was restarted while waiting.
/// `EINVAL`: no such peer. `EDEADLK`: it would have to wait, in a short handler.
pub(crate) fn send(dst: u32, tag: u32, message: &[u8], timeout: Timeout) -> Result {
    send_by(raw::kccm_send, dst, tag, message, timeout)
}

/// Sends a message and waits until it is delivered: in the receive queue of `dst`, or with a receiver,
/// and with it every message that was sent to the same incarnation of `dst` before, but for those of
/// [`send_bulk`].
///
/// # Errors
///
/// As [`send`], and then it is not known whether the message was delivered; unless `dst` has ended, it
/// may still be. `EINVAL`: [`Timeout::NoWait`]. `EDEADLK`: in a short handler.
pub(crate) fn send_sync(dst: u32, tag: u32, message: &[u8], timeout: Timeout) -> Result {
    send_by(raw::kccm_send_sync, dst, tag, message, timeout)
}

/// Sends a message that only others of its kind wait behind: over another connection, which two nodes
/// have from the first such message on, with as much room of its own.
///
/// Such messages are delivered exactly once, and in order among themselves; what is sent by other
/// functions may overtake them, and may be overtaken. For long messages beside which calls are to stay
/// fast. `dst` is up as long as the other connection is: while this one cannot be had, who sends over it
/// waits.
///
/// # Errors
///
/// As [`send`]; and while that connection is being opened `EAGAIN` or `ETIMEDOUT`, `EDEADLK` in a short
/// handler, `ESHUTDOWN` if KCCM stops meanwhile.
pub(crate) fn send_bulk(dst: u32, tag: u32, message: &[u8], timeout: Timeout) -> Result {
    send_by(raw::kccm_send_bulk, dst, tag, message, timeout)
}

/// Sends a message if there is room for it at `dst` now, and fails with `EAGAIN` if not; see
/// [`send`].
pub(crate) fn try_send(dst: u32, tag: u32, message: &[u8]) -> Result {
    send(dst, tag, message, Timeout::NoWait)
}

/// Receives a message into `buf`, which may be longer than the message: see [`Info::len`].
///
/// Of the messages that match, takes the one that arrived first; when none has arrived, waits.
///
/// # Errors
///
/// [`RecvError::TooLong`]: it is longer than `buf`, and stays. `EAGAIN` or `ETIMEDOUT`: nothing has
/// arrived (in time). `EHOSTDOWN`: nothing has arrived from this node, and it is down or went down while
/// waiting, `ENETRESET`: or was restarted; not for [`Source::Any`]. `EINVAL`: no such node. `EDEADLK`: it would have to
/// wait, in a short handler. `ESHUTDOWN`: KCCM stopped while waiting.
pub(crate) fn recv(
    source: impl Into<Source>,
    tag: impl Into<Tag>,
    buf: &mut [u8],
    timeout: Timeout,
) -> Result<Info, RecvError> {
    let source = source.into().to_raw()?;
    let mut info = raw::kccm_msg_info::default();
    // SAFETY: `buf` is valid for writes of its length and `info` for one of its kind, for the
    // duration of the call, which keeps no pointer to them and writes whole bytes to `buf`.
    let ret = unsafe {
        raw::kccm_recv(
            source,
            tag.into().to_raw(),
            buf.as_mut_ptr().cast(),
            buf.len(),
            &mut info,
            timeout.to_ms(),
        )
    };
    match to_result(ret) {
        Ok(()) => Ok(info.into()),
        Err(e) if e == EMSGSIZE => Err(RecvError::TooLong(info.into())),
        Err(e) => Err(e.into()),
    }
}

/// Receives a message that has arrived already, `None` if there is none; see [`recv`].
pub(crate) fn try_recv(
    source: impl Into<Source>,
    tag: impl Into<Tag>,
    buf: &mut [u8],
) -> Result<Option<Info>, RecvError> {
    match recv(source, tag, buf, Timeout::NoWait) {
        Err(RecvError::Other(e)) if e == EAGAIN => Ok(None),
        received => received.map(Some),
    }
}

/// Receives a message of whatever length, in the memory that it has come in, without copying it: the
/// faster way to receive long ones. Otherwise as [`recv`].
///
/// # Errors
///
/// Those of [`recv`], except that no message is too long.
pub(crate) fn recv_vec(
    source: impl Into<Source>,
    tag: impl Into<Tag>,
    timeout: Timeout,
) -> Result<(Info, KVVec<u8>)> {
    let source = source.into().to_raw()?;
    let mut start = core::ptr::null_mut();
    let mut info = raw::kccm_msg_info::default();
    // SAFETY: Both are valid for a write for the duration of the call, which keeps no pointer to them.
    to_result(unsafe {
        raw::kccm_recv_alloc(
            source,
            tag.into().to_raw(),
            &mut start,
            &mut info,
            timeout.to_ms(),
        )
    })?;
    let info = Info::from(info);
    // SAFETY: On success this is memory of at least so many bytes, which have been written; it is now ours,
    // to be freed as such a vector frees it. That there may be more is of no consequence for that.
    let message = unsafe { KVVec::from_raw_parts(start.cast(), info.len, info.len.max(1)) };
    Ok((info, message))
}

/// Learns of the next message without receiving it; waits for one as [`recv`] does.
///
/// Another receiver may take it before the caller does.
///
/// # Errors
///
/// Those of [`recv`], except that there is no buffer to be too short.
pub(crate) fn probe(
    source: impl Into<Source>,
    tag: impl Into<Tag>,
    timeout: Timeout,
) -> Result<Info> {
    let source = source.into().to_raw()?;
    let mut info = raw::kccm_msg_info::default();
    // SAFETY: `info` is valid for a write for the duration of the call, which keeps no pointer to it.
    to_result(unsafe { raw::kccm_probe(source, tag.into().to_raw(), &mut info, timeout.to_ms()) })?;
    Ok(info.into())
}

// ---- Remote calls: making them.

/// What a synchronous call that succeeded brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reply {
    /// What the handler returned.
    pub(crate) status: u32,
    /// How many bytes it put into the caller's buffer.
    pub(crate) len: usize,
}

/// Why a synchronous call did not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CallError {
    /// The handler ran, and failed.
    Remote {
        /// What it returned, by convention a negative errno.
        status: i32,
        /// How many bytes it put into the caller's buffer nevertheless.
        len: usize,
    },
    /// The handler ran, but its reply is of this length: longer than the caller's buffer.
    TooLong(usize),
    /// The handler did not run, or nothing came back from it.
    Other(Error),
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        CallError::Other(error)
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Remote { .. } => EREMOTEIO,
            CallError::TooLong(_) => EMSGSIZE,
            CallError::Other(error) => error,
        }
    }
}

/// Calls the function `func` on the node `dst`, without waiting for it to run.
///
/// Nothing comes back: if it fails there, or `dst` has no such function, that is counted and logged
/// at `dst` only. Calls of short and softirq handlers on one node run in the order in which they were
/// made.
///
/// # Errors
///
/// Those of [`send`], with arguments in the place of the message.
pub(crate) fn rcall(dst: u32, func: u32, args: &[u8], timeout: Timeout) -> Result {
    let dst = node_to_raw(dst)?;
    // SAFETY: `args` is valid for reads of its length for the duration of the call, which keeps no
    // pointer to it.
    to_result(unsafe {
        raw::kccm_rcall(dst, func, args.as_ptr().cast(), args.len(), timeout.to_ms())
    })
}

/// Calls the function `func` on the node `dst` and waits for its reply, which goes into `reply`.
/// `timeout` is for the whole call.
///
/// # Errors
///
/// What the handler returned is kept apart: [`CallError::Remote`] and [`CallError::TooLong`].
/// Others: `EOPNOTSUPP`: `dst` has no such handler. `E2BIG`: more arguments than it takes.
/// `EMSGSIZE`: nothing was called, because `args` or `reply` is longer than the smaller of the two
/// nodes' `max_rcall`. `ETIMEDOUT`: no reply in time; the handler may still run. `EHOSTDOWN`: `dst` is
/// down, or went down before it replied; the handler may have run, or may yet. `ENETRESET`: it was
/// restarted before it replied; the handler may have run. `EDEADLK`: in a short handler. `EINVAL`: no
/// such peer, or [`Timeout::NoWait`]. `ESHUTDOWN`: KCCM stopped, here or there.
pub(crate) fn rcall_sync(
    dst: u32,
    func: u32,
    args: &[u8],
    reply: &mut [u8],
    timeout: Timeout,
) -> Result<Reply, CallError> {
    let dst = node_to_raw(dst)?;
    let mut len = reply.len();
    let mut status = 0;
    // SAFETY: `args` is valid for reads of its length, `reply` for writes of `len` bytes, `len` and
    // `status` for one write, all for the duration of the call, which keeps no pointer to them.
    let ret = unsafe {
        raw::kccm_rcall_sync(
            dst,
            func,
            args.as_ptr().cast(),
            args.len(),
            reply.as_mut_ptr().cast(),
            &mut len,
            &mut status,
            timeout.to_ms(),
        )
    };
    match to_result(ret) {
        Ok(()) => Ok(Reply {
            status: status.unsigned_abs(),
            len,
        }),
        Err(e) if e == EREMOTEIO => Err(CallError::Remote {
            status,
            len: len.min(reply.len()),
        }),
        // Where nothing was called the length is 0: then `args` or `reply` is too long.
        Err(e) if e == EMSGSIZE && len > reply.len() => Err(CallError::TooLong(len)),
        Err(e) => Err(e.into()),
    }
}

// ---- Remote calls: serving them.

/// How a handler is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// By the listener itself, as a function call: fast, but while it runs no other call, and no other
    /// message but those for bulk, is handled on this node. It must not wait for anything remote.
    Short,
    /// In a kernel thread of its own. It may sleep and call whatever it likes. Beyond the idle threads
    /// the kernel makes one with `GFP_KERNEL`, which can wait for pages to be written back: what has a
    /// part in that should be short, and leave the rest to a workqueue. See `KCCM_LONG` in `kccm.h`.
    Long,
    /// Where the call comes in, without a thread: the fastest. It must not sleep, nor wait for anything;
    /// it takes only locks that are taken with softirqs disabled everywhere, allocates with `GFP_ATOMIC`
    /// only, and calls no function of KCCM. See `KCCM_SOFTIRQ` in `kccm.h`.
    Softirq,
}

/// A remote call, as its handler sees it.
pub(crate) struct Call<'a>(&'a mut raw::kccm_call);

impl Call<'_> {
    /// The node that calls.
    pub(crate) fn source(&self) -> u32 {
        self.0.source
    }

    /// The number that was called.
    pub(crate) fn func(&self) -> u32 {
        self.0.func
    }

    /// The arguments.
    pub(crate) fn args(&self) -> &[u8] {
        if self.0.args_len == 0 {
            return &[];
        }
        // SAFETY: KCCM keeps `args_len` bytes at `args`, unchanged, until the handler returns, and
        // this value lives no longer than that.
        unsafe { slice::from_raw_parts(self.0.args.cast(), self.0.args_len) }
    }

    /// Whether the caller waits for a reply.
    pub(crate) fn wants_reply(&self) -> bool {
        !self.0.reply.is_null()
    }

    /// How many bytes of reply the caller has room for; 0 if it does not wait.
    pub(crate) fn reply_max(&self) -> usize {
        self.0.reply_max
    }

    /// Sets the reply, in the place of what it has been set to before.
    ///
    /// One that is longer than [`Call::reply_max`] is not sent; a caller that waits gets
    /// [`CallError::TooLong`].
    pub(crate) fn reply(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() && bytes.len() <= self.0.reply_max {
            // SAFETY: There is room for `reply_max` bytes at `reply` until the handler returns; nobody
            // else writes there, and `bytes` cannot be of that memory, to which there are no references.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.reply.cast(), bytes.len()) };
        }
        self.0.reply_len = bytes.len();
    }
}

/// A function that other nodes may call, for as long as this lives.
///
/// Dropping it takes the function back: it waits until calls that run or are queued have been
/// run. Therefore it must not be dropped by a handler, neither its own nor another one of this
/// kernel: KCCM would wait for itself. That does no harm but to memory: then the function stays
/// registered for good and, with an error in the log, its module stays loaded for good.
///
/// Likewise a module must not leak it ([`core::mem::forget`]), as it must not leak any
/// registration: the function would stay registered when the module is gone.
#[must_use = "dropping it takes the function back"]
pub(crate) struct Registration {
    func: u32,
    context: Context,
}

impl Registration {
    /// Makes `handler` callable from other nodes by the number `func`.
    ///
    /// `module` is that of the handler's code, `THIS_MODULE`. `name` is for warnings in the log,
    /// `max_args` the longest arguments that it takes, bytes; longer ones do not reach it, and fail
    /// with `E2BIG` at their caller.
    ///
    /// What the handler returns is the call's status: 0 or more (up to `i32::MAX`) for success. It is
    /// called from KCCM's threads, by several at once, therefore it is `Sync`. Allocates with
    /// `GFP_KERNEL`.
    ///
    /// # Errors
    ///
    /// `EEXIST`: `func` is taken. `EINVAL`: `max_args` exceeds this node's `max_rcall`.
    pub(crate) fn new<F>(
        module: &'static ThisModule,
        func: u32,
        class: Class,
        name: &'static CStr,
        max_args: usize,
        handler: F,
    ) -> Result<Self>
    where
        F: Fn(&mut Call<'_>) -> Result<u32> + Send + Sync + 'static,
    {
        let context = Context::new(module, handler)?;
        let handler = raw::kccm_handler {
            func,
            class: match class {
                Class::Short => raw::KCCM_SHORT,
                Class::Long => raw::KCCM_LONG,
                Class::Softirq => raw::KCCM_SOFTIRQ,
            },
            name: name.as_char_ptr(),
            max_args,
            fn_: Some(serve::<F>),
            ctx: context.callee,
            owner: module.as_ptr().cast(),
        };
        // SAFETY: `handler` is copied, and so is its name. What else it points to lives for as long as
        // it is registered: the module by its type; the context because `drop()` frees it only after unregistering.
        // `serve::<F>` is what goes with this context, and may be called from any thread, at once, as
        // `F` is `Send` and `Sync`.
        to_result(unsafe { raw::kccm_register_handler(&handler) })?;
        Ok(Self { func, context })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: May be called with any number; this one is of a handler of ours.
        let ret = unsafe { raw::kccm_unregister_handler(self.func) };
        self.context.end(ret);
    }
}

/// # Safety
///
/// `call` points to a call of KCCM's that nobody else uses, `ctx` to an `Owned<F>`, both until this
/// function returns.
unsafe extern "C" fn serve<F>(call: *mut raw::kccm_call, ctx: *mut c_void) -> c_int
where
    F: Fn(&mut Call<'_>) -> Result<u32> + Send + Sync + 'static,
{
    // SAFETY: By this function's contract.
    let (call, owned) = unsafe { (&mut *call, &*ctx.cast::<Owned<F>>()) };
    match (owned.callee)(&mut Call(call)) {
        Ok(status) => c_int::try_from(status).unwrap_or(c_int::MAX),
        Err(e) => e.to_errno(),
    }
}

// ---- The cluster.

/// This node's id. Any context.
pub(crate) fn node_id() -> Result<u32> {
    // SAFETY: Takes no arguments and may be called from any context.
    let id = unsafe { raw::kccm_node_id() };
    to_result(id)?;
    Ok(id.unsigned_abs())
}

/// What tells this run of this node from every other run. Any context.
pub(crate) fn incarnation() -> Result<u64> {
    // SAFETY: Takes no arguments and may be called from any context.
    match unsafe { raw::kccm_incarnation() } {
        0 => Err(ENODEV),
        incarnation => Ok(incarnation),
    }
}

/// The ids of all nodes of the cluster, this one among them, ascending. They do not change while KCCM
/// is loaded. Allocates with `GFP_KERNEL`.
pub(crate) fn members() -> Result<KVec<u32>> {
    let mut ids = KVec::from_elem(0, raw::KCCM_MAX_NODES as usize, GFP_KERNEL)?;
    // SAFETY: `ids` is valid for writes of as many ids as the call is told, which keeps no pointer.
    let count = unsafe { raw::kccm_members(ids.as_mut_ptr(), raw::KCCM_MAX_NODES) };
    to_result(count)?;
    ids.truncate(count.unsigned_abs() as usize);
    Ok(ids)
}

/// Whether a node is up: connected, or not yet taken for dead. This node always is. Any context.
pub(crate) fn is_up(node: u32) -> bool {
    // SAFETY: May be called with any number and from any context.
    node_to_raw(node).is_ok_and(|node| unsafe { raw::kccm_is_up(node) })
}

/// Waits until a node is up.
///
/// # Errors
///
/// `EAGAIN` or `ETIMEDOUT`: it is not (in time). `EINVAL`: no such node. `EDEADLK`: it would have to
/// wait, in a short handler. `ESHUTDOWN`: KCCM stopped while waiting.
pub(crate) fn wait_up(node: u32, timeout: Timeout) -> Result {
    let node = node_to_raw(node)?;
    // SAFETY: May be called with any numbers.
    to_result(unsafe { raw::kccm_wait_up(node, timeout.to_ms()) })
}

/// Waits until all other nodes are up at once; errors as of [`wait_up`].
pub(crate) fn wait_all_up(timeout: Timeout) -> Result {
    // SAFETY: May be called with any numbers.
    to_result(unsafe { raw::kccm_wait_up(raw::KCCM_ANY_NODE, timeout.to_ms()) })
}

/// What has happened to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// It is taken for dead, has said that it goes, or was restarted; all that waited on it has ended, but
    /// for who waits for its messages while what it sent for bulk before a good-bye is read.
    Down,
    /// It is connected.
    Up,
}

/// Hears of peers that come and go, for as long as this lives.
///
/// Dropping it waits until no subscriber is being called. It must not be dropped by a short handler,
/// nor by a subscriber, neither its own nor another one; what happens then, and that it must not be
/// leaked, is as for [`Registration`].
#[must_use = "dropping it ends the subscription"]
pub(crate) struct Subscription {
    handle: c_int,
    context: Context,
}

impl Subscription {
    /// Has `subscriber` called with the peer's id, what happened, and the incarnation of the peer that
    /// it happened to.
    ///
    /// Peers that are up already are reported first. Calls come one at a time, from a thread that does
    /// nothing else: the subscriber may sleep and may use KCCM. For one peer, "down" and "up"
    /// alternate; changes that come faster than they are taken are merged, never reordered.
    ///
    /// `module` is that of the subscriber's code, `THIS_MODULE`. Allocates with `GFP_KERNEL`.
    ///
    /// # Errors
    ///
    /// `EDEADLK`: called from a subscriber or a short handler.
    pub(crate) fn new<F>(module: &'static ThisModule, subscriber: F) -> Result<Self>
    where
        F: Fn(u32, Event, u64) + Send + Sync + 'static,
    {
        let context = Context::new(module, subscriber)?;
        let subscriber = raw::kccm_subscriber {
            event: Some(tell::<F>),
            ctx: context.callee,
        };
        // SAFETY: `subscriber` is copied. The context lives for as long as it is subscribed, because
        // `drop()` frees it only after unsubscribing. `tell::<F>` is what goes with this context, and
        // may be called from another thread, as `F` is `Send` and `Sync`.
        let handle = unsafe { raw::kccm_subscribe(&subscriber) };
        to_result(handle)?;
        Ok(Self { handle, context })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // SAFETY: May be called with any number; this one is of a subscription of ours.
        let ret = unsafe { raw::kccm_unsubscribe(self.handle) };
        self.context.end(ret);
    }
}

/// # Safety
///
/// `ctx` points to an `Owned<F>` until this function returns.
unsafe extern "C" fn tell<F>(ctx: *mut c_void, node: u32, event: raw::kccm_event, incarnation: u64)
where
    F: Fn(u32, Event, u64) + Send + Sync + 'static,
{
    // SAFETY: By this function's contract.
    let owned = unsafe { &*ctx.cast::<Owned<F>>() };
    let event = match event {
        raw::KCCM_NODE_DOWN => Event::Down,
        raw::KCCM_NODE_UP => Event::Up,
        _ => return,
    };
    // KCCM holds a module for its handlers, not for its subscribers; `Context::end()` relies on it.
    // SAFETY: The module exists as long as its code runs.
    if !unsafe { bindings::try_module_get(owned.module.as_ptr()) } {
        // It is being unloaded, and about to unsubscribe.
        return;
    }
    (owned.callee)(node, event, incarnation);
    // SAFETY: The reference was taken above. The module's code stays until this function has
    // returned, because unsubscribing waits for that.
    unsafe { bindings::module_put(owned.module.as_ptr()) };
}

/// What KCCM is given a pointer to: a closure and its module.
struct Owned<F> {
    module: &'static ThisModule,
    callee: F,
}

/// An [`Owned`] of whichever closure.
struct Context {
    module: &'static ThisModule,
    /// From [`KBox::into_raw`].
    callee: *mut c_void,
    /// What frees it.
    free: unsafe fn(*mut c_void),
    /// KCCM has no pointer to it, or no longer.
    unused: bool,
}

// SAFETY: It owns an `Owned<F>` of a closure that is `Send`; all else is so itself.
unsafe impl Send for Context {}
// SAFETY: Nothing can be done to it through a shared reference.
unsafe impl Sync for Context {}

impl Context {
    fn new<F: Send + Sync + 'static>(module: &'static ThisModule, callee: F) -> Result<Self> {
        let owned = KBox::new(Owned { module, callee }, GFP_KERNEL)?;
        Ok(Self {
            module,
            callee: KBox::into_raw(owned).cast(),
            free: free::<F>,
            unused: true,
        })
    }

    /// KCCM has been asked to forget it, and has returned this.
    fn end(&mut self, ret: c_int) {
        if ret != EDEADLK.to_errno() {
            return;
        }
        // KCCM has not: who asked is being called by it, and waiting for that to end would be for
        // ever. So what KCCM has a pointer to must stay.
        self.unused = false;
        pr_err!("kccm: a registration was dropped by a handler or subscriber: its module stays\n");
        // SAFETY: The module exists, and cannot be on its way out: during a call of a handler of a
        // module KCCM holds that module, during one of a subscriber `tell()` does.
        unsafe { bindings::__module_get(self.module.as_ptr()) };
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.unused {
            // SAFETY: `free` is that of the type that `callee` was made of. KCCM does not know the
            // pointer, or knows it no longer, and it is dropped once.
            unsafe { (self.free)(self.callee) };
        }
    }
}

/// # Safety
///
/// `callee` is from [`KBox::into_raw`] of an `Owned<F>`, and not used any more.
unsafe fn free<F>(callee: *mut c_void) {
    // SAFETY: By this function's contract.
    drop(unsafe { KBox::<Owned<F>>::from_raw(callee.cast()) });
}
