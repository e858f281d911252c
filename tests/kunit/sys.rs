// SPDX-License-Identifier: GPL-2.0

//! What tests want of kernel C beside [`crate::sys`], with the `unsafe` that it takes.

use crate::sys::net::Net;
use crate::sys::owner::Owner;
use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::task::Task;
use kernel::time::Jiffies;
use kernel::types::Opaque;
use kernel::ModuleMetadata;

/// `helpers.h`, as bindgen reads it.
#[allow(improper_ctypes)] // Of the kernel's types only pointers are used.
#[allow(missing_docs)]
#[allow(non_camel_case_types)]
#[allow(unreachable_pub)]
mod helpers {
    use kernel::bindings::net;
    include!(env!("KCCM_KUNIT_HELPERS"));
}

/// The TCP sockets of this kernel.
pub(super) fn tcp_sockets() -> usize {
    // SAFETY: No requirements.
    unsafe { helpers::kccm_kunit_tcp_sockets() as usize }
}

/// How often the calling thread has gone to sleep.
pub(super) fn sleeps() -> usize {
    // SAFETY: No requirements.
    unsafe { helpers::kccm_kunit_sleeps() as usize }
}

/// The time that waits with a limit go by. It stands still while the machine does, and then catches up.
pub(super) fn ticks() -> Jiffies {
    // SAFETY: Whoever reads it must expect it to change at any moment.
    unsafe { core::ptr::read_volatile(&raw const bindings::jiffies) }
}

/// Whether what the calling thread allocates does not wait for I/O.
pub(super) fn noio() -> bool {
    // SAFETY: No requirements.
    unsafe { helpers::kccm_kunit_noio() }
}

// ---- Network namespaces.

/// Has a shell in user space do something. What it says is lost; an error if it fails.
pub(super) fn shell(script: &CStr) -> Result {
    // SAFETY: The string is not kept.
    match unsafe { helpers::kccm_kunit_shell(script.as_char_ptr()) } {
        0 => Ok(()),
        status => {
            pr_err!("status {} of: {}\n", status, script.to_str().unwrap_or("?"));
            Err(EIO)
        }
    }
}

/// The network namespace in which there is a device of that name.
pub(super) fn net_of(device: &CStr) -> Result<Net> {
    // SAFETY: The string is not kept.
    let net = unsafe { helpers::kccm_kunit_net_of(device.as_char_ptr()) };
    if net.is_null() {
        return Err(ENOENT);
    }
    // SAFETY: It came with a reference.
    Ok(unsafe { Net::from_raw(net) })
}

/// How many network namespaces there are.
pub(super) fn namespaces() -> usize {
    // SAFETY: No requirements.
    unsafe { helpers::kccm_kunit_namespaces() as usize }
}

// ---- Modules.

/// The module that the tests are in.
pub(super) fn this_module() -> Owner {
    // SAFETY: The module outlives its tests.
    unsafe { Owner::from_raw(crate::LocalModule::THIS_MODULE.as_ptr()) }
}

/// How many references there are to the module that the tests are in.
pub(super) fn module_refs() -> i32 {
    // SAFETY: The pointer is that of a module that exists.
    unsafe { bindings::module_refcount(crate::LocalModule::THIS_MODULE.as_ptr()) }
}

/// A module that is being unloaded.
pub(super) struct Leaving(Pin<KBox<Opaque<bindings::module>>>);

impl Leaving {
    /// One with a single reference.
    pub(super) fn new() -> Result<Self> {
        let module = KBox::into_pin(KBox::new(Opaque::<bindings::module>::zeroed(), GFP_KERNEL)?);
        // SAFETY: The module is ours; its fields may be written while nobody else knows it.
        unsafe {
            (*module.get()).state = bindings::module_state_MODULE_STATE_GOING;
            (*module.get()).refcnt.counter = 1;
        }
        Ok(Self(module))
    }

    /// To be named as the owner of something that goes before this does.
    pub(super) fn owner(&self) -> Owner {
        // SAFETY: It stays where it is for as long as `self` lives, by this function's contract for
        // as long as it is used. `try_module_get()` and `module_put()` need no more than the fields
        // that were set.
        unsafe { Owner::from_raw(self.0.get()) }
    }

    /// How many references there are to it.
    pub(super) fn refs(&self) -> i32 {
        // SAFETY: The module is valid; the count is read as one word.
        unsafe { core::ptr::read_volatile(&raw const (*self.0.get()).refcnt.counter) }
    }
}

// ---- Watching a thread, and killing it.

/// A thread.
pub(super) struct Handle(ARef<Task>);

impl Handle {
    /// The calling thread.
    pub(super) fn current() -> Self {
        Self(ARef::from(&**current!()))
    }

    /// Whether it sleeps in a wait that a kill would end.
    pub(super) fn waits(&self) -> bool {
        // SAFETY: The task is valid, as there is a reference to it. The type is the same, which
        // bindgen cannot know.
        unsafe { helpers::kccm_kunit_waits(self.0.as_ptr().cast()) }
    }

    /// Kills it, as far as a kernel thread can be: whatever it waits for killably is over.
    pub(super) fn kill(&self) {
        // SAFETY: The task is valid, as there is a reference to it.
        unsafe { bindings::send_sig(bindings::SIGKILL as c_int, self.0.as_ptr(), 1) };
    }
}

/// Lets the calling kernel thread be killed.
pub(super) fn allow_kill() {
    // SAFETY: A handler is a number or a pointer to a function; this one, `SIG_KTHREAD`, is a number,
    // which the kernel compares and never calls. It is a macro that bindgen leaves out.
    let deliver: bindings::__sighandler_t = unsafe { core::mem::transmute(2usize) };
    // SAFETY: A kernel thread may do so for itself.
    unsafe { bindings::kernel_sigaction(bindings::SIGKILL as c_int, deliver) };
}
