// SPDX-License-Identifier: GPL-2.0

//! Kernel threads.
//!
//! C header: [`include/linux/kthread.h`](srctree/include/linux/kthread.h)

use super::noio;
use kernel::bindings;
use kernel::error::from_err_ptr;
use kernel::fmt;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::aref::ARef;
use kernel::task::Task;

/// What a thread runs.
type Body = KBox<dyn FnMut() + Send>;

/// A running kernel thread. Dropping it waits until its function has returned.
///
/// The function must have been told to return, by means of its own, before the thread is dropped.
pub(crate) struct Thread {
    task: ARef<Task>,
    /// What `main()` takes over when it runs.
    body: *mut Body,
}

// SAFETY: `task` is `Send`, and `body` is only used when the thread has ended without running.
unsafe impl Send for Thread {}
// SAFETY: Nothing is done with `body` through a shared reference.
unsafe impl Sync for Thread {}

impl Thread {
    /// Starts a thread that runs `body` within a no-I/O allocation scope.
    ///
    /// May sleep. At most 15 bytes of `name` are shown by `ps`.
    pub(crate) fn spawn<F>(name: fmt::Arguments<'_>, body: F) -> Result<Self>
    where
        F: FnOnce() + Send + 'static,
    {
        let name = CString::try_from_fmt(name)?;
        // A box of `FnOnce` cannot be called without `alloc`.
        let mut body = Some(body);
        let body = move || {
            if let Some(body) = body.take() {
                body();
            }
        };
        let body: Body = KBox::new(body, GFP_KERNEL)?;
        let body = KBox::into_raw(KBox::new(body, GFP_KERNEL)?);

        // SAFETY: `main()` takes over `body`, which is valid for it. The format string takes one
        // string argument, which is copied.
        let task = from_err_ptr(unsafe {
            bindings::kthread_create_on_node(
                Some(main),
                body.cast(),
                bindings::NUMA_NO_NODE,
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            )
        });
        let task = match task {
            Ok(task) => task,
            Err(e) => {
                // SAFETY: The thread was not created, so `body` is still ours.
                drop(unsafe { KBox::from_raw(body) });
                return Err(e);
            }
        };
        // SAFETY: The new task is valid until it runs to its end, which it cannot before it is woken
        // below. `Task` is a transparent wrapper of `struct task_struct`.
        let task: ARef<Task> = unsafe { &*task.cast::<Task>() }.into();
        task.wake_up();
        Ok(Self { task, body })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // SAFETY: The task is valid: we hold a reference. `kthread_stop()` may be called once for a
        // kthread, also for one whose function has returned.
        let ret = unsafe { bindings::kthread_stop(self.task.as_ptr()) };
        if ret == EINTR.to_errno() {
            // Stopped before it ran for the first time.
            // SAFETY: `main()` returns 0, so it has not run and will not: `body` is still ours.
            drop(unsafe { KBox::from_raw(self.body) });
        }
    }
}

/// Identifies the calling thread, to be compared only.
pub(crate) fn current_id() -> usize {
    Task::current_raw().addr()
}

/// # Safety
///
/// Called once, with a box that is given up for it.
unsafe extern "C" fn main(data: *mut c_void) -> c_int {
    // SAFETY: `data` is the box that `Thread::spawn()` gave up for us.
    let body = unsafe { KBox::from_raw(data.cast::<Body>()) };
    let mut body = KBox::into_inner(body);
    let _noio = noio::Scope::enter();
    body();
    0
}
