// SPDX-License-Identifier: GPL-2.0

//! The exported functions: what `include/kccm.h` declares and `exports.c` lists.
//!
//! Each checks its arguments, finds the node and calls one method of it. The types and signatures
//! are those of the header, as bindgen reads them.

use crate::config::{
    NodeId,
    MAX_NODES, //
};
use crate::events;
use crate::node::Node;
use crate::rcall::handlers::{
    Call,
    Class,
    Handler,
    Serve, //
};
use crate::sendrecv::Info;
use crate::sys::context::in_softirq;
use crate::sys::noio;
use crate::sys::owner::Owner;
use crate::sys::wait::Timeout;
use core::ptr;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::atomic::{
    Acquire,
    Atomic,
    Release, //
};
use kernel::sync::Arc;

/// `kccm.h` and `sys/params.h`, as bindgen reads them.
#[allow(clippy::all)]
#[allow(clippy::undocumented_unsafe_blocks)]
#[allow(dead_code)]
#[allow(improper_ctypes)] // Of the kernel's types only pointers are used.
#[allow(non_camel_case_types)]
#[allow(non_upper_case_globals)]
#[allow(unreachable_pub)]
mod header {
    use kernel::bindings::module;
    include!(env!("KCCM_HEADER"));
}

const _: () = assert!(header::KCCM_MAX_NODES as usize == MAX_NODES);

// ---- The node behind the functions.

/// The module's node, or null.
static NODE: Atomic<*const Node> = Atomic::new(ptr::null());

/// While it lives, the exported functions find the node.
pub(crate) struct Published(Arc<Node>);

impl Published {
    /// Publishes a node.
    pub(crate) fn new(node: &Arc<Node>) -> Self {
        let published = Self(node.clone());
        NODE.store(Arc::as_ptr(&published.0), Release);
        published
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        // Whoever can call the exported functions has this module pinned by their symbols, so that
        // it is not being unloaded: nobody is using the node through here now.
        NODE.store(ptr::null(), Release);
    }
}

/// The module's node.
fn node() -> Option<&'static Node> {
    // SAFETY: The pointer is null or that of a node which `Published` keeps, and that is dropped only
    // when this module is unloaded: when nobody can be calling.
    unsafe { NODE.load(Acquire).as_ref() }
}

