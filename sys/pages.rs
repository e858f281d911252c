// SPDX-License-Identifier: GPL-2.0

//! Bytes in pages of their own, which TCP can send without copying them.
//!
//! The pages belong to whoever made them, and to each packet that they are in, for as long as it takes:
//! so they may go at any time, but must not be written to once they have been sent.
//!
//! C header: [`include/linux/gfp.h`](srctree/include/linux/gfp.h)

use super::helpers;
use core::ptr::NonNull;
use kernel::alloc::Flags;
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;

/// Some pages, one after the other.
///
/// # Invariants
///
/// `start` is the address of `size` bytes in a compound page that this has a reference to.
struct Block {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: A block is memory, and its page's reference count is atomic.
unsafe impl Send for Block {}
// SAFETY: As above.
unsafe impl Sync for Block {}

impl Block {
    /// The largest that is always worth trying (the kernel's PAGE_ALLOC_COSTLY_ORDER).
    const USUAL_ORDER: u32 = 3;

    /// Of `PAGE_SIZE << order` bytes, which anything may be in.
    fn new(order: u32, flags: Flags) -> Result<Self> {
        // SAFETY: If it may wait is what the caller says.
        let start = unsafe { helpers::kccm_block_alloc(order, flags == GFP_KERNEL) };
        // INVARIANT: It was allocated with that size, and one reference.
        Ok(Self {
            start: NonNull::new(start.cast()).ok_or(ENOMEM)?,
            size: PAGE_SIZE << order,
        })
    }

    /// One for `len` bytes or, where that is too much to ask for, fewer.
    fn for_some_of(len: usize, flags: Flags) -> Result<Self> {
        for order in (0..=order_of(len).min(Self::USUAL_ORDER)).rev() {
            if let Ok(block) = Self::new(order, flags) {
                return Ok(block);
            }
        }
        Err(ENOMEM)
    }

    /// Whether packets refer to it.
    fn is_shared(&self) -> bool {
        // SAFETY: By the invariant there is this reference to it.
        unsafe { helpers::kccm_block_shared(self.start.as_ptr().cast()) }
    }

    /// Copies as many of these bytes as there is room for to the start. Returns how many.
    fn fill(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.size);
        // SAFETY: There is room for `n` bytes, by the invariant, and they cannot overlap.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr(), n) };
        n
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: By the invariant there is this reference to it.
        unsafe { helpers::kccm_block_put(self.start.as_ptr().cast()) };
    }
}

/// The order of a block for so many bytes.
fn order_of(len: usize) -> u32 {
    len.div_ceil(PAGE_SIZE)
        .max(1)
        .next_power_of_two()
        .trailing_zeros()
}

/// Bytes in pages.
///
/// # Invariants
///
/// The blocks have `written` bytes in all, at least, and those have been written; `len` is not more.
pub(crate) struct Pages {
    blocks: KVec<Block>,
    len: usize,
    written: usize,
}

impl Pages {
    /// A copy of some bytes. Any context that `flags` allow.
    pub(crate) fn copied(mut bytes: &[u8], flags: Flags) -> Result<Self> {
        let len = bytes.len();
        let mut blocks = KVec::new();
        while !bytes.is_empty() {
            let mut block = Block::for_some_of(bytes.len(), flags)?;
            bytes = &bytes[block.fill(bytes)..];
            blocks.push(block, flags)?;
        }
        // INVARIANT: All have been written.
        Ok(Self {
            blocks,
            len,
            written: len,
        })
    }

    /// So many zero bytes, one after the other in memory.
    pub(crate) fn zeroed(len: usize, flags: Flags) -> Result<Self> {
        let block = Block::new(order_of(len), flags)?;
        // SAFETY: The block has at least `len` bytes.
        unsafe { block.start.as_ptr().write_bytes(0, len) };
        let mut blocks = KVec::new();
        blocks.push(block, flags)?;
        // INVARIANT: All have been written.
        Ok(Self {
            blocks,
            len,
            written: len,
        })
    }

    /// For how many bytes there is room.
    fn capacity(&self) -> usize {
        self.blocks.iter().map(|block| block.size).sum()
    }

