// SPDX-License-Identifier: GPL-2.0

//! What C calls of the nodes, and what they call in C; `nodes.h` describes both.
//!
//! Each function does what its like in `crate::api` does, for a node that is named.

use super::cluster::{
    Nodes,
    SOON, //
};
use crate::config::NodeId;
use crate::node::Node;
use crate::sys::noio;
use crate::sys::wait::Timeout;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;

/// `nodes.h`, as bindgen reads it.
#[allow(dead_code)]
#[allow(improper_ctypes)] // Of the nodes only pointers are used.
#[allow(missing_docs)]
#[allow(non_camel_case_types)]
#[allow(unreachable_pub)]
mod header {
    include!(env!("KCCM_BENCH_NODES"));
}

/// See `nodes.h`.
pub(super) const SHORT: u32 = header::KCCM_BENCH_SHORT;
/// See `nodes.h`.
pub(super) const LONG: u32 = header::KCCM_BENCH_LONG;
/// See `nodes.h`.
pub(super) const SOFTIRQ: u32 = header::KCCM_BENCH_SOFTIRQ;
/// See `nodes.h`.
pub(super) const ECHO: u32 = header::KCCM_BENCH_ECHO;
/// See `nodes.h`.
pub(super) const MAX_SIZE: usize = header::KCCM_BENCH_MAX_SIZE as usize;

/// The caller, and who is called.
const CALLER: usize = 0;
const CALLED: NodeId = 1;

// ---- In C.

/// Offers the device.
pub(super) fn init() -> Result {
    // SAFETY: Called once, when the module is loaded.
    to_result(unsafe { header::kccm_bench_init() })
}

/// Takes it away again, and stops whatever has been started.
pub(super) fn exit() {
    // SAFETY: Called once, when the module is unloaded; `init()` has succeeded.
    unsafe { header::kccm_bench_exit() };
}

/// Takes as long as a call is to take.
pub(super) fn serve() {
    // SAFETY: No requirements.
    unsafe { header::kccm_bench_serve() };
}

// ---- In Rust.

fn nodes_or_error(nodes: impl FnOnce() -> Result<Nodes>) -> *mut header::kccm_bench_nodes {
    let _noio = noio::Scope::enter();
    let boxed = nodes().and_then(|nodes| Ok(KBox::new(nodes, GFP_KERNEL)?));
    match boxed {
        Ok(nodes) => KBox::into_raw(nodes).cast(),
        // SAFETY: No requirements.
        Err(e) => unsafe { bindings::ERR_PTR(e.to_errno() as c_long) }.cast(),
    }
}

/// Runs the body of a function that returns an error or what the body does.
///
/// # Safety
///
/// `nodes` must be from [`nodes_or_error`], and not be stopped meanwhile.
unsafe fn with<R: TryInto<isize>>(
    nodes: *mut header::kccm_bench_nodes,
    body: impl FnOnce(&Nodes) -> Result<R>,
) -> isize {
    let _noio = noio::Scope::enter();
    // SAFETY: By this function's contract.
    let nodes = unsafe { &*nodes.cast::<Nodes>() };
    match body(nodes) {
        Ok(value) => value.try_into().unwrap_or(isize::MAX),
        Err(e) => e.to_errno() as isize,
    }
}

#[no_mangle]
extern "C" fn kccm_bench_cluster(count: c_uint) -> *mut header::kccm_bench_nodes {
    nodes_or_error(|| Nodes::cluster(count as usize))
}

#[no_mangle]
extern "C" fn kccm_bench_alone(count: c_uint) -> *mut header::kccm_bench_nodes {
    nodes_or_error(|| Nodes::alone(count as usize))
}

/// # Safety
///
/// `nodes` must be valid, and not be used any more.
#[no_mangle]
unsafe extern "C" fn kccm_bench_stop(nodes: *mut header::kccm_bench_nodes) {
    // SAFETY: By this function's contract.
    drop(unsafe { KBox::from_raw(nodes.cast::<Nodes>()) });
}

/// # Safety
///
/// `nodes` must be valid; `args` and `reply` must be valid for reads and writes of `size` bytes.
#[no_mangle]
unsafe extern "C" fn kccm_bench_rcall_sync(
    nodes: *mut header::kccm_bench_nodes,
    func: u32,
    args: *const c_void,
    reply: *mut c_void,
    size: usize,
) -> c_int {
    let body = |nodes: &Nodes| -> Result<isize> {
        // SAFETY: By this function's contract.
        let (args, reply) = unsafe { (input(args, size), output(reply, size)) };
        let called = nodes
            .node(CALLER)?
            .rcall_sync(CALLED, func, args, reply, SOON);
        match called {
            Ok(success) if success.len == size => Ok(0),
            Ok(_) => Err(EBADMSG),
            Err(failure) => Err(failure.error),
        }
    };
    // SAFETY: By this function's contract.
    unsafe { with(nodes, body) as c_int }
}

/// # Safety
///
/// `nodes` must be valid, and `args` valid for reads of `size` bytes.
#[no_mangle]
unsafe extern "C" fn kccm_bench_rcall(
    nodes: *mut header::kccm_bench_nodes,
    func: u32,
    args: *const c_void,
    size: usize,
) -> c_int {
    let body = |nodes: &Nodes| -> Result<isize> {
        // SAFETY: By this function's contract.
        let args = unsafe { input(args, size) };
        nodes.node(CALLER)?.rcall(CALLED, func, args, SOON)?;
        Ok(0)
    };
    // SAFETY: By this function's contract.
    unsafe { with(nodes, body) as c_int }
}

