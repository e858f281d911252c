// SPDX-License-Identifier: GPL-2.0

//! KCCM: cluster communication between kernels.
//!
//! # Where things are
//!
//! | module       | what it owns                                                               |
//! |--------------|----------------------------------------------------------------------------|
//! | [`api`]      | the exported `kccm_*` functions: checks arguments, calls the node          |
//! | [`mod@module`] | the module: a node made from the parameters                                |
//! | [`node`]     | one member of a cluster: everything below, started and stopped             |
//! | [`listener`] | the threads that serve what comes in: frames are handed out there          |
//! | [`quick`](listener::quick) | what is seen to without a thread: replies, softirq handlers  |
//! | [`recovery`] | the thread that keeps the node connected: attempts, heartbeats, time-outs  |
//! | [`sendrecv`] | messages: receive queue and receive-wait queue                             |
//! | [`rcall`]    | remote calls: calls that wait, handlers, threads for long ones             |
//! | [`events`]   | subscribers to peers that come and go                                      |
//! | [`conn`]     | connections: frames, handshake, state machine, credit, transport           |
//! | [`config`]   | parameters, checked                                                        |
//! | [`sysfs`]    | what /sys/kernel/kccm shows                                                |
//! | [`sys`]      | wrappers of kernel C interfaces                                            |
//!
//! What decides is pure and tested without sockets or threads: `config`, `conn::{frame, hello, state,
//! credit, flow, outbox, inbox, ao}`, `sendrecv::{arena, matcher}`. `unsafe` is in `sys` and in `api`
//! only.
//!
//! # Locks
//!
//! Outermost first. Whoever holds one takes only those below it.
//!
//! 1. `Conn::rx` (a [`sys::claim`]): held by the listener while it serves a connection, also while it
//!    runs a short handler. Lockdep does not know of it: an upcall only ever tries, and the listener, which
//!    spins, holds nothing else. `Events::subscriptions` (mutex): held while subscribers are told.
//! 2. `Node::port`, then `Node::pending`; `Pool::crew`; `Node::administration` (mutexes): short, no thread
//!    is made under them.
//! 3. `Ring::rekeying`, then `Entry::progress`, then `Ring::state` (mutexes): in some operations of a
//!    link, when the keys are looked for again, and from time to time. `Lingering::sockets` (mutex):
//!    when a link is closed, and from time to time.
//!    `HookedSocket::hook` (mutex), then the socket's own lock, inside every operation of a link. The
//!    upcalls of a socket come with it, or with its spin lock, held; they claim `Conn::rx` if it is free
//!    ([`listener::quick`]), and take the spin locks below.
//! 4. Spin locks: `Endpoint::queues`, and under it `Waiter::delivery`. The others are leaves:
//!    `Buffers::places`, `Calls::table`, `Handlers::table`, `Peer::inner`, `Tx::queue`, `Tx::spare`,
//!    `Queue::ready`, `Pool::inner`, `Job::work`, `Recovery::flags`, `Events::flags`, `Waiter::answer`.
//!    Waking somebody is allowed under each. All are held with softirqs off ([`sys::lock`]) but `Events::flags`, which
//!    only threads take. What is done under one does not grow with what is queued or registered, but for
//!    a tree's depth. There are four exceptions: who gives up waiting to send looks for itself among
//!    those who wait for the same peer; of these all are let through at once who may go; all receivers
//!    with too small a buffer for a message are told of it in one go; and a reply, of 64 KiB at most, is
//!    copied to its caller under `Waiter::answer`.
//!
//! Under a spin lock nothing is allocated, nothing freed but a waiter that has been told, and no
//! handler, subscriber or link called.
//!
//! # Memory
//!
//! KCCM may be called by what writes pages back, so nothing it allocates may wait for I/O: every
//! exported function, every thread, every knob in sysfs, loading and unloading work within a
//! [`sys::noio::Scope`], sockets allocate with `GFP_NOIO`. What KCCM does not allocate itself is the
//! memory of a new thread: see [`rcall::pool`].

