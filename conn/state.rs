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
//!                 | Connecting | --------->+                |  Up  | --------+
//!                 +------------+  Expired  |                +------+
//!                   | Linked               |
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
//! and the connection made again in its direction), a newer connection of the peer's, which has found
//! the old one broken before this node has.
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
    /// Taken down by the administrator; or for bulk, and nobody wants it yet.
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
    /// The connection that was usable is gone.
    Gone,
    /// An attempt is to be ended.
    Abandon,
}

/// How long to wait between attempts: longer by half each time, bounded, with jitter so that nodes that
/// were lost together do not come back in step (RFC 8961 asks no less of any timer). So who comes back
/// is found after about half as long again as he was away: doubling would make that twice as long.
#[derive(Clone, Copy)]
pub(crate) struct Backoff {
    min: Millis,
    max: Millis,
    next: Millis,
}

impl Backoff {
    /// Between these bounds.
    pub(crate) fn new(min: Millis, max: Millis) -> Self {
        Self {
            min,
            max,
            next: min,
        }
    }

    /// The next pause: the full time less up to a quarter, by chance.
    pub(crate) fn next(&mut self, random: u64) -> Millis {
        let full = self.next.min(self.max);
        self.next = full.saturating_add(full.div_ceil(2));
        full - random.checked_rem(full / 4 + 1).unwrap_or(0)
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        self.next = self.min;
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

#[cfg(KCCM_KUNIT)]
#[kernel::prelude::kunit_tests(kccm_state)]
mod tests {
    use super::super::frame::tests::Random;
    use super::*;
    use kernel::prelude::*;
    use kernel::str::CString;

    const START: Millis = 10_000;
    const NOW: Millis = START + 5;
    const PATIENCE: Millis = 50;
    const FIRST: Millis = 100;
    const LONGEST: Millis = 1000;

    /// Chance that takes nothing off a pause.
    const FULL: u64 = 0;

    const ROLES: [Role; 2] = [Role::Connect, Role::Listen];

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

    fn machine(role: Role) -> Machine {
        Machine::new(role, Backoff::new(FIRST, LONGEST), PATIENCE, START)
    }

    /// A machine that has come into a state, whichever way.
    fn machine_in(role: Role, state: State) -> Machine {
        Machine {
            state,
            ..machine(role)
        }
    }

    /// Where nodes that connect can be, and those that listen; attempts and pauses are over.
    const CONNECTING: [State; 5] = [
        State::Down,
        State::Backoff { until: START },
        State::Connecting { until: START },
        State::Greeting { until: START },
        State::Up,
    ];
    const LISTENING: [State; 3] = [State::Down, State::Listening, State::Up];

    fn states(role: Role) -> &'static [State] {
        match role {
            Role::Connect => &CONNECTING,
            Role::Listen => &LISTENING,
        }
    }

    /// What changes a state: (role, state, event, next state, what to do).
    const CHANGES: [(Role, State, Event, State, Action); 19] = {
        use Action::*;
        use Event::*;
        use State::*;
        const C: Role = Role::Connect;
        const L: Role = Role::Listen;
        const PAUSED: State = Backoff { until: START };
        const AT_ONCE: State = Backoff { until: NOW };
        const PAUSE: State = Backoff { until: NOW + FIRST };
        const DIALING: State = Connecting { until: START };
        const GREETING: State = Greeting { until: START };
        const PATIENTLY: Millis = NOW + PATIENCE;
        [
            (C, Down, AdminUp, AT_ONCE, None),
            (C, PAUSED, Tick, Connecting { until: PATIENTLY }, Dial),
            (C, PAUSED, AdminDown, Down, None),
            (C, PAUSED, Hurry, AT_ONCE, None),
            (C, DIALING, Tick, PAUSE, Expire),
            (C, DIALING, Linked, Greeting { until: PATIENTLY }, Greet),
            (C, DIALING, Lost, PAUSE, None),
            (C, DIALING, AdminDown, Down, Abandon),
            (C, GREETING, Tick, PAUSE, Expire),
            (C, GREETING, Welcomed, Up, Established),
            (C, GREETING, Lost, PAUSE, None),
            (C, GREETING, AdminDown, Down, Abandon),
            (C, Up, Lost, PAUSE, Gone),
            (C, Up, AdminDown, Down, Gone),
            (L, Down, AdminUp, Listening, None),
            (L, Listening, Accepted, Up, Established),
            (L, Listening, AdminDown, Down, None),
            (L, Up, Lost, Listening, Gone),
            (L, Up, AdminDown, Down, Gone),
        ]
    };

    /// P10, P11: every event in every state of either role. What is not in the table is out of date
    /// and changes nothing.
    #[test]
    fn every_event_in_every_state() {
        let (mut changes, mut wrong) = (0, 0);
        for role in ROLES {
            for state in states(role).iter().copied() {
                for event in EVENTS {
                    let change = CHANGES
                        .iter()
                        .find(|(r, s, e, ..)| (*r, *s, *e) == (role, state, event));
                    changes += usize::from(change.is_some());
                    let expected = change.map_or((state, Action::None), |c| (c.3, c.4));
                    let mut machine = machine_in(role, state);
                    let action = machine.step(event, NOW, FULL);
                    let found = (machine.state(), action);
                    if found != expected {
                        pr_err!("{role:?} {state:?} {event:?}: {found:?}, not {expected:?}\n");
                        wrong += 1;
                    }
                }
            }
        }
        assert_eq!(changes, CHANGES.len());
        assert_eq!(wrong, 0);
    }

    #[test]
    fn states_have_names() -> Result {
        let names = [
            (State::Down, "down"),
            (State::Listening, "listening"),
            (State::Backoff { until: 1 }, "backoff"),
            (State::Connecting { until: 1 }, "connecting"),
            (State::Greeting { until: 1 }, "greeting"),
            (State::Up, "up"),
        ];
        for (state, name) in names {
            let shown = CString::try_from_fmt(fmt!("{state}"))?;
            assert_eq!(shown.to_bytes(), name.as_bytes());
        }
        Ok(())
    }

    /// P10: of every two nodes the one with the lower number connects and the other listens, so that
    /// they share one connection.
    #[test]
    fn lower_id_connects() {
        const IDS: NodeId = 256;
        for me in 0..IDS {
            let mut connects = 0;
            for peer in (0..IDS).filter(|peer| *peer != me) {
                let connecting = Role::of(me, peer) == Role::Connect;
                assert_eq!(connecting, me < peer);
                assert!(Role::of(peer, me) != Role::of(me, peer));
                connects += NodeId::from(connecting);
            }
            assert_eq!(connects, IDS - 1 - me);
        }
    }

    /// P10: at the start a node connects at once, or listens.
    #[test]
    fn start_is_in_its_direction() {
        let mut connecting = machine(Role::Connect);
        assert_eq!(connecting.state(), State::Backoff { until: START });
        assert_eq!(connecting.step(Event::Tick, START, FULL), Action::Dial);
        assert_eq!(machine(Role::Listen).state(), State::Listening);
    }

    /// P11: whichever way the connection was lost, it is made again in its direction.
    #[test]
    fn lost_connection_is_made_again() {
        let mut machine = machine(Role::Connect);
        let mut now = NOW;
        for _ in 0..3 {
            assert_eq!(machine.step(Event::Tick, now, FULL), Action::Dial);
            assert_eq!(machine.step(Event::Linked, now, FULL), Action::Greet);
            let welcomed = machine.step(Event::Welcomed, now, FULL);
            assert_eq!(welcomed, Action::Established);
            assert_eq!(machine.step(Event::Lost, now, FULL), Action::Gone);
            // The first pause each time, because it had worked.
            now += FIRST;
            assert_eq!(machine.deadline(), Some(now));
        }
        let mut machine = machine_in(Role::Listen, State::Listening);
        for _ in 0..3 {
            let accepted = machine.step(Event::Accepted, now, FULL);
            assert_eq!(accepted, Action::Established);
            assert_eq!(machine.step(Event::Lost, now, FULL), Action::Gone);
            assert_eq!(machine.state(), State::Listening);
        }
    }

    /// Whether what a machine says is to be done goes with how it has moved.
    fn consistent(before: State, after: State, action: Action) -> bool {
        let established = before != State::Up && after == State::Up;
        let gone = before == State::Up && after != State::Up;
        let attempt = |s| matches!(s, State::Connecting { .. } | State::Greeting { .. });
        let connecting = |s| matches!(s, State::Connecting { .. });
        let greeting = |s| matches!(s, State::Greeting { .. });
        (action == Action::Established) == established
            && (action == Action::Gone) == gone
            && (action == Action::Dial) == (!connecting(before) && connecting(after))
            && (action == Action::Greet) == (!greeting(before) && greeting(after))
            && (action == Action::Abandon) == (attempt(before) && after == State::Down)
            && (action != Action::Expire || attempt(before) && !attempt(after))
    }

    /// P10: no node ever leaves the direction that its number has given it.
    #[test]
    fn random_events_keep_to_the_role() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for role in ROLES {
            let mut machine = machine(role);
            let mut now = NOW;
            let mut ups = 0;
            for _ in 0..20_000 {
                now += random.below(30) as Millis;
                let before = machine.state();
                // The administrator is seldom there, or it would hardly ever be up.
                let all = random.below(8) == 0;
                let event = random.pick(if all { &EVENTS } else { &EVENTS[..5] });
                let action = machine.step(event, now, random.draw());
                let after = machine.state();
                let kind = core::mem::discriminant(&after);
                let allowed = states(role)
                    .iter()
                    .any(|state| core::mem::discriminant(state) == kind);
                if !allowed || !consistent(before, after, action) {
                    pr_err!("{role:?} {before:?} {event:?}: {after:?} {action:?}\n");
                }
                assert!(allowed);
                assert!(consistent(before, after, action));
                // What it waits for is not far off.
                let longest = LONGEST.max(PATIENCE);
                assert!(machine.deadline().is_none_or(|at| at <= now + longest));
                ups += usize::from(action == Action::Established);
            }
            assert!(ups > 50);
        }
    }