    /// To be used again, unless packets still refer to them.
    pub(crate) fn into_spare(self) -> Option<Spare> {
        let shared = self.blocks.iter().any(Block::is_shared);
        (!shared).then_some(Spare(self))
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Only the first `len` of them; the others are as if they had never been written.
    pub(crate) fn truncate(&mut self, len: usize) {
        // INVARIANT: They do not become more.
        self.len = self.len.min(len);
        self.written = self.len;
    }

    /// The bytes, if they are one after the other in memory.
    pub(crate) fn as_mut_slice(&mut self) -> Option<&mut [u8]> {
        let [block] = &mut self.blocks[..] else {
            return None;
        };
        // SAFETY: By the invariants it has at least so many bytes, which have been written; nobody else
        // writes to them, as `self` is borrowed mutably.
        Some(unsafe { core::slice::from_raw_parts_mut(block.start.as_ptr(), self.len) })
    }

    /// The bytes behind the first `skip` of them, in as many parts as there are in memory.
    pub(crate) fn parts(&self, skip: usize) -> impl Iterator<Item = Part<'_>> {
        let mut start = 0;
        self.blocks.iter().filter_map(move |block| {
            let from = skip.saturating_sub(start).min(block.size);
            let to = (self.len - start.min(self.len)).min(block.size);
            start += block.size;
            if from >= to {
                return None;
            }
            // SAFETY: By the invariants these bytes are there, and have been written.
            Some(Part(unsafe {
                core::slice::from_raw_parts(block.start.as_ptr().add(from), to - from)
            }))
        })
    }
}

/// Pages that nobody else refers to, with the bytes that were sent in them last.
pub(crate) struct Spare(Pages);

impl Spare {
    /// For how many bytes there is room.
    pub(crate) fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// A copy of some bytes, if there is enough room.
    pub(crate) fn copied(mut self, bytes: &[u8]) -> Option<Pages> {
        let mut rest = bytes;
        for block in &mut self.0.blocks {
            rest = &rest[block.fill(rest)..];
        }
        if !rest.is_empty() {
            return None;
        }
        // INVARIANT: All have been written.
        (self.0.len, self.0.written) = (bytes.len(), bytes.len());
        Some(self.0)
    }

    /// So many bytes, one after the other in memory, if there is enough room: what was sent in them
    /// before, and zeros.
    pub(crate) fn reused(mut self, len: usize) -> Option<Pages> {
        let pages = &mut self.0;
        match &pages.blocks[..] {
            [block] if len <= block.size => {
                if let Some(fresh) = len.checked_sub(pages.written) {
                    // SAFETY: The block has at least `len` bytes, and nobody else refers to it.
                    unsafe {
                        block
                            .start
                            .add(pages.written)
                            .as_ptr()
                            .write_bytes(0, fresh)
                    };
                    pages.written = len;
                }
                // INVARIANT: They have been written, now or before.
                pages.len = len;
                Some(self.0)
            }
            _ => None,
        }
    }
}

/// A page that few bytes at a time are put in, to be sent along with others without being copied.
///
/// # Invariants
///
/// Of the block, the bytes behind the first `used` have not been shown to anybody yet.
pub(crate) struct Jotter {
    block: Option<Block>,
    used: usize,
}

impl Jotter {
    /// Without a page yet.
    pub(crate) const fn new() -> Self {
        Self {
            block: None,
            used: 0,
        }
    }

    /// Puts some bytes in the page, or in a new one if that is full; not more than a page has. Any
    /// context that `flags` allow.
    pub(crate) fn put(&mut self, bytes: &[u8], flags: Flags) -> Result<Part<'_>> {
        let is_full = |block: &Block| self.used + bytes.len() > block.size;
        if self.block.as_ref().is_none_or(is_full) {
            // INVARIANT: Nobody knows of any of its bytes.
            (self.block, self.used) = (Some(Block::new(0, flags)?), 0);
        }
        let Some(block) = self
            .block
            .as_ref()
            .filter(|block| bytes.len() <= block.size)
        else {
            return Err(EINVAL);
        };
        // SAFETY: There is room for them behind `used`, and nobody else knows of that place.
        let part = unsafe {
            let place = block.start.as_ptr().add(self.used);
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len());
            core::slice::from_raw_parts(place.cast_const(), bytes.len())
        };
        // INVARIANT: From now on they are shown.
        self.used += bytes.len();
        Ok(Part(part))
    }
}

