// SPDX-License-Identifier: GPL-2.0

//! Directories of attribute files in sysfs.
//!
//! C header: [`include/linux/kobject.h`](srctree/include/linux/kobject.h)

use core::marker::PhantomData;
use kernel::bindings;
use kernel::error::to_result;
use kernel::fmt;
use kernel::prelude::*;
use kernel::str::{
    CString,
    Formatter, //
};
use kernel::sync::{
    Arc,
    Completion, //
};
use kernel::types::Opaque;

/// Writes what a file shows.
type Show<T> = fn(&T, &mut Formatter<'_>) -> core::fmt::Result;
/// Takes what was written to a file.
type Store<T> = fn(&T, &str) -> Result;

/// One attribute file of an object of type `T`.
#[repr(C)]
pub(crate) struct Attr<T> {
    /// Must be first: C knows the file by its address.
    raw: bindings::attribute,
    show: Option<Show<T>>,
    store: Option<Store<T>>,
}

// SAFETY: The contents never change.
unsafe impl<T> Sync for Attr<T> {}

impl<T> Attr<T> {
    const fn new(name: &'static CStr, mode: u16) -> Self {
        let mut raw: bindings::attribute = pin_init::zeroed();
        raw.name = kernel::str::as_char_ptr_in_const_context(name);
        raw.mode = mode;
        Self {
            raw,
            show: None,
            store: None,
        }
    }

    /// A file that shows something.
    pub(crate) const fn read(name: &'static CStr, show: Show<T>) -> Self {
        let mut attr = Self::new(name, 0o444);
        attr.show = Some(show);
        attr
    }

    /// A file that shows something, and that root may write to.
    pub(crate) const fn read_write(name: &'static CStr, show: Show<T>, store: Store<T>) -> Self {
        let mut attr = Self::new(name, 0o644);
        attr.show = Some(show);
        attr.store = Some(store);
        attr
    }

    /// A file that root may write to.
    pub(crate) const fn write(name: &'static CStr, store: Store<T>) -> Self {
        let mut attr = Self::new(name, 0o200);
        attr.store = Some(store);
        attr
    }
}

/// The kernel's /sys/kernel, or a directory of ours to make another one in: valid for `'a`.
#[derive(Clone, Copy)]
pub(crate) struct Parent<'a>(*mut bindings::kobject, PhantomData<&'a bindings::kobject>);

impl Parent<'static> {
    /// /sys/kernel
    pub(crate) fn sys_kernel() -> Self {
        // SAFETY: Set once at boot, before any module is loaded, and never freed.
        Self(unsafe { bindings::kernel_kobj }, PhantomData)
    }
}

/// A directory in sysfs, with files that show and change an object. It is gone, and none of its
/// files is in use, when this has been dropped.
pub(crate) struct Dir<T: Send + Sync + 'static>(Pin<KBox<Inner<T>>>);

#[pin_data]
struct Inner<T: Send + Sync + 'static> {
    kobj: Opaque<bindings::kobject>,
    object: Option<Arc<T>>,
    #[pin]
    released: Completion,
}

// SAFETY: A kobject may be used from any thread, and so may the object.
unsafe impl<T: Send + Sync> Send for Dir<T> {}
// SAFETY: As above.
unsafe impl<T: Send + Sync> Sync for Dir<T> {}