    #[test]
    fn deadline_is_of_pauses_and_attempts() {
        let cases = [
            (State::Down, None),
            (State::Listening, None),
            (State::Backoff { until: 7 }, Some(7)),
            (State::Connecting { until: 8 }, Some(8)),
            (State::Greeting { until: 9 }, Some(9)),
            (State::Up, None),
        ];
        for (state, deadline) in cases {
            let role = match state {
                State::Listening => Role::Listen,
                _ => Role::Connect,
            };
            assert_eq!(machine_in(role, state).deadline(), deadline);
        }
    }

    #[test]
    fn nothing_ends_before_its_time() {
        let until = NOW + 5;
        let cases = [
            (State::Backoff { until }, Action::Dial),
            (State::Connecting { until }, Action::Expire),
            (State::Greeting { until }, Action::Expire),
        ];
        for (state, action) in cases {
            let mut machine = machine_in(Role::Connect, state);
            for now in [0, NOW, until - 1] {
                assert_eq!(machine.step(Event::Tick, now, FULL), Action::None);
                assert_eq!(machine.state(), state);
            }
            for now in [until, until + 1, until + 1_000_000] {
                let mut machine = machine_in(Role::Connect, state);
                assert_eq!(machine.step(Event::Tick, now, FULL), action);
                // What comes next is counted from then.
                assert!(machine.deadline().is_some_and(|at| at > now));
            }
        }
    }

