// SPDX-License-Identifier: GPL-2.0

//! The matching of messages with those who receive them.
//!
//! A [`Matcher`] holds the two queues of an endpoint: the messages that nobody has asked for yet
//! (the receive queue) and the waiters that no message has come for yet (the receive-wait queue).
//! It knows of neither sockets nor threads; messages and waiters are values of the user's types.
//!
//! # Rules
//!
//! They are those of MPI's point-to-point messages (MPI 4.1, section 3.5, "Semantics of
//! Point-to-Point Communication"). A message has a source and a tag; a receive names a
//! [`Pattern`] of an exact source or any, and an exact tag or any.
//!
//! - Of the messages that match a receive, the one that arrived first is taken, hence messages of
//!   one source on one tag are received in the order in which they were sent.
//! - Of the waiters that match a message, the one that was posted first gets it, whichever kind of
//!   pattern each has.
//!
//! # Buckets
//!
//! For every pattern that is in use there is a bucket in a red-black tree. A message is linked
//! into the lists of all four patterns that match it, so that a receive looks at the head of one
//! list and at nothing else; a waiter is linked under the one pattern that it was posted with, and
//! a message looks at the heads of four lists and compares when they were posted. What an
//! operation costs does not depend on how much is queued, under other tags or the same one, but
//! for the logarithm of the number of patterns in use, which is the depth of the tree.
//!
//! # Memory
//!
//! The user holds a spin lock around every call, therefore nothing is allocated or freed here.
//! What lacks memory gives back its argument in a [`NoRoom`], with what it needs: the user unlocks,
//! calls [`Room::fill`], locks, and tries again from the beginning, because whatever it found
//! before has had time to change. Nodes of the tree are kept for reuse, thus a steady flow needs
//! no memory; what is too much is handed out by [`Matcher::shed`].

#![deny(unsafe_code)]

use core::cmp::Ordering;

use kernel::{
    prelude::*,
    rbtree::{
        Entry,
        RBTree,
        RBTreeNode,
        RBTreeNodeReservation, //
    }, //
};

use super::arena::{
    self,
    Arena,
    Fifo,
    Handle,
    Spare, //
};

use crate::config::NodeId;
use crate::conn::frame::FEW;

/// The lists that a message is in, one for each pattern that matches it: [`Key::matching`].
const MESSAGE_LISTS: usize = 4;

/// The lists that a waiter is in: [`OWN`], [`OF_SOURCE`] and [`ALL`].
const WAITER_LISTS: usize = 3;

/// Link of a waiter in the list of its own pattern, [`Bucket::waiters`].
const OWN: usize = 0;
/// Link of a waiter in the list of those for the same source, [`Bucket::of_source`].
const OF_SOURCE: usize = 1;
/// Link of a waiter in the list of all waiters, [`Matcher::posted`].
const ALL: usize = 2;

/// Spare tree nodes that are kept for reuse.
const KEEP_NODES: usize = 32;

/// Tree nodes that a [`Room`] can hold: those of a message, whose three patterns other than
/// (any, any) may all be new, and some more for [`Matcher::shed`].
const ROOM_NODES: usize = 8;

/// What a receive asks for: `None` stands for any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pattern {
    /// The node that the message comes from.
    pub(crate) source: Option<NodeId>,
    /// The message's tag.
    pub(crate) tag: Option<u32>,
}

/// A [`Pattern`] in one number, for cheap comparisons.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key(u64);

impl Key {
    /// The key of (any, any).
    const ANY: Self = Self(0);

    fn new(source: Option<NodeId>, tag: Option<u32>) -> Self {
        static_assert!(NodeId::BITS + u32::BITS + 2 <= u64::BITS);
        let source = source.map_or(0, |source| u64::from(source) + 1);
        let tag = tag.map_or(0, |tag| u64::from(tag) + 1);
        Self(source << (u32::BITS + 1) | tag)
    }

