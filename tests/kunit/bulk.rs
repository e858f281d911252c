// SPDX-License-Identifier: GPL-2.0

//! The channel for bulk: opened when it is asked for, in order in itself, in nobody's way, and gone with
//! the peer.

use super::harness::*;
use super::net::{
    anew,
    Client, //
};
use crate::config::NodeId;
use crate::conn::frame::tests::PING;
use crate::conn::frame::{
    Bye,
    Header, //
};
use crate::conn::hello;
use crate::conn::hello::{
    Channel,
    Identity,
    Refusal, //
};
use crate::conn::peer::{
    Peer,
    Snapshot, //
};
use crate::conn::state::State;
use crate::node::Node;
use crate::rcall::handlers::Class;
use crate::sys::wait::Timeout;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::Arc;

const TAG: u32 = 7;
const BULK: u32 = 8;

/// A node's channel for bulk to another.
fn bulk(node: &Node, peer: NodeId) -> Result<Arc<Peer>> {
    let peer = node.peer(peer).ok_or(EINVAL)?;
    Ok(peer.bulk().ok_or(EINVAL)?.clone())
}

fn snapshot(node: &Node, peer: NodeId) -> Result<Snapshot> {
    Ok(bulk(node, peer)?.snapshot())
}

/// Waits until two nodes have a channel for bulk.
#[track_caller]
fn open(one: &Node, other: &Node) -> Result {
    let is_up = |at: &Node, to: &Node| snapshot(at, to.id()).is_ok_and(|s| s.epoch > 0);
    eventually(|| is_up(one, other) && is_up(other, one))
}

fn send_numbers(from: &Node, to: NodeId, numbers: core::ops::Range<u64>) -> Result {
    for number in numbers {
        from.send_bulk(to, BULK, &number.to_le_bytes(), SOON)
            .here()?;
    }
    Ok(())
}

#[track_caller]
fn expect_numbers(at: &Node, from: NodeId, tag: u32, numbers: core::ops::Range<u64>) -> Result {
    for number in numbers {
        check_eq!(receive_number(at, Some(from), Some(tag), SOON), Ok(number));
    }
    Ok(())
}

/// Two nodes between which there is a channel for bulk.
fn opened() -> Result<Cluster> {
    let cluster = Cluster::of(2)?;
    let (zero, one) = cluster.pair()?;
    send_numbers(&zero, 1, 0..1)?;
    expect_numbers(&one, 0, BULK, 0..1)?;
    open(&zero, &one)?;
    Ok(cluster)
}

/// Breaks what two nodes have for bulk, from the side of the first, or `all` that they have. Waits for the
/// next connections.
#[track_caller]
fn break_once(node: &Node, other: &Node, all: bool) -> Result {
    let epochs = || -> Result<[u64; 4]> {
        let main = [epoch(node, other.id()), epoch(other, node.id())];
        let bulk = [
            snapshot(node, other.id())?.epoch,
            snapshot(other, node.id())?.epoch,
        ];
        Ok([bulk[0], bulk[1], main[0], main[1]])
    };
    let before = epochs()?;
    if all {
        node.disconnect(node.peer(other.id()).ok_or(EINVAL)?, true);
    } else if let Some((conn, _)) = bulk(node, other.id())?.line() {
        conn.fail(ECONNABORTED, Some(Bye::Reconnect));
    }
    let broken = if all { 4 } else { 2 };
    eventually(|| {
        let after = epochs().unwrap_or_default();
        (0..broken).all(|i| after[i] > before[i])
    })
}

/// Fills the channel for bulk until no more is let through. Returns how many messages that took.
fn fill(node: &Node) -> Result<usize> {
    let message = pattern(SMALL_MESSAGE, 1)?;
    let mut sent = 0;
    eventually(|| {
        let result = node.send_bulk(1, BULK, &message, Timeout::NoWait);
        sent += usize::from(result.is_ok());
        result == Err(EAGAIN) && sent >= SMALL_ROOM
    })?;
    Ok(sent)
}

/// A connection to node 1 for bulk that is established, as with the node `me`.
#[track_caller]
fn join(cluster: &Cluster, me: &Identity) -> Result<Client> {
    let node = cluster.node(1)?;
    let client = Client::join_on(Channel::Bulk, cluster, me, 1, anew(me))?;
    eventually(|| snapshot(&node, me.id).is_ok_and(|s| s.epoch > 0))?;
    Ok(client)
}

