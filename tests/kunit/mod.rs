// SPDX-License-Identifier: GPL-2.0

//! The KUnit suites that need more than one file: clusters of several nodes in one kernel. Each pure
//! part has its suite at the end of its own file.
//!
//! They are compiled into a module of its own, `kccm_kunit.ko`, from the sources of `kccm.ko`, less
//! what is exported. Loading it runs them all; the results are in the log, and in
//! /sys/kernel/debug/kunit/<suite>/results.

mod cluster;

use kernel::prelude::*;

/// The module has nothing but its suites.
pub(crate) struct Module;

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}
