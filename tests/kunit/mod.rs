// SPDX-License-Identifier: GPL-2.0

//! The KUnit suites that need nodes: clusters of several of them in one kernel. Each pure part of
//! KCCM has its suite at the end of its own file.
//!
//! | file       | what it shows                                                          |
//! |------------|------------------------------------------------------------------------|
//! | `harness`  | clusters, threads and waiting, for all suites                          |
//! | `net`      | networks that are not TCP, or tampered with; a client that is no node  |
//! | `sys`      | what tests want of kernel C                                            |
//! | `cluster`  | forming the fully connected state (P10), over any network (P3)         |
//! | `listener` | one thread that serves all peers, and serves them fairly (P4)          |
//! | `sendrecv` | messages: figures 2 and 3, order, wildcards, bounds (P5, P6, P7)       |
//! | `rcall`    | remote calls, short and long, with and without reply (P5, P8, P9)      |
//! | `handlers` | registering functions, and taking them back                            |
//! | `session`  | exactly once and in order, across connections and restarts             |
//! | `bulk`     | the second channel, for what nothing is to wait behind                 |
//! | `keys`     | who has the key, and who has not; keys that change                     |
//! | `quick`    | what is seen to in the upcall: handlers for softirqs, and replies      |
//! | `recovery` | peers that break, fall silent, come back; events (P2, P11)             |
//! | `netns`    | nodes in network namespaces of their own, and cuts between them        |
//! | `noio`     | nothing that is allocated may wait for I/O                             |
//! | `refusal`  | greetings and frames that are not what they should be                  |
//! | `teardown` | stopping a node at any moment, and what is left of it                  |
//!
//! They are compiled into a module of its own, `kccm_kunit.ko`, from the sources of `kccm.ko`, less
//! what is exported. Loading it runs them all; the results are in the log, and in
//! /sys/kernel/debug/kunit/<suite>/results. The loopback device must be up.

mod bulk;
mod cluster;
mod handlers;
mod harness;
mod keys;
mod listener;
mod net;
mod netns;
mod noio;
mod quick;
mod rcall;
mod recovery;
mod refusal;
mod sendrecv;
mod session;
mod sys;
mod teardown;

use kernel::prelude::*;

/// The module has nothing but its suites.
pub(crate) struct Module;

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}
