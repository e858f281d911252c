// SPDX-License-Identifier: GPL-2.0

//! Who may send next to a peer: credit, room to keep what is sent, and those who wait for either.
//!
//! A frame needs credit of its lane ([`super::credit`]), which the other side grants, and room, as it is
//! kept until it has been acknowledged. A long message also waits while much is unsent. Callers hold the
//! peer's lock.

use super::credit::{
    message_cost,
    Lane,
    Sender,
    Violation, //
};
use super::session::Session;
use crate::sys::wait::OneShot;
use kernel::list::{
    impl_list_arc_safe,
    impl_list_item,
    AtomicTracker,
    List,
    ListArc,
    ListLinks,
    TryNewListArc, //
};
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::Arc;

/// What is sent, as far as it matters to who waits to do so.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A message.
    Short,
    /// A message of [`LONG`] bytes or more. Of these only so many bytes may wait to be sent: what is sent
    /// after them, a call perhaps, waits for them.
    Long,
    /// A call.
    Call,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Short, Self::Long, Self::Call];

    /// The kind of a frame in that lane that costs so much.
    pub(super) fn of(lane: Lane, cost: u64) -> Self {
        match lane {
            Lane::Messages if cost >= message_cost(LONG) => Self::Long,
            Lane::Messages => Self::Short,
            Lane::Calls => Self::Call,
        }
    }

    fn lane(self) -> Lane {
        match self {
            Self::Short | Self::Long => Lane::Messages,
            Self::Call => Lane::Calls,
        }
    }
}

/// Who waits, by what he is to send.
pub(super) type Waiters = [List<Waiter>; Kind::ALL.len()];

const fn no_waiters() -> Waiters {
    [const { List::new() }; Kind::ALL.len()]
}

/// Somebody who waits until he may send a frame.
#[pin_data]
pub(super) struct Waiter {
    kind: Kind,
    cost: u64,
    /// Who came earlier has the lower one.
    ticket: Atomic<u64>,
    /// Set, under the peer's lock, when it was let through.
    admitted: Atomic<bool>,
    /// Fired when it was let through, or turned away.
    #[pin]
    pub(super) done: OneShot,
    #[pin]
    links: ListLinks,
    #[pin]
    tracker: AtomicTracker,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for Waiter { tracked_by tracker: AtomicTracker; }
}
impl_list_item! {
    impl ListItem<0> for Waiter { using ListLinks { self.links }; }
}

impl Waiter {
    /// Somebody who waits, and is in no list yet. Process context.
    pub(super) fn new(kind: Kind, cost: u64) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                kind,
                cost,
                ticket: Atomic::new(0),
                admitted: Atomic::new(false),
                done <- OneShot::new(),
                links <- ListLinks::new(),
                tracker <- AtomicTracker::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Whether it was let through. Under the peer's lock.
    pub(super) fn is_admitted(&self) -> bool {
        self.admitted.load(Relaxed)
    }
}

/// From this length on a message is long, bytes.
const LONG: u32 = 16 << 10;

/// What may be kept of what is sent to a peer.
#[derive(Clone, Copy)]
pub(super) struct Keep {
    /// All until it is acknowledged: bytes, frames.
    pub(super) all: [u64; 2],
    /// Long messages until a connection takes them, bytes.
    pub(super) unsent: u64,
}

/// What is sent in a session, and who waits for that.
pub(super) struct Flow {
    /// The session.
    pub(super) session: Arc<Session>,
    send: [Sender; 2],
    bounds: Keep,
    /// What is kept until it is acknowledged: bytes, frames.
    kept: [u64; 2],
    /// Bytes of long messages that no connection has taken yet.
    unsent: u64,
    /// There is a connection that takes them.
    connected: bool,
    /// First come, first served, so that a long message is not starved by short ones: for credit within
    /// a lane, and for room to be kept among all who may go. Who lacks credit holds up nobody in the other
    /// lane; a long message that waits until less is unsent holds up no call, and lets some short messages
    /// pass.
    waiters: Waiters,
    tickets: u64,
    /// Bytes of short messages that were let through since a long one was, or came to wait.
    passed: u64,
    /// So much is kept that the other side is to be asked what it has.
    ask: bool,
}