    /// Returns the patterns that match a message; their places are the message's link numbers.
    fn matching(source: NodeId, tag: u32) -> [Self; MESSAGE_LISTS] {
        [
            Self::new(Some(source), Some(tag)),
            Self::new(None, Some(tag)),
            Self::new(Some(source), None),
            Self::ANY,
        ]
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        arena::visit();
        self.0.cmp(&other.0)
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What is queued under one pattern.
struct Bucket {
    /// Messages that the pattern matches.
    messages: Fifo,
    /// Waiters that were posted with exactly this pattern.
    waiters: Fifo,
    /// In the bucket of a source and any tag: waiters for that source, whatever their tag.
    of_source: Fifo,
}

impl Bucket {
    const fn new() -> Self {
        Self {
            messages: Fifo::new(),
            waiters: Fifo::new(),
            of_source: Fifo::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.waiters.is_empty() && self.of_source.is_empty()
    }
}

type Reservation = RBTreeNodeReservation<Key, Bucket>;

/// A stack of spare tree nodes.
///
/// It is itself a tree, because a tree is linked through its nodes: it takes any number of them
/// without memory of its own. The keys are the positions in the stack.
struct SpareNodes {
    tree: RBTree<Key, Bucket>,
    len: usize,
}

impl SpareNodes {
    fn new() -> Self {
        Self {
            tree: RBTree::new(),
            len: 0,
        }
    }

    fn push(&mut self, node: RBTreeNode<Key, Bucket>) {
        let key = Key(self.len as u64);
        self.tree
            .insert(node.into_reservation().into_node(key, Bucket::new()));
        self.len += 1;
    }

    fn pop(&mut self) -> Option<Reservation> {
        let top = self.len.checked_sub(1)?;
        let node = self.tree.remove_node(&Key(top as u64))?;
        self.len = top;
        Some(node.into_reservation())
    }
}

/// The buckets of all patterns in use, and the memory for more.
///
/// # Invariants
///
/// No bucket in the tree is empty, except while one operation of [`Matcher`] runs.
struct Buckets {
    /// The bucket of (any, any), which is always there.
    any: Bucket,
    tree: RBTree<Key, Bucket>,
    spare: SpareNodes,
}

impl Buckets {
    fn new() -> Self {
        Self {
            any: Bucket::new(),
            tree: RBTree::new(),
            spare: SpareNodes::new(),
        }
    }

    fn get(&self, key: Key) -> Option<&Bucket> {
        if key == Key::ANY {
            return Some(&self.any);
        }
        self.tree.get(&key)
    }

    /// Returns how many tree nodes `nodes` must hold for all `keys` to have a bucket, or 0 if it
    /// holds enough. The keys differ from each other.
    fn lacking(&self, keys: &[Key], nodes: &Nodes) -> usize {
        let have = nodes.len();
        if self.spare.len + have >= keys.len() {
            // Enough, whichever buckets are there.
            return 0;
        }
        let missing = keys.iter().filter(|key| self.get(**key).is_none()).count();
        let wanted = missing.saturating_sub(self.spare.len);
        if have < wanted {
            wanted
        } else {
            0
        }
    }

    /// Applies `f` to the bucket of `key`, which is made from a spare node if it is not there.
    ///
    /// The caller has asked [`Buckets::lacking`]; without a node for the bucket, nothing happens.
    fn enter(&mut self, key: Key, nodes: &mut Nodes, f: impl FnOnce(&mut Bucket)) {
        if key == Key::ANY {
            return f(&mut self.any);
        }
        match self.tree.entry(key) {
            Entry::Occupied(entry) => f(entry.into_mut()),
            Entry::Vacant(entry) => {
                if let Some(node) = self.spare.pop().or_else(|| nodes.pop()) {
                    f(entry.insert(Bucket::new(), node));
                }
            }
        }
    }

    /// Applies `f` to the bucket of `key`, and puts its node aside if that has emptied it.
    fn leave(&mut self, key: Key, f: impl FnOnce(&mut Bucket)) {
        if key == Key::ANY {
            return f(&mut self.any);
        }
        if let Some(mut entry) = self.tree.find_mut(&key) {
            f(entry.get_mut());
            if entry.get().is_empty() {
                let node = entry.remove_node();
                self.spare.push(node);
            }
        }
    }
}

/// Tree nodes in a [`Room`].
struct Nodes([Option<Reservation>; ROOM_NODES]);

impl Nodes {
    const fn new() -> Self {
        Self([const { None }; ROOM_NODES])
    }

    fn len(&self) -> usize {
        self.0.iter().flatten().count()
    }

    fn pop(&mut self) -> Option<Reservation> {
        self.0.iter_mut().find_map(Option::take)
    }

    fn vacancy(&mut self) -> Option<&mut Option<Reservation>> {
        self.0.iter_mut().find(|place| place.is_none())
    }

    fn fill(&mut self, count: usize) -> Result {
        for _ in self.len()..count {
            if let Some(place) = self.vacancy() {
                *place = Some(Reservation::new(GFP_KERNEL)?);
            }
        }
        Ok(())
    }
}

/// The memory that an operation lacks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Need {
    messages: arena::Need,
    waiters: arena::Need,
    /// Tree nodes that the room is to hold.
    nodes: usize,
}

impl Need {
    /// Whether it lacks none.
    pub(crate) fn is_none(&self) -> bool {
        self.messages.is_none() && self.waiters.is_none() && self.nodes == 0
    }
}

/// An operation lacks memory: nothing has changed, and the argument comes back.
///
/// Drop the lock, fill a [`Room`] with `need`, and try again.
pub(crate) struct NoRoom<T> {
    /// The message or waiter that was to be entered.
    pub(crate) item: T,
    /// What to fill the room with.
    pub(crate) need: Need,
}

/// Memory on its way into a [`Matcher`] or out of it.
///
/// It belongs to a caller, which fills and drops it outside the lock. What is left in it after an
/// operation serves for the next one.
pub(crate) struct Room<M, W> {
    messages: Spare<Message<M>, MESSAGE_LISTS, Few>,
    waiters: Spare<Waiter<W>, WAITER_LISTS>,
    nodes: Nodes,
}

impl<M, W> Room<M, W> {
    /// Creates a room that holds no memory.
    pub(crate) const fn new() -> Self {
        Self {
            messages: Spare::new(),
            waiters: Spare::new(),
            nodes: Nodes::new(),
        }
    }

    /// Allocates what is needed. May sleep: the caller holds no spin lock.
    ///
    /// On an error the room keeps what it has got.
    pub(crate) fn fill(&mut self, need: Need) -> Result {
        self.messages.fill(need.messages, GFP_KERNEL)?;
        self.waiters.fill(need.waiters, GFP_KERNEL)?;
        self.nodes.fill(need.nodes)
    }

    /// Allocates tree nodes beyond what is needed, as far as there is memory. While the room has those of
    /// a whole message, [`Matcher::push_message`] need not look which buckets are there.
    pub(crate) fn stock(&mut self) {
        // Without them it looks.
        let _ = self.nodes.fill(ROOM_NODES);
    }
}

/// Room for the bytes of a message, if they are few, in its place in the queue.
struct Few([u8; FEW]);

impl Default for Few {
    fn default() -> Self {
        Self([0; FEW])
    }
}

struct Message<M> {
    source: NodeId,
    tag: u32,
    item: M,
}

struct Waiter<W> {
    pattern: Pattern,
    item: W,
}

/// A message that is queued, as [`Matcher::first`] shows it.
pub(crate) struct Queued<'a, M> {
    /// The node that it came from.
    pub(crate) source: NodeId,
    /// Its tag.
    pub(crate) tag: u32,
    /// Names it for [`Matcher::take`].
    pub(crate) handle: Handle,
    /// The message itself.
    pub(crate) message: &'a M,
    /// What [`Matcher::few`] was filled with.
    pub(crate) few: &'a [u8; FEW],
}

/// Names a posted waiter for [`Matcher::cancel`], also when it has been popped long ago.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket(Handle);

/// The receive queue and the receive-wait queue of an endpoint; see the [module](self).
///
/// All methods are called with the endpoint's lock held, which may be a spin lock with interrupts
/// off: they take a time that is bounded by the depth of the tree, and neither sleep nor free
/// memory. Dropping a matcher frees memory: not under a spin lock.
///
/// It does not pair messages with waiters on its own. A user that wants no message to be queued
/// while a waiter for it sleeps, calls [`pop_waiter`](Self::pop_waiter) before
/// [`push_message`](Self::push_message), and [`first`](Self::first) before
/// [`post_waiter`](Self::post_waiter), each pair under the lock without a break.
pub(crate) struct Matcher<M, W> {
    messages: Arena<Message<M>, MESSAGE_LISTS, Few>,
    waiters: Arena<Waiter<W>, WAITER_LISTS>,
    buckets: Buckets,
    /// All waiters.
    posted: Fifo,
}

impl<M, W> Matcher<M, W> {
    /// Creates a matcher with nothing queued. It allocates nothing.
    pub(crate) fn new() -> Self {
        Self {
            messages: Arena::new(),
            waiters: Arena::new(),
            buckets: Buckets::new(),
            posted: Fifo::new(),
        }
    }

    /// Returns how many messages are queued.
    pub(crate) fn messages(&self) -> usize {
        self.messages.len()
    }

    /// Returns how many waiters are posted.
    pub(crate) fn waiters(&self) -> usize {
        self.waiters.len()
    }

    /// Returns what [`Matcher::push_message`] would lack. Waiters that go make it no more.
    pub(crate) fn need_of_message(&self, source: NodeId, tag: u32, room: &Room<M, W>) -> Need {
        let [named @ .., _any] = &Key::matching(source, tag);
        Need {
            messages: self.messages.need(&room.messages),
            waiters: arena::Need::default(),
            nodes: self.buckets.lacking(named, &room.nodes),
        }
    }

