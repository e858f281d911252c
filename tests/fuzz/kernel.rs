// SPDX-License-Identifier: GPL-2.0

//! What the pure parts of KCCM use of the kernel crate, for user space: they are compiled into the
//! fuzzer as they are, with this in its place.
//!
//! Memory is counted and can be made to fail, see [`memory`]. What is logged is formatted, for the
//! sake of what that does, and thrown away.

#![allow(missing_docs)]

pub mod fmt {
    pub use core::fmt::*;
}

#[macro_export]
macro_rules! fmt {
    ($($args:tt)*) => { ::core::format_args!($($args)*) };
}

/// Formats, and that is all.
#[macro_export]
macro_rules! log {
    ($($args:tt)*) => { drop(::std::format!($($args)*)) };
}

pub mod error {
    /// A negative errno.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Error(i32);

    pub type Result<T = (), E = Error> = core::result::Result<T, E>;

    impl Error {
        pub fn to_errno(self) -> i32 {
            self.0
        }
    }

    impl From<crate::alloc::AllocError> for Error {
        fn from(_: crate::alloc::AllocError) -> Self {
            code::ENOMEM
        }
    }

    pub mod code {
        use super::Error;

        macro_rules! codes {
            ($($name:ident $value:literal)*) => {
                $(pub const $name: Error = Error(-$value);)*
            };
        }

        codes! {
            EPERM 1 ENOENT 2 EINTR 4 EIO 5 E2BIG 7 EAGAIN 11 ENOMEM 12 EBUSY 16 EEXIST 17
            EINVAL 22 ENOSPC 28 ERANGE 34 EPROTO 71 EOVERFLOW 75 EBADMSG 74 EMSGSIZE 90
            ECONNRESET 104 ESHUTDOWN 108 ETIMEDOUT 110 EHOSTDOWN 112 EALREADY 114 ESTALE 116
        }
    }
}

/// How much memory the code at hand has, and whether it gets more.
///
/// One thread at a time is fuzzed, each counts for itself.
pub mod memory {
    use std::cell::Cell;

    thread_local! {
        static HELD: Cell<usize> = const { Cell::new(0) };
        static PEAK: Cell<usize> = const { Cell::new(0) };
        static FAILING: Cell<bool> = const { Cell::new(false) };
    }

    /// Bytes that vectors hold at present.
    pub fn held() -> usize {
        HELD.get()
    }

    /// The most they have held since this was asked for last.
    pub fn peak() -> usize {
        PEAK.replace(HELD.get())
    }

    /// From now on every allocation fails, or none.
    pub fn fail(all: bool) {
        FAILING.set(all);
    }

    /// A vector wants to hold `new` bytes instead of `old`; whether it may.
    pub(crate) fn change(old: usize, new: usize) -> bool {
        if new > old && FAILING.get() {
            return false;
        }
        HELD.set(HELD.get() - old + new);
        PEAK.set(PEAK.get().max(HELD.get()));
        true
    }
}

pub mod alloc {
    use crate::memory;
    use core::ops::{
        Deref,
        DerefMut, //
    };
    use std::vec;

    /// There is no memory.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct AllocError;

    pub mod flags {
        #[derive(Clone, Copy)]
        pub struct Flags;

        pub const GFP_KERNEL: Flags = Flags;
        pub const GFP_NOIO: Flags = Flags;
        pub const GFP_ATOMIC: Flags = Flags;
    }

    use flags::Flags;

    /// A vector that asks before it grows.
    pub struct Vec<T> {
        inner: vec::Vec<T>,
        counted: usize,
    }

    pub type KVec<T> = Vec<T>;
    pub type VVec<T> = Vec<T>;
    pub type KVVec<T> = Vec<T>;

    impl<T> Vec<T> {
        pub const fn new() -> Self {
            Self {
                inner: vec::Vec::new(),
                counted: 0,
            }
        }

        pub fn with_capacity(capacity: usize, flags: Flags) -> Result<Self, AllocError> {
            let mut vec = Self::new();
            vec.reserve(capacity, flags)?;
            Ok(vec)
        }

        pub fn reserve(&mut self, additional: usize, _: Flags) -> Result<(), AllocError> {
            let wanted = self.inner.len() + additional;
            if wanted > self.inner.capacity() {
                let wanted = wanted.max(2 * self.inner.capacity());
                let bytes = wanted.checked_mul(size_of::<T>()).ok_or(AllocError)?;
                if !memory::change(self.counted, bytes) {
                    return Err(AllocError);
                }
                self.counted = bytes;
                self.inner.reserve_exact(wanted - self.inner.len());
            }
            Ok(())
        }

        pub fn push(&mut self, value: T, flags: Flags) -> Result<(), AllocError> {
            self.reserve(1, flags)?;
            self.inner.push(value);
            Ok(())
        }

