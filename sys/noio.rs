// SPDX-License-Identifier: GPL-2.0

//! The allocation policy: nothing that KCCM allocates may wait for I/O.
//!
//! KCCM serves file systems and block devices, so its callers may hold what the page allocator
//! would need to make room. Instead of passing `GFP_NOIO` to every allocation, which would miss
//! those inside TCP, each entry point and each thread works within one [`Scope`].
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use super::helpers;
use kernel::types::NotThreadSafe;

/// While it lives, every allocation of the current task is made as by `GFP_NOIO`. Scopes nest.
#[must_use = "the scope ends when it is dropped"]
pub(crate) struct Scope(u32, NotThreadSafe);

impl Scope {
    /// Enters the scope. Process context.
    pub(crate) fn enter() -> Self {
        // SAFETY: No requirements other than a current task.
        Self(unsafe { helpers::kccm_noio_enter() }, NotThreadSafe)
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        // SAFETY: The cookie is from `kccm_noio_enter()` of the same task: `Scope` does not leave
        // its thread.
        unsafe { helpers::kccm_noio_leave(self.0) };
    }
}
