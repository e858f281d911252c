// SPDX-License-Identifier: GPL-2.0

//! The benchmark: KCCM and its peers, measured in one kernel.
//!
//! | file          | what it owns                                                         |
//! |---------------|----------------------------------------------------------------------|
//! | `device.c`    | /dev/kccm_bench: commands in, a line of figures out                  |
//! | `measure.c`   | what is measured: calls one by one, many at once, floods             |
//! | `scale.c`     | how a cluster grows                                                  |
//! | `cost.c`      | what else it costs: CPU time, context switches, allocations          |
//! | `lines.c`     | lines: what one thread calls or sends over, of whatever peer         |
//! | `peer_*.c`    | the peers, each a `struct bench_peer`                                |
//! | `nodes.h`     | where C and Rust meet                                                |
//! | `cluster`     | nodes of KCCM in this kernel, for `peer_kccm.c`                      |
//! | `ffi`         | what C calls of that                                                 |
//! | `user/`       | peers in user space, which take the same words and give the same     |
//!
//! The sources of `kccm.ko` are compiled into the module once more, less what is exported, so that
//! several nodes can live in one kernel, and both ends of every peer run there, over loopback.

mod cluster;
mod ffi;

use kernel::prelude::*;

/// The module: a device, which C has.
pub(crate) struct Module(());

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        ffi::init()?;
        Ok(Self(()))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        ffi::exit();
    }
}