    #[test]
    fn connecting_and_greeting_have_their_time_each() {
        let mut machine = machine(Role::Connect);
        machine.step(Event::Tick, NOW, FULL);
        assert_eq!(machine.deadline(), Some(NOW + PATIENCE));
        let linked = NOW + PATIENCE - 1;
        machine.step(Event::Linked, linked, FULL);
        assert_eq!(machine.deadline(), Some(linked + PATIENCE));
    }

    /// The pauses of a machine whose attempts fail, one after the other.
    fn failing(machine: &mut Machine, now: &mut Millis, fail: Event) -> Option<Millis> {
        let dialed = machine.step(Event::Tick, *now, FULL);
        if fail == Event::Tick {
            *now = machine.deadline()?;
        }
        machine.step(fail, *now, FULL);
        let pause = machine.deadline()? - *now;
        *now += pause;
        (dialed == Action::Dial).then_some(pause)
    }

    #[test]
    fn pauses_grow_until_it_works() {
        // Whether attempts are lost or expire.
        for fail in [Event::Lost, Event::Tick] {
            let mut machine = machine(Role::Connect);
            let mut now = NOW;
            for pause in [100, 150, 225, 338, 507, 761, 1000, 1000, 1000] {
                assert_eq!(failing(&mut machine, &mut now, fail), Some(pause));
            }
            // The administrator's hurry is no success.
            machine.step(Event::Hurry, now - 500, FULL);
            assert_eq!(machine.deadline(), Some(now - 500));
            assert_eq!(failing(&mut machine, &mut now, fail), Some(1000));
            for event in [Event::Tick, Event::Linked, Event::Welcomed, Event::Lost] {
                machine.step(event, now, FULL);
            }
            now += FIRST;
            assert_eq!(machine.deadline(), Some(now));
            // That was the first pause; these come behind it.
            for pause in [150, 225] {
                assert_eq!(failing(&mut machine, &mut now, fail), Some(pause));
            }
            // The administrator begins anew.
            machine.step(Event::AdminDown, now, FULL);
            assert_eq!(machine.deadline(), None);
            machine.step(Event::AdminUp, now, FULL);
            assert_eq!(machine.deadline(), Some(now));
            assert_eq!(failing(&mut machine, &mut now, fail), Some(100));
        }
    }

