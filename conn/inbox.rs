// SPDX-License-Identifier: GPL-2.0

//! What a session has received, and what the other side has been told of that.
//!
//! Pure. Frames are judged and delivered by one listener at a time; anybody may ask and tell.

use crate::sys::clock::Millis;
use kernel::sync::atomic::{
    Acquire,
    Atomic,
    Full,
    Relaxed, //
};

/// An acknowledgement that nothing carries along is sent by itself after so long, milliseconds.
pub(crate) const DELAY: Millis = 20;

/// ... or when so much has been delivered since the last: bytes, frames. Whoever keeps less than that
/// asks earlier: `Flow::take()`.
const BYTES: u64 = 1 << 20;
const FRAMES: u64 = 1024;

/// What to make of the number of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It is the next one.
    Next,
    /// It has been delivered before.
    Duplicate,
    /// There is one missing before it: it makes no sense.
    Gap,
}

/// When to acknowledge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// Now.
    Now,
    /// After [`DELAY`], when somebody must ask; nobody sees to that yet.
    Later,
    /// That has been seen to.
    Pending,
}

/// One direction of a session.
pub(crate) struct Inbox {
    /// The number of the last frame that was delivered.
    received: Atomic<u64>,
    /// What the other side was told of last.
    told: Atomic<u64>,
    /// Bytes delivered since.
    bytes: Atomic<u64>,
    /// When the first was delivered that the other side has not been told of.
    since: Atomic<u64>,
    /// Somebody is to ask later whether an acknowledgement is due by itself.
    watched: Atomic<bool>,
}

impl Inbox {
    /// At the beginning of a session.
    pub(crate) const fn new() -> Self {
        Self {
            received: Atomic::new(0),
            told: Atomic::new(0),
            bytes: Atomic::new(0),
            since: Atomic::new(0),
            watched: Atomic::new(false),
        }
    }

    /// The number of the last frame that was delivered.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Acquire)
    }

    /// Judges the number of a frame that has come in.
    pub(crate) fn judge(&self, seq: u64) -> Verdict {
        let received = self.received.load(Relaxed);
        if seq <= received {
            Verdict::Duplicate
        } else if seq == received + 1 {
            Verdict::Next
        } else {
            Verdict::Gap
        }
    }

    /// The next frame, of so many bytes, has been delivered. `now` is asked when it matters.
    pub(crate) fn deliver(&self, seq: u64, len: u64, now: impl FnOnce() -> Millis) -> Due {
        let untold = seq.saturating_sub(self.told.load(Relaxed));
        if untold <= 1 {
            self.since.store(now(), Relaxed);
        }
        // Before it is looked whether somebody asks: see `is_due()`.
        self.received.xchg(seq, Full);
        let bytes = self.bytes.fetch_add(len, Relaxed) + len;
        if bytes >= BYTES || untold >= FRAMES {
            Due::Now
        } else if self.watched.load(Relaxed) || self.watched.xchg(true, Full) {
            Due::Pending
        } else {
            Due::Later
        }
    }

    /// What to acknowledge in a frame that goes out now.
    pub(crate) fn tell(&self) -> u64 {
        let received = self.received();
        if self.told.load(Relaxed) != received {
            self.told.store(received, Relaxed);
            self.bytes.store(0, Relaxed);
        }
        received
    }

    /// Whether an acknowledgement is due by itself; if not yet, when to ask again. That is so, too, while
    /// others carry them along all the time: it is cheaper than to begin anew with the next frame.
    pub(crate) fn is_due(&self, now: Millis) -> Result<bool, Millis> {
        if !self.watched.load(Relaxed) {
            return Ok(false);
        }
        let due = self.since.load(Relaxed) + DELAY;
        if now < due {
            return Err(due);
        }
        // Before it is looked: a frame that is delivered after that finds that nobody asks.
        self.watched.xchg(false, Full);
        Ok(self.owes())
    }

    /// Whether the other side has not been told of everything.
    pub(crate) fn owes(&self) -> bool {
        self.received.load(Relaxed) != self.told.load(Relaxed)
    }
}

#[cfg(KCCM_KUNIT)]
#[kernel::prelude::kunit_tests(kccm_inbox)]
mod tests {
    use super::*;

    const NOW: Millis = 1000;

    #[test]
    fn next_number_is_judged() {
        let inbox = Inbox::new();
        for received in 0..3 {
            assert_eq!(inbox.received(), received);
            for seq in 1..=received {
                assert_eq!(inbox.judge(seq), Verdict::Duplicate);
            }
            assert_eq!(inbox.judge(received + 1), Verdict::Next);
            for seq in [received + 2, received + 100, u64::MAX] {
                assert_eq!(inbox.judge(seq), Verdict::Gap);
            }
            inbox.deliver(received + 1, 0, || NOW);
        }
    }

    #[test]
    fn acknowledgement_is_told_with_what_is_sent() {
        let inbox = Inbox::new();
        assert!(!inbox.owes());
        inbox.deliver(1, 0, || NOW);
        inbox.deliver(2, 0, || NOW);
        assert!(inbox.owes());
        assert_eq!(inbox.tell(), 2);
        assert!(!inbox.owes());
        // Nothing is left to be sent by itself.
        assert_eq!(inbox.is_due(NOW + DELAY), Ok(false));
    }

    #[test]
    fn acknowledgement_is_due_after_a_while() {
        let inbox = Inbox::new();
        assert_eq!(inbox.is_due(NOW), Ok(false));
        assert_eq!(inbox.deliver(1, 10, || NOW), Due::Later);
        assert_eq!(inbox.deliver(2, 10, || NOW + 5), Due::Pending);
        assert_eq!(inbox.is_due(NOW), Err(NOW + DELAY));
        assert_eq!(inbox.is_due(NOW + DELAY - 1), Err(NOW + DELAY));
        assert_eq!(inbox.is_due(NOW + DELAY), Ok(true));
        // Asked for once; the next frame asks again.
        assert_eq!(inbox.is_due(NOW + DELAY), Ok(false));
        assert_eq!(inbox.deliver(3, 10, || NOW + DELAY), Due::Later);
    }

    #[test]
    fn delay_begins_with_what_is_not_told() {
        let inbox = Inbox::new();
        let mut looks = 0;
        // In a conversation every answer carries the acknowledgement, and one look at a time is due.
        for i in 0..100 {
            let due = inbox.deliver(i + 1, 10, || NOW + i);
            assert_eq!(due, if i == 0 { Due::Later } else { Due::Pending });
            if looks <= NOW + i {
                assert_eq!(inbox.is_due(NOW + i), Err(NOW + i + DELAY));
                looks = NOW + i + DELAY;
            }
            inbox.tell();
        }
        inbox.deliver(101, 10, || NOW + 100);
        inbox.deliver(102, 10, || NOW + 105);
        assert_eq!(inbox.is_due(NOW + 101), Err(NOW + 100 + DELAY));
        assert_eq!(inbox.is_due(NOW + 100 + DELAY), Ok(true));
    }

    #[test]
    fn much_is_acknowledged_at_once() {
        let inbox = Inbox::new();
        assert_eq!(inbox.deliver(1, BYTES - 1, || NOW), Due::Later);
        assert_eq!(inbox.deliver(2, 1, || NOW), Due::Now);
        inbox.tell();
        assert_eq!(inbox.deliver(3, BYTES, || NOW), Due::Now);
        inbox.tell();
        for seq in 4..3 + FRAMES {
            assert!(inbox.deliver(seq, 0, || NOW) != Due::Now);
        }
        assert_eq!(inbox.deliver(3 + FRAMES, 0, || NOW), Due::Now);
    }
}
