// SPDX-License-Identifier: GPL-2.0

//! Memory for queued things: slots that never move, each a member of several lists.
//!
//! An [`Arena`] owns values in chunks of [`SLOTS`] slots. Every slot has `L` links, and through
//! link number `l` it can be a member of one doubly linked list, whose ends the user keeps in a
//! [`Fifo`]. Lists are linked by slot numbers instead of pointers, so that all of it is safe code.
//!
//! # Memory
//!
//! The user holds a spin lock around every call, therefore an arena neither allocates nor frees.
//! It grows by the memory in a [`Spare`], which the user has filled outside the lock with what
//! [`Arena::need`] asked for, and it gives memory back through [`Arena::shed`].
//!
//! The chunks are found through tables ("segments") of which each is twice as large as the one
//! before it. A full table is followed by the next one and never replaced, so that growing copies
//! nothing, however much is queued: every operation takes constant time.
//!
//! ```text
//! segment 0:   64 chunks   slots    0 ..  4095
//! segment 1:  128 chunks   slots 4096 .. 12287
//! segment 2:  256 chunks   ...
//! ```

#![deny(unsafe_code)]

use core::{
    convert::Infallible,
    mem, //
};

use kernel::{
    alloc::{
        kvec::PushError,
        Flags, //
    },
    prelude::*, //
};

use pin_init::init_array_from_fn;

/// Slots of a chunk.
const SLOTS: usize = 64;

/// Chunks that the first segment has room for.
const FIRST_SEGMENT: usize = 64;

/// Segments of an arena: as many as 32-bit slot numbers can make use of.
const SEGMENTS: usize = 20;

/// Chunks that an empty arena keeps, for queues that fill and drain all the time.
const KEEP_CHUNKS: u32 = 4;

/// In the place of a slot number: there is none. No arena has a slot of this number.
const NIL: u32 = u32::MAX;

/// In [`Link::prev`]: the slot is not in a list.
const OUT: u32 = u32::MAX - 1;

/// The slots and tree nodes that were looked at, for tests of what an operation costs.
#[cfg(KCCM_KUNIT)]
pub(super) static VISITS: kernel::sync::atomic::Atomic<usize> =
    kernel::sync::atomic::Atomic::new(0);

/// Counts a slot or tree node that is looked at; does nothing outside of KUnit builds.
#[inline]
pub(super) fn visit() {
    #[cfg(KCCM_KUNIT)]
    VISITS.fetch_add(1, kernel::sync::atomic::Relaxed);
}

/// The neighbours of a slot in a list.
#[derive(Clone, Copy)]
struct Link {
    prev: u32,
    next: u32,
}

impl Link {
    const OUTSIDE: Self = Self {
        prev: OUT,
        next: NIL,
    };

    fn is_inside(self) -> bool {
        self.prev != OUT
    }
}

/// A place for one value.
///
/// # Invariants
///
/// A slot without a value has the serial number 0 and is in no list; in the chain of free slots it
/// names its successor in `links[0].next`.
struct Slot<T, const L: usize, B> {
    serial: u64,
    links: [Link; L],
    value: Option<T>,
    beside: B,
}

impl<T, const L: usize, B: Default> Slot<T, L, B> {
    fn vacant() -> Self {
        const { assert!(L > 0) };
        Self {
            serial: 0,
            links: [Link::OUTSIDE; L],
            value: None,
            beside: B::default(),
        }
    }
}

type Chunk<T, const L: usize, B> = [Slot<T, L, B>; SLOTS];
type Segment<T, const L: usize, B> = KVVec<KBox<Chunk<T, L, B>>>;

/// Returns the segment that holds a chunk, and the chunk's place in it.
fn place_of_chunk(chunk: usize) -> (usize, usize) {
    if chunk < FIRST_SEGMENT {
        // Nearly always.
        return (0, chunk);
    }
    let n = chunk + FIRST_SEGMENT;
    let segment = (n / FIRST_SEGMENT).ilog2() as usize;
    (segment, n - (FIRST_SEGMENT << segment))
}

/// Returns how many chunks a segment has room for.
fn size_of_segment(segment: usize) -> usize {
    if segment < SEGMENTS {
        FIRST_SEGMENT << segment
    } else {
        // There is no such segment: let the attempt to allocate it fail.
        usize::MAX
    }
}