#[kunit_tests(kccm_bulk)]
mod tests {
    use super::*;

    /// Whoever first sends over it has it opened: the one who connects, or the other, who asks for it.
    #[test]
    fn opened_by_either_side() -> Result {
        for (from, to) in [(0, 1), (1, 0)] {
            let cluster = Cluster::of(2)?;
            let (sender, receiver) = (cluster.node(from)?, cluster.node(to)?);
            send_numbers(&sender, to, 0..100)?;
            expect_numbers(&receiver, from, BULK, 0..100)?;
            open(&sender, &receiver)?;
            send_numbers(&receiver, from, 0..100)?;
            expect_numbers(&sender, to, BULK, 0..100)?;
            for (node, peer) in [(&sender, to), (&receiver, from)] {
                check_eq!(bulk(node, peer)?.stats.tx_messages.get(), 100);
                check_eq!(bulk(node, peer)?.stats.rx_messages.get(), 100);
            }
        }
        Ok(())
    }

    /// Who does not want it does not have it.
    #[test]
    fn not_opened_unasked() -> Result {
        let cluster = Cluster::of(2)?;
        for node in cluster.nodes() {
            register_echo(node)?;
        }
        all_talk(&cluster)?;
        steadily(100, || {
            let idle = |node: &Arc<Node>, peer, state| {
                snapshot(node, peer).is_ok_and(|s| s.state == state && s.session == 0)
            };
            let (Ok(zero), Ok(one)) = (cluster.node(0), cluster.node(1)) else {
                return false;
            };
            idle(&zero, 1, State::Down) && idle(&one, 0, State::Listening)
        })?;
        check_eq!(bulk(&*cluster.node(0)?, 1)?.stats.attempts.get(), 0);
        Ok(())
    }

    /// Messages over both channels, both ways, while both are broken again and again.
    #[test]
    fn nothing_is_lost_or_doubled() -> Result {
        const COUNT: u64 = often(4000);
        let cluster = opened()?;
        let (zero, one) = cluster.pair()?;
        let mut jobs = KVec::new();
        for (from, to) in [(&zero, &one), (&one, &zero)] {
            for tag in [TAG, BULK] {
                let (sender, dst) = (from.clone(), to.id());
                let send = spawn(move || {
                    for number in 0..COUNT {
                        let bytes = number.to_le_bytes();
                        match tag {
                            BULK => sender.send_bulk(dst, tag, &bytes, SOON),
                            _ => sender.send(dst, tag, &bytes, SOON),
                        }
                        .here()?;
                    }
                    Ok(())
                })?;
                jobs.push(send, GFP_KERNEL)?;
                let (receiver, source) = (to.clone(), from.id());
                let receive = spawn(move || expect_numbers(&receiver, source, tag, 0..COUNT))?;
                jobs.push(receive, GFP_KERNEL)?;
            }
        }
        let mut breaks = 0;
        while breaks < 6 || jobs.iter().any(|job| !job.is_done()) {
            let (node, other) = [(&zero, &one), (&one, &zero)][breaks % 2];
            break_once(node, other, breaks % 3 == 0)?;
            breaks += 1;
            pause(5);
        }
        for job in jobs {
            job.join()??;
        }
        for node in cluster.nodes() {
            check_eq!(
                receive_number(node, None, None, Timeout::NoWait),
                Err(EAGAIN)
            );
        }
        check!(bulk(&zero, 1)?.stats.reconnects.get() > 3);
        Ok(())
    }

    /// What waits for room there holds up nothing else.
    #[test]
    fn full_channel_is_in_nobody_s_way() -> Result {
        let cluster = Cluster::new(Plan::small(2))?;
        let (zero, one) = cluster.pair()?;
        register_echo(&one)?;
        check_eq!(fill(&zero)?, SMALL_ROOM);
        let theirs = zero.clone();
        let waiter = spawn(move || theirs.send_bulk(1, BULK, &[0; SMALL_MESSAGE], SOON))?;
        waiter.wait_asleep()?;
        echo(&zero, &one)?;
        send(&zero, &one, TAG, b"passes")?;
        expect(&one, &zero, TAG, b"passes")?;
        check!(!waiter.is_done());
        let mut buf = KVVec::from_elem(0, SMALL_MESSAGE, GFP_KERNEL)?;
        for _ in 0..SMALL_ROOM {
            receive(&one, Some(0), Some(BULK), &mut buf, SOON).here()?;
        }
        check_eq!(waiter.join()?, Ok(()));
        Ok(())
    }

