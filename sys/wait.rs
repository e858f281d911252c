// SPDX-License-Identifier: GPL-2.0

//! Killable waits.
//!
//! `kernel::sync::CondVar` has interruptible and uninterruptible waits; what KCCM's callers need is
//! in between: any signal does not disturb them, a fatal one must.
//!
//! C header: [`include/linux/wait.h`](srctree/include/linux/wait.h)

use super::clock;
use super::clock::Millis;
use super::helpers;
use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Full,
    Relaxed, //
};
use kernel::sync::LockClassKey;
use kernel::types::Opaque;

/// How long to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Timeout {
    /// Not at all: what would wait fails with `EAGAIN`.
    NoWait,
    /// For so many milliseconds: then it fails with `ETIMEDOUT`.
    After(Millis),
    /// For as long as it takes.
    Forever,
}

impl Timeout {
    /// What is left of it `since` its start.
    pub(crate) fn left(self, since: Millis) -> Self {
        match self {
            Timeout::After(ms) => {
                Timeout::After(ms.saturating_sub(clock::now().saturating_sub(since)))
            }
            other => other,
        }
    }
}

/// A wait queue: tasks that wait for a condition, which others make true and then announce.
#[pin_data]
pub(crate) struct WaitQueue {
    #[pin]
    head: Opaque<bindings::wait_queue_head>,
}

// SAFETY: A `wait_queue_head` has a lock of its own and may be used from any thread.
unsafe impl Send for WaitQueue {}
// SAFETY: As above.
unsafe impl Sync for WaitQueue {}

impl WaitQueue {
    /// An empty queue.
    pub(crate) fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for the call; `name` and `key` live for ever.
            head <- Opaque::ffi_init(|slot| unsafe {
                bindings::__init_waitqueue_head(slot, name.as_char_ptr(), key.as_ptr())
            }),
        })
    }

    /// Wakes every waiter to look at its condition again. Any context.
    pub(crate) fn notify_all(&self) {
        // SAFETY: The head is initialised. Zero stands for all waiters.
        unsafe {
            bindings::__wake_up(
                self.head.get(),
                bindings::TASK_NORMAL,
                0,
                core::ptr::null_mut(),
            )
        };
    }

    /// Waits until `condition` holds, also when the task is killed.
    pub(crate) fn wait_unkillable(&self, mut condition: impl FnMut() -> bool) {
        let entry = Opaque::<bindings::wait_queue_entry>::uninit();
        // SAFETY: `entry` is ours and does not move until `finish_wait()` has unlinked it.
        unsafe { bindings::init_wait(entry.get()) };
        loop {
            // SAFETY: Both are initialised.
            unsafe {
                bindings::prepare_to_wait(
                    self.head.get(),
                    entry.get(),
                    bindings::TASK_IDLE as c_int,
                )
            };
            if condition() {
                break;
            }
            // SAFETY: Sleeping is allowed here by this function's contract.
            unsafe { bindings::schedule() };
        }
        // SAFETY: Both are initialised; afterwards the queue does not refer to `entry`.
        unsafe { bindings::finish_wait(self.head.get(), entry.get()) };
    }

    /// Waits until `condition` yields a value.
    ///
    /// It is asked first at once, then after every notification. It must not sleep; spin locks are
    /// fine. Returns `EAGAIN`, `ETIMEDOUT` or, when the task was killed, `EINTR`.
    pub(crate) fn wait_until<R>(
        &self,
        timeout: Timeout,
        mut condition: impl FnMut() -> Option<R>,
    ) -> Result<R> {
        if let Some(value) = condition() {
            return Ok(value);
        }
        let mut left = match timeout {
            Timeout::NoWait => return Err(EAGAIN),
            Timeout::After(ms) => clock::jiffies(ms) as c_long,
            Timeout::Forever => c_long::MAX,
        };
        let entry = Opaque::<bindings::wait_queue_entry>::uninit();
        // SAFETY: `entry` is ours and does not move until `finish_wait()` has unlinked it.
        unsafe { bindings::init_wait(entry.get()) };
        let result = loop {
            // SAFETY: Both are initialised.
            unsafe {
                bindings::prepare_to_wait(
                    self.head.get(),
                    entry.get(),
                    bindings::TASK_KILLABLE as c_int,
                )
            };
            if let Some(value) = condition() {
                break Ok(value);
            }
            if killed() {
                break Err(EINTR);
            }
            if left == 0 {
                break Err(ETIMEDOUT);
            }
            // SAFETY: Sleeping is allowed here by this function's contract.
            left = unsafe { bindings::schedule_timeout(left) };
        };
        // SAFETY: Both are initialised; afterwards the queue does not refer to `entry`.
        unsafe { bindings::finish_wait(self.head.get(), entry.get()) };
        result
    }
}

