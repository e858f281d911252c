// SPDX-License-Identifier: GPL-2.0

//! What a session has to send, and what it has sent and keeps until it is acknowledged.
//!
//! ```text
//!   push          fill                 sent               acknowledge, resume
//!  ------> waiting ----> a connection ------> unacknowledged ----------------> gone
//!             ^          (Tx::drain)               |
//!             +------------------------------------+
//!                  resume: another connection
//! ```
//!
//! Frames leave in the order of their numbers, which is that of [`Outbox::push`]. Pure. Callers
//! serialise, and drop what is returned when they have released their lock.

use super::tx::OutFrame;
use kernel::list::{
    List,
    ListArc, //
};
use kernel::prelude::*;

/// The other side acknowledges what it cannot have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Violation;

/// One direction of a session.
///
/// # Invariants
///
/// `acked <= offered <= last`. `unacknowledged`, what is with the connection, and `waiting` are, one
/// after the other, the frames from `acked + 1` to `last`, without a gap.
pub(crate) struct Outbox {
    /// The number of the last frame that was pushed.
    last: u64,
    /// The highest number that a connection was ever given.
    offered: u64,
    /// What the other side has delivered.
    acked: u64,
    waiting: List<OutFrame>,
    unacknowledged: List<OutFrame>,
}

impl Outbox {
    /// At the beginning of a session.
    pub(crate) const fn new() -> Self {
        Self {
            last: 0,
            offered: 0,
            acked: 0,
            waiting: List::new(),
            unacknowledged: List::new(),
        }
    }

    /// The number of the last frame that was pushed.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// The number of the last frame that was acknowledged.
    pub(crate) fn acked(&self) -> u64 {
        self.acked
    }

    /// Whether no frame waits to be sent.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Numbers a frame and queues it. Returns its number.
    pub(crate) fn push(&mut self, frame: ListArc<OutFrame>) -> u64 {
        // INVARIANT: It goes behind the frame with the number before it.
        self.last += 1;
        frame.set_seq(self.last);
        self.waiting.push_back(frame);
        self.last
    }

    /// The number of the next frame to send.
    pub(crate) fn next(&self) -> Option<u64> {
        self.waiting.iter().next().map(|frame| frame.seq())
    }

    /// The next frame to send.
    pub(crate) fn fill(&mut self) -> Option<ListArc<OutFrame>> {
        let frame = self.waiting.pop_front()?;
        // INVARIANT: It was pushed.
        self.offered = self.offered.max(frame.seq());
        Some(frame)
    }

    /// A frame has been handed to the connection whole; the next in order. Gives it back if it has
    /// been acknowledged in the meantime.
    pub(crate) fn sent(&mut self, frame: ListArc<OutFrame>) -> Option<ListArc<OutFrame>> {
        if frame.seq() <= self.acked {
            return Some(frame);
        }
        self.unacknowledged.push_back(frame);
        None
    }

    /// A frame was not sent after all. Called for the last first.
    pub(crate) fn put_back(&mut self, frame: ListArc<OutFrame>) {
        self.waiting.push_front(frame);
    }

    /// Whether the other side can have received that much, and so go on from there.
    pub(crate) fn can_resume(&self, received: u64) -> bool {
        (self.acked..=self.offered).contains(&received)
    }

    /// The other side has delivered everything up to this number. Returns what need not be kept any
    /// more.
    pub(crate) fn acknowledge(&mut self, ack: u64) -> Result<List<OutFrame>, Violation> {
        if ack > self.offered {
            return Err(Violation);
        }
        // An older acknowledgement says nothing new.
        self.acked = self.acked.max(ack);
        let mut gone = List::new();
        Self::forget(&mut self.unacknowledged, self.acked, &mut gone);
        Ok(gone)
    }

    /// Another connection goes on from what the other side has received; what was with the last one
    /// has been put back. Returns what need not be kept any more.
    pub(crate) fn resume(&mut self, received: u64) -> Result<List<OutFrame>, Violation> {
        if !self.can_resume(received) {
            return Err(Violation);
        }
        self.acked = received;
        // INVARIANT: What was sent precedes what was not.
        self.unacknowledged.push_all_back(&mut self.waiting);
        core::mem::swap(&mut self.unacknowledged, &mut self.waiting);
        let mut gone = List::new();
        Self::forget(&mut self.waiting, received, &mut gone);
        Ok(gone)
    }

    fn forget(from: &mut List<OutFrame>, ack: u64, gone: &mut List<OutFrame>) {
        while let Some(frame) = from.pop_front() {
            if frame.seq() > ack {
                from.push_front(frame);
                return;
            }
            gone.push_back(frame);
        }
    }

    /// Takes everything out: the session is over.
    pub(crate) fn clear(&mut self) -> List<OutFrame> {
        let mut all = core::mem::replace(&mut self.unacknowledged, List::new());
        all.push_all_back(&mut self.waiting);
        all
    }
}

#[cfg(KCCM_KUNIT)]
#[kunit_tests(kccm_outbox)]
mod tests {
    use super::super::frame::tests::Random;
    use super::super::frame::Header;
    use super::super::tx::{
        Blank,
        Payload, //
    };
    use super::*;

    fn frame() -> Result<ListArc<OutFrame>> {
        let header = Header::Message { tag: 0, len: 0 };
        Ok(Blank::new(GFP_KERNEL)?.fill(header, Payload::Few(&[]), None, None))
    }