    /// Its connection breaks, and the peer is up as before.
    #[test]
    fn break_is_nobody_s_business() -> Result {
        let cluster = opened()?;
        let (zero, one) = cluster.pair()?;
        let peer = zero.peer(1).ok_or(EINVAL)?;
        let announced = peer.announced();
        check!(announced.0 > 0);
        for number in 1..4 {
            break_once(&zero, &one, false)?;
            send_numbers(&zero, 1, number..number + 1)?;
            expect_numbers(&one, 0, BULK, number..number + 1)?;
        }
        check!(peer.is_up());
        check_eq!(epoch(&zero, 1), 1);
        check_eq!(peer.announced(), announced);
        Ok(())
    }

    /// Who must not wait does not wait for it to be opened.
    #[test]
    fn opening_is_waited_for() -> Result {
        const FUNC: u32 = 1;
        let cluster = Cluster::of(2)?;
        let (zero, one) = cluster.pair()?;
        let theirs = one.clone();
        let send = move || theirs.send_bulk(0, BULK, &0_u64.to_le_bytes(), SOON);
        let at = send.clone();
        register(&one, FUNC, Class::Short, move |_| {
            at().map_or_else(|e| -e.to_errno(), |()| 0)
        })?;
        check_eq!(call(&zero, 1, FUNC), Ok(-EDEADLK.to_errno()));
        open(&zero, &one)?;
        check_eq!(call(&zero, 1, FUNC), Ok(0));
        expect_numbers(&zero, 1, BULK, 0..1)?;
        // Not of a node that there is not.
        for dst in [1, 5] {
            check_eq!(one.send_bulk(dst, BULK, &[], SOON), Err(EINVAL));
        }
        let long = pattern(one.limits().max_message as usize + 1, 1)?;
        check_eq!(one.send_bulk(0, BULK, &long, SOON), Err(EMSGSIZE));
        Ok(())
    }

    #[test]
    fn opening_can_be_left_to_others() -> Result {
        let cluster = Cluster::of(2)?;
        let (zero, one) = cluster.pair()?;
        check_eq!(zero.send_bulk(1, BULK, &[], Timeout::NoWait), Err(EAGAIN));
        eventually(|| zero.send_bulk(1, BULK, &0_u64.to_le_bytes(), Timeout::NoWait) == Ok(()))?;
        expect_numbers(&one, 0, BULK, 0..1)
    }

    // ---- The end of the peer.

    /// Another incarnation begins anew, and hears nothing of what was said to the last.
    #[test]
    fn ends_with_the_session() -> Result {
        let mut cluster = Cluster::new(Plan::small(2))?;
        let (zero, one) = cluster.pair()?;
        check_eq!(fill(&zero)?, SMALL_ROOM);
        one.send_bulk(0, BULK, b"late", SOON).here()?;
        waiting(&zero, 1, 0)?;
        let theirs = zero.clone();
        let waiter = spawn(move || theirs.send_bulk(1, BULK, &[0; SMALL_MESSAGE], SOON))?;
        waiter.wait_asleep()?;
        drop(one);
        cluster.stop(1);
        check_eq!(waiter.join()?, Err(EHOSTDOWN));
        check_eq!(zero.send_bulk(1, BULK, &[], SOON), Err(EHOSTDOWN));
        cluster.start(1)?;
        cluster.connected()?;
        // What was there to be received is gone.
        waiting(&zero, 0, 0)?;
        let one = cluster.node(1)?;
        send_numbers(&zero, 1, 0..3)?;
        expect_numbers(&one, 0, BULK, 0..3)?;
        check_eq!(
            receive_number(&one, None, None, Timeout::NoWait),
            Err(EAGAIN)
        );
        send_numbers(&one, 0, 0..3)?;
        expect_numbers(&zero, 1, BULK, 0..3)
    }

