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
    /// The beginning of a session, connected. By lane, `windows`: what the other side has announced;
    /// `granted`: the credit there is.
    pub(super) fn new(windows: [u64; 2], granted: [u64; 2], bounds: Keep) -> Self {
        Self {
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
        match kind {
            Kind::Call => credit.is_enough_for(cost),
            // Where there is credit for it there is for any short one that came earlier.
            Kind::Long => credit.is_enough_for(cost) && !self.are_long_held_up(limit),
            Kind::Short => match self.head(Kind::Long).filter(|&(other, _)| other < ticket) {
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

#[cfg(KCCM_KUNIT)]
#[kernel::prelude::kunit_tests(kccm_flow)]
mod tests {
    use super::super::credit::call_cost;
    use super::super::frame::tests::Random;
    use super::*;

    const WINDOW: u64 = 1 << 20;
    const SHORT: u64 = message_cost(100);
    const LONGER: u64 = message_cost(LONG);
    const CALL: u64 = call_cost(100, 100);

    /// More than anything here needs.
    const ROOM: Keep = Keep {
        all: [1 << 30, 1 << 20],
        unsent: 1 << 30,
    };

    /// A session with so much credit in each lane.
    fn flow(granted: u64, bounds: Keep) -> Flow {
        Flow::new([WINDOW; 2], [granted; 2], bounds)
    }

    /// Somebody who waits, or has been let through at once.
    fn comes(flow: &mut Flow, kind: Kind, cost: u64) -> Result<Arc<Waiter>> {
        let waiter = Waiter::new(kind, cost)?;
        flow.queue(&waiter);
        Ok(waiter)
    }

    fn sends(flow: &mut Flow, kind: Kind, cost: u64) -> bool {
        flow.take_at_once(kind, cost, true)
    }

    #[test]
    fn kinds_go_by_lane_and_length() {
        let long = message_cost(LONG);
        assert!(Kind::of(Lane::Messages, 0) == Kind::Short);
        assert!(Kind::of(Lane::Messages, long - 1) == Kind::Short);
        assert!(Kind::of(Lane::Messages, long) == Kind::Long);
        assert!(Kind::of(Lane::Calls, long) == Kind::Call);
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }

    // ---- Credit.

    #[test]
    fn lane_without_credit_holds_up_no_other() -> Result {
        let mut flow = flow(2 * LONGER, ROOM);
        assert!(sends(&mut flow, Kind::Long, LONGER));
        let message = comes(&mut flow, Kind::Long, LONGER + 1)?;
        assert!(!message.is_admitted());
        // Whoever comes behind it in its lane waits, although there is credit for him.
        assert!(!sends(&mut flow, Kind::Short, SHORT));
        assert!(!sends(&mut flow, Kind::Long, LONGER));
        assert!(sends(&mut flow, Kind::Call, CALL));
        assert!(flow.grant(Lane::Calls, WINDOW).is_ok());
        assert!(!message.is_admitted());
        assert!(flow.grant(Lane::Messages, 2 * LONGER + 1).is_ok());
        assert!(message.is_admitted());
        Ok(())
    }

    #[test]
    fn grant_of_more_than_the_window_lets_nobody_through() -> Result {
        let mut flow = flow(0, ROOM);
        let waiter = comes(&mut flow, Kind::Short, SHORT)?;
        assert!(flow.grant(Lane::Messages, WINDOW + 1).is_err());
        assert!(!waiter.is_admitted());
        Ok(())
    }

    #[test]
    fn waiters_go_in_the_order_they_came() -> Result {
        let mut flow = flow(0, ROOM);
        let first = comes(&mut flow, Kind::Short, 3 * SHORT)?;
        let second = comes(&mut flow, Kind::Long, LONGER)?;
        let third = comes(&mut flow, Kind::Short, SHORT)?;
        let admitted = || [&first, &second, &third].map(|w| w.is_admitted());
        let limits = [2 * SHORT, 3 * SHORT, 4 * SHORT, 3 * SHORT + LONGER];
        let expected = [[false; 3], [true, false, false], [true, false, false]];
        for (limit, expected) in limits.into_iter().zip(expected) {
            assert!(flow.grant(Lane::Messages, limit).is_ok());
            assert!(admitted() == expected);
        }
        assert!(flow.grant(Lane::Messages, limits[3]).is_ok());
        assert!(admitted() == [true, true, false]);
        Ok(())
    }

    // ---- Room.

    #[test]
    fn room_is_shared_by_all() -> Result {
        let bounds = Keep {
            all: [3 * CALL, 1 << 20],
            ..ROOM
        };
        let mut flow = flow(WINDOW, bounds);
        assert!(sends(&mut flow, Kind::Call, CALL));
        assert!(sends(&mut flow, Kind::Short, CALL));
        let call = comes(&mut flow, Kind::Call, 2 * CALL)?;
        // There would be room for it, but it is the other's turn.
        assert!(!sends(&mut flow, Kind::Short, SHORT));
        flow.forget(CALL, 1);
        assert!(call.is_admitted());
        assert_eq!(flow.kept(), [3 * CALL, 2]);
        Ok(())
    }

    #[test]
    fn frames_are_counted_too() -> Result {
        let bounds = Keep {
            all: [1 << 30, 2],
            ..ROOM
        };
        let mut flow = flow(WINDOW, bounds);
        assert!(sends(&mut flow, Kind::Short, SHORT) && sends(&mut flow, Kind::Call, CALL));
        assert!(!sends(&mut flow, Kind::Short, SHORT));
        flow.forget(SHORT, 1);
        assert!(sends(&mut flow, Kind::Short, SHORT));
        Ok(())
    }

    #[test]
    fn one_frame_has_room_in_any_case() {
        let bounds = Keep {
            all: [SHORT, 1],
            unsent: 1,
        };
        let mut flow = flow(WINDOW, bounds);
        assert!(sends(&mut flow, Kind::Long, LONGER));
        assert!(!sends(&mut flow, Kind::Short, SHORT));
        flow.taken(LONGER);
        flow.forget(LONGER, 1);
        assert!(sends(&mut flow, Kind::Call, WINDOW));
    }

    #[test]
    fn other_side_is_asked_once_when_half_is_taken() {
        let bounds = Keep {
            all: [4 * SHORT, 1 << 20],
            ..ROOM
        };
        let mut flow = flow(WINDOW, bounds);
        for asks in [false, true, false, false] {
            assert!(sends(&mut flow, Kind::Short, SHORT));
            assert_eq!(flow.take_ask(), asks);
        }
        flow.forget(4 * SHORT, 4);
        assert!(!flow.take_ask());
        assert!(sends(&mut flow, Kind::Short, 2 * SHORT));
        assert!(flow.take_ask());
    }

    // ---- What has yet to be sent.

    /// A session in which `3 * LONGER` are unsent, by which long messages are held up.
    fn held_up() -> Result<Flow> {
        let bounds = Keep {
            unsent: 2 * LONGER,
            ..ROOM
        };
        let mut flow = flow(WINDOW, bounds);
        for (cost, goes) in [(LONGER, true), (2 * LONGER, true), (LONGER, false)] {
            if sends(&mut flow, Kind::Long, cost) != goes {
                return Err(EINVAL);
            }
        }
        Ok(flow)
    }

    #[test]
    fn unsent_bytes_hold_up_long_messages() -> Result {
        let mut flow = held_up()?;
        let waiter = comes(&mut flow, Kind::Long, LONGER)?;
        assert!(sends(&mut flow, Kind::Call, CALL));
        assert!(sends(&mut flow, Kind::Short, SHORT));
        flow.taken(LONGER);
        assert!(!waiter.is_admitted());
        assert_eq!(flow.unsent(), 2 * LONGER);
        flow.taken(2 * LONGER);
        assert!(waiter.is_admitted());
        assert_eq!(flow.unsent(), LONGER);
        Ok(())
    }

    #[test]
    fn short_messages_pass_a_long_one_for_one_turn() -> Result {
        let mut flow = held_up()?;
        let mut unsent = 3 * LONGER;
        let waiters = [
            comes(&mut flow, Kind::Long, 2 * LONGER)?,
            comes(&mut flow, Kind::Long, 2 * LONGER)?,
        ];
        for waiter in &waiters {
            for _ in 0..(2 * LONGER).div_ceil(SHORT) {
                assert!(sends(&mut flow, Kind::Short, SHORT));
            }
            assert!(!sends(&mut flow, Kind::Short, SHORT));
            // Then it is the long one's turn, and after that theirs once more.
            assert!(!waiter.is_admitted());
            flow.taken(unsent);
            unsent = 2 * LONGER;
            assert!(waiter.is_admitted());
        }
        assert!(sends(&mut flow, Kind::Short, SHORT));
        Ok(())
    }

    #[test]
    fn short_messages_leave_its_credit_to_a_long_one() -> Result {
        let mut flow = held_up()?;
        let rest = WINDOW - 3 * LONGER;
        let waiter = comes(&mut flow, Kind::Long, rest - SHORT)?;
        assert!(sends(&mut flow, Kind::Short, SHORT));
        assert!(!sends(&mut flow, Kind::Short, SHORT));
        flow.taken(3 * LONGER);
        assert!(waiter.is_admitted());
        Ok(())
    }

    #[test]
    fn nothing_is_held_up_without_a_connection() -> Result {
        let mut flow = held_up()?;
        let waiter = comes(&mut flow, Kind::Long, LONGER)?;
        flow.set_connected(false);
        assert!(waiter.is_admitted());
        assert!(sends(&mut flow, Kind::Long, LONGER));
        flow.set_connected(true);
        assert!(!sends(&mut flow, Kind::Long, LONGER));
        Ok(())
    }

    #[test]
    fn who_may_not_wait_gets_twice_as_far() -> Result {
        let mut flow = held_up()?;
        let waiter = comes(&mut flow, Kind::Long, LONGER)?;
        assert!(flow.take_at_once(Kind::Long, LONGER, false));
        assert!(!flow.take_at_once(Kind::Long, LONGER, false));
        assert!(!waiter.is_admitted());
        Ok(())
    }

    // ---- Who does not wait any longer.

    #[test]
    fn who_leaves_makes_way() -> Result {
        let mut flow = flow(LONGER, ROOM);
        let large = comes(&mut flow, Kind::Long, LONGER + 1)?;
        let small = comes(&mut flow, Kind::Short, SHORT)?;
        let last = comes(&mut flow, Kind::Long, LONGER)?;
        assert!(!small.is_admitted());
        assert!(flow.leave(&large).is_some());
        assert!(!large.is_admitted() && small.is_admitted() && !last.is_admitted());
        // Once is enough, and who was let through is in no list.
        assert!(flow.leave(&large).is_none() && flow.leave(&small).is_none());
        Ok(())
    }

    #[test]
    fn who_is_turned_away_is_told() -> Result {
        let mut flow = flow(0, ROOM);
        let all = [
            comes(&mut flow, Kind::Short, SHORT)?,
            comes(&mut flow, Kind::Long, LONGER)?,
            comes(&mut flow, Kind::Call, CALL)?,
        ];
        let waiters = flow.turn_away();
        assert!(flow.grant(Lane::Messages, WINDOW).is_ok());
        tell(waiters);
        for waiter in &all {
            waiter.done.settle();
            assert!(!waiter.is_admitted());
            assert!(flow.leave(waiter).is_none());
        }
        Ok(())
    }

    // ---- All of it.

    /// A flow, the other side of it, and all who have come.
    struct Traffic {
        flow: Flow,
        bounds: Keep,
        /// What was granted in each lane, and what has been let through.
        granted: [u64; 2],
        sent: [u64; 2],
        /// Let through and kept: kind, cost, whether it is unsent.
        kept: KVec<(Kind, u64, bool)>,
        waiting: KVec<Arc<Waiter>>,
        connected: bool,
    }

    impl Traffic {
        fn keep(&mut self, kind: Kind, cost: u64) -> Result {
            self.sent[kind.lane() as usize] += cost;
            self.kept
                .push((kind, cost, kind == Kind::Long), GFP_KERNEL)?;
            Ok(())
        }

        /// Takes those who have been let through from the ones that wait: of each kind the first ones.
        fn collect(&mut self) -> Result {
            for kind in Kind::ALL {
                let mut of_kind = self.waiting.iter().filter(|w| w.kind == kind);
                of_kind.find(|w| !w.is_admitted());
                if of_kind.any(|w| w.is_admitted()) {
                    return Err(EINVAL);
                }
            }
            while let Some(i) = self.waiting.iter().position(|w| w.is_admitted()) {
                let waiter = self.waiting.remove(i).map_err(|_| EINVAL)?;
                waiter.done.settle();
                self.keep(waiter.kind, waiter.cost)?;
            }
            Ok(())
        }

        fn grant(&mut self, lane: Lane) -> Result {
            let i = lane as usize;
            self.granted[i] = self.sent[i] + WINDOW;
            self.flow.grant(lane, self.granted[i]).map_err(|_| EPROTO)
        }

        fn taken(&mut self, index: usize) {
            if let Some((_, cost, unsent @ true)) = self.kept.get_mut(index) {
                *unsent = false;
                self.flow.taken(*cost);
            }
        }

        fn forget(&mut self, index: usize) {
            self.taken(index);
            if let Ok((_, cost, _)) = self.kept.remove(index) {
                self.flow.forget(cost, 1);
            }
        }

        /// Whether what must always hold does.
        fn holds(&self) -> bool {
            let bytes: u64 = self.kept.iter().map(|k| k.1).sum();
            let frames = self.kept.len() as u64;
            let unsent: u64 = self.kept.iter().filter(|k| k.2).map(|k| k.1).sum();
            let within = bytes <= self.bounds.all[0] && frames <= self.bounds.all[1];
            self.flow.kept() == [bytes, frames]
                && self.flow.unsent() == unsent
                && (within || frames == 1)
                && self.sent.iter().zip(&self.granted).all(|(s, g)| s <= g)
        }
    }

    /// Whatever happens in whatever order, the bounds are kept, everybody of a kind goes in the order
    /// in which he came, and everybody goes at last.
    #[test]
    fn random_traffic_keeps_the_bounds_and_the_order() -> Result {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for (room, unsent) in [(WINDOW, WINDOW / 4), (WINDOW / 2, 1), (1, WINDOW)] {
            let bounds = Keep {
                all: [room, 20],
                unsent,
            };
            let mut traffic = Traffic {
                flow: flow(WINDOW, bounds),
                bounds,
                granted: [WINDOW; 2],
                sent: [0; 2],
                kept: KVec::new(),
                waiting: KVec::new(),
                connected: true,
            };
            let (mut at_once, mut waited, mut left) = (0, 0, 0);
            for round in 1..=6000 {
                let (kind, most) = random.pick(&[
                    (Kind::Short, 1000),
                    (Kind::Long, WINDOW),
                    (Kind::Call, WINDOW),
                ]);
                let least = if kind == Kind::Long { LONGER } else { 256 };
                let cost = least + random.draw() % (most - least);
                match random.below(12) {
                    0..=2 => {
                        if traffic.flow.take_at_once(kind, cost, random.below(4) > 0) {
                            traffic.keep(kind, cost)?;
                            at_once += 1;
                        }
                    }
                    3..=4 if traffic.waiting.len() < 30 => {
                        let waiter = comes(&mut traffic.flow, kind, cost)?;
                        waited += u32::from(!waiter.is_admitted());
                        traffic.waiting.push(waiter, GFP_KERNEL)?;
                    }
                    5 if !traffic.waiting.is_empty() && random.below(4) == 0 => {
                        let index = random.below(traffic.waiting.len());
                        let waiter = traffic.waiting.remove(index).map_err(|_| EINVAL)?;
                        assert!(traffic.flow.leave(&waiter).is_some());
                        left += 1;
                    }
                    6 => traffic.grant(random.pick(&Lane::ALL))?,
                    7..=8 => {
                        let index = random.below(traffic.kept.len().max(1));
                        traffic.taken(index);
                    }
                    9..=10 => {
                        let index = random.below(traffic.kept.len().max(1));
                        traffic.forget(index);
                    }
                    _ => {
                        traffic.connected = !traffic.connected || random.below(8) > 0;
                        traffic.flow.set_connected(traffic.connected);
                    }
                }
                traffic.collect()?;
                if !traffic.holds() {
                    pr_err!("broken in round {round} with {room} bytes of room\n");
                    return Err(EINVAL);
                }
                if round % 200 == 0 {
                    for _ in 0..200 {
                        traffic.forget(0);
                        Lane::ALL
                            .into_iter()
                            .try_for_each(|lane| traffic.grant(lane))?;
                        traffic.collect()?;
                    }
                    assert!(traffic.waiting.is_empty() && traffic.kept.is_empty());
                    assert!(traffic.holds());
                }
            }
            assert!(at_once > 100 && waited > 100 && left > 10);
        }
        Ok(())
    }
}