    /// An outbox into which so many frames were pushed.
    fn filled(count: u64) -> Result<Outbox> {
        let mut outbox = Outbox::new();
        for number in 1..=count {
            assert_eq!(outbox.push(frame()?), number);
        }
        Ok(outbox)
    }

    fn numbers(mut frames: List<OutFrame>) -> Result<KVec<u64>> {
        let mut numbers = KVec::new();
        while let Some(frame) = frames.pop_front() {
            numbers.push(frame.seq(), GFP_KERNEL)?;
        }
        Ok(numbers)
    }

    /// Sends so many frames whole, the first with this number.
    fn send(outbox: &mut Outbox, first: u64, count: u64) -> Result {
        for number in first..first + count {
            let frame = outbox.fill().ok_or(ENOENT)?;
            assert_eq!(frame.seq(), number);
            assert!(outbox.sent(frame).is_none());
        }
        Ok(())
    }

    #[test]
    fn frames_leave_in_order() -> Result {
        let mut outbox = filled(3)?;
        assert!(!outbox.is_idle());
        send(&mut outbox, 1, 3)?;
        assert!(outbox.is_idle() && outbox.fill().is_none());
        assert_eq!(outbox.push(frame()?), 4);
        send(&mut outbox, 4, 1)
    }

    #[test]
    fn frames_are_kept_until_acknowledged() -> Result {
        let mut outbox = filled(5)?;
        send(&mut outbox, 1, 4)?;
        let mut acknowledge = |ack| outbox.acknowledge(ack).map_err(|_| EPROTO);
        assert_eq!(numbers(acknowledge(0)?)?[..], []);
        assert_eq!(numbers(acknowledge(2)?)?[..], [1, 2]);
        // Said again, and overtaken.
        assert_eq!(numbers(acknowledge(2)?)?[..], []);
        assert_eq!(numbers(acknowledge(1)?)?[..], []);
        assert_eq!(numbers(acknowledge(4)?)?[..], [3, 4]);
        assert_eq!(outbox.acked(), 4);
        Ok(())
    }

    #[test]
    fn only_what_was_sent_can_be_acknowledged() -> Result {
        let mut outbox = filled(5)?;
        send(&mut outbox, 1, 2)?;
        for ack in [3, 5, 6, u64::MAX] {
            assert!(outbox.acknowledge(ack).is_err());
        }
        assert_eq!(outbox.acked(), 0);
        // What a connection has been given may have got there.
        let third = outbox.fill().ok_or(ENOENT)?;
        assert_eq!(
            numbers(outbox.acknowledge(3).map_err(|_| EPROTO)?)?[..],
            [1, 2]
        );
        // It was faster than whoever sends; the frame need not be kept.
        assert!(outbox.sent(third).is_some());
        Ok(())
    }

    #[test]
    fn resumes_where_the_other_side_is() -> Result {
        for received in 1..=4 {
            let mut outbox = filled(6)?;
            send(&mut outbox, 1, 3)?;
            drop(outbox.acknowledge(1).map_err(|_| EPROTO)?);
            // Half sent.
            let fourth = outbox.fill().ok_or(ENOENT)?;
            outbox.put_back(fourth);
            for wrong in [0, 5, 6, u64::MAX] {
                assert!(!outbox.can_resume(wrong));
                assert!(outbox.resume(wrong).is_err());
            }
            assert!(outbox.can_resume(received));
            let gone = numbers(outbox.resume(received).map_err(|_| EPROTO)?)?;
            assert!(gone.iter().copied().eq(2..=received));
            assert_eq!(outbox.acked(), received);
            send(&mut outbox, received + 1, 6 - received)?;
            assert!(outbox.is_idle());
        }
        Ok(())
    }

    #[test]
    fn everything_is_cleared() -> Result {
        let mut outbox = filled(4)?;
        send(&mut outbox, 1, 2)?;
        assert_eq!(numbers(outbox.clear())?[..], [1, 2, 3, 4]);
        assert!(outbox.is_idle());
        Ok(())
    }

    /// Whatever gets lost with connections, what arrives is every number, once, in order.
    #[test]
    fn nothing_is_lost_or_doubled() -> Result {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut outbox = Outbox::new();
        let (mut pushed, mut received, mut resumed) = (0, 0, 0);
        // What is on its way over the present connection, and what of it is lost with that.
        let mut wire = KVec::new();
        for _ in 0..20_000 {
            match random.below(16) {
                0..=4 => pushed = outbox.push(frame()?),
                5..=8 => {
                    if let Some(frame) = outbox.fill() {
                        wire.push(frame.seq(), GFP_KERNEL)?;
                        drop(outbox.sent(frame));
                    }
                }
                9..=12 if !wire.is_empty() => {
                    let seq = wire.remove(0).map_err(|_| EIO)?;
                    assert_eq!(seq, received + 1);
                    received = seq;
                }
                13 | 14 => drop(outbox.acknowledge(received).map_err(|_| EPROTO)?),
                15 => {
                    wire.clear();
                    assert!(outbox.can_resume(received));
                    drop(outbox.resume(received).map_err(|_| EPROTO)?);
                    resumed += 1;
                }
                _ => {}
            }
        }
        while let Some(frame) = outbox.fill() {
            wire.push(frame.seq(), GFP_KERNEL)?;
        }
        assert!(wire.iter().copied().eq(received + 1..=pushed));
        assert!(pushed > 4000 && received > 1000 && resumed > 500);
        Ok(())
    }
}
