// SPDX-License-Identifier: GPL-2.0

//! Peers that break, fall silent, are taken away, and come back.

use super::harness::*;
use super::net::{
    anew,
    Client, //
};
use crate::config::NodeId;
use crate::conn::frame::{
    Bye,
    Header, //
};
use crate::conn::hello;
use crate::conn::hello::{
    Refusal,
    Standing, //
};
use crate::conn::peer::Snapshot;
use crate::conn::state::State;
use crate::events::Event;
use crate::node::Node;
use crate::rcall::handlers::Class;
use crate::sys::clock;
use crate::sys::clock::Millis;
use crate::sys::wait::Timeout;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::{
    new_mutex,
    Arc,
    Mutex, //
};

const TAG: u32 = 7;
const FUNC: u32 = 1;

fn snapshot(node: &Node, peer: NodeId) -> Result<Snapshot> {
    Ok(node.peer(peer).ok_or(EINVAL)?.snapshot())
}

/// Numbered messages from one node to another, for as long as it lives.
pub(super) struct Stream {
    stop: Arc<Atomic<bool>>,
    sent: Arc<Atomic<u64>>,
    sender: Job<Result>,
    receiver: Job<Result<u64>>,
}

impl Stream {
    /// Begins it.
    pub(super) fn new(from: &Arc<Node>, to: &Arc<Node>) -> Result<Self> {
        let stop = Arc::new(Atomic::new(false), GFP_KERNEL)?;
        let sent = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let (at, source, dst) = (to.clone(), from.id(), to.id());
        let receiver = spawn(move || {
            for expected in 0.. {
                match receive_number(&at, Some(source), Some(TAG), SOON).here()? {
                    u64::MAX => return Ok(expected),
                    number => check_eq!(number, expected),
                }
            }
            Err(E2BIG)
        })?;
        let (from, until, count) = (from.clone(), stop.clone(), sent.clone());
        let sender = spawn(move || {
            let send = |number: u64| from.send(dst, TAG, &number.to_le_bytes(), SOON).here();
            for number in 0.. {
                if until.load(Relaxed) {
                    break;
                }
                send(number)?;
                count.store(number + 1, Relaxed);
                pause(1);
            }
            send(u64::MAX)
        })?;
        Ok(Self {
            stop,
            sent,
            sender,
            receiver,
        })
    }

    /// Waits until some more messages have gone.
    pub(super) fn flows(&self) -> Result {
        let before = self.sent.load(Relaxed);
        eventually(|| self.sent.load(Relaxed) >= before + 10)
    }

    /// Ends it. All that was sent has arrived, in order.
    pub(super) fn end(self) -> Result {
        self.stop.store(true, Relaxed);
        self.sender.join()??;
        let received = self.receiver.join()??;
        check_eq!(received, self.sent.load(Relaxed));
        Ok(())
    }
}

/// Checks that the session of two nodes has not been disturbed.
#[track_caller]
fn undisturbed(one: &Node, other: &Node) -> Result {
    for (node, peer) in [(one, other), (other, one)] {
        let peer = node.peer(peer.id()).ok_or(EINVAL)?;
        check_eq!(peer.snapshot().epoch, 1);
        check_eq!(peer.stats.reconnects.get(), 0);
    }
    Ok(())
}

// ---- Silence.

const DEAD_MS: Millis = 300 * SLOWNESS;

/// How much later silence may be found, on a machine that has much else to do: what this tells from
/// a silence that is not found. How soon it is found, `make detection` measures.
const MARGIN: Millis = 10_000 * SLOWNESS;