/// Names a value in an [`Arena`], until it is removed.
///
/// A handle whose value has been removed is refused, also when the slot is in use again or its
/// memory was freed in the meantime: no two values of an arena ever have the same serial number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Handle {
    serial: u64,
    index: u32,
}

impl Handle {
    /// Returns a number that is larger for every later [`Arena::insert`] into the same arena.
    pub(crate) fn serial(self) -> u64 {
        self.serial
    }
}

/// The two ends of a list of slots, in the order in which they were linked.
///
/// It is used with one arena and one link number only.
pub(crate) struct Fifo {
    head: u32,
    tail: u32,
}

impl Fifo {
    /// Creates an empty list.
    pub(crate) const fn new() -> Self {
        Self {
            head: NIL,
            tail: NIL,
        }
    }

    /// Returns whether no slot is in the list.
    pub(crate) fn is_empty(&self) -> bool {
        self.head == NIL
    }
}

/// The memory that an [`Arena`] lacks.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Need {
    /// A chunk is lacking.
    chunk: bool,
    /// A segment with room for this number of chunks is lacking, unless it is 0.
    segment: usize,
}

impl Need {
    /// Returns whether nothing is lacking.
    pub(crate) fn is_none(&self) -> bool {
        !self.chunk && self.segment == 0
    }
}

/// Memory on its way into an [`Arena`] or out of it.
///
/// It is filled and dropped outside the lock that protects the arena.
pub(crate) struct Spare<T, const L: usize, B = ()> {
    chunk: Option<KBox<Chunk<T, L, B>>>,
    segment: Segment<T, L, B>,
}

impl<T, const L: usize, B: Default> Spare<T, L, B> {
    /// Creates a spare that holds no memory.
    pub(crate) const fn new() -> Self {
        Self {
            chunk: None,
            segment: Segment::new(),
        }
    }

    /// Returns whether no memory is left in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.chunk.is_none() && self.segment.capacity() == 0
    }

    /// Allocates what is needed. May sleep, as `flags` say.
    pub(crate) fn fill(&mut self, need: Need, flags: Flags) -> Result {
        if need.segment > self.segment.capacity() {
            self.segment = Segment::with_capacity(need.segment, flags)?;
        }
        if need.chunk && self.chunk.is_none() {
            // Made in place: it is too large for the stack.
            let chunk = init_array_from_fn::<_, SLOTS, _, Infallible>(|_| Slot::vacant());
            self.chunk = Some(KBox::init(chunk, flags)?);
        }
        Ok(())
    }
}

/// Values in slots that never move; see the [module](self).
///
/// Beside its value a slot has a place of type `B`, for what is better written and read where it is
/// than moved in and out. What is in it when a value comes is left from others.
///
/// All methods are called with the lock held that protects the arena, and take constant time.
/// Dropping an arena frees memory: not under a spin lock.
pub(crate) struct Arena<T, const L: usize, B = ()> {
    segments: [Segment<T, L, B>; SEGMENTS],
    /// Chunks in all segments.
    chunks: u32,
    /// Slots from this one on have never been used since the arena was empty.
    fresh: u32,
    /// The first slot in the chain of those that were used and are free.
    free: u32,
    /// Values.
    len: usize,
    /// The serial number of the latest value.
    serial: u64,
}

impl<T, const L: usize, B: Default> Arena<T, L, B> {
    /// Creates an empty arena, without any memory.
    pub(crate) fn new() -> Self {
        Self {
            segments: [const { Segment::new() }; SEGMENTS],
            chunks: 0,
            fresh: 0,
            free: NIL,
            len: 0,
            serial: 0,
        }
    }

    /// Returns the number of values.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns what `spare` lacks for [`Arena::insert`] to succeed.
    pub(crate) fn need(&self, spare: &Spare<T, L, B>) -> Need {
        if self.free != NIL || (self.fresh as usize) < self.capacity() {
            return Need::default();
        }
        let (segment, _) = place_of_chunk(self.chunks as usize);
        let wanted = size_of_segment(segment);
        let own = self.segments.get(segment).map_or(0, Segment::capacity);
        let have = own.max(spare.segment.capacity());
        Need {
            chunk: spare.chunk.is_none(),
            segment: if have < wanted { wanted } else { 0 },
        }
    }

