// SPDX-License-Identifier: GPL-2.0

//! Time and chance.

use kernel::bindings;
use kernel::time::{
    msecs_to_jiffies,
    Instant,
    Jiffies,
    Monotonic, //
};

/// A point in time, in milliseconds since boot, from the monotonic clock.
///
/// It is a plain number so that what decides by time can be tested without a clock.
pub(crate) type Millis = u64;

/// The time now.
pub(crate) fn now() -> Millis {
    nanos() / 1_000_000
}

/// The time now, in nanoseconds since boot, from the same clock.
pub(crate) fn nanos() -> u64 {
    // SAFETY: `ktime_get_mono_fast_ns()` has no requirements and may be called from any context.
    unsafe { bindings::ktime_get_mono_fast_ns() }
}

/// Wall-clock-free time for measuring how long something took.
pub(crate) fn stopwatch() -> Instant<Monotonic> {
    Instant::now()
}

/// Converts a duration to jiffies, at least one, so that a wait for it always ends.
pub(crate) fn jiffies(ms: Millis) -> Jiffies {
    match u32::try_from(ms) {
        // The kernel takes what is negative as an `int` for "never".
        Ok(ms) if i32::try_from(ms).is_ok() => msecs_to_jiffies(ms).max(1),
        _ => kernel::ffi::c_long::MAX as Jiffies,
    }
}

/// A random 64-bit number.
pub(crate) fn random() -> u64 {
    // SAFETY: No requirements; any context.
    unsafe { bindings::get_random_u64() }
}