    /// What was lost while the peer was down comes when it is back, once and in order.
    #[test]
    fn down_is_not_the_end() -> Result {
        const COUNT: u64 = 10;
        let cluster = Cluster::new(Plan::gated(2)?)?;
        for (from, to) in [(0, 1), (1, 0)] {
            let (sender, receiver) = (cluster.node(from)?, cluster.node(to)?);
            send_numbers(&sender, to, 0..1)?;
            expect_numbers(&receiver, from, BULK, 0..1)?;
            open(&sender, &receiver)?;
            let gate = cluster.gate(from)?;
            gate.set_mute(true);
            send_numbers(&sender, to, 1..COUNT)?;
            let peer = sender.peer(to).ok_or(EINVAL)?;
            sender.set_admin_down(peer, true);
            sees_down(&sender, to)?;
            gate.set_mute(false);
            // The other side has not been told.
            let other = receiver.peer(from).ok_or(EINVAL)?;
            receiver.disconnect(other, true);
            sees_lost(&receiver, from)?;
            sender.set_admin_down(peer, false);
            cluster.connected()?;
            expect_numbers(&receiver, from, BULK, 1..COUNT)?;
            let more = receive_number(&receiver, None, None, Timeout::NoWait);
            check_eq!(more, Err(EAGAIN));
        }
        Ok(())
    }

    /// What was sent before a good-bye is read, although that comes over the other connection.
    #[test]
    fn outlives_its_sender() -> Result {
        const COUNT: usize = 8;
        const LEN: usize = 16 << 10;
        let mut cluster = Cluster::new(Plan::gated(2)?)?;
        let (zero, one) = cluster.pair()?;
        send_numbers(&one, 0, 0..1)?;
        open(&zero, &one)?;
        let gate = cluster.gate(0)?;
        // Read slowly, so that the good-bye comes first.
        gate.set_drag(20);
        let message = pattern(LEN, 1)?;
        for _ in 0..COUNT {
            one.send_bulk(0, BULK, &message, SOON).here()?;
        }
        // TCP has it all.
        eventually(|| snapshot(&one, 0).is_ok_and(|s| s.unsent == 0))?;
        let at = zero.clone();
        let receiver = spawn(move || {
            let mut buf = KVVec::from_elem(0, LEN, GFP_KERNEL)?;
            let mut received = 0;
            loop {
                match receive(&at, Some(1), Some(BULK), &mut buf, SOON) {
                    Ok(_) => received += 1,
                    Err(e) => return Ok::<_, Error>((received, e)),
                }
            }
        })?;
        drop(one);
        cluster.stop(1);
        sees_down(&zero, 1)?;
        gate.set_drag(0);
        // Who waits gets it all, and is told then.
        check_eq!(receiver.join()??, (1 + COUNT, EHOSTDOWN));
        eventually(|| snapshot(&zero, 1).is_ok_and(|s| s.session == 0))?;
        let late = receive(&zero, Some(1), None, &mut [], SOON);
        check_eq!(late, Err(EHOSTDOWN));
        Ok(())
    }

    /// It is not there for itself: where nothing comes over the main channel, or a good-bye, the peer is
    /// down, whatever comes over this one.
    #[test]
    fn main_channel_says_who_is_up() -> Result {
        for bye in [None, Some(Bye::Stopping)] {
            let (cluster, node, me) = with_client(|limits| {
                limits.dead_ms = 400 * SLOWNESS as u32;
            })?;
            let main = Client::join(&cluster, &me, 1)?;
            let is_up = || node.peer(0).is_some_and(|p| p.is_up());
            eventually(is_up)?;
            let second = join(&cluster, &me)?;
            if let Some(bye) = bye {
                main.say(&main.frame(Header::Bye(bye)))?;
            }
            eventually(|| {
                let _ = second.tell(&second.frame(PING));
                !is_up() && second.is_closed()
            })?;
            eventually(|| node.peer(0).is_some_and(|p| !p.may_be_heard()))?;
            let late = Client::connect(cluster.ip(0), cluster.addr(1))?;
            late.say(&hello::hello(&me, 1, Channel::Bulk, anew(&me)))?;
            check_eq!(late.answer(&me, 1)?, Some(Refusal::Early));
        }
        Ok(())
    }

