// SPDX-License-Identifier: GPL-2.0

//! Contexts in which nothing may sleep.
//!
//! C header: [`include/linux/bottom_half.h`](srctree/include/linux/bottom_half.h)

use super::helpers;
use kernel::types::NotThreadSafe;

/// Whether softirqs are being served, or held off: nothing may sleep then.
pub(crate) fn in_softirq() -> bool {
    // SAFETY: No requirements.
    unsafe { helpers::kccm_in_softirq() }
}

/// While it lives, softirqs are held off on this processor, and nothing may sleep. It nests.
#[must_use = "softirqs are held off until it is dropped"]
pub(crate) struct NoSoftirq(NotThreadSafe);

impl NoSoftirq {
    /// Holds them off.
    pub(crate) fn enter() -> Self {
        // SAFETY: It is undone by `drop()`, on the same processor, which the task cannot leave.
        unsafe { helpers::kccm_bh_disable() };
        Self(NotThreadSafe)
    }
}

impl Drop for NoSoftirq {
    fn drop(&mut self) {
        // SAFETY: It undoes what `enter()` did, in the same task.
        unsafe { helpers::kccm_bh_enable() };
    }
}