    /// Puts a value into a slot that is in no list yet.
    ///
    /// Gives the value back if there is no slot for it and `spare` lacks what [`Arena::need`]
    /// tells.
    pub(crate) fn insert(&mut self, value: T, spare: &mut Spare<T, L, B>) -> Result<Handle, T> {
        let Some(index) = self.take_free_slot(spare) else {
            return Err(value);
        };
        let serial = self.serial + 1;
        let Some(slot) = self.slot_mut(index) else {
            return Err(value);
        };
        slot.serial = serial;
        slot.links = [Link::OUTSIDE; L];
        slot.value = Some(value);
        self.serial = serial;
        self.len += 1;
        Ok(Handle { serial, index })
    }

    /// Takes a value out.
    ///
    /// Returns `None` for a stale handle, and for a slot that is still in a list.
    pub(crate) fn remove(&mut self, handle: Handle) -> Option<T> {
        let free = self.free;
        let slot = self.live_mut(handle)?;
        if slot.links.iter().any(|link| link.is_inside()) {
            return None;
        }
        slot.serial = 0;
        slot.links[0].next = free;
        let value = slot.value.take();
        self.free = handle.index;
        self.len -= 1;
        if self.len == 0 {
            // All slots count as never used again, so that a chunk can go without a search for
            // its slots in the chain of free ones.
            self.free = NIL;
            self.fresh = 0;
        }
        value
    }

    /// Returns a value, or `None` for a stale handle.
    pub(crate) fn get(&self, handle: Handle) -> Option<&T> {
        self.get_both(handle).map(|(value, _)| value)
    }

    /// Returns a value and what is beside it, or `None` for a stale handle.
    pub(crate) fn get_both(&self, handle: Handle) -> Option<(&T, &B)> {
        let slot = self.slot(handle.index)?;
        let value = slot.value.as_ref()?;
        (slot.serial == handle.serial).then_some((value, &slot.beside))
    }

    /// Returns what is beside a value, to be written, or `None` for a stale handle.
    pub(crate) fn beside_mut(&mut self, handle: Handle) -> Option<&mut B> {
        self.live_mut(handle).map(|slot| &mut slot.beside)
    }

    /// Appends a value's slot to a list through link number `l`.
    ///
    /// Does nothing for a stale handle, or if the slot is already in a list through that link.
    pub(crate) fn link(&mut self, handle: Handle, l: usize, fifo: &mut Fifo) {
        let last = fifo.tail;
        let Some(link) = self.live_mut(handle).and_then(|s| s.links.get_mut(l)) else {
            return;
        };
        if link.is_inside() {
            return;
        }
        *link = Link {
            prev: last,
            next: NIL,
        };
        match self.link_mut(last, l) {
            Some(link) => link.next = handle.index,
            None => fifo.head = handle.index,
        }
        fifo.tail = handle.index;
    }

    /// Takes a value's slot out of the list that it is in through link number `l`.
    ///
    /// Does nothing for a stale handle, or if the slot is in no list through that link.
    pub(crate) fn unlink(&mut self, handle: Handle, l: usize, fifo: &mut Fifo) {
        let Some(link) = self.live_mut(handle).and_then(|s| s.links.get_mut(l)) else {
            return;
        };
        if !link.is_inside() {
            return;
        }
        let Link { prev, next } = mem::replace(link, Link::OUTSIDE);
        match self.link_mut(prev, l) {
            Some(link) => link.next = next,
            None => fifo.head = next,
        }
        match self.link_mut(next, l) {
            Some(link) => link.prev = prev,
            None => fifo.tail = prev,
        }
    }

    /// Returns the value whose slot was linked first of those in the list.
    pub(crate) fn first(&self, fifo: &Fifo) -> Option<Handle> {
        let index = fifo.head;
        self.slot(index).map(|slot| Handle {
            serial: slot.serial,
            index,
        })
    }

    /// Whether there is a surplus chunk.
    pub(crate) fn has_surplus(&self) -> bool {
        self.len == 0 && self.chunks > KEEP_CHUNKS
    }

    /// Moves a surplus chunk of an empty arena into `spare`, which should be empty.
    ///
    /// Returns whether there is more to take: call it again with an emptied spare.
    pub(crate) fn shed(&mut self, spare: &mut Spare<T, L, B>) -> bool {
        if !self.has_surplus() {
            return false;
        }
        if !spare.is_empty() {
            return true;
        }
        let (segment, place) = place_of_chunk(self.chunks as usize - 1);
        if let Some(segment) = self.segments.get_mut(segment) {
            spare.chunk = segment.pop();
            if place == 0 {
                mem::swap(segment, &mut spare.segment);
            }
        }
        self.chunks -= 1;
        self.chunks > KEEP_CHUNKS
    }