        pub fn pop(&mut self) -> Option<T> {
            self.inner.pop()
        }

        pub fn capacity(&self) -> usize {
            self.inner.capacity()
        }

        pub fn truncate(&mut self, len: usize) {
            self.inner.truncate(len);
        }

        pub fn clear(&mut self) {
            self.inner.clear();
        }
    }

    impl<T: Clone> Vec<T> {
        pub fn from_elem(value: T, n: usize, flags: Flags) -> Result<Self, AllocError> {
            let mut vec = Self::with_capacity(n, flags)?;
            vec.inner.resize(n, value);
            Ok(vec)
        }

        pub fn extend_from_slice(&mut self, other: &[T], flags: Flags) -> Result<(), AllocError> {
            self.reserve(other.len(), flags)?;
            self.inner.extend_from_slice(other);
            Ok(())
        }
    }

    impl<T> Default for Vec<T> {
        fn default() -> Self {
            Self::new()
        }
    }

    impl<T> Drop for Vec<T> {
        fn drop(&mut self) {
            memory::change(self.counted, 0);
        }
    }

    impl<T> Deref for Vec<T> {
        type Target = [T];

        fn deref(&self) -> &[T] {
            &self.inner
        }
    }

    impl<T> DerefMut for Vec<T> {
        fn deref_mut(&mut self) -> &mut [T] {
            &mut self.inner
        }
    }
}

/// Lists of boxes: what is in one is in no other, as the kernel's see to.
pub mod list {
    use core::ops::Deref;
    use std::collections::VecDeque;

    pub struct ListArc<T>(Box<T>);

    impl<T> ListArc<T> {
        pub fn new(value: T) -> Self {
            Self(Box::new(value))
        }
    }

    impl<T> Deref for ListArc<T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }

    pub struct List<T>(VecDeque<ListArc<T>>);

    impl<T> List<T> {
        pub const fn new() -> Self {
            Self(VecDeque::new())
        }

        pub fn is_empty(&self) -> bool {
            self.0.is_empty()
        }

        pub fn push_back(&mut self, item: ListArc<T>) {
            self.0.push_back(item);
        }

        pub fn push_front(&mut self, item: ListArc<T>) {
            self.0.push_front(item);
        }

        pub fn pop_back(&mut self) -> Option<ListArc<T>> {
            self.0.pop_back()
        }

        pub fn pop_front(&mut self) -> Option<ListArc<T>> {
            self.0.pop_front()
        }

        pub fn push_all_back(&mut self, other: &mut Self) {
            self.0.append(&mut other.0);
        }

        pub fn iter(&self) -> impl Iterator<Item = &T> {
            self.0.iter().map(|item| &**item)
        }
    }

    impl<T> Default for List<T> {
        fn default() -> Self {
            Self::new()
        }
    }

    impl<T> IntoIterator for List<T> {
        type Item = ListArc<T>;
        type IntoIter = std::collections::vec_deque::IntoIter<ListArc<T>>;

        fn into_iter(self) -> Self::IntoIter {
            self.0.into_iter()
        }
    }
}

pub mod sync {
    /// For one thread.
    pub mod atomic {
        use core::cell::Cell;

        pub struct Relaxed;
        pub struct Acquire;
        pub struct Release;
        pub struct Full;

        pub struct Atomic<T>(Cell<T>);

        impl<T: Copy> Atomic<T> {
            pub const fn new(value: T) -> Self {
                Self(Cell::new(value))
            }

            pub fn load<O>(&self, _: O) -> T {
                self.0.get()
            }

            pub fn store<O>(&self, value: T, _: O) {
                self.0.set(value);
            }

            pub fn xchg<O>(&self, value: T, _: O) -> T {
                self.0.replace(value)
            }
        }

        impl<T: Copy + PartialEq> Atomic<T> {
            pub fn cmpxchg<O>(&self, old: T, new: T, _: O) -> Result<T, T> {
                let is = self.0.get();
                if is == old {
                    self.0.set(new);
                    Ok(is)
                } else {
                    Err(is)
                }
            }
        }

        impl Atomic<u64> {
            pub fn fetch_add<O>(&self, more: u64, _: O) -> u64 {
                self.0.replace(self.0.get().wrapping_add(more))
            }
        }
    }
}

pub mod prelude {
    pub use crate::{
        alloc::{
            flags::*,
            KVVec,
            KVec,
            VVec, //
        },
        error::{
            code::*,
            Error,
            Result, //
        },
        fmt,
        log as pr_alert,
        log as pr_crit,
        log as pr_debug,
        log as pr_emerg,
        log as pr_err,
        log as pr_info,
        log as pr_notice,
        log as pr_warn, //
    };
    pub use core::pin::Pin;
    pub use zerocopy::{
        FromBytes,
        IntoBytes, //
    };
    pub use zerocopy_derive::{
        FromBytes,
        IntoBytes, //
    };
}