/// Runs an exported function's body: finds the node, and lets nothing it allocates wait for I/O.
fn with_node(body: impl FnOnce(&'static Node) -> Result<c_int>) -> c_int {
    let Some(node) = node() else {
        return ENODEV.to_errno();
    };
    if in_softirq() {
        // What may sleep must not be called there: from a softirq handler, say.
        return EDEADLK.to_errno();
    }
    let _noio = noio::Scope::enter();
    body(node).unwrap_or_else(|e| e.to_errno())
}

// ---- Arguments.

fn timeout(ms: c_long) -> Timeout {
    match u64::try_from(ms) {
        Ok(0) => Timeout::NoWait,
        Ok(ms) => Timeout::After(ms),
        Err(_) => Timeout::Forever,
    }
}

fn peer_id(id: c_int) -> Result<NodeId> {
    NodeId::try_from(id).map_err(|_| EINVAL)
}

fn source(id: c_int) -> Result<Option<NodeId>> {
    if id == header::KCCM_ANY_NODE {
        return Ok(None);
    }
    peer_id(id).map(Some)
}

fn tag(tag: i64) -> Result<Option<u32>> {
    if tag == i64::from(header::KCCM_ANY_TAG) {
        return Ok(None);
    }
    u32::try_from(tag).map(Some).map_err(|_| EINVAL)
}

/// # Safety
///
/// `buf` must be valid for reads of `len` bytes for the lifetime that is made of it, or `len` 0.
unsafe fn input<'a>(buf: *const c_void, len: usize) -> Result<&'a [u8]> {
    if len == 0 {
        return Ok(&[]);
    }
    if buf.is_null() || len > isize::MAX as usize {
        return Err(EINVAL);
    }
    // SAFETY: By this function's contract; checked for null and length.
    Ok(unsafe { core::slice::from_raw_parts(buf.cast(), len) })
}

/// # Safety
///
/// `buf` must be valid for writes of `len` bytes for the lifetime that is made of it, and hold
/// initialised memory as far as anybody cares, or `len` 0.
unsafe fn output<'a>(buf: *mut c_void, len: usize) -> Result<&'a mut [u8]> {
    if len == 0 {
        return Ok(&mut []);
    }
    if buf.is_null() || len > isize::MAX as usize {
        return Err(EINVAL);
    }
    // SAFETY: By this function's contract; checked for null and length. The bytes are only written.
    Ok(unsafe { core::slice::from_raw_parts_mut(buf.cast(), len) })
}

/// # Safety
///
/// `to` must be null or valid for writing.
unsafe fn tell(to: *mut header::kccm_msg_info, info: &Info) {
    if !to.is_null() {
        // SAFETY: By this function's contract.
        unsafe {
            to.write(header::kccm_msg_info {
                source: info.source.into(),
                tag: info.tag,
                len: info.len as u64,
            })
        };
    }
}

// ---- Messages.

/// Sends a message, in one of the ways that there are.
///
/// # Safety
///
/// `buf` must be valid for reads of `len` bytes.
unsafe fn send_by(
    send: fn(&Node, NodeId, u32, &[u8], Timeout) -> Result,
    dst: c_int,
    tag: u32,
    buf: *const c_void,
    len: usize,
    timeout_ms: c_long,
) -> c_int {
    with_node(|node| {
        // SAFETY: By this function's contract.
        let buf = unsafe { input(buf, len) }?;
        send(node, peer_id(dst)?, tag, buf, timeout(timeout_ms))?;
        Ok(0)
    })
}

/// # Safety
///
/// `buf` must be valid for reads of `len` bytes.
#[no_mangle]
unsafe extern "C" fn kccm_send(
    dst: c_int,
    tag: u32,
    buf: *const c_void,
    len: usize,
    timeout_ms: c_long,
) -> c_int {
    // SAFETY: By this function's contract.
    unsafe { send_by(Node::send, dst, tag, buf, len, timeout_ms) }
}

/// # Safety
///
/// `buf` must be valid for reads of `len` bytes.
#[no_mangle]
unsafe extern "C" fn kccm_send_sync(
    dst: c_int,
    tag: u32,
    buf: *const c_void,
    len: usize,
    timeout_ms: c_long,
) -> c_int {
    // SAFETY: By this function's contract.
    unsafe { send_by(Node::send_sync, dst, tag, buf, len, timeout_ms) }
}

/// # Safety
///
/// `buf` must be valid for reads of `len` bytes.
#[no_mangle]
unsafe extern "C" fn kccm_send_bulk(
    dst: c_int,
    tag: u32,
    buf: *const c_void,
    len: usize,
    timeout_ms: c_long,
) -> c_int {
    // SAFETY: By this function's contract.
    unsafe { send_by(Node::send_bulk, dst, tag, buf, len, timeout_ms) }
}

/// # Safety
///
/// `buf` must be valid for writes of `len` bytes; `info` null or valid for writing.
#[no_mangle]
unsafe extern "C" fn kccm_recv(
    src: c_int,
    tag_: i64,
    buf: *mut c_void,
    len: usize,
    info: *mut header::kccm_msg_info,
    timeout_ms: c_long,
) -> c_int {
    with_node(|node| {
        // SAFETY: By this function's contract.
        let buf = unsafe { output(buf, len) }?;
        match node.recv(source(src)?, tag(tag_)?, buf, timeout(timeout_ms)) {
            Ok(received) => {
                // SAFETY: By this function's contract.
                unsafe { tell(info, &received) };
                Ok(0)
            }
            Err((e, too_long)) => {
                if let Some(too_long) = too_long {
                    // SAFETY: By this function's contract.
                    unsafe { tell(info, &too_long) };
                }
                Err(e)
            }
        }
    })
}

/// # Safety
///
/// `buf` must be null or valid for writing, and so must `info`.
#[no_mangle]
unsafe extern "C" fn kccm_recv_alloc(
    src: c_int,
    tag_: i64,
    buf: *mut *mut c_void,
    info: *mut header::kccm_msg_info,
    timeout_ms: c_long,
) -> c_int {
    with_node(|node| {
        if buf.is_null() {
            return Err(EINVAL);
        }
        let received = node.recv_alloc(source(src)?, tag(tag_)?, timeout(timeout_ms));
        let (received, bytes) = received?;
        // It has memory, of which kvfree() is the way to let go.
        let (start, _, _) = bytes.into_raw_parts();
        // SAFETY: By this function's contract.
        unsafe { buf.write(start.cast()) };
        // SAFETY: By this function's contract.
        unsafe { tell(info, &received) };
        Ok(0)
    })
}

/// # Safety
///
/// `info` must be null or valid for writing.
#[no_mangle]
unsafe extern "C" fn kccm_probe(
    src: c_int,
    tag_: i64,
    info: *mut header::kccm_msg_info,
    timeout_ms: c_long,
) -> c_int {
    with_node(|node| {
        let found = node.probe(source(src)?, tag(tag_)?, timeout(timeout_ms))?;
        // SAFETY: By this function's contract.
        unsafe { tell(info, &found) };
        Ok(0)
    })
}

// ---- Remote calls.

type HandlerFn = unsafe extern "C" fn(*mut header::kccm_call, *mut c_void) -> c_int;

/// A handler's function in another module.
struct Foreign {
    function: HandlerFn,
    ctx: *mut c_void,
}

// SAFETY: That the function may be called from any thread with this context is what registering it
// means; see `struct kccm_handler`.
unsafe impl Send for Foreign {}
// SAFETY: As above.
unsafe impl Sync for Foreign {}

impl Serve for Foreign {
    fn serve(&self, call: &mut Call<'_>) -> i32 {
        let (reply, reply_max) = match &mut call.reply {
            Some(reply) => (reply.as_mut_ptr(), reply.len()),
            None => (ptr::null_mut(), 0),
        };
        let mut raw = header::kccm_call {
            source: call.source.into(),
            func: call.func,
            args: call.args.as_ptr().cast(),
            args_len: call.args.len(),
            reply: reply.cast(),
            reply_max,
            reply_len: 0,
        };
        // SAFETY: The function's module is pinned while a call runs, and the handler not unregistered
        // before it has returned. `raw` describes memory that outlives the call.
        let status = unsafe { (self.function)(&mut raw, self.ctx) };
        call.reply_len = raw.reply_len;
        status
    }
}

/// # Safety
///
/// `handler` must point to a handler as `kccm.h` describes it, or be null; it must be unregistered
/// before its function, context or owner go away.
#[no_mangle]
unsafe extern "C" fn kccm_register_handler(handler: *const header::kccm_handler) -> c_int {
    with_node(|node| {
        // SAFETY: By this function's contract.
        let handler = unsafe { handler.as_ref() }.ok_or(EINVAL)?;
        let class = match handler.class {
            header::kccm_class_KCCM_SHORT => Class::Short,
            header::kccm_class_KCCM_LONG => Class::Long,
            header::kccm_class_KCCM_SOFTIRQ => Class::Softirq,
            _ => return Err(EINVAL),
        };
        if handler.name.is_null() {
            return Err(EINVAL);
        }
        // SAFETY: A name is null-terminated.
        let name = CString::try_from(unsafe { CStr::from_char_ptr(handler.name) })?;
        let foreign = Foreign {
            function: handler.fn_.ok_or(EINVAL)?,
            ctx: handler.ctx,
        };
        let function: KBox<dyn Serve> = KBox::new(foreign, GFP_KERNEL)?;
        node.register(Handler {
            func: handler.func,
            class,
            name,
            max_args: handler.max_args,
            // SAFETY: By this function's contract, the owner exists while the handler is registered.
            owner: unsafe { Owner::from_raw(handler.owner) },
            function,
        })?;
        Ok(0)
    })
}

#[no_mangle]
extern "C" fn kccm_unregister_handler(func: u32) -> c_int {
    with_node(|node| node.unregister(func).map(|()| 0))
}

/// # Safety
///
/// `args` must be valid for reads of `args_len` bytes.
#[no_mangle]
unsafe extern "C" fn kccm_rcall(
    dst: c_int,
    func: u32,
    args: *const c_void,
    args_len: usize,
    timeout_ms: c_long,
) -> c_int {
    with_node(|node| {
        // SAFETY: By this function's contract.
        let args = unsafe { input(args, args_len) }?;
        node.rcall(peer_id(dst)?, func, args, timeout(timeout_ms))?;
        Ok(0)
    })
}

/// # Safety
///
/// `args` must be valid for reads of `args_len` bytes; `reply_len` null or valid, and then `reply`
/// valid for writes of so many bytes; `status` null or valid for writing.
#[no_mangle]
unsafe extern "C" fn kccm_rcall_sync(
    dst: c_int,
    func: u32,
    args: *const c_void,
    args_len: usize,
    reply: *mut c_void,
    reply_len: *mut usize,
    status: *mut c_int,
    timeout_ms: c_long,
) -> c_int {
    // SAFETY: By this function's contract.
    let (reply_len, status) = unsafe { (reply_len.as_mut(), status.as_mut()) };
    let (mut len, mut returned) = (0, 0);
    let ret = with_node(|node| {
        let room = reply_len.as_ref().map_or(0, |len| **len);
        // SAFETY: By this function's contract.
        let (args, reply) = unsafe { (input(args, args_len)?, output(reply, room)?) };
        match node.rcall_sync(peer_id(dst)?, func, args, reply, timeout(timeout_ms)) {
            Ok(success) => {
                (len, returned) = (success.len, success.status);
                Ok(0)
            }
            Err(failure) => {
                (len, returned) = (failure.needed.unwrap_or(0), failure.status);
                Err(failure.error)
            }
        }
    });
    if let Some(reply_len) = reply_len {
        *reply_len = len;
    }
    if let Some(status) = status {
        *status = returned;
    }
    ret
}

// ---- The cluster.

#[no_mangle]
extern "C" fn kccm_node_id() -> c_int {
    node().map_or(ENODEV.to_errno(), |node| node.id().into())
}

#[no_mangle]
extern "C" fn kccm_incarnation() -> u64 {
    node().map_or(0, |node| node.identity.incarnation)
}

/// # Safety
///
/// `ids` must be valid for writes of `max` ids.
#[no_mangle]
unsafe extern "C" fn kccm_members(ids: *mut u32, max: c_uint) -> c_int {
    let Some(node) = node() else {
        return ENODEV.to_errno();
    };
    let members = node.members();
    for (i, member) in members.iter().take(max as usize).enumerate() {
        // SAFETY: By this function's contract, as `i < max`.
        unsafe { ids.add(i).write(member.id.into()) };
    }
    members.len() as c_int
}

#[no_mangle]
extern "C" fn kccm_is_up(id: c_int) -> bool {
    let (Some(node), Ok(id)) = (node(), peer_id(id)) else {
        return false;
    };
    id == node.id() || node.peer(id).is_some_and(|peer| peer.is_up())
}

#[no_mangle]
extern "C" fn kccm_wait_up(id: c_int, timeout_ms: c_long) -> c_int {
    with_node(|node| {
        node.wait_up(source(id)?, timeout(timeout_ms))?;
        Ok(0)
    })
}

type EventFn = unsafe extern "C" fn(*mut c_void, u32, header::kccm_event, u64);

/// A subscriber's function in another module.
struct ForeignSubscriber {
    function: EventFn,
    ctx: *mut c_void,
}

// SAFETY: That the function may be called from any thread with this context is what subscribing it
// means; see `struct kccm_subscriber`.
unsafe impl Send for ForeignSubscriber {}
// SAFETY: As above.
unsafe impl Sync for ForeignSubscriber {}

impl events::Subscriber for ForeignSubscriber {
    fn event(&self, node: NodeId, event: events::Event, incarnation: u64) {
        let event = match event {
            events::Event::Down => header::kccm_event_KCCM_NODE_DOWN,
            events::Event::Up => header::kccm_event_KCCM_NODE_UP,
        };
        // SAFETY: Whoever subscribes unsubscribes before the function or its context go away, and
        // unsubscribing waits for calls.
        unsafe { (self.function)(self.ctx, node.into(), event, incarnation) };
    }
}

/// # Safety
///
/// `subscriber` must point to a subscriber as `kccm.h` describes it, or be null; it must be
/// unsubscribed before its function or context go away.
#[no_mangle]
unsafe extern "C" fn kccm_subscribe(subscriber: *const header::kccm_subscriber) -> c_int {
    with_node(|node| {
        // SAFETY: By this function's contract.
        let subscriber = unsafe { subscriber.as_ref() }.ok_or(EINVAL)?;
        let foreign = ForeignSubscriber {
            function: subscriber.event.ok_or(EINVAL)?,
            ctx: subscriber.ctx,
        };
        node.subscribe(KBox::new(foreign, GFP_KERNEL)?)
    })
}

#[no_mangle]
extern "C" fn kccm_unsubscribe(handle: c_int) -> c_int {
    with_node(|node| node.unsubscribe(handle).map(|()| 0))
}

// ---- Parameters.

/// A text parameter; empty if it is no UTF-8, which no valid value is not.
///
/// # Safety
///
/// `text` must be null or a null-terminated string that lives as long as the module.
unsafe fn param(text: *const c_char) -> Option<&'static str> {
    if text.is_null() {
        return None;
    }
    // SAFETY: By this function's contract.
    let text = unsafe { CStr::from_char_ptr(text) };
    Some(text.to_str().unwrap_or(""))
}