/// # Safety
///
/// `nodes` must be valid, and `buf` valid for reads of `size` bytes.
unsafe fn send_by(
    send: fn(&Node, NodeId, u32, &[u8], Timeout) -> Result,
    nodes: *mut header::kccm_bench_nodes,
    tag: u32,
    buf: *const c_void,
    size: usize,
) -> c_int {
    let body = |nodes: &Nodes| -> Result<isize> {
        // SAFETY: By this function's contract.
        let buf = unsafe { input(buf, size) };
        send(nodes.node(CALLER)?, CALLED, tag, buf, SOON)?;
        Ok(0)
    };
    // SAFETY: By this function's contract.
    unsafe { with(nodes, body) as c_int }
}

/// # Safety
///
/// `nodes` must be valid, and `buf` valid for reads of `size` bytes.
#[no_mangle]
unsafe extern "C" fn kccm_bench_send(
    nodes: *mut header::kccm_bench_nodes,
    tag: u32,
    buf: *const c_void,
    size: usize,
) -> c_int {
    // SAFETY: By this function's contract.
    unsafe { send_by(Node::send, nodes, tag, buf, size) }
}

/// # Safety
///
/// `nodes` must be valid, and `buf` valid for reads of `size` bytes.
#[no_mangle]
unsafe extern "C" fn kccm_bench_send_bulk(
    nodes: *mut header::kccm_bench_nodes,
    tag: u32,
    buf: *const c_void,
    size: usize,
) -> c_int {
    // SAFETY: By this function's contract.
    unsafe { send_by(Node::send_bulk, nodes, tag, buf, size) }
}

/// # Safety
///
/// `nodes` must be valid, and `buf` valid for writes of `room` bytes.
#[no_mangle]
unsafe extern "C" fn kccm_bench_recv(
    nodes: *mut header::kccm_bench_nodes,
    tag: u32,
    buf: *mut c_void,
    room: usize,
) -> isize {
    let body = |nodes: &Nodes| {
        // SAFETY: By this function's contract.
        let buf = unsafe { output(buf, room) };
        let received = nodes.node(CALLED.into())?.recv(
            Some(CALLER as NodeId),
            Some(tag),
            buf,
            Timeout::Forever,
        );
        received.map(|info| info.len).map_err(|(e, _)| e)
    };
    // SAFETY: By this function's contract.
    unsafe { with(nodes, body) }
}

/// # Safety
///
/// `nodes` must be valid.
#[no_mangle]
unsafe extern "C" fn kccm_bench_recv_alloc(
    nodes: *mut header::kccm_bench_nodes,
    tag: u32,
) -> isize {
    let body = |nodes: &Nodes| {
        let (info, _bytes) = nodes.node(CALLED.into())?.recv_alloc(
            Some(CALLER as NodeId),
            Some(tag),
            Timeout::Forever,
        )?;
        Ok(info.len)
    };
    // SAFETY: By this function's contract.
    unsafe { with(nodes, body) }
}

/// # Safety
///
/// `nodes` must be valid.
#[no_mangle]
unsafe extern "C" fn kccm_bench_ran(nodes: *mut header::kccm_bench_nodes) -> u64 {
    // SAFETY: By this function's contract.
    unsafe { &*nodes.cast::<Nodes>() }.ran()
}

/// # Safety
///
/// `buf` must be valid for reads of `len` bytes for the lifetime that is made of it, or `len` 0.
unsafe fn input<'a>(buf: *const c_void, len: usize) -> &'a [u8] {
    if len == 0 {
        return &[];
    }
    // SAFETY: By this function's contract.
    unsafe { core::slice::from_raw_parts(buf.cast(), len) }
}

/// # Safety
///
/// `buf` must be valid for writes of `len` initialised bytes for the lifetime that is made of it, or
/// `len` 0.
unsafe fn output<'a>(buf: *mut c_void, len: usize) -> &'a mut [u8] {
    if len == 0 {
        return &mut [];
    }
    // SAFETY: By this function's contract.
    unsafe { core::slice::from_raw_parts_mut(buf.cast(), len) }
}

// ---- The signatures are those of the header: a wrong one does not compile.

const _: () = {
    macro_rules! same_as {
        ($($function:ident($($argument:ty),*) -> $result:ty;)*) => {
            $(
                let _: [unsafe extern "C" fn($($argument),*) -> $result; 2] =
                    [header::$function, $function];
            )*
        };
    }
    type Raw = *mut header::kccm_bench_nodes;
    same_as! {
        kccm_bench_cluster(c_uint) -> Raw;
        kccm_bench_alone(c_uint) -> Raw;
        kccm_bench_stop(Raw) -> ();
        kccm_bench_rcall_sync(Raw, u32, *const c_void, *mut c_void, usize) -> c_int;
        kccm_bench_rcall(Raw, u32, *const c_void, usize) -> c_int;
        kccm_bench_send(Raw, u32, *const c_void, usize) -> c_int;
        kccm_bench_send_bulk(Raw, u32, *const c_void, usize) -> c_int;
        kccm_bench_recv(Raw, u32, *mut c_void, usize) -> isize;
        kccm_bench_recv_alloc(Raw, u32) -> isize;
        kccm_bench_ran(Raw) -> u64;
    }
};
