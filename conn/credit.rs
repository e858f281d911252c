// SPDX-License-Identifier: GPL-2.0

//! Credit: how a receiver bounds what a sender may have queued at it.
//!
//! Each direction of a session has two lanes, messages and calls, each with a window of so many
//! bytes. A frame *costs* its length plus an overhead. The receiver grants by a running total: the
//! sender may have sent, since the session began, frames that cost so much in all. A total can be
//! repeated or overtaken without harm, which a difference cannot.
//!
//! Control frames and replies cost nothing: a control frame is small and has an effect at once,
//! and a reply has been paid for by its call.
//!
//! Pure. Callers serialise.

/// What keeping a frame costs beside its bytes, for the bookkeeping. Part of the protocol: both
/// sides count the same.
const OVERHEAD: u64 = 256;

/// What a message of `len` bytes costs.
pub(crate) const fn message_cost(len: u32) -> u64 {
    OVERHEAD + len as u64
}

/// What a call costs: its arguments, and the reply that will be kept until it has been sent.
pub(crate) const fn call_cost(args: u32, reply_max: u32) -> u64 {
    OVERHEAD + args as u64 + reply_max as u64
}

/// The smallest window in which a frame of this cost gets its turn: the receiver leaves less than a
/// quarter of it ungranted, see [`Receiver::worth_granting`].
pub(crate) const fn least_window(cost: u64) -> u64 {
    (4 * cost).div_ceil(3)
}

/// What a frame may be sent on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    /// Send/receive messages.
    Messages = 0,
    /// Remote calls.
    Calls = 1,
}

impl Lane {
    /// Both.
    pub(crate) const ALL: [Lane; 2] = [Lane::Messages, Lane::Calls];

    /// From the wire.
    pub(crate) fn from_wire(value: u32) -> Option<Self> {
        match value {
            0 => Some(Lane::Messages),
            1 => Some(Lane::Calls),
            _ => None,
        }
    }
}

/// The other side broke the rules of credit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Violation;

/// The sending side of a lane.
///
/// # Invariants
///
/// `sent <= limit <= sent + window`.
pub(crate) struct Sender {
    sent: u64,
    limit: u64,
    window: u64,
}

impl Sender {
    /// A lane to a receiver that has announced this window, and how much of it is free.
    pub(crate) fn new(window: u64, granted: u64) -> Self {
        // INVARIANT: 0 <= limit <= 0 + window.
        Self {
            sent: 0,
            limit: granted.min(window),
            window,
        }
    }

    /// Whether there is enough credit for a frame.
    pub(crate) fn is_enough_for(&self, cost: u64) -> bool {
        cost <= self.limit - self.sent
    }

    /// Takes credit for a frame, if there is enough.
    pub(crate) fn take(&mut self, cost: u64) -> bool {
        // INVARIANT: `sent` grows to at most `limit`; `limit - sent` shrinks.
        if self.is_enough_for(cost) {
            self.sent += cost;
            true
        } else {
            false
        }
    }

    /// Takes note of a grant. Returns whether there is more credit now.
    pub(crate) fn grant(&mut self, limit: u64) -> Result<bool, Violation> {
        if limit > self.sent.saturating_add(self.window) {
            return Err(Violation);
        }
        // A grant that was overtaken by a later one says nothing new.
        // INVARIANT: Checked above, and `limit` only grows.
        let more = limit > self.limit;
        if more {
            self.limit = limit;
        }
        Ok(more)
    }
}

/// The receiving side of a lane.
///
/// It outlives the session: what came in an earlier one and is still kept is carried over, and
/// leaves so much less of the window to the next.
///
/// # Invariants
///
/// `released <= received`; `received <= granted`; `granted` is at most what there was room for when it
/// was granted.
pub(crate) struct Receiver {
    window: u64,
    carried: u64,
    received: u64,
    released: u64,
    granted: u64,
}

impl Receiver {
    /// A lane with this window, before any session.
    pub(crate) fn new(window: u64) -> Self {
        // INVARIANT: Nothing was granted.
        Self {
            window,
            carried: 0,
            received: 0,
            released: 0,
            granted: 0,
        }
    }

    /// A new session begins. Returns what to grant in its greeting.
    pub(crate) fn restart(&mut self) -> u64 {
        self.carry();
        // INVARIANT: Exactly the free part of the window is granted.
        self.granted = self.limit();
        self.granted
    }

    /// The session has ended; what came in it and is still kept is carried over.
    pub(crate) fn carry(&mut self) {
        // INVARIANT: Nothing is granted before the next session.
        self.carried += self.received - self.released;
        self.received = 0;
        self.released = 0;
        self.granted = 0;
    }

