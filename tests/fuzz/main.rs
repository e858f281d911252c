// SPDX-License-Identifier: GPL-2.0

//! The fuzzer: the pure parts of KCCM, from the very files that the module is made of, compiled for
//! user space with libFuzzer's coverage, AddressSanitizer, overflow checks and debug assertions.
//!
//! | target    | what it is given                                 | what must hold                    |
//! |-----------|--------------------------------------------------|-----------------------------------|
//! | `frame`   | a header                                         | what the table in `frame.rs` says |
//! | `stream`  | frames and noise, in pieces, with memory failing | the same frames come out          |
//! | `hello`   | a greeting, and what is known of its sender      | judged as `hello.rs` says         |
//! | `answer`  | an answer to a greeting                          | the same                          |
//! | `credit`  | events at both ends of a lane, a hostile peer    | bounds, and that it goes on       |
//! | `session` | events at both ends of a session, a hostile peer | exactly once, in order, and told  |
//! | `state`   | events of a connection                           | only steps of the diagram         |
//! | `peers`   | a peer list                                      | read back the same, or told where |
//! | `config`  | the other parameters                             | their ranges; peers will greet it |
//!
//! A target is a function of bytes that panics when something does not hold. It says in its own words
//! what is right, so that the sources have something to be compared with; what it needs to know about
//! places in a frame or a greeting stands at its beginning. Which target runs is decided by the name
//! the program is called by: `build/fuzz/frame` is a link to it.
//!
//! `make fuzz` builds and runs all this (`scripts/fuzz.py`), `make test` only what is in `corpus/`:
//! of what was found, the fewest inputs that reach every branch that was reached. `make fuzz-corpus`
//! renews it, which a change of a target or of the bytes of a frame asks for. `make fuzz-mutants` puts
//! the mistakes of the file `mutants` into copies of the sources, and sees them found.
//!
//! `kernel.rs` stands in for the kernel crate. A new target is a file in `targets/`, a line in
//! [`TARGETS`] and one in `scripts/fuzz.py`, and a directory in `corpus/` with at least one input.

#![no_main]
// Not every target uses everything.
#![allow(dead_code)]

// The sources.
#[path = "../../config.rs"]
mod config;
#[path = "../../conn"]
mod conn {
    pub(crate) mod credit;
    pub(crate) mod frame;
    pub(crate) mod hello;
    pub(crate) mod inbox;
    pub(crate) mod outbox;
    pub(crate) mod state;
    /// What the sources use of `tx`.
    pub(crate) mod tx {
        pub(crate) use crate::targets::session::OutFrame;
    }
}
/// What the sources use of `sys`.
mod sys {
    pub(crate) mod clock {
        pub(crate) type Millis = u64;
    }
}

mod script;
mod targets;

use core::ffi::{
    c_char,
    c_int, //
};
use kernel::memory;
use std::sync::{
    atomic::{
        AtomicU64,
        Ordering, //
    },
    LazyLock, //
};

/// A target, by the name that it is called by.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 9] = [
    ("answer", targets::answer::run),
    ("config", targets::config::run),
    ("credit", targets::credit::run),
    ("frame", targets::frame::run),
    ("hello", targets::hello::run),
    ("peers", targets::peers::run),
    ("session", targets::session::run),
    ("state", targets::state::run),
    ("stream", targets::stream::run),
];

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let program = std::env::args().next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    match TARGETS.iter().find(|target| target.0 == name) {
        Some(target) => target.1,
        None => {
            let names = TARGETS.map(|target| target.0).join(", ");
            eprintln!("There is no target {name}: this program must be called {names}.");
            std::process::exit(2);
        }
    }
});

/// What libFuzzer calls first.
#[no_mangle]
extern "C" fn LLVMFuzzerInitialize(_: *mut c_int, _: *mut *mut *mut c_char) -> c_int {
    LazyLock::force(&TARGET);
    0
}

/// What libFuzzer calls with each input.
#[no_mangle]
extern "C" fn LLVMFuzzerTestOneInput(data: *const u8, len: usize) -> c_int {
    let input = match len {
        0 => &[],
        // SAFETY: libFuzzer hands over `len` bytes, which stay as they are until this returns.
        _ => unsafe { core::slice::from_raw_parts(data, len) },
    };
    (*TARGET)(input);
    memory::fail(false);
    assert_eq!(memory::held(), 0, "memory was not given back");
    count();
    0
}

/// Says now and then how many inputs there have been: libFuzzer itself is silent for long.
fn count() {
    static DONE: AtomicU64 = AtomicU64::new(0);
    let done = DONE.fetch_add(1, Ordering::Relaxed) + 1;
    if done & 0x3fff == 0 {
        eprintln!("at {done}");
    }
}