    #[test]
    fn pause_is_bounded_for_ever() {
        // (min, max, the pause after very many)
        let cases = [
            (10, 10, 10),
            (10, 60_000, 60_000),
            (60_000, 60_000, 60_000),
            (1, 1 << 50, 1 << 50),
            (Millis::MAX / 2, Millis::MAX, Millis::MAX),
        ];
        for (min, max, last) in cases {
            let mut backoff = Backoff::new(min, max);
            let mut before = 0;
            for _ in 0..100 {
                let pause = backoff.next(FULL);
                assert!(before <= pause && (min..=max).contains(&pause));
                before = pause;
            }
            assert_eq!(before, last);
            assert_eq!(backoff.next(FULL), last);
            backoff.reset();
            assert_eq!(backoff.next(FULL), min);
        }
    }

    #[test]
    fn jitter_is_up_to_a_quarter() {
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        for next in [1, 3, 4, 5, FIRST, LONGEST, 2 * LONGEST] {
            let backoff = Backoff {
                next,
                ..Backoff::new(FIRST, LONGEST)
            };
            let full = next.min(LONGEST);
            let (mut least, mut most) = (Millis::MAX, 0);
            for _ in 0..5_000 {
                let pause = { backoff }.next(random.draw());
                (least, most) = (least.min(pause), most.max(pause));
            }
            // Of five thousand in at most 251 values, the ends are among them.
            assert_eq!((least, most), (full - full / 4, full));
        }
    }

    /// The connections of a cluster: what each node knows of each other. All links work at once.
    struct Cluster {
        nodes: KVec<KVec<Machine>>,
        now: Millis,
    }

