// SPDX-License-Identifier: GPL-2.0

//! Something that a thread works with for as long as it likes, and an upcall now and then, in passing.
//!
//! A mutex would not do, for an upcall may not sleep, nor a spin lock, for the thread does. The thread
//! takes it for itself; an upcall that finds it taken does without.

use core::cell::UnsafeCell;
use core::ops::{
    Deref,
    DerefMut, //
};
use kernel::sync::atomic::{
    Acquire,
    Atomic,
    Relaxed,
    Release, //
};

const FREE: u32 = 0;
const TAKEN: u32 = 1;

/// What a thread or an upcall can have for itself.
///
/// # Invariants
///
/// `state` is `TAKEN` exactly while there is a [`Claimed`].
pub(crate) struct Claim<T> {
    state: Atomic<u32>,
    value: UnsafeCell<T>,
}

// SAFETY: One at a time gets at the value, and can take it away.
unsafe impl<T: Send> Send for Claim<T> {}
// SAFETY: As above.
unsafe impl<T: Send> Sync for Claim<T> {}

impl<T> Claim<T> {
    /// A free one.
    pub(crate) const fn new(value: T) -> Self {
        Self {
            state: Atomic::new(FREE),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes it, if it is free. Any context.
    pub(crate) fn try_claim(&self) -> Option<Claimed<'_, T>> {
        // INVARIANT: It was free, and there is a `Claimed` from now on.
        match self.state.cmpxchg(FREE, TAKEN, Acquire) {
            Ok(_) => Some(Claimed(self)),
            Err(_) => None,
        }
    }

    /// Takes it. Process context; there must not be two threads at it. It can be an upcall that has it,
    /// on another processor, which does not sleep and is not interrupted for long: then this spins.
    pub(crate) fn claim(&self) -> Claimed<'_, T> {
        loop {
            if let Some(claimed) = self.try_claim() {
                return claimed;
            }
            while self.state.load(Relaxed) != FREE {
                core::hint::spin_loop();
            }
        }
    }
}

/// The right to what is in a [`Claim`].
pub(crate) struct Claimed<'a, T>(&'a Claim<T>);

impl<T> Deref for Claimed<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the invariant nobody else has a `Claimed`, and only that gives access.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Claimed<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: As in `deref()`, and this one is borrowed mutably.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Claimed<'_, T> {
    fn drop(&mut self) {
        // INVARIANT: This was the only one.
        self.0.state.store(FREE, Release);
    }
}

#[cfg(KCCM_KUNIT)]
#[kernel::prelude::kunit_tests(kccm_claim)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let claim = Claim::new(1);
        let mut first = claim.claim();
        *first += 1;
        assert!(claim.try_claim().is_none());
        drop(first);
        let second = claim.try_claim();
        assert!(second.is_some_and(|value| *value == 2));
        assert_eq!(*claim.claim(), 2);
    }
}
