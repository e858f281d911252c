// SPDX-License-Identifier: GPL-2.0

//! The state of the connection to one peer.
//!
//! Whether a node connects or listens to a peer is decided by their ids once and for all ([`Role`],
//! P10). What then happens is the same for all:
//!
//! ```text
//!                connecting node                         listening node
//!
//!                 +----------+                            +-----------+
//!      start ---> | Backoff  | <-----------+   start ---> | Listening | <----+
//!                 +----------+             |              +-----------+      |
//!                   | Due                  |                    | Accepted   | Lost
//!                   v                      |                    v            |
//!                 +------------+   Lost    |                +------+         |
//!                 | Connecting | --------->+         +----> |  Up  | --------+
//!                 +------------+  Expired  |         |      +------+
//!                   | Linked               |         +----------+ Accepted
//!                   v                      |
//!                 +----------+     Lost    |       AdminDown leads from every state
//!                 | Greeting | ----------->+       to Down, and AdminUp back to the
//!                 +----------+   Expired   |       start.
//!                   | Welcomed             |
//!                   v                Lost  |
//!                 +----------+             |
//!                 |    Up    | ------------+
//!                 +----------+
//! ```
//!
//! `Lost` is every way to lose a connection: an error, the end of the stream, a refusal, silence, the
//! administrator's wish to reconnect (P11: the broken connection is identified, its socket removed,
//! and the connection made again in its direction). `Accepted` while up means that the peer has found
//! the connection broken before this node has, and has made a new one.
//!
//! An event that does not fit the state is out of date and changes nothing. Pure: the time and
//! chance are arguments, what is to be done is returned.

use crate::config::NodeId;
use crate::sys::clock::Millis;
use kernel::fmt;

/// What a node does about the connection to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// It connects.
    Connect,
    /// It waits to be connected to.
    Listen,
}

impl Role {
    /// The lower id connects, the higher listens (P10).
    pub(crate) fn of(me: NodeId, peer: NodeId) -> Self {
        if me < peer {
            Role::Connect
        } else {
            Role::Listen
        }
    }
}

/// Where the connection to a peer stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Taken down by the administrator.
    Down,
    /// Waiting for the peer to connect.
    Listening,
    /// Waiting to connect again, until that time.
    Backoff {
        /// When.
        until: Millis,
    },
    /// Connecting, until that time.
    Connecting {
        /// When it is given up.
        until: Millis,
    },
    /// Connected, waiting for the peer's answer, until that time.
    Greeting {
        /// When it is given up.
        until: Millis,
    },
    /// Established.
    Up,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Down => "down",
            State::Listening => "listening",
            State::Backoff { .. } => "backoff",
            State::Connecting { .. } => "connecting",
            State::Greeting { .. } => "greeting",
            State::Up => "up",
        })
    }
}

/// What happens to a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// Time has passed.
    Tick,
    /// The attempt to connect has succeeded.
    Linked,
    /// The peer has answered the greeting well.
    Welcomed,
    /// A connection of the peer, with a good greeting, has come in.
    Accepted,
    /// The connection, or the attempt, is broken.
    Lost,
    /// The administrator wants no connection.
    AdminDown,
    /// The administrator wants one again.
    AdminUp,
    /// The administrator wants the next attempt now.
    Hurry,
}

/// What is to be done about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Nothing.
    None,
    /// Begin to connect.
    Dial,
    /// Send the greeting.
    Greet,
    /// Give up the attempt: it has taken too long.
    Expire,
    /// The connection has become usable.
    Established,
    /// The connection that was usable is replaced by a new one.
    Replaced,
    /// The connection that was usable is gone.
    Gone,
    /// An attempt is to be ended.
    Abandon,
}

/// How long to wait between attempts: doubling, bounded, with jitter so that nodes that were lost
/// together do not come back in step (RFC 8961 asks no less of any timer).
#[derive(Clone, Copy)]
pub(crate) struct Backoff {
    min: Millis,
    max: Millis,
    attempts: u32,
}

impl Backoff {
    /// Between these bounds.
    pub(crate) fn new(min: Millis, max: Millis) -> Self {
        Self {
            min,
            max,
            attempts: 0,
        }
    }

    /// The next pause: the full time less up to a quarter, by chance.
    pub(crate) fn next(&mut self, random: u64) -> Millis {
        let full = self
            .min
            .saturating_mul(1 << self.attempts.min(20))
            .min(self.max);
        self.attempts = self.attempts.saturating_add(1);
        full - random % (full / 4 + 1)
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// The state machine of one peer.
pub(crate) struct Machine {
    role: Role,
    state: State,
    backoff: Backoff,
    patience: Millis,
}

impl Machine {
    /// A peer that is to be connected at once. Connecting and greeting may take `patience` each.
    pub(crate) fn new(role: Role, backoff: Backoff, patience: Millis, now: Millis) -> Self {
        let mut machine = Self {
            role,
            state: State::Listening,
            backoff,
            patience,
        };
        machine.begin(now);
        machine
    }

    /// Where it stands.
    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// When [`Event::Tick`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        match self.state {
            State::Backoff { until } | State::Connecting { until } | State::Greeting { until } => {
                Some(until)
            }
            State::Down | State::Listening | State::Up => None,
        }
    }

    /// Takes note of an event and says what to do.
    pub(crate) fn step(&mut self, event: Event, now: Millis, random: u64) -> Action {
        match (self.state, event) {
            (State::Backoff { until }, Event::Tick) if now >= until => self.dial(now),
            (State::Backoff { .. }, Event::Hurry) => {
                self.begin(now);
                Action::None
            }
            (State::Connecting { until } | State::Greeting { until }, Event::Tick)
                if now >= until =>
            {
                self.retry(now, random);
                Action::Expire
            }
            (State::Connecting { .. }, Event::Linked) => {
                self.state = State::Greeting {
                    until: now + self.patience,
                };
                Action::Greet
            }
            (State::Greeting { .. }, Event::Welcomed) => {
                self.up();
                Action::Established
            }
            (State::Listening, Event::Accepted) => {
                self.up();
                Action::Established
            }
            (State::Up, Event::Accepted) => Action::Replaced,
            (State::Connecting { .. } | State::Greeting { .. }, Event::Lost) => {
                self.retry(now, random);
                Action::None
            }
            (State::Up, Event::Lost) => {
                self.retry(now, random);
                Action::Gone
            }
            (State::Down, Event::AdminUp) => {
                self.backoff.reset();
                self.begin(now);
                Action::None
            }
            (state, Event::AdminDown) => {
                self.state = State::Down;
                match state {
                    State::Up => Action::Gone,
                    State::Connecting { .. } | State::Greeting { .. } => Action::Abandon,
                    State::Down | State::Listening | State::Backoff { .. } => Action::None,
                }
            }
            _ => Action::None,
        }
    }

    fn begin(&mut self, now: Millis) {
        self.state = match self.role {
            Role::Connect => State::Backoff { until: now },
            Role::Listen => State::Listening,
        };
    }

    fn dial(&mut self, now: Millis) -> Action {
        self.state = State::Connecting {
            until: now + self.patience,
        };
        Action::Dial
    }

    fn retry(&mut self, now: Millis, random: u64) {
        self.state = match self.role {
            Role::Connect => State::Backoff {
                until: now + self.backoff.next(random),
            },
            Role::Listen => State::Listening,
        };
    }

    fn up(&mut self) {
        self.backoff.reset();
        self.state = State::Up;
    }
}