    impl Cluster {
        fn new(count: NodeId) -> Result<Self> {
            let mut nodes = KVec::new();
            for id in 0..count {
                nodes.push(Self::node(id, count)?, GFP_KERNEL)?;
            }
            Ok(Self { nodes, now: NOW })
        }

        /// What a new node knows. Its place for itself is never used.
        fn node(id: NodeId, count: NodeId) -> Result<KVec<Machine>> {
            let mut peers = KVec::new();
            for peer in 0..count {
                peers.push(machine(Role::of(id, peer)), GFP_KERNEL)?;
            }
            Ok(peers)
        }

        fn step(&mut self, node: usize, peer: usize, event: Event) -> Action {
            self.nodes[node][peer].step(event, self.now, FULL)
        }

        /// Every node connects to whom it is time to. Returns how many connections were made.
        fn connect(&mut self) -> Option<usize> {
            let mut made = 0;
            for node in 0..self.nodes.len() {
                for peer in (0..self.nodes.len()).filter(|peer| *peer != node) {
                    if self.step(node, peer, Event::Tick) != Action::Dial {
                        continue;
                    }
                    let actions = [
                        self.step(node, peer, Event::Linked),
                        self.step(peer, node, Event::Accepted),
                        self.step(node, peer, Event::Welcomed),
                    ];
                    let expected = [Action::Greet, Action::Established, Action::Established];
                    if actions != expected {
                        pr_err!("{node} to {peer}: {actions:?}\n");
                        return None;
                    }
                    made += 1;
                }
            }
            Some(made)
        }

        /// How many other nodes a node is connected to, both ends thinking so.
        fn ups(&self, node: usize) -> usize {
            let up = |a: usize, b: usize| self.nodes[a][b].state() == State::Up;
            (0..self.nodes.len())
                .filter(|peer| *peer != node && up(node, *peer) && up(*peer, node))
                .count()
        }
    }

    /// P10: all nodes at once reach the fully connected state, each pair by one connection.
    #[test]
    fn cluster_is_fully_connected() -> Result {
        for count in 1..=16 {
            let mut cluster = Cluster::new(count)?;
            let count = usize::from(count);
            assert_eq!(cluster.connect(), Some(count * (count - 1) / 2));
            for node in 0..count {
                assert_eq!(cluster.ups(node), count - 1);
            }
            // There is nothing more to do.
            cluster.now += 1_000_000;
            assert_eq!(cluster.connect(), Some(0));
        }
        Ok(())
    }

    /// P11: a node that is lost is found by all others, which carry on; when it is back, so is the
    /// fully connected state.
    #[test]
    fn cluster_recovers_each_of_its_nodes() -> Result {
        const COUNT: NodeId = 5;
        const OTHERS: usize = COUNT as usize - 1;
        let mut cluster = Cluster::new(COUNT)?;
        cluster.connect();
        for lost in 0..COUNT {
            let dead = usize::from(lost);
            for other in (0..=OTHERS).filter(|other| *other != dead) {
                assert_eq!(cluster.step(other, dead, Event::Lost), Action::Gone);
                let state = cluster.nodes[other][dead].state();
                let waits = if other < dead {
                    State::Backoff {
                        until: cluster.now + FIRST,
                    }
                } else {
                    State::Listening
                };
                assert_eq!(state, waits);
            }
            cluster.nodes[dead] = Cluster::node(lost, COUNT)?;
            for other in (0..=OTHERS).filter(|other| *other != dead) {
                assert_eq!(cluster.ups(other), OTHERS - 1);
            }
            // Those above it are connected to at once, those below it connect when it is time.
            assert_eq!(cluster.connect(), Some(OTHERS - dead));
            cluster.now += FIRST;
            assert_eq!(cluster.connect(), Some(dead));
            for node in 0..=OTHERS {
                assert_eq!(cluster.ups(node), OTHERS);
            }
        }
        Ok(())
    }
}
