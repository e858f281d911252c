// SPDX-License-Identifier: GPL-2.0

//! Secrets, and the kernel's key service that they come from.
//!
//! C header: [`include/linux/key.h`](srctree/include/linux/key.h)

use super::helpers;
use kernel::prelude::*;

/// The longest secret.
pub(crate) const MAX_SECRET: usize = helpers::KCCM_AO_SECRET_MAX as usize;

/// The bytes of a key. They are shown to nobody, and overwritten when they are no longer needed.
pub(crate) struct Secret {
    bytes: KBox<[u8; MAX_SECRET]>,
    len: usize,
}

impl Secret {
    /// One with these bytes.
    #[cfg(KCCM_KUNIT)]
    pub(crate) fn new(bytes: &[u8]) -> Result<Self> {
        let mut secret = Self::empty()?;
        secret
            .bytes
            .get_mut(..bytes.len())
            .ok_or(EMSGSIZE)?
            .copy_from_slice(bytes);
        secret.len = bytes.len();
        Ok(secret)
    }

    fn empty() -> Result<Self> {
        Ok(Self {
            bytes: KBox::new([0; MAX_SECRET], GFP_KERNEL)?,
            len: 0,
        })
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        // SAFETY: The bytes are ours, and there are so many.
        unsafe { helpers::kccm_wipe(self.bytes.as_mut_ptr(), MAX_SECRET as u32) };
    }
}

/// The key of that description, of type "logon" or else "user", that the calling process finds in
/// its keyrings; `None` when there is none, `EMSGSIZE` when it is too long. May sleep.
pub(crate) fn find(description: &CStr) -> Result<Option<Secret>> {
    for logon in [true, false] {
        let mut secret = Secret::empty()?;
        // SAFETY: The description ends with a zero; the buffer is ours, and of that size.
        let ret = unsafe {
            helpers::kccm_key_read(
                logon,
                description.as_char_ptr(),
                secret.bytes.as_mut_ptr(),
                MAX_SECRET as u32,
            )
        };
        match usize::try_from(ret) {
            Ok(len) if len > MAX_SECRET => return Err(EMSGSIZE),
            Ok(len) => {
                secret.len = len;
                return Ok(Some(secret));
            }
            Err(_) if ret == ENOKEY.to_errno() => {}
            Err(_) => return Err(Error::from_errno(ret)),
        }
    }
    Ok(None)
}
