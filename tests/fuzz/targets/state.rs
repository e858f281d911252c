// SPDX-License-Identifier: GPL-2.0

//! Whatever happens to a connection, its state goes only the ways of the diagram at the beginning of
//! `conn/state.rs`, with the actions that belong to them, waits for no longer than it should, and
//! comes up as soon as the peer lets it.

use crate::conn::state::{
    Action,
    Backoff,
    Event,
    Machine,
    Role,
    State, //
};
use crate::script::Script;
use crate::sys::clock::Millis;

const EVENTS: [Event; 8] = [
    Event::Tick,
    Event::Linked,
    Event::Welcomed,
    Event::Accepted,
    Event::Lost,
    Event::AdminDown,
    Event::AdminUp,
    Event::Hurry,
];

/// A machine, and what is known of it.
struct Watched {
    machine: Machine,
    role: Role,
    patience: Millis,
    min: Millis,
    max: Millis,
    now: Millis,
    /// Attempts that failed since the last connection.
    failures: u32,
}

impl Watched {
    fn new(script: &mut Script<'_>) -> Self {
        let (me, peer) = (script.u8().into(), script.u8().into());
        let role = Role::of(me, peer);
        // One of the two connects.
        assert!(me == peer || Role::of(peer, me) != role);
        // In the ranges of `config.rs`.
        let min = u64::from(script.u16()).clamp(10, 60_000);
        let max = u64::from(script.u16()).clamp(min, 60_000);
        let patience = u64::from(script.u16()).clamp(100, 60_000);
        let now = script.number() >> 1;
        Self {
            machine: Machine::new(role, Backoff::new(min, max), patience, now),
            role,
            patience,
            min,
            max,
            now,
            failures: 0,
        }
    }

    /// Where it begins.
    fn start(&self) -> State {
        match self.role {
            Role::Connect => State::Backoff { until: self.now },
            Role::Listen => State::Listening,
        }
    }

    /// Where it goes when an attempt or a connection is lost, by what was drawn.
    fn again(&mut self, after: State) -> State {
        let full = (0..self.failures.min(40))
            .fold(self.min, |full, _| (full + full.div_ceil(2)).min(self.max));
        self.failures += 1;
        match (self.role, after) {
            (Role::Listen, _) => State::Listening,
            (Role::Connect, State::Backoff { until }) => {
                let pause = until - self.now;
                assert!(
                    (full - full / 4..=full).contains(&pause),
                    "{pause} of {full}"
                );
                after
            }
            (Role::Connect, other) => panic!("{other:?}, and not Backoff"),
        }
    }

    /// Lets something happen, and checks what comes of it.
    fn step(&mut self, event: Event, random: u64) -> Action {
        let before = self.machine.state();
        let action = self.machine.step(event, self.now, random);
        let after = self.machine.state();
        let due = self.machine_was_due(before);
        let until = self.now + self.patience;
        let (right, state) = match (before, event) {
            (_, Event::AdminDown) => (
                match before {
                    State::Up => Action::Gone,
                    State::Connecting { .. } | State::Greeting { .. } => Action::Abandon,
                    _ => Action::None,
                },
                State::Down,
            ),
            (State::Down, Event::AdminUp) => {
                self.failures = 0;
                (Action::None, self.start())
            }
            (State::Backoff { .. }, Event::Tick) if due => {
                (Action::Dial, State::Connecting { until })
            }
            (State::Backoff { .. }, Event::Hurry) => (Action::None, self.start()),
            (State::Connecting { .. } | State::Greeting { .. }, Event::Tick) if due => {
                (Action::Expire, self.again(after))
            }
            (State::Connecting { .. } | State::Greeting { .. }, Event::Lost) => {
                (Action::None, self.again(after))
            }
            (State::Connecting { .. }, Event::Linked) => (Action::Greet, State::Greeting { until }),
            (State::Greeting { .. }, Event::Welcomed) | (State::Listening, Event::Accepted) => {
                self.failures = 0;
                (Action::Established, State::Up)
            }
            (State::Up, Event::Lost) => (Action::Gone, self.again(after)),
            _ => (Action::None, before),
        };
        assert_eq!((action, after), (right, state), "{before:?} and {event:?}");
        self.check();
        action
    }

    fn machine_was_due(&self, state: State) -> bool {
        deadline(state).is_some_and(|until| until <= self.now)
    }

    fn check(&self) {
        let state = self.machine.state();
        assert_eq!(self.machine.deadline(), deadline(state));
        let connects = match state {
            State::Down | State::Up => self.role,
            State::Listening => Role::Listen,
            _ => Role::Connect,
        };
        assert_eq!(connects, self.role, "{state:?} is not for it");
        let longest = self.patience.max(self.max);
        assert!(deadline(state).is_none_or(|until| until <= self.now + longest));
        assert!(!state.to_string().is_empty());
    }

    /// The administrator and the peer want it: it comes up.
    fn bring_up(&mut self, random: u64) {
        self.step(Event::AdminUp, random);
        for _ in 0..3 {
            self.now = self.now.max(self.machine.deadline().unwrap_or(0));
            let event = match self.machine.state() {
                State::Up => break,
                State::Backoff { .. } => Event::Tick,
                State::Connecting { .. } => Event::Linked,
                State::Greeting { .. } => Event::Welcomed,
                State::Listening => Event::Accepted,
                State::Down => panic!("still down"),
            };
            self.step(event, random);
        }
        assert_eq!(self.machine.state(), State::Up);
    }
}

fn deadline(state: State) -> Option<Millis> {
    match state {
        State::Backoff { until } | State::Connecting { until } | State::Greeting { until } => {
            Some(until)
        }
        State::Down | State::Listening | State::Up => None,
    }
}

pub(crate) fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let mut watched = Watched::new(&mut script);
    assert_eq!(watched.machine.state(), watched.start());
    watched.check();
    while script.more() {
        let event = script.pick(&EVENTS);
        // Up to the deadline, or to any other time.
        watched.now = match (watched.machine.deadline(), script.bit()) {
            (Some(until), true) => watched.now.max(until),
            _ => watched.now + u64::from(script.u8()) * 64,
        };
        let random = script.number();
        watched.step(event, random);
    }
    watched.bring_up(0);
}