/// Three nodes, of which node 1 then falls silent: it does not send, or does not hear, or both. Who
/// hears nothing finds that out in time; the two others go on.
fn falls_silent(mute: bool, deaf: bool, busy: bool) -> Result {
    let mut plan = Plan::gated(3)?;
    plan.limits.dead_ms = DEAD_MS as u32;
    plan.limits.handshake_ms = DEAD_MS as u32;
    let cluster = Cluster::new(plan)?;
    let (zero, silent, two) = cluster.trio()?;
    let stream = Stream::new(&zero, &two)?;
    let mut senders = KVec::new();
    let stop = Arc::new(Atomic::new(false), GFP_KERNEL)?;
    if busy {
        for (from, to) in [(&zero, 1), (&two, 1), (&silent, 0), (&silent, 2)] {
            let (from, stop) = (from.clone(), stop.clone());
            let send = move || {
                while !stop.load(Relaxed) {
                    if from.send(to, TAG, &[0; 1000], Timeout::After(10)).is_err() {
                        pause(1);
                    }
                }
            };
            senders.push(spawn(send)?, GFP_KERNEL)?;
        }
        eventually(|| silent.endpoint.waiting().0 > 10)?;
    }
    let gate = cluster.gate(1)?;
    let begin = clock::now();
    gate.set_mute(mute);
    gate.set_deaf(deaf);
    if mute {
        sees_down(&zero, 1)?;
        sees_down(&two, 1)?;
    }
    if deaf {
        sees_down(&silent, 0)?;
        sees_down(&silent, 2)?;
    }
    let elapsed = clock::now() - begin;
    check!(elapsed <= DEAD_MS + MARGIN);
    // Not because the node broke a connection, but because of the silence.
    check!(elapsed >= DEAD_MS / 2);
    stream.flows()?;
    gate.set_mute(false);
    gate.set_deaf(false);
    cluster.connected()?;
    stop.store(true, Relaxed);
    for sender in senders {
        sender.join()?;
    }
    stream.end()?;
    undisturbed(&zero, &two)
}

// ---- Events.

/// What a subscriber was told.
type Told = Arc<Mutex<KVec<(NodeId, Event, u64)>>>;

/// Has everything that a node tells written down.
fn subscribe(node: &Node) -> Result<(i32, Told)> {
    let told: Told = Arc::pin_init(new_mutex!(KVec::new(), "Told"), GFP_KERNEL)?;
    let theirs = told.clone();
    let handle = node.subscribe(KBox::new(
        move |peer: NodeId, event: Event, incarnation: u64| {
            let _ = theirs.lock().push((peer, event, incarnation), GFP_KERNEL);
        },
        GFP_KERNEL,
    )?)?;
    Ok((handle, told))
}

/// Waits until just this has been told.
#[track_caller]
fn was_told(told: &Told, expected: &[(NodeId, Event, u64)]) -> Result {
    let reached = eventually(|| told.lock()[..] == *expected);
    if reached.is_err() {
        pr_err!("told: {:?}\n", &told.lock()[..]);
    }
    reached
}

#[kunit_tests(kccm_recovery)]
mod tests {
    use super::*;

    // ---- Nodes that go and come back.

    /// P2, P11: a node goes: the others see it at once, and go on; it comes back: the state is fully
    /// connected again, and it is known for a new incarnation.
    #[test]
    fn node_goes_and_comes_back() -> Result {
        let mut cluster = Cluster::of(3)?;
        for node in cluster.nodes() {
            register_echo(node)?;
        }
        let (zero, one, two) = cluster.trio()?;
        let stream = Stream::new(&zero, &two)?;
        stream.flows()?;
        let before = one.identity.incarnation;
        check_eq!(snapshot(&zero, 1)?.incarnation, before);
        drop(one);
        cluster.stop(1);
        for node in [&zero, &two] {
            sees_down(node, 1)?;
        }
        stream.flows()?;
        echo(&two, &zero)?;
        cluster.start(1)?;
        cluster.connected()?;
        let one = cluster.node(1)?;
        register_echo(&one)?;
        let after = one.identity.incarnation;
        check!(after != before);
        for node in [&zero, &two] {
            check_eq!(snapshot(node, 1)?.incarnation, after);
            check_eq!(node.peer(1).map(|p| p.stats.reconnects.get()), Some(1));
        }
        all_talk(&cluster)?;
        stream.end()?;
        undisturbed(&zero, &two)
    }

    /// P11: each of them in turn, and all but one.
    #[test]
    fn every_node_goes_and_comes_back() -> Result {
        const COUNT: NodeId = 4;
        let mut cluster = Cluster::of(COUNT)?;
        for id in 0..COUNT {
            cluster.stop(id);
            for node in cluster.nodes() {
                sees_down(node, id)?;
            }
            cluster.start(id)?;
            cluster.connected()?;
        }
        (1..COUNT).for_each(|id| cluster.stop(id));
        for id in (1..COUNT).rev() {
            cluster.start(id)?;
        }
        cluster.connected()?;
        for node in cluster.nodes() {
            register_echo(node)?;
        }
        all_talk(&cluster)
    }