    /// Queues a message that has arrived, behind all that arrived before.
    pub(crate) fn push_message(
        &mut self,
        source: NodeId,
        tag: u32,
        message: M,
        room: &mut Room<M, W>,
    ) -> Result<Handle, NoRoom<M>> {
        let need = self.need_of_message(source, tag, room);
        let full = |item| NoRoom { item, need };
        if !need.is_none() {
            return Err(full(message));
        }
        let message = Message {
            source,
            tag,
            item: message,
        };
        let handle = self
            .messages
            .insert(message, &mut room.messages)
            .map_err(|message| full(message.item))?;
        let (messages, buckets) = (&mut self.messages, &mut self.buckets);
        for (l, key) in Key::matching(source, tag).into_iter().enumerate() {
            buckets.enter(key, &mut room.nodes, |bucket| {
                messages.link(handle, l, &mut bucket.messages);
            });
        }
        Ok(handle)
    }

    /// Room for the bytes of a message that has just been queued, if they are few.
    pub(crate) fn few(&mut self, handle: Handle) -> Option<&mut [u8; FEW]> {
        self.messages.beside_mut(handle).map(|few| &mut few.0)
    }

    /// Returns the message that arrived first of those that match, and leaves it queued.
    pub(crate) fn first(&self, pattern: Pattern) -> Option<Queued<'_, M>> {
        let bucket = self.buckets.get(Key::new(pattern.source, pattern.tag))?;
        let handle = self.messages.first(&bucket.messages)?;
        let (message, few) = self.messages.get_both(handle)?;
        Some(Queued {
            source: message.source,
            tag: message.tag,
            handle,
            message: &message.item,
            few: &few.0,
        })
    }

    /// Takes a message out of the queue, with its source and tag.
    ///
    /// Returns `None` if somebody else has taken it in the meantime.
    pub(crate) fn take(&mut self, handle: Handle) -> Option<(NodeId, u32, M)> {
        let &Message { source, tag, .. } = self.messages.get(handle)?;
        let (messages, buckets) = (&mut self.messages, &mut self.buckets);
        for (l, key) in Key::matching(source, tag).into_iter().enumerate() {
            buckets.leave(key, |bucket| {
                messages.unlink(handle, l, &mut bucket.messages);
            });
        }
        let message = messages.remove(handle)?;
        Some((source, tag, message.item))
    }

    /// Takes out the message that arrived first of all, to empty the queue.
    pub(crate) fn pop_any_message(&mut self) -> Option<(NodeId, u32, M)> {
        let handle = self.messages.first(&self.buckets.any.messages)?;
        self.take(handle)
    }

    /// Posts a waiter, behind all that were posted before.
    pub(crate) fn post_waiter(
        &mut self,
        pattern: Pattern,
        waiter: W,
        room: &mut Room<M, W>,
    ) -> Result<Ticket, NoRoom<W>> {
        let own = Key::new(pattern.source, pattern.tag);
        let of_source = Key::new(pattern.source, None);
        let keys = [own, of_source];
        let keys = &keys[usize::from(own == of_source)..];
        let need = Need {
            messages: arena::Need::default(),
            waiters: self.waiters.need(&room.waiters),
            nodes: self.buckets.lacking(keys, &room.nodes),
        };
        let full = |item| NoRoom { item, need };
        if !need.is_none() {
            return Err(full(waiter));
        }
        let waiter = Waiter {
            pattern,
            item: waiter,
        };
        let handle = self
            .waiters
            .insert(waiter, &mut room.waiters)
            .map_err(|waiter| full(waiter.item))?;
        let (waiters, buckets) = (&mut self.waiters, &mut self.buckets);
        buckets.enter(own, &mut room.nodes, |bucket| {
            waiters.link(handle, OWN, &mut bucket.waiters);
        });
        buckets.enter(of_source, &mut room.nodes, |bucket| {
            waiters.link(handle, OF_SOURCE, &mut bucket.of_source);
        });
        waiters.link(handle, ALL, &mut self.posted);
        Ok(Ticket(handle))
    }

    /// Takes out the waiter that was posted first of those whose pattern matches a message.
    pub(crate) fn pop_waiter(&mut self, source: NodeId, tag: u32) -> Option<W> {
        if self.waiters.len() == 0 {
            return None;
        }
        let earliest = Key::matching(source, tag)
            .into_iter()
            .filter_map(|key| self.waiters.first(&self.buckets.get(key)?.waiters))
            .min_by_key(|handle| handle.serial())?;
        self.remove_waiter(earliest)
    }

    /// Takes a waiter out that wants to wait no longer.
    ///
    /// Returns `None` if it has been popped in the meantime.
    pub(crate) fn cancel(&mut self, ticket: Ticket) -> Option<W> {
        self.remove_waiter(ticket.0)
    }

    /// Takes out the waiter that was posted first of those for exactly this source, whatever their
    /// tag, for when nothing can come from there any more.
    pub(crate) fn pop_waiter_of_source(&mut self, source: NodeId) -> Option<W> {
        let bucket = self.buckets.get(Key::new(Some(source), None))?;
        let handle = self.waiters.first(&bucket.of_source)?;
        self.remove_waiter(handle)
    }

    /// Takes out the waiter that was posted first of all, to empty the queue.
    pub(crate) fn pop_any_waiter(&mut self) -> Option<W> {
        let handle = self.waiters.first(&self.posted)?;
        self.remove_waiter(handle)
    }

    /// Whether there is anything for [`Matcher::shed`] to move.
    pub(crate) fn has_surplus(&self) -> bool {
        self.messages.has_surplus()
            || self.waiters.has_surplus()
            || self.buckets.spare.len > KEEP_NODES
    }

    /// Moves memory that is no longer needed into the empty places of `room`.
    ///
    /// Returns whether there is more: drop the lock, empty the room, and call it again. It costs
    /// next to nothing when there is no surplus.
    pub(crate) fn shed(&mut self, room: &mut Room<M, W>) -> bool {
        let messages = self.messages.shed(&mut room.messages);
        let waiters = self.waiters.shed(&mut room.waiters);
        while self.buckets.spare.len > KEEP_NODES {
            let Some(place) = room.nodes.vacancy() else {
                return true;
            };
            *place = self.buckets.spare.pop();
        }
        messages || waiters
    }

    fn remove_waiter(&mut self, handle: Handle) -> Option<W> {
        let Pattern { source, tag } = self.waiters.get(handle)?.pattern;
        let (waiters, buckets) = (&mut self.waiters, &mut self.buckets);
        buckets.leave(Key::new(source, tag), |bucket| {
            waiters.unlink(handle, OWN, &mut bucket.waiters);
        });
        buckets.leave(Key::new(source, None), |bucket| {
            waiters.unlink(handle, OF_SOURCE, &mut bucket.of_source);
        });
        waiters.unlink(handle, ALL, &mut self.posted);
        waiters.remove(handle).map(|waiter| waiter.item)
    }
}