    fn limit(&self) -> u64 {
        self.released + self.window.saturating_sub(self.carried)
    }

    /// A frame has come in.
    pub(crate) fn receive(&mut self, cost: u64) -> Result<(), Violation> {
        if cost > self.granted - self.received {
            return Err(Violation);
        }
        self.received += cost;
        Ok(())
    }

    /// A frame that has come in was not delivered, and will come in again.
    pub(crate) fn cancel(&mut self, cost: u64) {
        // INVARIANT: It was received, and has not been released.
        self.received = self.received.saturating_sub(cost).max(self.released);
    }

    /// The total that has been granted; as much as can be is granted first.
    pub(crate) fn total(&mut self) -> u64 {
        self.regrant();
        self.granted
    }

    /// The total that has been granted.
    pub(crate) fn granted(&self) -> u64 {
        self.granted
    }

    /// What could be granted if a new session began now.
    pub(crate) fn prospect(&self) -> u64 {
        let kept = self.carried + (self.received - self.released);
        self.window.saturating_sub(kept)
    }

    /// So much was promised to the other side for the session that has begun now.
    pub(crate) fn promise(&mut self, granted: u64) {
        self.granted = self.granted.max(granted);
    }

    /// A frame that came in before is no longer kept; `carried` if that was in an earlier session.
    pub(crate) fn release(&mut self, cost: u64, carried: bool) {
        if carried {
            self.carried = self.carried.saturating_sub(cost);
        } else {
            // INVARIANT: What is released was received.
            self.released = self.released.saturating_add(cost).min(self.received);
        }
    }

    /// The total to grant, when it is worth telling: a quarter of the window is new, or less than that
    /// is left to the sender.
    pub(crate) fn worth_granting(&mut self) -> Option<u64> {
        if !self.is_worth_granting() {
            return None;
        }
        self.regrant()
    }

    /// Whether it is, if there is any.
    pub(crate) fn is_worth_granting(&self) -> bool {
        let quarter = self.window.div_ceil(4);
        let left = self.granted - self.received;
        left < quarter || self.limit().saturating_sub(self.granted) >= quarter
    }

    /// The total to grant, if it is more than was granted.
    pub(crate) fn regrant(&mut self) -> Option<u64> {
        let limit = self.limit();
        // INVARIANT: Exactly the free part of the window is granted.
        (limit > self.granted).then(|| {
            self.granted = limit;
            limit
        })
    }

    /// What is kept at present.
    pub(crate) fn queued(&self) -> u64 {
        self.carried + self.received - self.released
    }
}

#[cfg(KCCM_KUNIT)]
#[kernel::prelude::kunit_tests(kccm_credit)]
mod tests {
    use super::super::frame::tests::Random;
    use super::*;
    use kernel::prelude::*;

    /// Windows of every remainder by four, and some that are in use.
    const WINDOWS: [u64; 8] = [1000, 1001, 1002, 1003, 4096, 8 << 20, 32 << 20, 1 << 40];

    /// What frames may cost: the least, some, and the most.
    const COSTS: [u64; 9] = [
        message_cost(0),
        message_cost(1),
        message_cost(2),
        message_cost(3),
        message_cost(1000),
        message_cost(16 << 20),
        message_cost(1 << 30),
        call_cost(1 << 20, 1 << 20),
        call_cost(u32::MAX, u32::MAX),
    ];

    /// A receiver on its first connection.
    fn receiver(window: u64) -> Receiver {
        let mut receiver = Receiver::new(window);
        receiver.restart();
        receiver
    }

    /// Takes in a frame and lets go of it.
    fn pass(receiver: &mut Receiver, cost: u64) -> Result {
        receiver.receive(cost).map_err(|_| EPROTO)?;
        receiver.release(cost, false);
        Ok(())
    }

    // ---- Costs, windows and lanes.

    #[test]
    fn cost_is_length_and_overhead() {
        for (len, cost) in [(0, 256), (1, 257), (u32::MAX, 0x1_0000_00ff)] {
            assert_eq!(message_cost(len), cost);
            assert_eq!(call_cost(len, 0), cost);
            assert_eq!(call_cost(0, len), cost);
        }
        assert_eq!(call_cost(1, 2), 259);
        assert_eq!(call_cost(u32::MAX, u32::MAX), 0x2_0000_00fe);
    }

    #[test]
    fn least_window_is_a_third_more() {
        for (cost, window) in [(3, 4), (4, 6), (5, 7), (6, 8), (300, 400), (256, 342)] {
            assert_eq!(least_window(cost), window);
        }
    }