    /// Both are taken away and given back while they are being opened.
    #[test]
    fn administrator_is_in_a_hurry() -> Result {
        const ROUNDS: u32 = often(200) as u32;
        let cluster = Cluster::of(2)?;
        let (zero, one) = cluster.pair()?;
        let stop = Arc::new(Atomic::new(false), GFP_KERNEL)?;
        let mut jobs = KVec::new();
        for (from, to) in [(&zero, 1), (&one, 0)] {
            let (from, stop) = (from.clone(), stop.clone());
            let job = spawn(move || {
                while !stop.load(Relaxed) {
                    match from.send_bulk(to, BULK + 1, &[], Timeout::After(5)) {
                        Ok(()) => {}
                        Err(e) if e == EHOSTDOWN || e == ETIMEDOUT => pause(1),
                        Err(e) => return Err(e).here(),
                    }
                }
                Ok(())
            })?;
            jobs.push(job, GFP_KERNEL)?;
        }
        for (node, other) in [(&zero, 1), (&one, 0)] {
            let (node, stop) = (node.clone(), stop.clone());
            let job = spawn(move || {
                let peer = node.peer(other).ok_or(EINVAL)?;
                while !stop.load(Relaxed) {
                    node.set_admin_down(peer, true);
                    pause(1);
                    node.set_admin_down(peer, false);
                    pause(3);
                }
                Ok(())
            })?;
            jobs.push(job, GFP_KERNEL)?;
        }
        for _ in 0..ROUNDS {
            for (node, other) in [(&zero, 1), (&one, 0)] {
                let peer = node.peer(other).ok_or(EINVAL)?;
                node.set_admin_down(peer, true);
                node.set_admin_down(peer, false);
            }
            pause(2);
        }
        stop.store(true, Relaxed);
        for job in jobs {
            job.join()??;
        }
        // The last of it may still be under way.
        for (from, to) in [(&zero, &one), (&one, &zero)] {
            let number = &0_u64.to_le_bytes();
            eventually(|| from.send_bulk(to.id(), BULK, number, Timeout::After(20)) == Ok(()))?;
            let received = || receive_number(to, Some(from.id()), Some(BULK), Timeout::NoWait);
            eventually(|| received() == Ok(0))?;
        }
        cluster.connected()?;
        open(&zero, &one)
    }

    /// With several listeners, and peers that are restarted while much is under way: each gets what was
    /// for it alone, whatever becomes of the rest.
    #[test]
    fn restarts_with_much_under_way() -> Result {
        const ROUNDS: u64 = often(20);
        let mut plan = Plan::of(2);
        plan.limits.listeners = 3;
        let mut cluster = Cluster::new(plan)?;
        let zero = cluster.node(0)?;
        let stop = Arc::new(Atomic::new(false), GFP_KERNEL)?;
        for round in 0..ROUNDS.max(3) {
            let one = cluster.node(1)?;
            stop.store(false, Relaxed);
            let (from, until) = (one.clone(), stop.clone());
            let run = round.to_le_bytes();
            let sender = spawn(move || {
                while !until.load(Relaxed) {
                    if from.send_bulk(0, BULK, &run, SOON).is_err() {
                        break;
                    }
                }
            })?;
            // All that comes is of this round, from the first message on.
            for _ in 0..100 {
                check_eq!(receive_number(&zero, Some(1), Some(BULK), SOON), Ok(round));
            }
            drop(one);
            let running = cluster.take(1);
            stop.store(round % 2 == 0, Relaxed);
            drop(running);
            stop.store(true, Relaxed);
            sender.join()?;
            cluster.start(1)?;
            cluster.connected()?;
        }
        waiting(&zero, 0, 0)
    }

    /// The administrator takes both away, and gives both back.
    #[test]
    fn goes_with_the_administrator() -> Result {
        let cluster = opened()?;
        for (from, to) in [(0, 1), (1, 0)] {
            let (node, other) = (cluster.node(from)?, cluster.node(to)?);
            let peer = node.peer(to).ok_or(EINVAL)?;
            node.set_admin_down(peer, true);
            sees_down(&node, to)?;
            sees_down(&other, from)?;
            check_eq!(node.send_bulk(to, BULK, &[], SOON), Err(EHOSTDOWN));
            eventually(|| {
                let lost = |at: &Node, to| snapshot(at, to).is_ok_and(|s| s.epoch == 0);
                lost(&node, to) && lost(&other, from)
            })?;
            node.set_admin_down(peer, false);
            cluster.connected()?;
            open(&node, &other)?;
            send_numbers(&node, to, 0..1)?;
            expect_numbers(&other, from, BULK, 0..1)?;
        }
        Ok(())
    }

    /// A node is stopped while somebody waits for the channel to one that does not open it.
    #[test]
    fn stops_while_it_is_waited_for() -> Result {
        let (mut cluster, node, me) = with_client(|_| {})?;
        let client = Client::join(&cluster, &me, 1)?;
        eventually(|| node.peer(0).is_some_and(|p| p.is_up()))?;
        let theirs = node.clone();
        let waiter = spawn(move || theirs.send_bulk(0, BULK, &[], SOON))?;
        client.wait_for(Header::Open)?;
        waiter.wait_asleep()?;
        drop(node);
        cluster.stop(1);
        check_eq!(waiter.join()?, Err(ESHUTDOWN));
        Ok(())
    }