impl Flow {
    /// The beginning of a session, connected. `granted`: the credit there is.
    pub(super) fn new(session: Arc<Session>, granted: [u64; 2], bounds: Keep) -> Self {
        let windows = session.peer.windows;
        Self {
            session,
            send: [0, 1].map(|i: usize| Sender::new(windows[i], granted[i])),
            bounds,
            kept: [0, 0],
            unsent: 0,
            connected: true,
            waiters: no_waiters(),
            tickets: 0,
            passed: 0,
            ask: false,
        }
    }

    /// Whether long messages have to wait because so much waits to be sent already.
    fn are_long_held_up(&self, limit: u64) -> bool {
        self.connected && self.unsent >= limit
    }

    /// The first who waits with a frame of this kind: his ticket, and what he needs.
    fn head(&self, kind: Kind) -> Option<(u64, u64)> {
        let waiter = self.waiters[kind as usize].iter().next()?;
        Some((waiter.ticket.load(Relaxed), waiter.cost))
    }

    /// Whether who has this ticket may send a frame as soon as there is room for it. `limit`: how much of
    /// long messages may be unsent.
    fn may_go(&self, kind: Kind, ticket: u64, cost: u64, limit: u64) -> bool {
        let credit = &self.send[kind.lane() as usize];
        let earlier = |kind| self.head(kind).filter(|&(other, _)| other < ticket);
        match kind {
            Kind::Call => credit.is_enough_for(cost),
            Kind::Long => {
                // Credit is for who came first.
                let in_turn =
                    earlier(Kind::Short).is_none_or(|(_, ahead)| credit.is_enough_for(ahead));
                in_turn && credit.is_enough_for(cost) && !self.are_long_held_up(limit)
            }
            Kind::Short => match earlier(Kind::Long) {
                None => credit.is_enough_for(cost),
                // Its credit is left to it, and as many bytes pass as make a turn of its own kind.
                Some((_, ahead)) => {
                    self.are_long_held_up(self.bounds.unsent)
                        && self.passed < self.bounds.unsent
                        && credit.is_enough_for(ahead.saturating_add(cost))
                }
            },
        }
    }

    /// Takes what a frame needs, if there is enough of both credit and room.
    fn take(&mut self, kind: Kind, cost: u64) -> bool {
        // One frame can be kept in any case, however long.
        let room = self.kept[1] == 0
            || (self.kept[0].saturating_add(cost) <= self.bounds.all[0]
                && self.kept[1] < self.bounds.all[1]);
        if !room || !self.send[kind.lane() as usize].take(cost) {
            return false;
        }
        match kind {
            Kind::Call => {}
            Kind::Short => self.passed = self.passed.saturating_add(cost),
            Kind::Long => {
                self.unsent += cost;
                self.passed = 0;
            }
        }
        // Half of the room is left for what is sent until the answer comes.
        let was_much = self.is_much();
        self.kept[0] += cost;
        self.kept[1] += 1;
        self.ask |= !was_much && self.is_much();
        true
    }

    /// Whether half of the room is taken.
    fn is_much(&self) -> bool {
        let half = |(kept, bound): (&u64, &u64)| *kept >= bound.div_ceil(2);
        self.kept.iter().zip(&self.bounds.all).any(half)
    }

    /// Puts somebody behind all who wait with a frame of the same kind. He is let through at once if it is
    /// his turn.
    pub(super) fn queue(&mut self, waiter: &Arc<Waiter>) {
        let Ok(entry) = ListArc::try_from_arc(waiter.clone()) else {
            return;
        };
        let kind = waiter.kind;
        if kind == Kind::Long && self.head(kind).is_none() {
            self.passed = 0;
        }
        self.tickets += 1;
        waiter.ticket.store(self.tickets, Relaxed);
        self.waiters[kind as usize].push_back(entry);
        self.admit_waiters();
    }

