// SPDX-License-Identifier: GPL-2.0

//! Memory of long payloads that have been received, kept for those that come next.
//!
//! So much memory is virtual as a rule, and to get it and to give it back is work for each of its pages.
//! Where payloads follow one another, the same memory serves for them in turn.

use crate::sys::clock;
use crate::sys::clock::Millis;
use crate::sys::lock::{
    new_spinlock_bh,
    SpinLockBh, //
};
use core::ops::RangeInclusive;
use kernel::prelude::*;

/// The sizes of what is kept, bytes: what is shorter is cheap to have.
const KEPT: RangeInclusive<usize> = 32 << 10..=4 << 20;

/// How many are kept: one is filled while another is emptied.
const PLACES: usize = 2;

/// How long one is kept that nobody needs.
const LONGEST: Millis = 1000;

struct Kept {
    bytes: KVVec<u8>,
    until: Millis,
}

/// The memory that a node keeps.
#[pin_data]
pub(crate) struct Buffers {
    #[pin]
    places: SpinLockBh<[Option<Kept>; PLACES]>,
}

impl Buffers {
    /// None yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            places <- new_spinlock_bh!([const { None }; PLACES], "Buffers::places"),
        })
    }

    /// An empty buffer for so many bytes. Process context.
    pub(crate) fn get(&self, len: usize) -> Result<KVVec<u8>> {
        if KEPT.contains(&len) {
            // Not one of much more: what is in it is charged for by its length.
            let sizes = len..=len + len / 4;
            let fits = |kept: &mut Kept| sizes.contains(&kept.bytes.capacity());
            let mut places = self.places.lock();
            let found = places.iter_mut().find_map(|place| place.take_if(fits));
            drop(places);
            if let Some(mut kept) = found {
                kept.bytes.clear();
                return Ok(kept.bytes);
            }
        }
        Ok(KVVec::with_capacity(len, GFP_KERNEL)?)
    }

    /// Takes one back that is not needed any more. Returns when to call [`Buffers::tend`] because of
    /// that, if it is kept. Process context.
    pub(crate) fn put(&self, bytes: KVVec<u8>) -> Option<Millis> {
        if !KEPT.contains(&bytes.capacity()) {
            return None;
        }
        let until = clock::now() + LONGEST;
        let mut places = self.places.lock();
        // An empty place, or that of the one which has not been needed for longest.
        let place = places
            .iter_mut()
            .min_by_key(|place| place.as_ref().map_or(0, |kept| kept.until));
        let old = place.and_then(|place| place.replace(Kept { bytes, until }));
        drop(places);
        drop(old);
        Some(until)
    }

    /// Lets go of what has not been needed for long. Returns when to do that again. Process context.
    pub(crate) fn tend(&self, now: Millis) -> Millis {
        let mut places = self.places.lock();
        let old = places
            .each_mut()
            .map(|place| place.take_if(|kept| kept.until <= now));
        let next = places.iter().flatten().map(|kept| kept.until).min();
        drop(places);
        drop(old);
        next.unwrap_or(Millis::MAX)
    }
}

#[cfg(KCCM_KUNIT)]
#[kunit_tests(kccm_buffers)]
mod tests {
    use super::*;

    const LEN: usize = 100 << 10;

    fn buffers() -> Result<Pin<KBox<Buffers>>> {
        KBox::pin_init(Buffers::new(), GFP_KERNEL)
    }

    #[test]
    fn one_serves_again() -> Result {
        let buffers = buffers()?;
        let mut bytes = buffers.get(LEN)?;
        bytes.extend_with(LEN, 7, GFP_KERNEL)?;
        let place = bytes.as_ptr();
        assert!(buffers.put(bytes).is_some_and(|until| until > clock::now()));
        let bytes = buffers.get(LEN - 1000)?;
        assert!(bytes.is_empty() && bytes.capacity() >= LEN);
        assert!(bytes.as_ptr() == place);
        // There is but one.
        assert!(buffers.get(LEN)?.as_ptr() != place);
        Ok(())
    }

    #[test]
    fn one_of_another_size_does_not() -> Result {
        let buffers = buffers()?;
        let bytes = buffers.get(LEN)?;
        let (place, capacity) = (bytes.as_ptr(), bytes.capacity());
        buffers.put(bytes);
        for len in [capacity + 1, capacity / 2, 10] {
            let other = buffers.get(len)?;
            assert!(other.capacity() >= len && other.as_ptr() != place);
        }
        assert!(buffers.get(LEN)?.as_ptr() == place);
        Ok(())
    }

    #[test]
    fn short_and_very_long_ones_are_not_kept() -> Result {
        let buffers = buffers()?;
        for len in [0, 100, 5 << 20] {
            let kept = buffers.put(KVVec::with_capacity(len, GFP_KERNEL)?);
            assert_eq!((kept, buffers.tend(0)), (None, Millis::MAX));
        }
        Ok(())
    }

    #[test]
    fn the_last_ones_are_kept_for_some_time() -> Result {
        let buffers = buffers()?;
        for i in 1..=2 * PLACES {
            buffers.put(KVVec::with_capacity(i * LEN, GFP_KERNEL)?);
        }
        let due = buffers.tend(clock::now());
        assert!(due > clock::now());
        let kept = buffers.places.lock().iter().flatten().count();
        assert_eq!(kept, PLACES);
        assert_eq!(buffers.tend(Millis::MAX), Millis::MAX);
        let kept = buffers.places.lock().iter().flatten().count();
        assert_eq!(kept, 0);
        Ok(())
    }
}