    #[test]
    fn lanes_come_back_from_the_wire() {
        for (value, lane) in (0..).zip(Lane::ALL) {
            assert_eq!(lane as u32, value);
            assert_eq!(Lane::from_wire(value), Some(lane));
        }
        assert_eq!(Lane::ALL, [Lane::Messages, Lane::Calls]);
        for value in [2, 3, 1 << 8, 1 << 16, 1 << 31, u32::MAX] {
            assert_eq!(Lane::from_wire(value), None);
        }
    }

    // ---- The sender.

    #[test]
    fn sender_takes_what_is_granted_and_no_more() {
        let mut sender = Sender::new(1000, 700);
        assert!(!sender.take(701));
        assert!(sender.take(300));
        assert!(sender.take(0));
        // What does not fit takes nothing from what does.
        assert!(!sender.take(401));
        assert!(!sender.take(u64::MAX));
        assert!(sender.take(400));
        assert!(!sender.take(1));
        assert!(sender.take(0));
        assert_eq!((sender.sent, sender.limit), (700, 700));
    }

    #[test]
    fn sender_believes_no_more_than_the_window() {
        for (granted, limit) in [(0, 0), (1, 1), (1000, 1000), (1001, 1000), (u64::MAX, 1000)] {
            assert_eq!(Sender::new(1000, granted).limit, limit);
        }
    }

    #[test]
    fn grant_is_a_total() {
        let mut sender = Sender::new(1000, 500);
        assert!(sender.take(500));
        assert_eq!(sender.grant(800), Ok(true));
        assert!(sender.take(300) && !sender.take(1));
        // Repeated, and overtaken by a later one.
        assert_eq!(sender.grant(1800), Ok(true));
        for stale in [1800, 1799, 800, 500, 0] {
            assert_eq!(sender.grant(stale), Ok(false));
            assert_eq!((sender.sent, sender.limit), (800, 1800));
        }
        assert!(sender.take(1000) && !sender.take(1));
    }

    #[test]
    fn grant_beyond_the_window_is_a_violation() {
        let mut sender = Sender::new(1000, 1000);
        for sent in [0, 1, 999] {
            sender.take(sent);
            let most = sender.sent + 1000;
            for limit in [most + 1, most + 1000, u64::MAX] {
                let before = sender.limit;
                assert_eq!(sender.grant(limit), Err(Violation));
                assert_eq!(sender.limit, before);
            }
            assert_eq!(sender.grant(most), Ok(most > 1000));
        }
        // At the end of all numbers.
        let mut sender = Sender {
            sent: u64::MAX - 10,
            limit: u64::MAX - 10,
            window: 1000,
        };
        assert!(!sender.take(1));
        assert_eq!(sender.grant(u64::MAX), Ok(true));
        assert!(!sender.take(11) && sender.take(10));
    }

    // ---- The receiver.

    #[test]
    fn receiver_accepts_what_it_has_granted_and_no_more() {
        let mut receiver = Receiver::new(1000);
        // Nothing before the connection.
        assert_eq!(receiver.receive(1), Err(Violation));
        assert_eq!(receiver.restart(), 1000);
        assert_eq!(receiver.receive(1001), Err(Violation));
        assert_eq!(receiver.receive(600), Ok(()));
        assert_eq!(receiver.receive(401), Err(Violation));
        assert_eq!(receiver.receive(u64::MAX), Err(Violation));
        assert_eq!(receiver.queued(), 600);
        assert_eq!(receiver.receive(400), Ok(()));
        assert_eq!(receiver.receive(1), Err(Violation));
        assert_eq!(receiver.queued(), 1000);
        // What is released is free only when it has been granted.
        receiver.release(1000, false);
        assert_eq!(receiver.queued(), 0);
        assert_eq!(receiver.receive(1), Err(Violation));
        assert_eq!(receiver.worth_granting(), Some(2000));
        assert_eq!(receiver.receive(1000), Ok(()));
    }

    #[test]
    fn grant_is_worth_it_from_a_quarter_on() -> Result {
        for window in WINDOWS {
            let quarter = window.div_ceil(4);
            let mut receiver = receiver(window);
            assert_eq!(receiver.worth_granting(), None);
            // All at once, and bit by bit.
            for parts in [
                [quarter - 1, 1],
                [0, quarter],
                [quarter / 2, quarter - quarter / 2],
            ] {
                let before = receiver.granted;
                pass(&mut receiver, parts[0])?;
                assert_eq!(receiver.worth_granting(), None);
                pass(&mut receiver, parts[1])?;
                assert_eq!(receiver.worth_granting(), Some(before + quarter));
                assert_eq!(receiver.worth_granting(), None);
            }
        }
        Ok(())
    }

