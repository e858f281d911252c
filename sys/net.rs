// SPDX-License-Identifier: GPL-2.0

//! Network namespaces.

use super::helpers;
use kernel::bindings;

/// A reference to a network namespace, which stays alive with it.
pub(crate) struct Net(*mut bindings::net);

// SAFETY: `struct net` is reference counted and may be used from any thread.
unsafe impl Send for Net {}
// SAFETY: As above.
unsafe impl Sync for Net {}

impl Net {
    /// The namespace of the current task. Process context.
    pub(crate) fn current() -> Self {
        // SAFETY: A running task has a network namespace, which cannot go while it runs, so it is
        // valid to take a reference to.
        Self(unsafe { helpers::kccm_net_get(helpers::kccm_net_current()) })
    }

    /// The namespace of a test's choice.
    ///
    /// # Safety
    ///
    /// The pointer must be valid, and come with a reference, which is given up for the result.
    #[cfg(KCCM_KUNIT)]
    pub(crate) unsafe fn from_raw(net: *mut bindings::net) -> Self {
        Self(net)
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::net {
        self.0
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { helpers::kccm_net_put(self.0) };
    }
}
