// SPDX-License-Identifier: GPL-2.0

//! Compares `include/kccm.rs`, whose declarations are written by hand, with `include/kccm.h`.
//!
//! Not a module, and nothing of it is ever run: it is compiled whenever the samples are built, and
//! does not compile when the two differ, or when something of the header is not compared here.

#[path = "../include/kccm.rs"]
mod kccm;

use kccm::raw;
use kernel::prelude::*;

/// What `module!` would provide for `pr_err!`.
const __LOG_PREFIX: &[u8] = b"kccm_header_check\0";

/// `kccm.h`, as bindgen reads it.
#[expect(non_camel_case_types)]
#[expect(non_upper_case_globals)]
#[expect(unreachable_pub)]
#[expect(clashing_extern_declarations)]
#[expect(improper_ctypes)]
// Older compilers do not count what is used in constants only.
#[cfg_attr(CONFIG_RUSTC_HAS_UNNECESSARY_TRANSMUTES, deny(dead_code))]
#[cfg_attr(not(CONFIG_RUSTC_HAS_UNNECESSARY_TRANSMUTES), allow(dead_code))]
#[allow(clippy::all, clippy::undocumented_unsafe_blocks)]
mod header {
    use kernel::bindings::module;
    include!(concat!(
        env!("KCCM_SAMPLES_OBJ"),
        "/kccm_header_generated.rs"
    ));
}

/// Constants have the same values.
macro_rules! same_values {
    ($($header:ident $(= $raw:ident)?,)*) => {
        $(const _: () = assert!(header::$header as i64 == same_values!(@ $header $($raw)?) as i64);)*
    };
    (@ $header:ident) => { raw::$header };
    (@ $header:ident $raw:ident) => { raw::$raw };
}

/// Structures have the same fields, of these types, at the same places. `_` stands for what is
/// another type on each side, and compared itself.
macro_rules! same_structs {
    ($($name:ident { $($field:ident: $type:ty,)* })*) => {
        $(
            const _: () = {
                assert!(size_of::<header::$name>() == size_of::<raw::$name>());
                assert!(align_of::<header::$name>() == align_of::<raw::$name>());
                $(assert!(
                    core::mem::offset_of!(header::$name, $field)
                        == core::mem::offset_of!(raw::$name, $field)
                );)*
            };
            const _: fn(header::$name, raw::$name) = |header, raw| {
                let header::$name { $($field),* } = header;
                $(let _: $type = $field;)*
                let raw::$name { $($field),* } = raw;
                $(let _: $type = $field;)*
            };
        )*
    };
}

/// Functions have the same types, or, where a structure is involved, are both of the type given.
macro_rules! same_functions {
    ($($name:ident $(: $type:ty)?,)*) => {
        $(same_functions!(@ $name $($type)?);)*
    };
    (@ $name:ident) => {
        const _: () = {
            let _ = if true { header::$name } else { raw::$name };
        };
    };
    (@ $name:ident $type:ty) => {
        const _: () = {
            let _: $type = header::$name;
            let _: $type = raw::$name;
        };
    };
}

same_values! {
    KCCM_MAX_NODES,
    KCCM_ANY_NODE,
    KCCM_ANY_TAG,
    KCCM_FOREVER,
    KCCM_NOWAIT,
    kccm_class_KCCM_SHORT = KCCM_SHORT,
    kccm_class_KCCM_LONG = KCCM_LONG,
    kccm_class_KCCM_SOFTIRQ = KCCM_SOFTIRQ,
    kccm_event_KCCM_NODE_DOWN = KCCM_NODE_DOWN,
    kccm_event_KCCM_NODE_UP = KCCM_NODE_UP,
}

same_structs! {
    kccm_msg_info {
        source: u32,
        tag: u32,
        len: u64,
    }
    kccm_call {
        source: u32,
        func: u32,
        args: *const c_void,
        args_len: usize,
        reply: *mut c_void,
        reply_max: usize,
        reply_len: usize,
    }
    kccm_handler {
        func: u32,
        class: c_uint,
        name: *const c_char,
        max_args: usize,
        fn_: Option<unsafe extern "C" fn(*mut _, *mut c_void) -> c_int>,
        ctx: *mut c_void,
        owner: *mut _,
    }
    kccm_subscriber {
        event: Option<unsafe extern "C" fn(*mut c_void, u32, c_uint, u64)>,
        ctx: *mut c_void,
    }
}

same_functions! {
    kccm_send,
    kccm_send_sync,
    kccm_send_bulk,
    kccm_recv: unsafe extern "C" fn(c_int, i64, *mut c_void, usize, *mut _, c_long) -> c_int,
    kccm_recv_alloc: unsafe extern "C" fn(c_int, i64, *mut *mut c_void, *mut _, c_long) -> c_int,
    kccm_probe: unsafe extern "C" fn(c_int, i64, *mut _, c_long) -> c_int,
    kccm_register_handler: unsafe extern "C" fn(*const _) -> c_int,
    kccm_unregister_handler,
    kccm_rcall,
    kccm_rcall_sync,
    kccm_node_id,
    kccm_incarnation,
    kccm_members,
    kccm_is_up,
    kccm_wait_up,
    kccm_subscribe: unsafe extern "C" fn(*const _) -> c_int,
    kccm_unsubscribe,
}