    /// P10, P11: attempts go on, between bounds, for as long as it takes; when the next one is made
    /// can be seen.
    #[test]
    fn attempts_go_on() -> Result {
        let mut plan = Plan::of(2);
        (plan.limits.backoff_min_ms, plan.limits.backoff_max_ms) = (20, 50);
        let mut cluster = Cluster::idle(plan)?;
        let begin = clock::now();
        cluster.start(0)?;
        let node = cluster.node(0)?;
        let peer = node.peer(1).ok_or(EINVAL)?;
        eventually(|| peer.stats.attempts.get() >= 10)?;
        // Each pause is three quarters of the least one, or more; the first attempt is at once.
        let attempts = peer.stats.attempts.get();
        check!((attempts - 1) * 15 <= clock::now() - begin + 15);
        let mut seen = peer.snapshot();
        eventually(|| {
            seen = peer.snapshot();
            seen.next_attempt.is_some()
        })?;
        check!(seen.next_attempt.is_some_and(|at| at <= clock::now() + 50));
        check_eq!(seen.last_error, Some(ECONNREFUSED));
        check_eq!((seen.epoch, seen.incarnation), (0, 0));
        cluster.start(1)?;
        cluster.connected()?;
        let seen = peer.snapshot();
        check_eq!((seen.last_error, seen.next_attempt), (None, None));
        Ok(())
    }

    // ---- The administrator.

    /// P11: taken down by the administrator, at either side, and up again.
    #[test]
    fn administrator_takes_a_peer_down() -> Result {
        let cluster = Cluster::of(3)?;
        for (at, id) in [(0, 1), (1, 0)] {
            let (node, other) = (cluster.node(at)?, cluster.node(id)?);
            let peer = node.peer(id).ok_or(EINVAL)?;
            node.set_admin_down(peer, true);
            sees_down(&node, id)?;
            sees_down(&other, at)?;
            check_eq!(snapshot(&node, id)?.state, State::Down);
            // The other one knows why, and if it tries again it is told so.
            let refusal = || other.peer(at).and_then(|p| p.snapshot().last_refusal);
            let attempts = || other.peer(at).map_or(0, |p| p.stats.attempts.get());
            let before = attempts();
            eventually(|| refusal() == Some(Refusal::AdminDown))?;
            eventually(|| at < id || attempts() > before)?;
            steadily(20, || refusal() == Some(Refusal::AdminDown))?;
            steadily(50, || !peer.is_up())?;
            node.set_admin_down(peer, false);
            cluster.connected()?;
        }
        undisturbed(&*cluster.node(0)?, &*cluster.node(2)?)?;
        undisturbed(&*cluster.node(1)?, &*cluster.node(2)?)
    }

    /// P11: down and up again before anybody has got round to the first.
    #[test]
    fn administrator_is_faster_than_the_listener() -> Result {
        let cluster = Cluster::of(2)?;
        let (node, other) = cluster.pair()?;
        let (latch, held) = (Latch::new()?, Latch::new()?);
        let (barrier, other_barrier) = (latch.barrier(), held.barrier());
        register(&node, FUNC, Class::Short, move |_| {
            barrier.pass();
            0
        })?;
        register(&other, FUNC, Class::Long, move |_| {
            other_barrier.pass();
            0
        })?;
        let (_, told) = subscribe(&node)?;
        let incarnation = other.identity.incarnation;
        was_told(&told, &[(1, Event::Up, incarnation)])?;
        let theirs = node.clone();
        let caller = spawn(move || call(&theirs, 1, FUNC))?;
        held.wait_held(1)?;
        other.rcall(0, FUNC, &[], SOON).here()?;
        latch.wait_held(1)?;
        let peer = node.peer(1).ok_or(EINVAL)?;
        node.set_admin_down(peer, true);
        node.set_admin_down(peer, false);
        // The listener knows of nothing yet.
        steadily(50, || epoch(&node, 1) == 1)?;
        latch.open();
        check_eq!(caller.join()?, Err(EHOSTDOWN));
        cluster.connected()?;
        let again = [
            (1, Event::Up, incarnation),
            (1, Event::Down, incarnation),
            (1, Event::Up, incarnation),
        ];
        was_told(&told, &again)
    }