#[cfg(KCCM_KUNIT)]
#[kunit_tests(kccm_matcher)]
mod tests {
    use super::*;
    use kernel::sync::atomic::Relaxed;

    const SOURCE: NodeId = 1;
    const TAG: u32 = 7;

    const fn pattern(source: Option<NodeId>, tag: Option<u32>) -> Pattern {
        Pattern { source, tag }
    }

    const ANY: Pattern = pattern(None, None);

    /// The four kinds of pattern that match a message of [`SOURCE`] and [`TAG`].
    const KINDS: [Pattern; 4] = [
        pattern(Some(SOURCE), Some(TAG)),
        pattern(None, Some(TAG)),
        pattern(Some(SOURCE), None),
        ANY,
    ];

    /// A matcher and the memory for it.
    struct Bench {
        matcher: Matcher<u32, u32>,
        room: Room<u32, u32>,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                matcher: Matcher::new(),
                room: Room::new(),
            }
        }

        /// Queues a message. One filling must be enough.
        fn push(&mut self, source: NodeId, tag: u32, message: u32) -> Result {
            let Self { matcher, room } = self;
            let Err(full) = matcher.push_message(source, tag, message, room) else {
                return Ok(());
            };
            room.fill(full.need)?;
            matcher
                .push_message(source, tag, full.item, room)
                .map(|_| ())
                .map_err(|_| ENOMEM)
        }

        /// Posts a waiter. One filling must be enough.
        fn post(&mut self, pattern: Pattern, waiter: u32) -> Result<Ticket> {
            let Self { matcher, room } = self;
            let full = match matcher.post_waiter(pattern, waiter, room) {
                Ok(ticket) => return Ok(ticket),
                Err(full) => full,
            };
            room.fill(full.need)?;
            matcher
                .post_waiter(pattern, full.item, room)
                .map_err(|_| ENOMEM)
        }

        fn receive(&mut self, pattern: Pattern) -> Option<u32> {
            receive(&mut self.matcher, pattern).map(|(_, _, message)| message)
        }

        /// Returns whether nothing is queued and nothing is left of what was.
        fn is_clean(&self) -> bool {
            let Buckets { any, tree, .. } = &self.matcher.buckets;
            self.matcher.messages() == 0
                && self.matcher.waiters() == 0
                && any.is_empty()
                && tree.is_empty()
                && self.matcher.posted.is_empty()
        }
    }

    fn receive(matcher: &mut Matcher<u32, u32>, pattern: Pattern) -> Option<(NodeId, u32, u32)> {
        let handle = matcher.first(pattern)?.handle;
        matcher.take(handle)
    }

    /// The matching rule, written down once more: what every other result is compared with.
    fn matches(pattern: Pattern, source: NodeId, tag: u32) -> bool {
        pattern.source.is_none_or(|wanted| wanted == source)
            && pattern.tag.is_none_or(|wanted| wanted == tag)
    }

    /// Sources and tags at the ends of their ranges, where one must not pass for another or "any".
    const SOURCES: [NodeId; 4] = [0, 1, NodeId::MAX - 1, NodeId::MAX];
    const TAGS: [u32; 4] = [0, 1, u32::MAX - 1, u32::MAX];

    /// Calls `f` for every pattern over [`SOURCES`] and [`TAGS`].
    fn for_each_pattern(mut f: impl FnMut(Pattern) -> Result) -> Result {
        // Past the end there is `None`, any.
        for source in (0..=SOURCES.len()).map(|i| SOURCES.get(i).copied()) {
            for tag in (0..=TAGS.len()).map(|i| TAGS.get(i).copied()) {
                f(pattern(source, tag))?;
            }
        }
        Ok(())
    }

    /// Counts the slots and tree nodes that `f` looks at.
    fn cost<R>(f: impl FnOnce() -> R) -> (usize, R) {
        let before = arena::VISITS.load(Relaxed);
        let result = f();
        (arena::VISITS.load(Relaxed) - before, result)
    }

    /// P6, figure 2: what has arrived is taken without waiting, the earliest first.
    #[test]
    fn message_queued_before_its_receiver_asks() -> Result {
        let mut bench = Bench::new();
        assert!(bench.matcher.pop_waiter(SOURCE, TAG).is_none());
        bench.push(SOURCE, TAG, 1)?;
        bench.push(SOURCE, TAG, 2)?;
        let queued = bench.matcher.first(KINDS[0]).ok_or(ENOENT)?;
        assert_eq!(
            (queued.source, queued.tag, *queued.message),
            (SOURCE, TAG, 1)
        );
        // Looking at it has left it there.
        let handle = queued.handle;
        assert_eq!(bench.matcher.messages(), 2);
        assert_eq!(bench.matcher.take(handle), Some((SOURCE, TAG, 1)));
        assert_eq!(bench.receive(KINDS[0]), Some(2));
        assert_eq!(bench.receive(KINDS[0]), None);
        assert!(bench.is_clean());
        Ok(())
    }

    /// P7, figure 3: who waits gets the message that arrives, and nothing is queued.
    #[test]
    fn message_handed_to_a_waiter() -> Result {
        let mut bench = Bench::new();
        assert!(bench.matcher.first(KINDS[0]).is_none());
        bench.post(KINDS[0], 100)?;
        assert_eq!(bench.matcher.waiters(), 1);
        assert_eq!(bench.matcher.pop_waiter(SOURCE, TAG), Some(100));
        assert_eq!(bench.matcher.pop_waiter(SOURCE, TAG), None);
        assert!(bench.is_clean());
        Ok(())
    }

    /// P6, P7: every pattern against every message, both ways.
    #[test]
    fn patterns_match_what_they_say() -> Result {
        let mut bench = Bench::new();
        let mut wrong = 0;
        for_each_pattern(|pattern| {
            for source in SOURCES {
                for tag in TAGS {
                    let expected = matches(pattern, source, tag);

                    bench.push(source, tag, 1)?;
                    let taken = bench.receive(pattern) == Some(1);
                    wrong += usize::from(taken != expected);
                    bench.matcher.pop_any_message();

                    bench.post(pattern, 2)?;
                    let popped = bench.matcher.pop_waiter(source, tag) == Some(2);
                    wrong += usize::from(popped != expected);
                    bench.matcher.pop_any_waiter();
                }
            }
            Ok(())
        })?;
        assert_eq!(wrong, 0);
        assert!(bench.is_clean());
        Ok(())
    }

    /// P6: messages of one source on one tag are received in the order of their arrival, through
    /// whichever patterns, and in spite of others between them.
    #[test]
    fn earliest_message_is_taken_first() -> Result {
        for p in KINDS {
            for q in KINDS {
                let mut bench = Bench::new();
                for message in 1..=3 {
                    bench.push(SOURCE, TAG, message)?;
                }
                assert_eq!(bench.receive(p), Some(1));
                assert_eq!(bench.receive(q), Some(2));
                assert_eq!(bench.receive(p), Some(3));
                assert!(bench.is_clean());
            }
        }
        Ok(())
    }

    /// P6: first come, first served within what matches.
    #[test]
    fn earliest_of_the_matching_messages_is_taken() -> Result {
        // (pattern, the messages that it matches in the order of arrival)
        let arrivals = [(2, 8), (1, 8), (2, 7), (1, 7), (2, 8), (1, 7)];
        let cases: [(Pattern, &[u32]); 9] = [
            (pattern(None, None), &[0, 1, 2, 3, 4, 5]),
            (pattern(Some(1), None), &[1, 3, 5]),
            (pattern(Some(2), None), &[0, 2, 4]),
            (pattern(None, Some(7)), &[2, 3, 5]),
            (pattern(None, Some(8)), &[0, 1, 4]),
            (pattern(Some(1), Some(7)), &[3, 5]),
            (pattern(Some(2), Some(8)), &[0, 4]),
            (pattern(Some(2), Some(7)), &[2]),
            (pattern(Some(3), Some(7)), &[]),
        ];
        for (pattern, expected) in cases {
            let mut bench = Bench::new();
            for (message, (source, tag)) in (0..).zip(arrivals) {
                bench.push(source, tag, message)?;
            }
            for message in expected {
                let queued = bench.matcher.first(pattern).ok_or(ENOENT)?;
                assert_eq!((queued.source, queued.tag), arrivals[*message as usize]);
                assert_eq!(bench.receive(pattern), Some(*message));
            }
            assert!(bench.receive(pattern).is_none());
            assert_eq!(bench.matcher.messages(), arrivals.len() - expected.len());
        }
        Ok(())
    }

    /// P7: of the waiters that match, the one that was posted first, whatever its pattern: the
    /// four kinds in each of the 24 orders.
    #[test]
    fn earliest_waiter_gets_the_message() -> Result {
        for order in 0..24 {
            let mut bench = Bench::new();
            let mut kinds = KVec::new();
            kinds.extend_from_slice(&[0, 1, 2, 3], GFP_KERNEL)?;
            let mut posted = KVec::new();
            for pick in [order % 4, order / 4 % 3, order / 12, 0] {
                let kind = kinds.remove(pick)?;
                bench.post(KINDS[kind], kind as u32)?;
                posted.push(kind as u32, GFP_KERNEL)?;
            }
            // These match nothing that comes.
            bench.post(pattern(Some(SOURCE + 1), Some(TAG)), 10)?;
            bench.post(pattern(Some(SOURCE), Some(TAG + 1)), 11)?;
            for waiter in posted {
                assert_eq!(bench.matcher.pop_waiter(SOURCE, TAG), Some(waiter));
            }
            assert!(bench.matcher.pop_waiter(SOURCE, TAG).is_none());
            assert_eq!(bench.matcher.waiters(), 2);
        }
        // And every kind before and after each other kind, or the same one.
        for p in KINDS {
            for q in KINDS {
                let mut bench = Bench::new();
                for (waiter, pattern) in (0..).zip([p, q, p]) {
                    bench.post(pattern, waiter)?;
                }
                for waiter in 0..3 {
                    assert_eq!(bench.matcher.pop_waiter(SOURCE, TAG), Some(waiter));
                }
                assert!(bench.is_clean());
            }
        }
        Ok(())
    }

    #[test]
    fn cancelled_waiter_is_gone() -> Result {
        // The first, the middle, and the last of three, under every kind of pattern.
        for kind in KINDS {
            for cancelled in 0..3 {
                let mut bench = Bench::new();
                let mut tickets = KVec::new();
                for waiter in 0..3 {
                    tickets.push(bench.post(kind, waiter)?, GFP_KERNEL)?;
                }
                let ticket = tickets[cancelled as usize];
                assert_eq!(bench.matcher.cancel(ticket), Some(cancelled));
                assert_eq!(bench.matcher.cancel(ticket), None);
                assert_eq!(bench.matcher.waiters(), 2);
                for waiter in (0..3).filter(|waiter| *waiter != cancelled) {
                    assert_eq!(bench.matcher.pop_waiter(SOURCE, TAG), Some(waiter));
                }
                assert!(bench.is_clean());
            }
        }
        Ok(())
    }

    #[test]
    fn stale_ticket_and_handle_are_refused() -> Result {
        let mut bench = Bench::new();
        let ticket = bench.post(KINDS[0], 1)?;
        assert_eq!(bench.matcher.pop_waiter(SOURCE, TAG), Some(1));
        assert_eq!(bench.matcher.cancel(ticket), None);
        // The next waiter has its slot.
        let next = bench.post(KINDS[0], 2)?;
        assert_eq!(bench.matcher.cancel(ticket), None);
        assert_eq!(bench.matcher.cancel(next), Some(2));

        bench.push(SOURCE, TAG, 3)?;
        let handle = bench.matcher.first(ANY).ok_or(ENOENT)?.handle;
        assert_eq!(bench.receive(ANY), Some(3));
        assert!(bench.matcher.take(handle).is_none());
        bench.push(SOURCE, TAG, 4)?;
        assert!(bench.matcher.take(handle).is_none());
        assert_eq!(bench.receive(ANY), Some(4));
        assert!(bench.is_clean());
        Ok(())
    }

    #[test]
    fn waiters_of_a_source() -> Result {
        let mut bench = Bench::new();
        let posted = [
            pattern(None, Some(TAG)),
            pattern(Some(SOURCE), None),
            pattern(Some(SOURCE + 1), Some(TAG)),
            pattern(Some(SOURCE), Some(TAG)),
            ANY,
            pattern(Some(SOURCE), Some(TAG + 1)),
            pattern(Some(SOURCE), None),
        ];
        for (waiter, pattern) in (0..).zip(posted) {
            bench.post(pattern, waiter)?;
        }
        for waiter in [1, 3, 5, 6] {
            let popped = bench.matcher.pop_waiter_of_source(SOURCE);
            assert_eq!(popped, Some(waiter));
        }
        assert!(bench.matcher.pop_waiter_of_source(SOURCE).is_none());
        assert!(bench.matcher.pop_waiter_of_source(SOURCE + 2).is_none());
        // The others still wait.
        for waiter in [0, 2, 4] {
            let popped = bench.matcher.pop_waiter(SOURCE + 1, TAG);
            assert_eq!(popped, Some(waiter));
        }
        assert!(bench.is_clean());
        Ok(())
    }

    #[test]
    fn teardown_empties_both_queues() -> Result {
        let mut bench = Bench::new();
        let mut count = 0;
        for_each_pattern(|pattern| {
            bench.post(pattern, count)?;
            let source = pattern.source.unwrap_or(SOURCE);
            bench.push(source, pattern.tag.unwrap_or(TAG), count)?;
            count += 1;
            Ok(())
        })?;
        assert_eq!(bench.matcher.waiters(), count as usize);
        assert_eq!(bench.matcher.messages(), count as usize);
        for expected in 0..count {
            assert_eq!(bench.matcher.pop_any_waiter(), Some(expected));
            let message = bench.matcher.pop_any_message();
            assert_eq!(message.map(|(_, _, message)| message), Some(expected));
        }
        assert!(bench.matcher.pop_any_waiter().is_none());
        assert!(bench.matcher.pop_any_message().is_none());
        assert!(bench.is_clean());
        Ok(())
    }

    #[test]
    fn message_without_room_comes_back() -> Result {
        let mut matcher = Matcher::<u32, u32>::new();
        let mut empty = Room::new();
        let Err(full) = matcher.push_message(SOURCE, TAG, 42, &mut empty) else {
            return Err(EINVAL);
        };
        assert_eq!(full.item, 42);
        assert_eq!(full.need.nodes, 3);
        assert!(!full.need.messages.is_none());
        assert!(full.need.waiters.is_none());

        // With any part of what is needed missing, nothing changes either.
        let parts = [
            Need {
                nodes: 2,
                ..full.need
            },
            Need {
                messages: arena::Need::default(),
                ..full.need
            },
        ];
        for part in parts {
            let mut room = Room::new();
            room.fill(part)?;
            let Err(again) = matcher.push_message(SOURCE, TAG, 43, &mut room) else {
                return Err(EINVAL);
            };
            assert_eq!(again.item, 43);
            assert_eq!(matcher.messages(), 0);
            assert!(matcher.first(ANY).is_none());
            assert!(matcher.buckets.tree.is_empty());
            // What was missing is what is asked for, and what was there is kept.
            assert_eq!(again.need.nodes, if part.nodes == 3 { 0 } else { 3 });
            room.fill(again.need)?;
            assert_eq!(room.nodes.len(), 3);
        }
        Ok(())
    }

    #[test]
    fn message_needs_the_buckets_that_are_not_there() -> Result {
        // (source, tag, nodes needed with SOURCE and TAG queued)
        let cases = [
            (SOURCE, TAG, 0),
            (SOURCE, TAG + 1, 2),
            (SOURCE + 1, TAG, 2),
            (SOURCE + 1, TAG + 1, 3),
        ];
        for (source, tag, nodes) in cases {
            let mut bench = Bench::new();
            let mut empty = Room::new();
            bench.push(SOURCE, TAG, 1)?;
            let result = bench.matcher.push_message(source, tag, 2, &mut empty);
            assert_eq!(result.map_or_else(|full| full.need.nodes, |_| 0), nodes);
        }
        Ok(())
    }

    #[test]
    fn nodes_at_hand_are_not_asked_for() -> Result {
        // A waiter that comes and goes leaves one node.
        let mut bench = Bench::new();
        bench.push(SOURCE, TAG, 1)?;
        let ticket = bench.post(pattern(None, Some(TAG + 1)), 2)?;
        assert_eq!(bench.matcher.cancel(ticket), Some(2));
        assert_eq!(bench.matcher.buckets.spare.len, 1);
        // Two buckets are missing, one node is there.
        let Bench { matcher, room } = &mut bench;
        let Err(full) = matcher.push_message(SOURCE, TAG + 2, 3, room) else {
            return Err(EINVAL);
        };
        assert_eq!(full.need.nodes, 1);
        room.fill(full.need)?;
        assert_eq!(room.nodes.len(), 1);
        let result = matcher.push_message(SOURCE, TAG + 2, full.item, room);
        assert!(result.is_ok());
        assert_eq!(room.nodes.len(), 0);
        assert_eq!(matcher.buckets.spare.len, 0);
        Ok(())
    }

    #[test]
    fn waiter_without_room_comes_back() -> Result {
        // (pattern, nodes needed)
        let cases = [
            (ANY, 0),
            (pattern(None, Some(TAG)), 1),
            (pattern(Some(SOURCE), None), 1),
            (pattern(Some(SOURCE), Some(TAG)), 2),
        ];
        for (pattern, nodes) in cases {
            let mut matcher = Matcher::<u32, u32>::new();
            let mut room = Room::new();
            let Err(full) = matcher.post_waiter(pattern, 42, &mut room) else {
                return Err(EINVAL);
            };
            assert_eq!((full.item, full.need.nodes), (42, nodes));
            assert!(!full.need.waiters.is_none());
            assert!(full.need.messages.is_none());

            // One node too few.
            let fewer = Need {
                nodes: nodes.saturating_sub(1),
                ..full.need
            };
            room.fill(fewer)?;
            let result = matcher.post_waiter(pattern, 43, &mut room);
            assert_eq!(result.is_ok(), nodes == 0);
            assert_eq!(matcher.waiters(), usize::from(nodes == 0));
            room.fill(full.need)?;
            assert!(matcher.post_waiter(pattern, 44, &mut room).is_ok());

            // The same pattern once more needs nothing.
            let mut empty = Room::new();
            assert!(matcher.post_waiter(pattern, 45, &mut empty).is_ok());
        }
        Ok(())
    }

    #[test]
    fn what_is_left_in_a_room_serves_again() -> Result {
        let mut bench = Bench::new();
        bench.room.fill(Need {
            messages: arena::Need::default(),
            waiters: arena::Need::default(),
            nodes: ROOM_NODES,
        })?;
        bench.push(SOURCE, TAG, 1)?;
        assert_eq!(bench.room.nodes.len(), ROOM_NODES - 3);
        bench.push(SOURCE, TAG + 1, 2)?;
        assert_eq!(bench.room.nodes.len(), ROOM_NODES - 5);
        // Two have come back with this one, and are used before those in the room.
        assert_eq!(bench.receive(pattern(None, Some(TAG))), Some(1));
        bench.push(SOURCE, TAG + 2, 3)?;
        assert_eq!(bench.room.nodes.len(), ROOM_NODES - 5);
        Ok(())
    }

    #[test]
    fn steady_flow_needs_no_memory() -> Result {
        let mut bench = Bench::new();
        let mut empty = Room::new();
        // Three messages and three waiters stay queued, ever others under ever new patterns: after
        // the first three of each, all of it comes out of the memory that there is.
        for round in 0..5000_u32 {
            let source = round as NodeId;
            let pattern = pattern(Some(source + 1), Some(round));
            if round < 3 {
                bench.push(source, round, round)?;
                bench.post(pattern, round)?;
                continue;
            }
            let Bench { matcher, .. } = &mut bench;
            assert!(matcher.pop_any_message().is_some());
            let result = matcher.push_message(source, round, round, &mut empty);
            assert!(result.is_ok());
            assert!(matcher.pop_any_waiter().is_some());
            assert!(matcher.post_waiter(pattern, round, &mut empty).is_ok());
        }
        assert_eq!(empty.nodes.len(), 0);
        assert!(empty.messages.is_empty() && empty.waiters.is_empty());
        Ok(())
    }

    /// Takes all surplus out; returns how many tree nodes, and chunks for messages and waiters.
    fn shed_all(matcher: &mut Matcher<u32, u32>) -> (usize, usize, usize) {
        let mut sum = (0, 0, 0);
        loop {
            let mut room = Room::new();
            let more = matcher.shed(&mut room);
            sum.0 += room.nodes.len();
            sum.1 += usize::from(!room.messages.is_empty());
            sum.2 += usize::from(!room.waiters.is_empty());
            if !more {
                return sum;
            }
        }
    }

    #[test]
    fn surplus_is_handed_out() -> Result {
        // (messages, waiters, tags of them, what is surplus afterwards): a tag takes two nodes, and
        // the source with any tag takes one; of the 16 chunks of 1000 slots, 4 are kept.
        let cases = [
            (1000, 0, 1, (0, 12, 0)),
            (0, 1000, 1, (0, 0, 12)),
            (200, 200, 200, (401 - KEEP_NODES, 0, 0)),
            (1000, 1000, 1000, (2001 - KEEP_NODES, 12, 12)),
        ];
        for (messages, waiters, tags, surplus) in cases {
            let mut bench = Bench::new();
            for i in 0..messages {
                bench.push(SOURCE, i % tags, i)?;
            }
            for i in 0..waiters {
                bench.post(pattern(None, Some(i % tags)), i)?;
            }
            // Nothing is surplus while it is in use.
            assert_eq!(shed_all(&mut bench.matcher), (0, 0, 0));
            while bench.matcher.pop_any_message().is_some() {}
            while bench.matcher.pop_any_waiter().is_some() {}
            assert!(bench.is_clean());
            assert_eq!(shed_all(&mut bench.matcher), surplus);
            assert_eq!(shed_all(&mut bench.matcher), (0, 0, 0));
        }
        Ok(())
    }

    #[test]
    fn what_is_kept_is_enough_to_go_on() -> Result {
        let mut bench = Bench::new();
        for i in 0..200 {
            bench.push(SOURCE, i, i)?;
        }
        while bench.matcher.pop_any_message().is_some() {}
        shed_all(&mut bench.matcher);
        let mut empty = Room::new();
        for i in 0..10 {
            let result = bench.matcher.push_message(SOURCE + 1, i, i, &mut empty);
            assert!(result.is_ok());
        }
        Ok(())
    }

    /// P6: ten thousand messages, taken by tag, by source, and as they came.
    #[test]
    fn many_messages_keep_their_order() -> Result {
        const COUNT: u32 = 10_000;
        let by_tag = |message: u32| pattern(None, Some(message % 7));
        let by_source = |message: u32| pattern(Some((message % 3) as NodeId), None);
        let exact = |message: u32| pattern(Some((message % 3) as NodeId), Some(message % 7));
        let patterns: [&dyn Fn(u32) -> Pattern; 4] = [&by_tag, &by_source, &exact, &|_| ANY];
        for pattern_of in patterns {
            let mut bench = Bench::new();
            for message in 0..COUNT {
                bench.push((message % 3) as NodeId, message % 7, message)?;
            }
            assert_eq!(bench.matcher.messages(), COUNT as usize);
            let mut wrong = 0;
            for message in 0..COUNT {
                wrong += u32::from(bench.receive(pattern_of(message)) != Some(message));
            }
            assert_eq!(wrong, 0);
            assert!(bench.is_clean());
        }
        Ok(())
    }

    /// Returns the cost of each operation with `queued` messages under other tags.
    fn costs(queued: u32, other_tag: impl Fn(u32) -> u32) -> Result<[usize; 8]> {
        let mut bench = Bench::new();
        for message in 0..queued {
            bench.push(SOURCE, other_tag(message), message)?;
        }
        // So that every part has been needed once: from here on nothing is allocated.
        bench.push(SOURCE + 1, TAG, 0)?;
        bench.post(KINDS[0], 0)?;
        assert_eq!(bench.receive(pattern(None, Some(TAG))), Some(0));
        assert_eq!(bench.matcher.pop_waiter(SOURCE, TAG), Some(0));

        let (push, pushed) = cost(|| bench.push(SOURCE, TAG, 1));
        let (take, taken) = cost(|| bench.receive(KINDS[0]));
        let (miss, missed) = cost(|| bench.receive(KINDS[0]));
        pushed?;
        assert_eq!((taken, missed), (Some(1), None));
        let (post, ticket) = cost(|| bench.post(KINDS[0], 2));
        let ticket = ticket?;
        let (cancel, cancelled) = cost(|| bench.matcher.cancel(ticket));
        assert_eq!(cancelled, Some(2));
        let mut pop = [0; 3];
        for (pop, pattern) in pop.iter_mut().zip(KINDS) {
            bench.post(pattern, 3)?;
            let popped;
            (*pop, popped) = cost(|| bench.matcher.pop_waiter(SOURCE, TAG));
            assert_eq!(popped, Some(3));
        }
        Ok([push, take, miss, post, cancel, pop[0], pop[1], pop[2]])
    }

    /// P6, P7: what a match costs does not grow with what is queued under other tags.
    #[test]
    fn cost_does_not_grow_with_other_tags() -> Result {
        // All under one other tag: the very same steps.
        let few = costs(10, |_| TAG + 1)?;
        let many = costs(10_000, |_| TAG + 1)?;
        assert_eq!(few, many);
        assert!(few.iter().all(|cost| *cost > 0));

        // Each under a tag of its own: the tree is deeper by a few levels. It has 20000 nodes, so
        // that none is deeper than 2 log2(20000) = 29, and no operation searches it more than
        // seven times.
        let many = costs(10_000, |message| TAG + 1 + message)?;
        for (few, many) in few.into_iter().zip(many) {
            assert!(many <= few + 7 * 29);
        }
        Ok(())
    }

    /// P6, P7: what a match costs does not grow with what is queued under the same tag either.
    #[test]
    fn cost_does_not_grow_with_the_same_tag() -> Result {
        let mut costs = [[0; 4]; 2];
        for (costs, queued) in costs.iter_mut().zip([10, 10_000]) {
            let mut bench = Bench::new();
            let mut middle = None;
            for i in 0..queued {
                bench.push(SOURCE, TAG, i)?;
                let ticket = bench.post(KINDS[0], i)?;
                if i == queued / 2 {
                    middle = Some(ticket);
                }
            }
            let middle = middle.ok_or(EINVAL)?;
            let results;
            (costs[0], results) = cost(|| bench.receive(KINDS[0]));
            assert_eq!(results, Some(0));
            (costs[1], _) = cost(|| bench.matcher.pop_waiter(SOURCE, TAG));
            (costs[2], _) = cost(|| bench.matcher.cancel(middle));
            (costs[3], _) = cost(|| bench.push(SOURCE, TAG, queued));
            assert_eq!(bench.matcher.messages(), queued as usize);
            assert_eq!(bench.matcher.waiters(), queued as usize - 2);
        }
        assert_eq!(costs[0], costs[1]);
        Ok(())
    }

    /// Numbers that are the same in every run (Marsaglia's xorshift64).
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 16) as usize % limit
        }

        fn pick<T: Copy>(&mut self, from: &[T]) -> T {
            from[self.below(from.len())]
        }

        fn pattern(&mut self) -> Pattern {
            let source = self.pick(&SOURCES);
            let tag = self.pick(&TAGS);
            pattern(
                (self.below(3) > 0).then_some(source),
                (self.below(3) > 0).then_some(tag),
            )
        }
    }

    /// What a [`Matcher`] does, in the plainest way: two queues that are searched from the front.
    struct Model {
        messages: KVec<(NodeId, u32, u32)>,
        waiters: KVec<(Pattern, u32)>,
    }

    impl Model {
        fn receive(&mut self, pattern: Pattern) -> Option<(NodeId, u32, u32)> {
            let at = self
                .messages
                .iter()
                .position(|(source, tag, _)| matches(pattern, *source, *tag))?;
            self.messages.remove(at).ok()
        }

        fn remove_waiter(&mut self, f: impl FnMut(&(Pattern, u32)) -> bool) -> Option<u32> {
            let at = self.waiters.iter().position(f)?;
            self.waiters.remove(at).ok().map(|(_, waiter)| waiter)
        }

        /// Counts the patterns other than (any, any) that there must be a bucket for.
        fn buckets(&self) -> Result<usize> {
            let mut count = 0;
            for_each_pattern(|p| {
                let queued = self.messages.iter().any(|m| matches(p, m.0, m.1));
                let posted = self.waiters.iter().any(|(w, _)| {
                    *w == p || (p.source.is_some() && p.tag.is_none() && w.source == p.source)
                });
                count += usize::from(p != ANY && (queued || posted));
                Ok(())
            })?;
            Ok(count)
        }
    }

    /// A matcher and its model, and random operations on both.
    struct Trial {
        random: Random,
        bench: Bench,
        model: Model,
        /// Waiters that wait, were popped, or were cancelled.
        tickets: KVec<(Ticket, u32)>,
    }

    impl Trial {
        fn push(&mut self, number: u32) -> Result<bool> {
            let source = self.random.pick(&SOURCES);
            let tag = self.random.pick(&TAGS);
            self.bench.push(source, tag, number)?;
            let messages = &mut self.model.messages;
            messages.push((source, tag, number), GFP_KERNEL)?;
            Ok(true)
        }

        fn post(&mut self, number: u32) -> Result<bool> {
            let pattern = self.random.pattern();
            let ticket = self.bench.post(pattern, number)?;
            self.tickets.push((ticket, number), GFP_KERNEL)?;
            self.model.waiters.push((pattern, number), GFP_KERNEL)?;
            Ok(true)
        }

        fn receive(&mut self) -> bool {
            let pattern = self.random.pattern();
            receive(&mut self.bench.matcher, pattern) == self.model.receive(pattern)
        }

        fn pop_waiter(&mut self) -> bool {
            let source = self.random.pick(&SOURCES);
            let tag = self.random.pick(&TAGS);
            let expected = self
                .model
                .remove_waiter(|(pattern, _)| matches(*pattern, source, tag));
            self.bench.matcher.pop_waiter(source, tag) == expected
        }

        fn pop_waiter_of_source(&mut self) -> bool {
            let source = self.random.pick(&SOURCES);
            let expected = self
                .model
                .remove_waiter(|(pattern, _)| pattern.source == Some(source));
            self.bench.matcher.pop_waiter_of_source(source) == expected
        }

        fn cancel(&mut self) -> bool {
            if self.tickets.is_empty() {
                return true;
            }
            let (ticket, number) = self.random.pick(&self.tickets);
            let expected = self.model.remove_waiter(|(_, waiter)| *waiter == number);
            self.bench.matcher.cancel(ticket) == expected
        }

        fn pop_any(&mut self) -> bool {
            let matcher = &mut self.bench.matcher;
            matcher.shed(&mut Room::new());
            matcher.pop_any_message() == self.model.receive(ANY)
                && matcher.pop_any_waiter() == self.model.remove_waiter(|_| true)
        }

        /// Does one operation; returns whether both agree afterwards.
        fn step(&mut self, filling: bool, number: u32) -> Result<bool> {
            let agreed = match (self.random.below(16), filling) {
                (0, _) | (1..6, true) => self.push(number)?,
                (1..6, false) | (6..9, _) => self.receive(),
                (9, _) | (10..12, true) => self.post(number)?,
                (10..12, false) | (12, _) => self.pop_waiter(),
                (13, _) => self.cancel(),
                (14, _) => self.pop_waiter_of_source(),
                _ => self.pop_any(),
            };
            let Self { bench, model, .. } = self;
            Ok(agreed
                && bench.matcher.messages() == model.messages.len()
                && bench.matcher.waiters() == model.waiters.len())
        }
    }

    /// P6, P7: a long random sequence of everything has the results of the model.
    #[test]
    fn random_operations_agree_with_the_model() -> Result {
        const STEPS: u32 = 40_000;
        let mut trial = Trial {
            random: Random(0x9e37_79b9_7f4a_7c15),
            bench: Bench::new(),
            model: Model {
                messages: KVec::new(),
                waiters: KVec::new(),
            },
            tickets: KVec::new(),
        };
        let (mut longest, mut emptied) = (0, 0);
        for number in 0..STEPS {
            // Queues that grow to hundreds of entries and empty again.
            let filling = number / 1000 % 2 == 0;
            if number % 4000 == 0 {
                trial.tickets.clear();
            }
            assert!(trial.step(filling, number)?);
            longest = longest.max(trial.model.messages.len());
            emptied += u32::from(trial.model.messages.is_empty());
            if number % 64 == 0 {
                let buckets = trial.bench.matcher.buckets.tree.iter().count();
                assert_eq!(buckets, trial.model.buckets()?);
            }
        }
        // It has seen long queues and empty ones.
        assert!(longest > 100 && emptied > 100);
        while trial.bench.matcher.messages() + trial.bench.matcher.waiters() > 0 {
            assert!(trial.pop_any());
        }
        assert!(trial.model.messages.is_empty() && trial.model.waiters.is_empty());
        assert!(trial.bench.is_clean());
        Ok(())
    }
}