    fn capacity(&self) -> usize {
        self.chunks as usize * SLOTS
    }

    fn slot(&self, index: u32) -> Option<&Slot<T, L, B>> {
        visit();
        let (segment, place) = place_of_chunk(index as usize / SLOTS);
        let chunk = self.segments.get(segment)?.get(place)?;
        chunk.get(index as usize % SLOTS)
    }

    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot<T, L, B>> {
        visit();
        let (segment, place) = place_of_chunk(index as usize / SLOTS);
        let chunk = self.segments.get_mut(segment)?.get_mut(place)?;
        chunk.get_mut(index as usize % SLOTS)
    }

    fn live_mut(&mut self, handle: Handle) -> Option<&mut Slot<T, L, B>> {
        self.slot_mut(handle.index)
            .filter(|slot| slot.serial == handle.serial)
    }

    fn link_mut(&mut self, index: u32, l: usize) -> Option<&mut Link> {
        if index == NIL {
            return None;
        }
        self.slot_mut(index)?.links.get_mut(l)
    }

    fn take_free_slot(&mut self, spare: &mut Spare<T, L, B>) -> Option<u32> {
        if let Some(slot) = self.slot(self.free) {
            let next = slot.links[0].next;
            return Some(mem::replace(&mut self.free, next));
        }
        if self.fresh as usize == self.capacity() && !self.grow(spare) {
            return None;
        }
        self.fresh += 1;
        Some(self.fresh - 1)
    }

    fn grow(&mut self, spare: &mut Spare<T, L, B>) -> bool {
        let (number, _) = place_of_chunk(self.chunks as usize);
        let Some(segment) = self.segments.get_mut(number) else {
            return false;
        };
        let Some(chunk) = spare.chunk.take() else {
            return false;
        };
        if segment.capacity() == 0 && spare.segment.capacity() >= size_of_segment(number) {
            mem::swap(segment, &mut spare.segment);
        }
        match segment.push_within_capacity(chunk) {
            Ok(()) => {
                self.chunks += 1;
                true
            }
            Err(PushError(chunk)) => {
                spare.chunk = Some(chunk);
                false
            }
        }
    }
}

#[cfg(KCCM_KUNIT)]
#[kunit_tests(kccm_arena)]
mod tests {
    use super::*;

    /// Values that fill the first segment.
    const FILL_SEGMENT: u32 = (SLOTS * FIRST_SEGMENT) as u32;

    /// Inserts a value, with new memory if it takes some.
    fn put<T, const L: usize>(arena: &mut Arena<T, L>, value: T) -> Result<Handle> {
        let mut spare = Spare::new();
        spare.fill(arena.need(&spare), GFP_KERNEL)?;
        arena.insert(value, &mut spare).map_err(|_| ENOMEM)
    }

    fn put_many(arena: &mut Arena<u32, 1>, count: u32) -> Result<KVVec<Handle>> {
        let mut handles = KVVec::new();
        for value in 0..count {
            handles.push(put(arena, value)?, GFP_KERNEL)?;
        }
        Ok(handles)
    }

    /// Returns whether a list reads as `expected` forwards, and backwards from its end.
    fn reads<const L: usize>(
        arena: &Arena<u32, L>,
        l: usize,
        fifo: &Fifo,
        expected: &[u32],
    ) -> bool {
        let value = |at: u32| arena.slot(at).and_then(|slot| slot.value);
        let (mut forwards, mut backwards) = (fifo.head, fifo.tail);
        for i in 0..expected.len() {
            if value(forwards) != Some(expected[i])
                || value(backwards) != Some(expected[expected.len() - 1 - i])
            {
                return false;
            }
            forwards = arena.slot(forwards).map_or(NIL, |slot| slot.links[l].next);
            backwards = arena.slot(backwards).map_or(NIL, |slot| slot.links[l].prev);
        }
        forwards == NIL && backwards == NIL && fifo.is_empty() == expected.is_empty()
    }

