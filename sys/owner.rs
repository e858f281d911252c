// SPDX-License-Identifier: GPL-2.0

//! References to modules that have given KCCM functions to call.

use kernel::bindings;

/// The module that a function belongs to; null for code that cannot go away.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner(*mut bindings::module);

// SAFETY: The pointer is only handed to `try_module_get()` and `module_put()`, from any thread.
unsafe impl Send for Owner {}
// SAFETY: As above.
unsafe impl Sync for Owner {}

impl Owner {
    /// Code that is never unloaded before KCCM's own users are gone.
    #[cfg(any(KCCM_KUNIT, KCCM_BENCH))]
    pub(crate) const NONE: Self = Self(core::ptr::null_mut());

    /// Names the module.
    ///
    /// # Safety
    ///
    /// `module` is null or points to a module that exists for as long as the value or a copy of it
    /// is used.
    pub(crate) unsafe fn from_raw(module: *mut bindings::module) -> Self {
        Self(module)
    }

    /// Pins the module; `None` when it is being unloaded. Any context.
    pub(crate) fn pin(self) -> Option<Pinned> {
        // SAFETY: By the type's invariant the module still exists, or the pointer is null, which
        // `try_module_get()` takes for built-in code.
        unsafe { bindings::try_module_get(self.0) }.then(|| Pinned(self))
    }
}

/// A reference to a module: it is not unloaded before this is dropped.
pub(crate) struct Pinned(Owner);

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: The reference was taken in `Owner::pin()`.
        unsafe { bindings::module_put(self.0 .0) };
    }
}