    #[test]
    fn regrant_is_for_anything_new() -> Result {
        let mut receiver = receiver(1000);
        assert_eq!(receiver.regrant(), None);
        pass(&mut receiver, 1)?;
        assert_eq!(receiver.worth_granting(), None);
        assert_eq!(receiver.regrant(), Some(1001));
        assert_eq!(receiver.regrant(), None);
        Ok(())
    }

    #[test]
    fn more_is_not_released_than_was_received() -> Result {
        let mut receiver = receiver(1000);
        receiver.receive(100).map_err(|_| EPROTO)?;
        receiver.release(101, false);
        receiver.release(u64::MAX, false);
        receiver.release(u64::MAX, true);
        assert_eq!(receiver.queued(), 0);
        assert_eq!(receiver.regrant(), Some(1100));
        Ok(())
    }

    /// P11: what an earlier connection has left behind counts until it is released.
    #[test]
    fn what_is_kept_is_carried_over() -> Result {
        let mut receiver = receiver(1000);
        receiver.receive(300).map_err(|_| EPROTO)?;
        receiver.receive(200).map_err(|_| EPROTO)?;
        receiver.release(200, false);
        receiver.carry();
        assert_eq!(receiver.queued(), 300);
        // Between two connections nothing is granted, and things are released.
        assert_eq!(receiver.receive(1), Err(Violation));
        receiver.release(50, true);
        assert_eq!(receiver.queued(), 250);
        assert_eq!(receiver.restart(), 750);
        assert_eq!(receiver.receive(751), Err(Violation));
        receiver.receive(750).map_err(|_| EPROTO)?;
        assert_eq!(receiver.queued(), 1000);
        // A third connection: all of it is carried, and all of it comes free.
        assert_eq!(receiver.restart(), 0);
        assert_eq!(receiver.queued(), 1000);
        // Nothing is left to the sender, so whatever comes free is granted.
        receiver.release(249, true);
        assert_eq!(receiver.worth_granting(), Some(249));
        receiver.release(1, true);
        assert_eq!(receiver.worth_granting(), Some(250));
        receiver.receive(250).map_err(|_| EPROTO)?;
        receiver.release(250, false);
        receiver.release(750, true);
        assert_eq!(receiver.worth_granting(), Some(1250));
        assert_eq!(receiver.queued(), 0);
        assert_eq!(receiver.restart(), 1000);
        Ok(())
    }

    // ---- Both.

    /// Both ends of a lane, and what is on its way between them: in order, but as late as it likes.
    struct Joined {
        window: u64,
        sender: Sender,
        receiver: Receiver,
        frames: KVec<u64>,
        grants: KVec<u64>,
        /// What the receiver keeps: cost, and the connection that it came over.
        kept: KVec<(u64, u32)>,
        connection: u32,
        /// Whether they are connected, and what was granted in the greeting while they are not yet.
        up: bool,
        greeting: Option<u64>,
    }

    impl Joined {
        fn new(window: u64) -> Self {
            Self {
                window,
                sender: Sender::new(window, window),
                receiver: receiver(window),
                frames: KVec::new(),
                grants: KVec::new(),
                kept: KVec::new(),
                connection: 0,
                up: true,
                greeting: None,
            }
        }

        fn send(&mut self, cost: u64) -> Result<bool> {
            if !self.up || !self.sender.take(cost) {
                return Ok(false);
            }
            self.frames.push(cost, GFP_KERNEL)?;
            Ok(true)
        }

        /// The next frame arrives.
        fn arrive(&mut self) -> Result {
            if let Ok(cost) = self.frames.remove(0) {
                self.receiver.receive(cost).map_err(|_| EPROTO)?;
                self.kept.push((cost, self.connection), GFP_KERNEL)?;
            }
            Ok(())
        }

        /// One of the frames that are kept is not any more.
        fn release(&mut self, index: usize) -> Result {
            let Ok((cost, connection)) = self.kept.remove(index) else {
                return Ok(());
            };
            let carried = !self.up || connection != self.connection;
            self.receiver.release(cost, carried);
            if self.up {
                if let Some(limit) = self.receiver.worth_granting() {
                    self.grants.push(limit, GFP_KERNEL)?;
                }
            }
            Ok(())
        }

        /// The next grant arrives.
        fn learn(&mut self) -> Result {
            if let Ok(limit) = self.grants.remove(0) {
                self.sender.grant(limit).map_err(|_| EPROTO)?;
            }
            Ok(())
        }