    #[test]
    fn places_of_chunks() {
        let cases = [
            (0, (0, 0)),
            (1, (0, 1)),
            (63, (0, 63)),
            (64, (1, 0)),
            (191, (1, 127)),
            (192, (2, 0)),
            (447, (2, 255)),
            (448, (3, 0)),
        ];
        for (chunk, place) in cases {
            assert_eq!(place_of_chunk(chunk), place);
        }
        // The last segment ends below the numbers that stand for no slot.
        let (segment, _) = place_of_chunk(OUT as usize / SLOTS);
        assert_eq!(segment, SEGMENTS);
        let (segment, place) = place_of_chunk(OUT as usize / SLOTS - FIRST_SEGMENT);
        assert_eq!(segment, SEGMENTS - 1);
        assert_eq!(place, size_of_segment(segment) - 1);
    }

    #[test]
    fn value_in_and_out() -> Result {
        let mut arena = Arena::<u32, 1>::new();
        let a = put(&mut arena, 10)?;
        let b = put(&mut arena, 20)?;
        assert_eq!(arena.len(), 2);
        assert!(a.serial() < b.serial());
        assert_eq!(arena.get(a), Some(&10));
        assert_eq!(arena.get(b), Some(&20));
        assert_eq!(arena.remove(a), Some(10));
        assert_eq!(arena.len(), 1);
        assert_eq!(arena.get(b), Some(&20));
        assert_eq!(arena.remove(b), Some(20));
        assert_eq!(arena.len(), 0);
        Ok(())
    }

    #[test]
    fn stale_handle_is_refused() -> Result {
        let mut arena = Arena::<u32, 1>::new();
        let mut fifo = Fifo::new();
        let keep = put(&mut arena, 1)?;
        let old = put(&mut arena, 2)?;
        assert_eq!(arena.remove(old), Some(2));
        assert!(arena.get(old).is_none());
        assert!(arena.remove(old).is_none());

        // The same with the slot in use again.
        let new = put(&mut arena, 3)?;
        assert_eq!(new.index, old.index);
        assert!(arena.get(old).is_none());
        assert!(arena.remove(old).is_none());
        arena.link(old, 0, &mut fifo);
        assert!(fifo.is_empty());
        arena.link(new, 0, &mut fifo);
        arena.unlink(old, 0, &mut fifo);
        assert!(reads(&arena, 0, &fifo, &[3]));

        // The same after the arena was empty and starts over.
        arena.unlink(new, 0, &mut fifo);
        assert_eq!(arena.remove(new), Some(3));
        assert_eq!(arena.remove(keep), Some(1));
        let again = put(&mut arena, 4)?;
        assert_eq!(again.index, keep.index);
        assert!(arena.remove(keep).is_none());
        assert_eq!(arena.get(again), Some(&4));
        Ok(())
    }

    #[test]
    fn list_keeps_order_whichever_slots_leave() -> Result {
        // Four slots leave in each of the 24 orders: first, last and middle ones, and the only one.
        for order in 0..24 {
            let mut arena = Arena::<u32, 1>::new();
            let mut fifo = Fifo::new();
            let mut handles = KVec::new();
            let mut left = KVec::new();
            for value in 0..4 {
                let handle = put(&mut arena, value)?;
                arena.link(handle, 0, &mut fifo);
                handles.push(handle, GFP_KERNEL)?;
                left.push(value, GFP_KERNEL)?;
                assert!(reads(&arena, 0, &fifo, &left));
            }
            assert_eq!(arena.first(&fifo), Some(handles[0]));
            for pick in [order % 4, order / 4 % 3, order / 12, 0] {
                arena.unlink(handles[pick], 0, &mut fifo);
                let value = arena.remove(handles.remove(pick)?);
                assert_eq!(value, Some(left.remove(pick)?));
                assert!(reads(&arena, 0, &fifo, &left));
                assert_eq!(arena.first(&fifo), handles.first().copied());
            }
        }
        Ok(())
    }

    #[test]
    fn links_are_independent() -> Result {
        let mut arena = Arena::<u32, 2>::new();
        let (mut even, mut all) = (Fifo::new(), Fifo::new());
        let mut handles = KVec::new();
        for value in 0..6 {
            let handle = put(&mut arena, value)?;
            handles.push(handle, GFP_KERNEL)?;
            arena.link(handle, 0, &mut all);
            if value % 2 == 0 {
                arena.link(handle, 1, &mut even);
            }
        }
        assert!(reads(&arena, 0, &all, &[0, 1, 2, 3, 4, 5]));
        assert!(reads(&arena, 1, &even, &[0, 2, 4]));
        arena.unlink(handles[2], 0, &mut all);
        assert!(reads(&arena, 0, &all, &[0, 1, 3, 4, 5]));
        assert!(reads(&arena, 1, &even, &[0, 2, 4]));
        arena.unlink(handles[4], 1, &mut even);
        assert!(reads(&arena, 0, &all, &[0, 1, 3, 4, 5]));
        assert!(reads(&arena, 1, &even, &[0, 2]));
        Ok(())
    }