    /// P11: a new connection because the administrator wants one, from either side.
    #[test]
    fn administrator_reconnects() -> Result {
        let cluster = Cluster::of(3)?;
        for node in cluster.nodes() {
            register_echo(node)?;
        }
        let mut session = 1;
        for (at, id) in [(0, 1), (1, 0)] {
            for at_once in [true, false] {
                let (node, other) = (cluster.node(at)?, cluster.node(id)?);
                node.disconnect(node.peer(id).ok_or(EINVAL)?, at_once);
                session += 1;
                eventually(|| epoch(&node, id) == session && epoch(&other, at) == session)?;
                let incarnation = other.identity.incarnation;
                check_eq!(snapshot(&node, id)?.incarnation, incarnation);
                all_talk(&cluster)?;
            }
        }
        undisturbed(&*cluster.node(0)?, &*cluster.node(2)?)
    }

    // ---- Silence.

    /// P11: a peer that does not say anything any more.
    #[test]
    fn mute_peer() -> Result {
        falls_silent(true, false, false)?;
        falls_silent(true, false, true)
    }

    /// P11: a peer that does not hear anything any more finds all others dead.
    #[test]
    fn deaf_peer() -> Result {
        falls_silent(false, true, false)?;
        falls_silent(false, true, true)
    }

    /// P11: a peer that is cut off.
    #[test]
    fn peer_that_is_cut_off() -> Result {
        falls_silent(true, true, false)?;
        falls_silent(true, true, true)
    }

    /// Having nothing to say is not being silent.
    #[test]
    fn idle_cluster_stays_connected() -> Result {
        let mut plan = Plan::of(3);
        plan.limits.dead_ms = 2 * DEAD_MS as u32;
        let cluster = Cluster::new(plan)?;
        let connected = || cluster.nodes().all(|n| n.peers().iter().all(|p| p.is_up()));
        steadily(8 * DEAD_MS, connected)?;
        let (zero, one, two) = cluster.trio()?;
        undisturbed(&zero, &one)?;
        undisturbed(&zero, &two)?;
        undisturbed(&one, &two)
    }

    /// Nor is it being silent, or a reason to find others so, when a handler holds up the listener.
    #[test]
    fn busy_listener_is_not_silent() -> Result {
        let mut plan = Plan::of(2);
        plan.limits.dead_ms = 2 * DEAD_MS as u32;
        let cluster = Cluster::new(plan)?;
        let (caller, node) = cluster.pair()?;
        let latch = Latch::new()?;
        register_latched(&node, FUNC, Class::Short, &latch)?;
        caller.rcall(1, FUNC, &[], SOON).here()?;
        latch.wait_held(1)?;
        steadily(5 * DEAD_MS, || {
            epoch(&caller, 1) == 1 && epoch(&node, 0) == 1
        })?;
        latch.open();
        check_eq!(call(&caller, 1, FUNC), Ok(0));
        undisturbed(&caller, &node)
    }

    /// Nor is a peer dead that has closed its window (RFC 9293, section 3.8.6.1), however long.
    #[test]
    fn closed_window_is_not_death() -> Result {
        const COUNT: u32 = 20 << 4;
        const LEN: usize = 64 << 10;
        let mut plan = Plan::gated(2)?;
        plan.limits.dead_ms = 2 * DEAD_MS as u32;
        // More than TCP takes on both sides together.
        plan.limits.queue_bytes = 24 << 20;
        plan.limits.unsent_bytes = plan.limits.kept_bytes;
        let cluster = Cluster::new(plan)?;
        let (sender, node) = cluster.pair()?;
        let gate = cluster.gate(0)?;
        let latch = hold_listener(&sender, &node, FUNC)?;
        let bytes = pattern(LEN, 1)?;
        for _ in 0..COUNT {
            sender.send(1, TAG, &bytes, SOON).here()?;
        }
        eventually(|| gate.full() > 0)?;
        steadily(5 * DEAD_MS, || {
            epoch(&sender, 1) == 1 && epoch(&node, 0) == 1
        })?;
        let waits = sender.peer(1).ok_or(EINVAL)?.snapshot().kept[0];
        check!(waits >= u64::from(COUNT) * LEN as u64);
        latch.open();
        let mut buf = KVVec::from_elem(0, LEN, GFP_KERNEL)?;
        for _ in 0..COUNT {
            receive(&node, Some(0), Some(TAG), &mut buf, SOON).here()?;
            check!(buf[..] == bytes[..]);
        }
        undisturbed(&sender, &node)
    }

