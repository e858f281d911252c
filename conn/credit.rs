// SPDX-License-Identifier: GPL-2.0

//! Credit: how a receiver bounds what a sender may have queued at it.
//!
//! Each direction of a connection has two lanes, messages and calls, each with a window of so many
//! bytes. A frame *costs* its length plus an overhead. The receiver grants by a running total: the
//! sender may have sent, since the connection began, frames that cost so much in all. A total can be
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

    /// Takes credit for a frame, if there is enough.
    pub(crate) fn take(&mut self, cost: u64) -> bool {
        // INVARIANT: `sent` grows to at most `limit`; `limit - sent` shrinks.
        if cost <= self.limit - self.sent {
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
/// It outlives the connection: what came over an earlier one and is still kept is carried over, and
/// leaves so much less of the window to the next.
///
/// # Invariants
///
/// `released <= received`; `granted <= released + (window - carried)`.
pub(crate) struct Receiver {
    window: u64,
    carried: u64,
    received: u64,
    released: u64,
    granted: u64,
}

impl Receiver {
    /// A lane with this window, before any connection.
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

    /// A new connection begins. Returns what to grant in its greeting.
    pub(crate) fn restart(&mut self) -> u64 {
        self.carry();
        // INVARIANT: Exactly the free part of the window is granted.
        self.granted = self.limit();
        self.granted
    }

    /// The connection has ended; what came over it and is still kept is carried over.
    pub(crate) fn carry(&mut self) {
        // INVARIANT: Nothing is granted before the next connection.
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

    /// A frame that came in before is no longer kept; `carried` if that was over an earlier
    /// connection.
    pub(crate) fn release(&mut self, cost: u64, carried: bool) {
        if carried {
            self.carried = self.carried.saturating_sub(cost);
        } else {
            // INVARIANT: What is released was received.
            self.released = self.released.saturating_add(cost).min(self.received);
        }
    }

    /// The total to grant, when it is worth telling: a quarter of the window is new.
    pub(crate) fn worth_granting(&mut self) -> Option<u64> {
        if self.limit() - self.granted < self.window.div_ceil(4) {
            return None;
        }
        self.regrant()
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