        /// The connection breaks, then the next is greeted, then it is up. What was on its way is
        /// lost.
        fn reconnect(&mut self) -> Result {
            match (self.up, self.greeting) {
                (true, _) => {
                    self.up = false;
                    self.frames.clear();
                    self.grants.clear();
                    self.receiver.carry();
                }
                (false, None) => self.greeting = Some(self.receiver.restart()),
                (false, Some(granted)) => {
                    self.greeting = None;
                    self.up = true;
                    self.connection += 1;
                    self.sender = Sender::new(self.window, granted);
                    if let Some(limit) = self.receiver.regrant() {
                        self.grants.push(limit, GFP_KERNEL)?;
                    }
                }
            }
            Ok(())
        }

        /// Everything arrives, is released, and is told.
        fn settle(&mut self) -> Result {
            while !self.up {
                self.reconnect()?;
            }
            while !self.frames.is_empty() || !self.kept.is_empty() || !self.grants.is_empty() {
                self.arrive()?;
                self.release(0)?;
                self.learn()?;
            }
            Ok(())
        }

        /// What has been released and not granted again.
        fn untold(&self) -> u64 {
            self.receiver.limit() - self.receiver.granted
        }

        /// Whether what must always hold does.
        fn holds(&self) -> bool {
            let (s, r) = (&self.sender, &self.receiver);
            let on_the_way: u64 = self.frames.iter().sum();
            let kept: u64 = self.kept.iter().map(|(cost, _)| *cost).sum();
            let free = self.window - r.carried;
            let joined = s.sent == r.received + on_the_way && s.limit <= r.granted;
            r.carried <= self.window
                && r.released <= r.received
                && r.received <= r.granted
                && r.granted <= r.released + free
                && r.queued() == kept
                && kept + on_the_way <= self.window
                && s.sent <= s.limit
                && s.limit <= s.sent + self.window
                && (joined || !self.up)
        }
    }

    /// Whatever comes in whatever order, neither side ever breaks the rules, no more is kept than the
    /// window, and the longest frame gets its turn.
    #[test]
    fn random_traffic_keeps_the_rules() -> Result {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for i in 0..2 * COSTS.len() {
            let longest = COSTS[i / 2];
            // One that is only just large enough, and one for several.
            let window = [1, 4][i % 2] * least_window(longest);
            let mut joined = Joined::new(window);
            let (mut sent, mut refused) = (0, 0);
            for round in 1..=4000 {
                match random.below(10) {
                    0..=3 => {
                        let any = 256 + random.draw() % (longest - 255);
                        let cost = random.pick(&[256, any, longest]);
                        if joined.send(cost)? {
                            sent += 1;
                        } else {
                            refused += 1;
                        }
                    }
                    4..=5 => joined.arrive()?,
                    6..=7 => {
                        let index = random.below(joined.kept.len().max(1));
                        joined.release(index)?;
                    }
                    8 => joined.learn()?,
                    _ => {
                        if !joined.up || random.below(10) == 0 {
                            joined.reconnect()?;
                        }
                    }
                }
                if !joined.holds() {
                    pr_err!("broken in round {round} with a window of {window}\n");
                    return Err(EINVAL);
                }
                if round % 100 == 0 {
                    joined.settle()?;
                    assert!(joined.holds());
                    assert!(joined.send(longest)?);
                }
            }
            assert!(sent > 100 && refused > 100);
            assert!(joined.connection > 10);
        }
        Ok(())
    }

    /// Whatever went before, the longest frame gets through a window that is just large enough.
    #[test]
    fn longest_frame_gets_through_the_least_window() -> Result {
        let all = Iterator::chain(256..2000, COSTS);
        for cost in all {
            let window = least_window(cost);
            let mut joined = Joined::new(window);
            for _ in 0..10 {
                assert!(joined.send(cost)?);
                joined.settle()?;
                // The worst that can happen: of all but a little less than a quarter nothing is told.
                let short = (window.div_ceil(4) - 1).saturating_sub(joined.untold());
                assert!(joined.send(short)?);
                joined.settle()?;
                assert_eq!(joined.untold(), window.div_ceil(4) - 1);
            }
        }
        Ok(())
    }

    /// A third more than the longest frame is needed indeed.
    #[test]
    fn longest_frame_is_stuck_in_a_smaller_window() -> Result {
        for cost in COSTS {
            let window = least_window(cost) - 3;
            let mut joined = Joined::new(window);
            assert!(joined.send(window.div_ceil(4) - 1)?);
            joined.settle()?;
            assert!(!joined.send(cost)?);
        }
        Ok(())
    }
}