    /// Nor does it keep a node from giving signs of life to send what others have queued.
    #[test]
    fn busy_connection_holds_up_no_other() -> Result {
        const TOLL: Millis = 40;
        let mut plan = Plan::gated(3)?;
        plan.limits.dead_ms = 2 * DEAD_MS as u32;
        let cluster = Cluster::new(plan)?;
        let (node, _busy, idle) = cluster.trio()?;
        let gate = cluster.gate(0)?;
        gate.set_toll(TOLL);
        // While a sign of life is on its way, much more is queued behind it.
        let signs = gate.sends(own_ip(1));
        eventually(|| gate.sends(own_ip(1)) > signs)?;
        for _ in 0..1000 {
            node.send(1, TAG, &[0; 4096], SOON).here()?;
        }
        steadily(6 * DEAD_MS, || epoch(&node, 2) == 1 && epoch(&idle, 0) == 1)?;
        gate.set_toll(0);
        undisturbed(&node, &idle)
    }

    // ---- Connections that take another's place.

    /// P11: a peer that connects again has found its connection broken; another that claims to be it
    /// is refused while it is alive.
    #[test]
    fn connection_is_replaced() -> Result {
        let mut cluster = Cluster::idle(Plan::of(3))?;
        cluster.start(1)?;
        cluster.start(2)?;
        let (node, other) = (cluster.node(1)?, cluster.node(2)?);
        let (_, told) = subscribe(&node)?;
        let me = |incarnation| cluster.stranger(0, incarnation);
        let about = |id| told.lock().iter().filter(|told| told.0 == id).count();
        let first = Client::join(&cluster, &me(7)?, 1)?;
        // A subscriber that is slow may miss what has come and gone.
        eventually(|| epoch(&node, 0) == 1 && about(0) == 1)?;
        let again = Standing {
            with: node.identity.incarnation,
            ..anew(&me(7)?)
        };
        let second = Client::join_at(&cluster, &me(7)?, 1, again)?;
        eventually(|| epoch(&node, 0) == 2)?;
        first.wait_for(Header::Bye(Bye::Replaced))?;
        first.wait_closed()?;
        let third = Client::connect(cluster.ip(0), cluster.addr(1))?;
        third.say(&hello::hello(
            &me(8)?,
            1,
            hello::Channel::Main,
            anew(&me(8)?),
        ))?;
        check_eq!(third.answer(&me(8)?, 1)?, Some(Refusal::Duplicate));
        check_eq!(epoch(&node, 0), 2);
        drop(second);
        sees_lost(&node, 0)?;
        let _fourth = Client::join(&cluster, &me(8)?, 1)?;
        eventually(|| epoch(&node, 0) == 3)?;
        let expected = [(0, Event::Up, 7), (0, Event::Down, 7), (0, Event::Up, 8)];
        eventually(|| about(0) == expected.len() && about(2) == 1)?;
        check!(told.lock().iter().filter(|told| told.0 == 0).eq(&expected));
        undisturbed(&node, &other)
    }

    /// P11: what is said last is said even if somebody else is sending just then.
    #[test]
    fn good_bye_while_sending() -> Result {
        let cluster = Cluster::new(Plan::gated(2)?)?;
        let (node, other) = cluster.pair()?;
        let gate = cluster.gate(0)?;
        gate.set_toll(60);
        let sends = gate.sends(own_ip(1));
        let theirs = node.clone();
        let sender = spawn(move || theirs.send(1, TAG, &[0; 100], SOON))?;
        eventually(|| gate.sends(own_ip(1)) > sends)?;
        let (peer, me) = (node.peer(1).ok_or(EINVAL)?, other.peer(0).ok_or(EINVAL)?);
        node.set_admin_down(peer, true);
        sender.join()?.here()?;
        sees_down(&other, 0)?;
        check_eq!(me.snapshot().last_refusal, Some(Refusal::AdminDown));
        gate.set_toll(0);
        node.set_admin_down(peer, false);
        cluster.connected()
    }