    /// Whose turn it is: of those who may go, the one who came first. What he has, and needs.
    fn first(&self) -> Option<(Kind, u64)> {
        let heads = Kind::ALL
            .into_iter()
            .filter_map(|kind| self.head(kind).map(|(ticket, cost)| (ticket, kind, cost)));
        let (_, kind, cost) = heads
            .filter(|&(ticket, kind, cost)| self.may_go(kind, ticket, cost, self.bounds.unsent))
            .min_by_key(|&(ticket, ..)| ticket)?;
        Some((kind, cost))
    }

    /// Takes what a frame needs that nobody has waited with, unless somebody waits for the same.
    ///
    /// `may_wait`: `false` in the thread that others wait for to send what is queued, which is let
    /// through where others have to wait for that.
    pub(super) fn take_at_once(&mut self, kind: Kind, cost: u64, may_wait: bool) -> bool {
        let limit = match may_wait {
            true => self.bounds.unsent,
            false => self.bounds.unsent.saturating_mul(2),
        };
        let in_turn = self.head(kind).is_none_or(|(_, ahead)| {
            let credit = &self.send[kind.lane() as usize];
            kind == Kind::Long
                && !may_wait
                && self.are_long_held_up(self.bounds.unsent)
                && credit.is_enough_for(ahead.saturating_add(cost))
        });
        in_turn
            && self.may_go(kind, u64::MAX, cost, limit)
            && self.first().is_none()
            && self.take(kind, cost)
    }

    /// Lets through those whose turn it is.
    fn admit_waiters(&mut self) {
        while let Some((kind, cost)) = self.first() {
            if !self.take(kind, cost) {
                return;
            }
            if let Some(waiter) = self.waiters[kind as usize].pop_front() {
                waiter.admitted.store(true, Relaxed);
                waiter.done.fire();
            }
        }
    }

    /// Lets nobody through any more. Those who wait are to be told without the lock.
    pub(super) fn turn_away(&mut self) -> Waiters {
        core::mem::replace(&mut self.waiters, no_waiters())
    }

    // ---- What happens meanwhile. Those who have waited for it are let through.

    /// The other side has granted more credit.
    pub(super) fn grant(&mut self, lane: Lane, limit: u64) -> Result<(), Violation> {
        if self.send[lane as usize].grant(limit)? {
            self.admit_waiters();
        }
        Ok(())
    }

    /// There is a connection, or none any more.
    pub(super) fn set_connected(&mut self, connected: bool) {
        self.connected = connected;
        self.admit_waiters();
    }

    /// So much is not kept any more.
    pub(super) fn forget(&mut self, cost: u64, frames: u64) {
        self.kept[0] = self.kept[0].saturating_sub(cost);
        self.kept[1] = self.kept[1].saturating_sub(frames);
        self.admit_waiters();
    }

    /// A long message of this cost does not wait to be sent any more.
    pub(super) fn taken(&mut self, cost: u64) {
        self.unsent = self.unsent.saturating_sub(cost);
        self.admit_waiters();
    }

    /// Somebody who was not let through does not wait any longer. Returns his entry, to be dropped
    /// without the lock.
    pub(super) fn leave(&mut self, waiter: &Waiter) -> Option<ListArc<Waiter>> {
        let mut cursor = self.waiters[waiter.kind as usize].cursor_front();
        let mut found = None;
        while let Some(next) = cursor.peek_next() {
            if core::ptr::eq(&*next.arc(), waiter) {
                found = Some(next.remove());
                break;
            }
            if !cursor.move_next() {
                break;
            }
        }
        // Those behind it may fit where it did not.
        self.admit_waiters();
        found
    }

    // ---- What there is to see.

    /// Whether the other side is to be asked what it has. Once, until that is to be done again.
    pub(super) fn take_ask(&mut self) -> bool {
        core::mem::take(&mut self.ask)
    }

    /// What is kept until it is acknowledged: bytes, frames.
    pub(super) fn kept(&self) -> [u64; 2] {
        self.kept
    }

    /// Bytes of long messages that wait to be sent.
    #[cfg(KCCM_KUNIT)]
    pub(super) fn unsent(&self) -> u64 {
        self.unsent
    }
}

/// Wakes those who were turned away. Without the peer's lock.
pub(super) fn tell(waiters: Waiters) {
    for mut list in waiters {
        while let Some(waiter) = list.pop_front() {
            waiter.done.fire();
        }
    }
}