    #[test]
    fn misuse_changes_nothing() -> Result {
        let mut arena = Arena::<u32, 2>::new();
        let mut fifo = Fifo::new();
        let a = put(&mut arena, 1)?;
        let b = put(&mut arena, 2)?;
        arena.unlink(a, 0, &mut fifo);
        assert!(fifo.is_empty());
        arena.link(a, 0, &mut fifo);
        arena.link(b, 0, &mut fifo);
        // Twice through the same link, and through one that there is not.
        arena.link(a, 0, &mut fifo);
        arena.link(a, 2, &mut fifo);
        arena.unlink(a, 1, &mut fifo);
        arena.unlink(a, 2, &mut fifo);
        assert!(reads(&arena, 0, &fifo, &[1, 2]));
        // A list still holds them.
        assert!(arena.remove(a).is_none());
        assert!(arena.remove(b).is_none());
        assert!(reads(&arena, 0, &fifo, &[1, 2]));
        assert_eq!(arena.len(), 2);
        Ok(())
    }

    const FIRST_NEED: Need = Need {
        chunk: true,
        segment: FIRST_SEGMENT,
    };
    const CHUNK_ONLY: Need = Need {
        segment: 0,
        ..FIRST_NEED
    };
    const SEGMENT_ONLY: Need = Need {
        chunk: false,
        ..FIRST_NEED
    };

    #[test]
    fn need_is_what_the_spare_lacks() -> Result {
        let mut arena = Arena::<u32, 1>::new();
        let cases = [
            (Need::default(), FIRST_NEED),
            (CHUNK_ONLY, SEGMENT_ONLY),
            (SEGMENT_ONLY, CHUNK_ONLY),
        ];
        for (filled, lacking) in cases {
            let mut spare = Spare::new();
            spare.fill(filled, GFP_KERNEL)?;
            assert_eq!(arena.need(&spare), lacking);
            assert!(arena.insert(7, &mut spare) == Err(7));
            // What failed has left both as they were.
            assert_eq!(arena.need(&spare), lacking);
            assert_eq!(arena.len(), 0);
            spare.fill(lacking, GFP_KERNEL)?;
            assert!(arena.need(&spare).is_none());
        }
        Ok(())
    }

    #[test]
    fn need_is_a_chunk_when_the_last_one_is_full() -> Result {
        let mut arena = Arena::<u32, 1>::new();
        let mut spare = Spare::new();
        spare.fill(FIRST_NEED, GFP_KERNEL)?;
        for value in 0..SLOTS as u32 {
            assert!(arena.need(&spare).is_none());
            assert!(arena.insert(value, &mut spare).is_ok());
            assert!(spare.is_empty());
        }
        assert_eq!(arena.need(&spare), CHUNK_ONLY);
        assert!(arena.insert(7, &mut spare) == Err(7));
        assert_eq!(arena.len(), SLOTS);
        Ok(())
    }

    #[test]
    fn need_beyond_the_last_segment_cannot_be_filled() {
        let need = Need {
            chunk: true,
            segment: size_of_segment(SEGMENTS),
        };
        let mut spare = Spare::<u32, 1>::new();
        assert!(spare.fill(need, GFP_KERNEL).is_err());
    }

    #[test]
    fn growing_moves_nothing() -> Result {
        let mut arena = Arena::<u32, 1>::new();
        let first = put(&mut arena, 0)?;
        let address = arena.get(first).map(core::ptr::from_ref);
        let handles = put_many(&mut arena, FILL_SEGMENT + 1000)?;
        assert_eq!(arena.segments[1].len(), 1001_usize.div_ceil(SLOTS));
        assert_eq!(arena.segments[2].capacity(), 0);
        assert!(address == arena.get(first).map(core::ptr::from_ref));
        for (value, handle) in handles.iter().enumerate() {
            assert_eq!(arena.get(*handle), Some(&(value as u32)));
        }
        assert_eq!(arena.len(), handles.len() + 1);
        Ok(())
    }