    // ---- Events.

    /// P11: subscribers are told who is up already, and then whatever changes, for each peer in
    /// order.
    #[test]
    fn subscribers_are_told() -> Result {
        let mut cluster = Cluster::of(3)?;
        let (node, one, two) = cluster.trio()?;
        let (handle, told) = subscribe(&node)?;
        let [first, two] = [&one, &two].map(|node| node.identity.incarnation);
        drop(one);
        let mut expected = KVec::new();
        expected.push((1, Event::Up, first), GFP_KERNEL)?;
        expected.push((2, Event::Up, two), GFP_KERNEL)?;
        was_told(&told, &expected)?;
        cluster.stop(1);
        expected.push((1, Event::Down, first), GFP_KERNEL)?;
        was_told(&told, &expected)?;
        cluster.start(1)?;
        let second = cluster.node(1)?.identity.incarnation;
        expected.push((1, Event::Up, second), GFP_KERNEL)?;
        was_told(&told, &expected)?;
        // Faster than they can be told: down and up are told once, or more often, never mixed up.
        for _ in 0..5 {
            let before = epoch(&node, 1);
            let peer = node.peer(1).ok_or(EINVAL)?;
            node.set_admin_down(peer, true);
            node.set_admin_down(peer, false);
            eventually(|| epoch(&node, 1) > before)?;
        }
        eventually(|| told.lock().len() > expected.len() + 1)?;
        check_eq!(node.unsubscribe(handle), Ok(()));
        check_eq!(node.unsubscribe(handle), Err(ENOENT));
        let told = told.lock();
        for pair in told[expected.len()..].chunks(2) {
            check_eq!(pair[0], (1, Event::Down, second));
            check!(pair.get(1).is_none_or(|&up| up == (1, Event::Up, second)));
        }
        Ok(())
    }

    /// When unsubscribing has returned, the subscriber is not being called.
    #[test]
    fn unsubscribing_waits() -> Result {
        let cluster = Cluster::of(2)?;
        let node = cluster.node(0)?;
        let latch = Latch::new()?;
        let barrier = latch.barrier();
        let handle = node.subscribe(KBox::new(
            move |_: NodeId, _: Event, _: u64| barrier.pass(),
            GFP_KERNEL,
        )?)?;
        latch.wait_held(1)?;
        let theirs = node.clone();
        let unsubscribing = spawn(move || theirs.unsubscribe(handle))?;
        steadily(30, || !unsubscribing.is_done())?;
        latch.open();
        check_eq!(unsubscribing.join()?, Ok(()));
        check_eq!(latch.held(), 0);
        Ok(())
    }

    /// A subscriber that unsubscribed itself would wait for itself. Otherwise it may do what it
    /// likes.
    #[test]
    fn unsubscribing_from_inside() -> Result {
        let cluster = Cluster::of(2)?;
        let (node, other) = cluster.pair()?;
        register_echo(&other)?;
        let results = Arc::pin_init(new_mutex!(None, "results"), GFP_KERNEL)?;
        let noted: Arc<Mutex<Option<[Result; 3]>>> = results.clone();
        let theirs = node.clone();
        let subscriber = move |_: NodeId, _: Event, _: u64| {
            let another = KBox::new(|_: NodeId, _: Event, _: u64| {}, GFP_KERNEL);
            let subscribed = match another {
                Ok(another) => theirs.subscribe(another).map(|_| ()),
                Err(e) => Err(e.into()),
            };
            let unsubscribed = theirs.unsubscribe(1);
            let echoed = echo(&theirs, &other);
            *noted.lock() = Some([subscribed, unsubscribed, echoed]);
        };
        let handle = node.subscribe(KBox::new(subscriber, GFP_KERNEL)?)?;
        eventually(|| results.lock().is_some())?;
        // Not while the node holds the subscriber, and the subscriber the node.
        node.unsubscribe(handle)?;
        let expected = Some([Err(EDEADLK), Err(EDEADLK), Ok(())]);
        check_eq!(*results.lock(), expected);
        Ok(())
    }
}