/// Bytes in pages, one after the other in memory.
#[derive(Clone, Copy, Default)]
pub(crate) struct Part<'a>(&'a [u8]);

impl<'a> Part<'a> {
    /// The bytes.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// The first `len` of them, if they are so many.
    pub(crate) fn cut(self, len: usize) -> Self {
        Self(&self.0[..self.0.len().min(len)])
    }
}

#[cfg(KCCM_KUNIT)]
#[kunit_tests(kccm_pages)]
mod tests {
    use super::*;

    fn bytes(len: usize) -> Result<KVVec<u8>> {
        let mut bytes = KVVec::from_elem(0, len, GFP_KERNEL)?;
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = (i * 7 + i / 251) as u8;
        }
        Ok(bytes)
    }

    #[test]
    fn parts_are_all_there_is() -> Result {
        for len in [1, 4095, 4096, 4097, 20_000, 32_768, 32_769, 200_000] {
            let bytes = bytes(len)?;
            let pages = Pages::copied(&bytes, GFP_KERNEL)?;
            assert_eq!(pages.len(), len);
            for skip in [0, 1, 4096, 32_767, 32_768, len - 1, len] {
                let mut rest = bytes.get(skip..).unwrap_or(&[]);
                for part in pages.parts(skip) {
                    let (these, others) = rest.split_at(part.bytes().len());
                    assert!(!these.is_empty() && part.bytes() == these);
                    rest = others;
                }
                assert!(rest.is_empty());
            }
        }
        Ok(())
    }

    #[test]
    fn zeroed_bytes_can_be_written() -> Result {
        for len in [1, 5000, 65_536] {
            let mut pages = Pages::zeroed(len, GFP_KERNEL)?;
            let slice = pages.as_mut_slice().ok_or(EINVAL)?;
            assert!(slice.len() == len && slice.iter().all(|&byte| byte == 0));
            slice.copy_from_slice(&bytes(len)?);
            pages.truncate(len / 2);
            let shown: usize = pages.parts(0).map(|part| part.bytes().len()).sum();
            assert_eq!(shown, len / 2);
        }
        Ok(())
    }

    #[test]
    fn jottings_stay() -> Result {
        let mut jotter = Jotter::new();
        let all = bytes(3 * PAGE_SIZE)?;
        for some in all.chunks(1000) {
            let part = jotter.put(some, GFP_KERNEL)?;
            assert!(part.bytes() == some);
        }
        assert!(jotter.put(&all[..PAGE_SIZE + 1], GFP_KERNEL).is_err());
        let before = jotter.put(&all[..10], GFP_KERNEL)?.bytes().as_ptr();
        let part = jotter.put(&all[10..20], GFP_KERNEL)?;
        // They follow one another.
        assert!(before.wrapping_add(10) == part.bytes().as_ptr());
        assert!(part.bytes() == &all[10..20]);
        Ok(())
    }

    #[test]
    fn spare_pages_are_used_again() -> Result {
        let before = bytes(3000)?;
        let spare = || {
            Pages::copied(&before, GFP_KERNEL)?
                .into_spare()
                .ok_or(EBUSY)
        };
        assert!(spare()?.reused(PAGE_SIZE + 1).is_none());
        assert!(spare()?.copied(&bytes(PAGE_SIZE + 1)?).is_none());
        let spare = spare()?;
        assert_eq!(spare.capacity(), PAGE_SIZE);
        let mut pages = spare.reused(PAGE_SIZE).ok_or(ENOSPC)?;
        let slice = pages.as_mut_slice().ok_or(EINVAL)?;
        assert!(slice[..3000] == before[..] && slice[3000..].iter().all(|&byte| byte == 0));
        slice.fill(7);
        pages.truncate(10);
        // What was not sent is not seen again.
        let spare = pages.into_spare().ok_or(EBUSY)?;
        let mut pages = spare.reused(20).ok_or(ENOSPC)?;
        let slice = pages.as_mut_slice().ok_or(EINVAL)?;
        assert!(slice[..10] == [7; 10] && slice[10..] == [0; 10]);
        let spare = pages.into_spare().ok_or(EBUSY)?;
        let pages = spare.copied(&before[..100]).ok_or(ENOSPC)?;
        assert!(pages
            .parts(0)
            .flat_map(|part| part.bytes())
            .eq(&before[..100]));
        Ok(())
    }
}