/// [`OneShot::state`]: it has not happened, and nobody waits for it.
const PENDING: i32 = 0;

/// [`OneShot::state`]: somebody waits, or has waited, for it: it goes by the completion.
const WAITED: i32 = 1;

/// [`OneShot::state`]: it has happened before anybody waited.
const FIRED: i32 = 2;

/// Something that happens once, and one task that waits for it.
///
/// What has happened before anybody waits, as a reply that comes in while its caller still sends, costs
/// neither side the lock of the completion, which is taken with interrupts off.
#[pin_data]
pub(crate) struct OneShot {
    state: Atomic<i32>,
    #[pin]
    completion: Opaque<bindings::completion>,
}

// SAFETY: A `completion` has a lock of its own and may be used from any thread; the state is atomic.
unsafe impl Send for OneShot {}
// SAFETY: As above.
unsafe impl Sync for OneShot {}

impl OneShot {
    /// One that has not happened.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            state: Atomic::new(PENDING),
            // SAFETY: `slot` is valid for the call.
            completion <- Opaque::ffi_init(|slot| unsafe { bindings::init_completion(slot) }),
        })
    }

    /// Lets it happen. Any context.
    pub(crate) fn fire(&self) {
        if self.state.cmpxchg(PENDING, FIRED, Full).is_ok() {
            return;
        }
        // SAFETY: The completion is initialised.
        unsafe { bindings::complete(self.completion.get()) };
    }

    /// Whether it has happened; if not, it will go by the completion.
    fn has_fired(&self) -> bool {
        self.state.cmpxchg(PENDING, WAITED, Full) == Err(FIRED)
    }

    /// Waits for what is about to happen, whatever else does.
    pub(crate) fn settle(&self) {
        if self.has_fired() {
            return;
        }
        // SAFETY: The completion is initialised; sleeping is allowed by this function's contract.
        unsafe { bindings::wait_for_completion(self.completion.get()) };
    }

    /// Makes it as if it had not happened. Nobody waits for it or lets it happen meanwhile.
    pub(crate) fn rearm(&self) {
        self.state.store(PENDING, Relaxed);
        // SAFETY: The completion is initialised.
        unsafe { helpers::kccm_completion_rearm(self.completion.get()) };
    }

    /// Waits for it. Returns `EAGAIN`, `ETIMEDOUT` or, when the task was killed, `EINTR`.
    pub(crate) fn wait(&self, timeout: Timeout) -> Result {
        let jiffies = match timeout {
            Timeout::NoWait => return Err(EAGAIN),
            Timeout::After(ms) => clock::jiffies(ms),
            Timeout::Forever => c_long::MAX as kernel::time::Jiffies,
        };
        if self.has_fired() {
            return Ok(());
        }
        // SAFETY: The completion is initialised; sleeping is allowed by this function's contract.
        match unsafe {
            bindings::wait_for_completion_killable_timeout(self.completion.get(), jiffies)
        } {
            0 => Err(ETIMEDOUT),
            left if left < 0 => Err(EINTR),
            _ => Ok(()),
        }
    }
}

/// Whether the current task has been killed.
fn killed() -> bool {
    // SAFETY: No requirements.
    unsafe { helpers::kccm_killed() }
}

#[cfg(KCCM_KUNIT)]
#[kernel::prelude::kunit_tests(kccm_wait)]
mod tests {
    use super::*;

    /// Longer than anything takes here.
    const SOON: Timeout = Timeout::After(5000);

    /// So short that it passes if nothing happens.
    const BRIEF: Timeout = Timeout::After(1);

    #[test]
    fn what_has_happened_is_not_waited_for() {
        pin_init::stack_pin_init!(let it = OneShot::new());
        it.fire();
        assert_eq!(it.wait(Timeout::Forever), Ok(()));
        it.settle();
    }

    #[test]
    fn what_happens_after_a_wait_was_given_up_is_told() {
        for (timeout, error) in [(BRIEF, ETIMEDOUT), (Timeout::NoWait, EAGAIN)] {
            pin_init::stack_pin_init!(let it = OneShot::new());
            assert_eq!(it.wait(timeout), Err(error));
            it.fire();
            assert_eq!(it.wait(SOON), Ok(()));
        }
    }

    #[test]
    fn it_can_happen_again() {
        pin_init::stack_pin_init!(let it = OneShot::new());
        it.fire();
        it.rearm();
        assert_eq!(it.wait(BRIEF), Err(ETIMEDOUT));
        it.fire();
        it.rearm();
        assert_eq!(it.wait(BRIEF), Err(ETIMEDOUT));
        it.fire();
        assert_eq!(it.wait(SOON), Ok(()));
    }
}
