// SPDX-License-Identifier: GPL-2.0

//! A buffer that a thread lends to others for as long as it waits for what they put there.

use super::lock::SpinLockBh;
use core::ptr::NonNull;
use kernel::prelude::*;
use kernel::sync::LockClassKey;

/// A buffer that has been lent.
///
/// # Invariants
///
/// It is writable, and nobody else uses it, for as long as this is in its [`Desk`].
struct Lent {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: It is a right to write to some bytes, which any thread may have.
unsafe impl Send for Lent {}

struct Inner<T> {
    value: T,
    lent: Option<Lent>,
}

/// A value under a lock, and with it the buffer that some thread lends while it waits.
#[pin_data]
pub(crate) struct Desk<T> {
    #[pin]
    inner: SpinLockBh<Inner<T>>,
}

impl<T: Unpin> Desk<T> {
    /// With nothing lent.
    pub(crate) fn new(
        value: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- SpinLockBh::new(Inner { value, lent: None }, name, key),
        })
    }

    /// Does something with the value, and with the buffer, if one is lent; under the lock. Any context but
    /// that of interrupts.
    #[inline]
    pub(crate) fn with<R>(&self, body: impl FnOnce(&mut T, Option<&mut [u8]>) -> R) -> R {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let lent = inner.lent.as_mut().map(|lent| {
            // SAFETY: By the invariant it is ours while it is here, and it is here as long as the lock
            // is held.
            unsafe { core::slice::from_raw_parts_mut(lent.start.as_ptr(), lent.len) }
        });
        body(&mut inner.value, lent)
    }

    /// Lends a buffer while `body` runs, unless one is lent already.
    #[inline]
    pub(crate) fn lend<R>(&self, buf: &mut [u8], body: impl FnOnce() -> R) -> R {
        let mut inner = self.inner.lock();
        let lends = inner.lent.is_none();
        if lends {
            // INVARIANT: `buf` is borrowed until `_end` has taken it from here again, which it does
            // also if `body` does not return.
            inner.lent = Some(Lent {
                start: NonNull::from(&mut *buf).cast(),
                len: buf.len(),
            });
        }
        drop(inner);
        let _end = End(lends.then_some(self));
        body()
    }
}

/// Ends a loan.
struct End<'a, T: Unpin>(Option<&'a Desk<T>>);

impl<T: Unpin> Drop for End<'_, T> {
    fn drop(&mut self) {
        if let Some(desk) = self.0 {
            desk.inner.lock().lent = None;
        }
    }
}

#[cfg(KCCM_KUNIT)]
#[kunit_tests(kccm_lend)]
mod tests {
    use super::*;
    use kernel::static_lock_class;

    #[test]
    fn is_lent_for_so_long() -> Result {
        let desk = Desk::new(0, c"Desk::test", static_lock_class!());
        let desk = KBox::pin_init(desk, GFP_KERNEL)?;
        let mut buf = [0; 4];
        assert!(desk.with(|_, buf| buf.is_none()));
        desk.lend(&mut buf, || {
            desk.with(|value, buf| {
                *value = 7;
                buf.ok_or(EINVAL)?.copy_from_slice(b"lent");
                Ok::<_, Error>(())
            })
        })?;
        assert_eq!(&buf, b"lent");
        assert!(desk.with(|value, buf| *value == 7 && buf.is_none()));
        Ok(())
    }

    #[test]
    fn only_the_first_is_lent() -> Result {
        let desk = Desk::new((), c"Desk::test", static_lock_class!());
        let desk = KBox::pin_init(desk, GFP_KERNEL)?;
        let (mut one, mut other) = ([0; 1], [0; 2]);
        let lens = desk.lend(&mut one, || {
            let len = || desk.with(|(), buf| buf.map(|buf| buf.len()));
            (desk.lend(&mut other, len), len())
        });
        // The inner loan has ended nothing.
        assert_eq!(lens, (Some(1), Some(1)));
        assert!(desk.with(|(), buf| buf.is_none()));
        Ok(())
    }
}