    #[test]
    fn a_table_that_is_too_small_is_not_used() -> Result {
        let mut arena = Arena::<u32, 1>::new();
        put_many(&mut arena, FILL_SEGMENT)?;
        let mut spare = Spare::new();
        spare.fill(FIRST_NEED, GFP_KERNEL)?;
        let need = arena.need(&spare);
        assert_eq!((need.chunk, need.segment), (false, 2 * FIRST_SEGMENT));
        assert!(arena.insert(7, &mut spare) == Err(7));
        spare.fill(need, GFP_KERNEL)?;
        assert!(arena.insert(7, &mut spare).is_ok());
        Ok(())
    }

    #[test]
    fn freed_slots_are_used_first() -> Result {
        let mut arena = Arena::<u32, 1>::new();
        let handles = put_many(&mut arena, SLOTS as u32)?;
        let mut none = Spare::new();
        for handle in &handles[10..20] {
            assert!(arena.remove(*handle).is_some());
        }
        for value in 0..10 {
            assert!(arena.need(&none).is_none());
            assert!(arena.insert(value, &mut none).is_ok());
        }
        assert_eq!(arena.need(&none), CHUNK_ONLY);
        assert!(arena.insert(7, &mut none) == Err(7));
        Ok(())
    }

    fn shed_all(arena: &mut Arena<u32, 1>) -> u32 {
        let mut chunks = 0;
        loop {
            let mut spare = Spare::new();
            let more = arena.shed(&mut spare);
            chunks += u32::from(spare.chunk.is_some());
            if !more {
                return chunks;
            }
        }
    }

    #[test]
    fn surplus_goes_when_the_arena_is_empty() -> Result {
        let mut arena = Arena::<u32, 1>::new();
        let handles = put_many(&mut arena, FILL_SEGMENT + 1)?;
        let chunks = arena.chunks;
        let mut spare = Spare::new();
        for handle in &handles[1..] {
            assert!(arena.remove(*handle).is_some());
        }
        // One value is left: no chunk may go.
        assert!(!arena.shed(&mut spare));
        assert!(spare.is_empty());
        assert!(arena.remove(handles[0]).is_some());

        // The first chunk to go takes the table of its segment along.
        assert!(arena.shed(&mut spare));
        assert!(spare.chunk.is_some());
        assert!(spare.segment.capacity() >= 2 * FIRST_SEGMENT);
        // A spare that is full takes no more, and loses nothing.
        assert!(arena.shed(&mut spare));
        assert_eq!(arena.chunks, chunks - 1);
        assert_eq!(shed_all(&mut arena), chunks - 1 - KEEP_CHUNKS);
        assert_eq!(arena.chunks, KEEP_CHUNKS);
        Ok(())
    }

    #[test]
    fn handles_are_stale_in_new_chunks() -> Result {
        let mut arena = Arena::<u32, 1>::new();
        let handles = put_many(&mut arena, FILL_SEGMENT + 1)?;
        for handle in &handles {
            assert!(arena.remove(*handle).is_some());
        }
        shed_all(&mut arena);
        let again = put_many(&mut arena, FILL_SEGMENT + 1)?;
        for (old, new) in handles.iter().zip(&again) {
            assert_eq!(old.index, new.index);
            assert!(arena.get(*old).is_none());
            assert!(arena.get(*new).is_some());
        }
        Ok(())
    }

    #[test]
    fn what_is_beside_a_value_stays_where_it_is() -> Result {
        let mut arena = Arena::<u32, 1, [u8; 4]>::new();
        let mut spare = Spare::new();
        spare.fill(arena.need(&spare), GFP_KERNEL)?;
        let mut put = |value| arena.insert(value, &mut spare).map_err(|_| ENOSPC);
        let (first, second) = (put(1)?, put(2)?);
        assert_eq!(arena.get_both(first), Some((&1, &[0; 4])));
        for (handle, bytes) in [(first, [1; 4]), (second, [2; 4])] {
            *arena.beside_mut(handle).ok_or(ENOENT)? = bytes;
        }
        for (handle, both) in [(first, (&1, &[1; 4])), (second, (&2, &[2; 4]))] {
            assert_eq!(arena.get_both(handle), Some(both));
        }
        assert_eq!(arena.remove(first), Some(1));
        assert!(arena.get_both(first).is_none() && arena.beside_mut(first).is_none());
        assert_eq!(arena.get_both(second), Some((&2, &[2; 4])));
        Ok(())
    }
}
