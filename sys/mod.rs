// SPDX-License-Identifier: GPL-2.0

//! Thin safe wrappers over the kernel C interfaces that `kernel::` has no abstraction for: sockets,
//! threads, killable waits, kobjects, keys.
//!
//! This is the only part of KCCM that calls C; it decides nothing and knows nothing of clusters.

pub(crate) mod claim;
pub(crate) mod clock;
pub(crate) mod context;
pub(crate) mod keys;
pub(crate) mod kobject;
pub(crate) mod lend;
pub(crate) mod lock;
pub(crate) mod log;
pub(crate) mod net;
pub(crate) mod noio;
pub(crate) mod owner;
pub(crate) mod pages;
pub(crate) mod sock;
pub(crate) mod thread;
pub(crate) mod wait;

/// `helpers.h`, as bindgen reads it.
#[allow(clippy::all)]
#[allow(clippy::undocumented_unsafe_blocks)]
#[allow(dead_code)]
#[allow(improper_ctypes)] // Of the kernel's types only pointers are used.
#[allow(non_camel_case_types)]
#[allow(non_upper_case_globals)]
#[allow(unreachable_pub)]
mod helpers {
    use kernel::bindings::{
        completion,
        kvec,
        net,
        sock,
        socket,
        spinlock_t, //
    };
    include!(env!("KCCM_HELPERS"));
}