/// The module parameter `cluster`.
pub(crate) fn param_cluster() -> &'static str {
    // SAFETY: The kernel keeps the string for the life of the module.
    unsafe { param(header::kccm_param_cluster()) }.unwrap_or("")
}

/// The module parameter `key`.
pub(crate) fn param_key() -> &'static str {
    // SAFETY: The kernel keeps the string for the life of the module.
    unsafe { param(header::kccm_param_key()) }.unwrap_or("")
}

/// The entries of the module parameter `peers`.
pub(crate) fn param_peers() -> impl Iterator<Item = &'static str> {
    // SAFETY: The kernel keeps the strings for the life of the module; null comes behind the last.
    (0..).map_while(|i| unsafe { param(header::kccm_param_peer(i)) })
}

// ---- The signatures are those of the header: a wrong one does not compile.

const _: () = {
    macro_rules! same {
        ($($function:ident)*) => {
            $(
                let _ = if true { header::$function } else { $function };
            )*
        };
    }
    same!(kccm_send kccm_send_sync kccm_send_bulk kccm_recv kccm_recv_alloc kccm_probe);
    same!(kccm_register_handler kccm_rcall kccm_rcall_sync kccm_members kccm_subscribe);

    // Safe to call here, but what C declares never is: both are compared with a type.
    macro_rules! same_as {
        ($($function:ident($($argument:ty),*) -> $result:ty;)*) => {
            $(
                let _: [unsafe extern "C" fn($($argument),*) -> $result; 2] =
                    [header::$function, $function];
            )*
        };
    }
    same_as! {
        kccm_unregister_handler(u32) -> c_int;
        kccm_node_id() -> c_int;
        kccm_incarnation() -> u64;
        kccm_is_up(c_int) -> bool;
        kccm_wait_up(c_int, c_long) -> c_int;
        kccm_unsubscribe(c_int) -> c_int;
    }
};