// Neither the suites nor the benchmark use the exported functions or sysfs.
#![cfg_attr(any(KCCM_KUNIT, KCCM_BENCH), allow(dead_code))]

#[cfg(not(any(KCCM_KUNIT, KCCM_BENCH)))]
mod api;
mod config;
mod conn;
mod events;
mod listener;
mod node;
mod rcall;
mod recovery;
mod sendrecv;
mod sys;
#[cfg(not(any(KCCM_KUNIT, KCCM_BENCH)))]
mod sysfs;

#[cfg(not(any(KCCM_KUNIT, KCCM_BENCH)))]
mod module;
#[cfg(KCCM_KUNIT)]
#[path = "tests/kunit/mod.rs"]
mod module;
#[cfg(KCCM_BENCH)]
#[path = "tests/bench/mod.rs"]
mod module;

use kernel::prelude::*;

#[cfg(not(any(KCCM_KUNIT, KCCM_BENCH)))]
module! {
    type: module::Module,
    name: "kccm",
    authors: ["The KCCM maintainers"],
    description: "Cluster communication between kernels",
    license: "GPL",
    params: {
        node_id: i64 {
            default: -1,
            description: "This node's id, 0..255; one of those in peers (required)",
        },
        port: u32 {
            default: 7700,
            description: "TCP port of the nodes in peers that are given without one (7700)",
        },
        max_message: u32 {
            default: 16777216,
            description: "Longest message, bytes (16 MiB)",
        },
        queue_bytes: u64 {
            default: 33554432,
            description: "What one peer may have queued here in messages, and as much in those for bulk, bytes (32 MiB)",
        },
        max_rcall: u32 {
            default: 1048576,
            description: "Longest arguments, and longest reply, of a remote call, bytes (1 MiB)",
        },
        rcall_bytes: u64 {
            default: 8388608,
            description: "What one peer may have here in unfinished remote calls, bytes (8 MiB)",
        },
        kept_bytes: u64 {
            default: 33554432,
            description: "What is kept of what was sent to one peer, and as much for bulk, until it is acknowledged, bytes (32 MiB)",
        },
        kept_frames: u32 {
            default: 16384,
            description: "The same in messages and calls (16384)",
        },
        unsent_bytes: u64 {
            default: 1048576,
            description: "Messages of 16 KiB and more wait while so much waits to be sent to a peer, bytes (1 MiB)",
        },
        max_long_handlers: u32 {
            default: 32,
            description: "How many long handlers run at once; further calls queue (32)",
        },
        short_warn_us: u32 {
            default: 10000,
            description: "A short handler that runs longer is counted and warned about, microseconds (10000)",
        },
        listeners: u32 {
            default: 1,
            description: "Listener threads, besides the one for bulk (1)",
        },
        dead_ms: u32 {
            default: 3000,
            description: "A peer silent for so long is dead, milliseconds (3000)",
        },
        handshake_ms: u32 {
            default: 2000,
            description: "How long connecting, and the handshake, may take, milliseconds (2000)",
        },
        backoff_min_ms: u32 {
            default: 100,
            description: "First pause between attempts to connect, milliseconds (100)",
        },
        backoff_max_ms: u32 {
            default: 2000,
            description: "Longest pause between attempts to connect, milliseconds (2000)",
        },
    },
}

#[cfg(KCCM_KUNIT)]
module! {
    type: module::Module,
    name: "kccm_kunit",
    authors: ["The KCCM maintainers"],
    description: "KUnit suites of KCCM",
    license: "GPL",
}

#[cfg(KCCM_BENCH)]
module! {
    type: module::Module,
    name: "kccm_bench",
    authors: ["The KCCM maintainers"],
    description: "KCCM measured against its peers",
    license: "GPL",
}