impl<T: Send + Sync + 'static> Dir<T> {
    const OPS: bindings::sysfs_ops = bindings::sysfs_ops {
        show: Some(Self::show),
        store: Some(Self::store),
    };

    const TYPE: bindings::kobj_type = {
        let mut t: bindings::kobj_type = pin_init::zeroed();
        t.release = Some(Self::release);
        t.sysfs_ops = &Self::OPS;
        t
    };

    /// Makes a directory with the files of `attrs`, which act on `object`; without an object it is
    /// a place for other directories and `attrs` must be empty. May sleep.
    ///
    /// It is to be dropped before the directory that it is in, whose `drop()` waits for that.
    pub(crate) fn new(
        parent: Parent<'_>,
        name: fmt::Arguments<'_>,
        object: Option<Arc<T>>,
        attrs: &'static [Attr<T>],
    ) -> Result<Self> {
        let name = CString::try_from_fmt(name)?;
        let inner = KBox::pin_init(
            pin_init!(Inner {
                kobj: Opaque::zeroed(),
                object,
                released <- Completion::new(),
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The kobject is zeroed and stays where it is; the type is static; the parent exists
        // now, by its lifetime, and the kobject takes a reference to it. The format takes one string,
        // which is copied.
        let ret = unsafe {
            bindings::kobject_init_and_add(
                inner.kobj.get(),
                &Self::TYPE,
                parent.0,
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            )
        };
        // From here on `drop()` is right also for a directory that could not be added.
        let dir = Self(inner);
        to_result(ret)?;
        for attr in attrs {
            // SAFETY: The directory exists; the attribute is static.
            to_result(unsafe {
                bindings::sysfs_create_file_ns(dir.0.kobj.get(), &attr.raw, core::ptr::null())
            })?;
        }
        Ok(dir)
    }

    /// This directory, to make others in.
    pub(crate) fn as_parent(&self) -> Parent<'_> {
        Parent(self.0.kobj.get(), PhantomData)
    }

    /// The directory that a kobject is in.
    ///
    /// # Safety
    ///
    /// `kobj` must be the kobject of an `Inner<T>` that exists.
    unsafe fn inner<'a>(kobj: *mut bindings::kobject) -> &'a Inner<T> {
        // SAFETY: By the function's contract; `Opaque` is transparent.
        unsafe { &*kernel::container_of!(Opaque::cast_from(kobj), Inner<T>, kobj) }
    }

    /// # Safety
    ///
    /// Called by sysfs only, for a directory and a file that [`Dir::new`] has made.
    unsafe extern "C" fn show(
        kobj: *mut bindings::kobject,
        attr: *mut bindings::attribute,
        buf: *mut c_char,
    ) -> isize {
        // SAFETY: sysfs calls with a kobject of this type, and with one of the attributes that
        // `new()` has added, each the first field of an `Attr<T>`.
        let (inner, attr) = unsafe { (Self::inner(kobj), &*attr.cast::<Attr<T>>()) };
        let (Some(object), Some(show)) = (&inner.object, attr.show) else {
            return EIO.to_errno() as isize;
        };
        // SAFETY: sysfs hands over a page to write to.
        let page =
            unsafe { core::slice::from_raw_parts_mut(buf.cast::<u8>(), kernel::page::PAGE_SIZE) };
        let mut f = Formatter::new(page);
        match show(object, &mut f) {
            Ok(()) => f.bytes_written() as isize,
            Err(_) => E2BIG.to_errno() as isize,
        }
    }

    /// # Safety
    ///
    /// Called by sysfs only, for a directory and a file that [`Dir::new`] has made.
    unsafe extern "C" fn store(
        kobj: *mut bindings::kobject,
        attr: *mut bindings::attribute,
        buf: *const c_char,
        len: usize,
    ) -> isize {
        // SAFETY: As in `show()`.
        let (inner, attr) = unsafe { (Self::inner(kobj), &*attr.cast::<Attr<T>>()) };
        let (Some(object), Some(store)) = (&inner.object, attr.store) else {
            return EIO.to_errno() as isize;
        };
        // SAFETY: sysfs hands over `len` bytes to read.
        let bytes = unsafe { core::slice::from_raw_parts(buf.cast::<u8>(), len) };
        let result = core::str::from_utf8(bytes)
            .map_err(|_| EINVAL)
            .and_then(|text| store(object, text.trim()));
        match result {
            Ok(()) => len as isize,
            Err(e) => e.to_errno() as isize,
        }
    }

    /// # Safety
    ///
    /// Called once, when the last reference to a kobject that [`Dir::new`] has made is gone.
    unsafe extern "C" fn release(kobj: *mut bindings::kobject) {
        // SAFETY: Called once, for a kobject of this type; `drop()` keeps it until it has heard.
        unsafe { Self::inner(kobj) }.released.complete_all();
    }
}

impl<T: Send + Sync + 'static> Drop for Dir<T> {
    fn drop(&mut self) {
        let kobj = self.0.kobj.get();
        // SAFETY: The kobject was initialised, and the reference is ours. `kobject_del()` waits for
        // its files to be out of use, and does nothing when it was not added.
        unsafe {
            bindings::kobject_del(kobj);
            bindings::kobject_put(kobj);
        }
        self.0.released.wait_for_completion();
    }
}