    /// What an incarnation that is over still says there is not heard.
    #[test]
    fn earlier_incarnation_is_not_heard() -> Result {
        let (cluster, node, me) = with_client(|_| {})?;
        let is_up = || node.peer(0).is_some_and(|p| p.is_up());
        let main = Client::join(&cluster, &me, 1)?;
        eventually(is_up)?;
        let second = join(&cluster, &me)?;
        second.say(&second.frame(Header::Message { tag: BULK, len: 0 }))?;
        waiting(&node, 1, 0)?;
        drop(main);
        sees_lost(&node, 0)?;
        // The other connection is there as before, until the new one is heard.
        second.say(&second.frame(Header::Message { tag: BULK, len: 0 }))?;
        waiting(&node, 2, 0)?;
        let main = Client::join(&cluster, &cluster.stranger(0, 78)?, 1)?;
        waiting(&node, 0, 0)?;
        let _ = second.tell(&second.frame(Header::Message { tag: BULK, len: 0 }));
        second.wait_closed()?;
        main.say(&main.frame(Header::Message { tag: TAG, len: 0 }))?;
        waiting(&node, 1, 0)
    }

    /// Another incarnation is there while the last one still speaks: nothing of that comes behind it.
    #[test]
    fn restart_in_the_middle_of_a_flood() -> Result {
        const ROUNDS: u64 = often(200);
        let (cluster, node, _) = with_client(|_| {})?;
        let mut main = Client::join(&cluster, &cluster.stranger(0, 1)?, 1)?;
        for run in 1..ROUNDS.max(3) {
            eventually(|| {
                let peer = node.peer(0);
                peer.is_some_and(|p| p.is_up() && p.snapshot().incarnation == run)
            })?;
            let second = join(&cluster, &cluster.stranger(0, run)?)?;
            let spoken = Arc::new(Atomic::new(0), GFP_KERNEL)?;
            let count = spoken.clone();
            let speaker = spawn(move || {
                let message = Header::Message { tag: BULK, len: 0 };
                while !second.is_closed() && count.load(Relaxed) < 100_000 {
                    let mut bytes = KVVec::new();
                    for _ in 0..100 {
                        bytes.extend_from_slice(&second.frame(message), GFP_KERNEL)?;
                    }
                    if second.tell(&bytes).is_err() {
                        break;
                    }
                    count.fetch_add(100, Relaxed);
                }
                Ok::<_, Error>(())
            })?;
            eventually(|| spoken.load(Relaxed) >= 1000)?;
            drop(main);
            main = Client::join(&cluster, &cluster.stranger(0, run + 1)?, 1)?;
            speaker.join()??;
            eventually(|| snapshot(&node, 0).is_ok_and(|s| s.epoch == 0))?;
            waiting(&node, 0, 0)?;
        }
        Ok(())
    }

    // ---- What a peer must not say.

    /// There is none without a session on the main channel, and none is asked for by who connects.
    #[test]
    fn comes_after_the_main_channel() -> Result {
        let (cluster, node, me) = with_client(|_| {})?;
        let early = Client::connect(cluster.ip(0), cluster.addr(1))?;
        early.say(&hello::hello(&me, 1, Channel::Bulk, anew(&me)))?;
        check_eq!(early.answer(&me, 1)?, Some(Refusal::Early));
        early.wait_closed()?;
        let main = Client::join(&cluster, &me, 1)?;
        eventually(|| node.peer(0).is_some_and(|p| p.is_up()))?;
        // Nor for another incarnation than that which is there.
        let other = cluster.stranger(0, 78)?;
        let wrong = Client::connect(cluster.ip(0), cluster.addr(1))?;
        wrong.say(&hello::hello(&other, 1, Channel::Bulk, anew(&other)))?;
        check_eq!(wrong.answer(&other, 1)?, Some(Refusal::Early));
        let second = join(&cluster, &me)?;
        second.say(&second.frame(Header::Call { func: 1, len: 0 }))?;
        second.wait_for(Header::Bye(Bye::Protocol))?;
        check!(node.peer(0).is_some_and(|p| p.is_up()));
        main.say(&main.frame(Header::Open))?;
        main.wait_for(Header::Bye(Bye::Protocol))?;
        main.wait_closed()?;
        Ok(())
    }
}
