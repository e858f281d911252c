// SPDX-License-Identifier: GPL-2.0

//! Spin locks that threads and softirqs share.
//!
//! `kernel::sync` has those that hold off interrupts, which costs more than what KCCM does under one:
//! none of it runs in an interrupt handler.
//!
//! C header: [`include/linux/spinlock.h`](srctree/include/linux/spinlock.h)

use super::helpers;
use kernel::bindings;
use kernel::sync::lock::{
    Backend,
    Guard,
    Lock, //
};

/// A spin lock under which softirqs are held off on this processor. Any context but that of interrupts.
pub(crate) type SpinLockBh<T> = Lock<T, SpinLockBhBackend>;

/// The right to what is in one.
pub(crate) type SpinLockBhGuard<'a, T> = Guard<'a, T, SpinLockBhBackend>;

/// Makes a [`SpinLockBh`] with a name and a lock class of its own.
macro_rules! new_spinlock_bh {
    ($inner:expr, $name:literal $(,)?) => {
        $crate::sys::lock::SpinLockBh::new(
            $inner,
            kernel::c_str!($name),
            kernel::static_lock_class!(),
        )
    };
}
pub(crate) use new_spinlock_bh;

/// How a [`SpinLockBh`] is locked.
pub(crate) struct SpinLockBhBackend;

// SAFETY: `spinlock_t` ensures that one at a time has it. `relock()` locks in the same way.
unsafe impl Backend for SpinLockBhBackend {
    type State = bindings::spinlock_t;
    type GuardState = ();

    unsafe fn init(
        ptr: *mut Self::State,
        name: *const kernel::ffi::c_char,
        key: *mut bindings::lock_class_key,
    ) {
        // SAFETY: By this function's contract.
        unsafe { bindings::__spin_lock_init(ptr, name, key) }
    }

    #[inline]
    unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
        // SAFETY: By this function's contract the lock was initialised.
        unsafe { helpers::kccm_spin_lock_bh(ptr) }
    }

    #[inline]
    unsafe fn try_lock(ptr: *mut Self::State) -> Option<Self::GuardState> {
        // SAFETY: As in `lock()`.
        unsafe { helpers::kccm_spin_trylock_bh(ptr) }.then_some(())
    }

    #[inline]
    unsafe fn unlock(ptr: *mut Self::State, _guard_state: &Self::GuardState) {
        // SAFETY: By this function's contract the caller has the lock.
        unsafe { helpers::kccm_spin_unlock_bh(ptr) }
    }

    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // SAFETY: As in `lock()`.
        unsafe { bindings::spin_assert_is_held(ptr) }
    }
}
